//! Pages that call from a browser: those that the product lists, and no other.

use acceptance::{Answer, Client, World, probe};
use reqwest::Method;
use serde_json::json;

const APP: &str = "https://app.initech.example";

fn manifest(name: &str, origin: &str) -> String {
    format!("[tenant]\nname = \"{name}\"\n[web]\norigins = [\"{origin}\", \"http://localhost:3000\"]\n")
}

async fn preflight(client: &Client, path: &str, origin: &str) -> Answer {
    let client = client.without_key();
    let request = client.request(Method::OPTIONS, path).header("Origin", origin);
    client.send(request.header("Access-Control-Request-Method", "GET").header("Access-Control-Request-Headers", "authorization")).await
}

fn opened(answer: &Answer) -> &str {
    answer.header("access-control-allow-origin")
}

fn varies(answer: &Answer) -> bool {
    answer
        .headers
        .get_all("vary")
        .iter()
        .any(|value| value.to_str().unwrap().to_ascii_lowercase().split(',').any(|name| name.trim() == "origin"))
}

#[tokio::test]
async fn a_browser_may_call_from_the_products_own_pages() {
    let world = World::start().await;
    let initech = world.tenant_of("initech", &manifest("initech", APP)).await;
    let globex = world.tenant_of("globex", &manifest("globex", "https://globex.example")).await;
    let job = initech.acting_for("ada").create_id(&probe(&json!({}))).await;

    let asked = preflight(&initech, "/v1/jobs", APP).await;
    assert_eq!((asked.status, opened(&asked), asked.body.len()), (204, APP, 0));
    assert!(asked.header("access-control-allow-headers").contains("authorization") && varies(&asked));
    assert!(asked.header("access-control-allow-methods").contains("POST"));
    assert!(!asked.headers.contains_key("access-control-allow-credentials"));
    for stranger in ["https://evil.example", "https://app.initech.example.evil.example", "http://app.initech.example", "null", ""] {
        let asked = preflight(&initech, "/v1/jobs", stranger).await;
        assert_eq!((asked.status, opened(&asked)), (204, ""), "{stranger}");
        assert!(varies(&asked), "{stranger}");
    }

    let token = initech.post("/v1/tokens", &json!({"user": "ada"})).await.expect(201)["token"].as_str().unwrap().to_owned();
    let ada = initech.with_key(&token);
    let get =
        async |client: &Client, path: &str, origin: &str| client.send(client.request(Method::GET, path).header("Origin", origin)).await;
    let shown = get(&ada, &format!("/v1/jobs/{job}"), APP).await;
    assert_eq!((shown.status, opened(&shown)), (200, APP));
    for name in ["etag", "location", "retry-after"] {
        assert!(shown.header("access-control-expose-headers").contains(name), "{name}");
    }
    // What another product lists opens nothing here, although its preflight was answered.
    assert_eq!(opened(&preflight(&initech, "/v1/jobs", "https://globex.example").await), "https://globex.example");
    let shown = get(&ada, "/v1/jobs", "https://globex.example").await;
    assert_eq!((shown.status, opened(&shown)), (200, ""));
    assert!(varies(&shown));
    assert_eq!(opened(&get(&globex, "/v1/jobs", "https://globex.example").await), "https://globex.example");
    // A page must be able to read that its token is over, and what it asked for wrongly.
    let refused = get(&initech.with_key("a.b.c"), "/v1/jobs", APP).await;
    refused.problem(401, "token_invalid");
    assert_eq!(opened(&refused), APP);
    let refused = get(&ada, "/v1/queues", APP).await;
    refused.problem(403, "token_not_allowed");
    assert_eq!((opened(&refused), varies(&refused)), (APP, true));
    let missing = get(&ada, "/v1/nothing", APP).await;
    missing.problem(404, "route_not_found");
    assert_eq!(opened(&missing), APP);
    // Who comes from no page is told that it would depend.
    assert!(varies(&ada.get("/v1/jobs").await));
    // Addresses for anybody stay open to anybody.
    let link = initech.acting_for("ada").post_nothing(&format!("/v1/jobs/{job}/links")).await.expect(201);
    let path = link["url"].as_str().unwrap();
    assert_eq!(opened(&get(&initech.without_key(), path, "https://evil.example").await), "*");
}
