//! Who wants no mail gets none: by one click, by what providers tell, by what the product says.

use acceptance::{Answer, Client, id_of};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};

use super::{HOOK_KEY, PUBLIC_URL, Post, judge, parsed, to};

async fn why_not(post: &Post, email: &Value) -> Option<String> {
    let id = post.mail(email).await;
    let job = post.shop.ended(&id).await;
    job["error"]["code"].as_str().map(str::to_owned)
}

fn of(category: &str, address: &str) -> Value {
    let mut email = to(address);
    email["category"] = json!(category);
    email["unsubscribe"] = json!(true);
    email
}

const NO_MORE: Option<&str> = Some("recipient_suppressed");

#[tokio::test]
async fn one_click_unsubscribes_and_looking_does_not() {
    let post = Post::start().await;
    post.shop.succeeded(&post.mail(&of("news", "ada@example.com")).await).await;
    let said = parsed(&post.arrived("ada@example.com")[0]);
    assert_eq!(said["headers"]["list-unsubscribe-post"], "List-Unsubscribe=One-Click");
    let link = said["headers"]["list-unsubscribe"].as_str().unwrap().trim_matches(['<', '>']).to_owned();
    let path = link.strip_prefix(PUBLIC_URL).unwrap().to_owned();
    let anybody = post.shop.without_key();

    // Programs that look through mails follow every link, and more than once.
    for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
        anybody.send(anybody.request(method, &path)).await;
    }
    let page = anybody.get(&path).await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(
        page.text().contains("<form method=\"post\">") && page.text().contains("news") && page.text().contains("shop"),
        "{}",
        page.text()
    );
    assert!(!page.text().contains("ada"), "no address is shown");
    assert!(page.header("content-security-policy").contains("form-action 'self'"));
    assert_eq!(why_not(&post, &of("news", "ada@example.com")).await, None, "nothing has changed");

    // As a mail program does (RFC 8058, section 3.2), and once more by the page's button.
    let click = |path: &str| {
        anybody.request(Method::POST, path).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body("List-Unsubscribe=One-Click")
    };
    for _ in 0..2 {
        let answer = anybody.send(click(&path)).await;
        assert!(answer.status == 200 && answer.text().contains("You are unsubscribed"), "{}", answer.text());
    }
    assert_eq!(why_not(&post, &of("news", "Ada@Example.com")).await.as_deref(), NO_MORE);
    assert_eq!(why_not(&post, &of("orders", "ada@example.com")).await, None, "other sorts still come");
    assert_eq!(why_not(&post, &of("news", "eve@example.com")).await, None, "and to others too");
    let found = post.shop.get("/v1/suppressions?email=ada@example.com").await.expect(200);
    assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!((&found["items"][0]["category"], &found["items"][0]["reason"]), (&json!("news"), &json!("unsubscribe")), "{found}");

    // Nobody makes an address of their own.
    for wrong in [&path[..path.len() - 4], "/u/x", "/u/AAAA", &format!("{path}A")] {
        assert_eq!(anybody.send(click(wrong)).await.status, 404, "{wrong}");
        assert_eq!(anybody.get(wrong).await.status, 404, "{wrong}");
    }
    assert!(!post.world.api.log().contains(path.trim_start_matches("/u/")), "the address is not logged");
}

#[tokio::test]
async fn a_product_says_who_gets_none_and_who_does_again() {
    let post = Post::start().await;
    let suppress = async |client: &Client, body: Value| client.post("/v1/suppressions", &body).await;
    let first = suppress(&post.shop, json!({"email": "ada@example.com", "detail": "from the old list"})).await.expect(201);
    assert_eq!((&first["reason"], &first["category"]), (&json!("manual"), &Value::Null), "{first}");
    let again = suppress(&post.shop, json!({"email": "ADA@example.com", "reason": "complaint"})).await.expect(200);
    assert_eq!(
        (id_of(&again), &again["reason"]),
        (id_of(&first), &json!("complaint")),
        "the first one stands, for a graver reason: {again}"
    );
    let again = suppress(&post.shop, json!({"email": "ada@example.com", "reason": "manual"})).await.expect(200);
    assert_eq!((id_of(&again), &again["reason"]), (id_of(&first), &json!("complaint")), "{again}");
    suppress(&post.shop, json!({"email": "eve@example.com", "category": "news"})).await.expect(201);
    assert_eq!(why_not(&post, &of("orders", "ada@example.com")).await.as_deref(), NO_MORE);
    assert_eq!(why_not(&post, &of("news", "eve@example.com")).await.as_deref(), NO_MORE);
    assert_eq!(why_not(&post, &of("orders", "eve@example.com")).await, None);

    // Another product's list is another list.
    let other = &post.world.client;
    assert_eq!(other.get("/v1/suppressions?email=ada@example.com").await.expect(200)["items"], json!([]));
    let lift = |client: &Client, id: &str| client.request(Method::DELETE, &format!("/v1/suppressions/{id}"));
    other.send(lift(other, &id_of(&first))).await.problem(404, "suppression_not_found");
    assert_eq!(post.shop.send(lift(&post.shop, &id_of(&first))).await.status, 204);
    post.shop.send(lift(&post.shop, &id_of(&first))).await.problem(404, "suppression_not_found");
    assert_eq!(why_not(&post, &of("orders", "ada@example.com")).await, None);

    for (body, pointer) in [
        (json!({"email": "no"}), "/email"),
        (json!({"email": "ada@example.com", "category": "No!"}), "/category"),
        (json!({"email": "ada@example.com", "detail": "eve@example.com said so"}), "/detail"),
    ] {
        let answer = suppress(&post.shop, body).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer]);
    }
    post.shop.get("/v1/suppressions").await.problem(400, "query_invalid");
    post.shop.acting_for("ada").get("/v1/suppressions?email=ada@example.com").await.problem(403, "backend_only");
    assert_eq!(post.world.number("SELECT count(*) FROM suppression s WHERE s::text LIKE '%example%'").await, 0, "no address is kept");
}

/// A signature by the library of the specification's authors.
fn signature(id: &str, timestamp: i64, body: &str) -> String {
    let script = "import datetime, sys\n\
        from standardwebhooks import Webhook\n\
        secret, id, timestamp = sys.argv[1:]\n\
        print(Webhook(secret).sign(id, datetime.datetime.fromtimestamp(int(timestamp), datetime.timezone.utc), sys.stdin.read()), end='')";
    String::from_utf8(judge(&["standardwebhooks==1.1.0"], script, &[HOOK_KEY, id, &timestamp.to_string()], body.as_bytes())).unwrap()
}

async fn hook(post: &Post, tenant: &str, timestamp: i64, body: &str, signature: &str) -> Answer {
    let nobody = post.shop.without_key();
    let request = nobody.request(Method::POST, &format!("/v1/hooks/mail/signed/{tenant}"));
    let request = request.header("webhook-id", "evt_1").header("webhook-timestamp", timestamp).header("webhook-signature", signature);
    nobody.send(request.header(CONTENT_TYPE, "application/json").body(body.to_owned())).await
}

#[tokio::test]
async fn what_a_provider_tells_is_heeded_when_it_is_proved() {
    let post = Post::start().await;
    let now = post.clock.now().timestamp();
    let body = json!({"type": "bounce", "email": "ada@example.com"}).to_string();
    let signed = signature("evt_1", now, &body);
    for (tenant, timestamp, body, signature) in [
        ("shop", now, body.as_str(), "v1,AAAA"),
        ("shop", now, body.as_str(), ""),
        ("shop", now + 1, body.as_str(), signed.as_str()),
        ("shop", now, "{\"type\": \"bounce\", \"email\": \"eve@example.com\"}", signed.as_str()),
        ("acme", now, body.as_str(), signed.as_str()),
        ("nobody", now, body.as_str(), signed.as_str()),
    ] {
        hook(&post, tenant, timestamp, body, signature).await.problem(401, "signature_invalid");
    }
    for old in [now - 301, now + 301] {
        hook(&post, "shop", old, &body, &signature("evt_1", old, &body)).await.problem(401, "signature_invalid");
    }
    assert_eq!(post.world.number("SELECT count(*) FROM suppression").await, 0);
    for _ in 0..2 {
        assert_eq!(hook(&post, "shop", now, &body, &signed).await.status, 204);
    }
    assert_eq!(why_not(&post, &of("orders", "ada@example.com")).await.as_deref(), NO_MORE);
    // A complaint counts for more than that: who lifts it has to know.
    let complaint = json!({"type": "complaint", "email": "ada@example.com"}).to_string();
    assert_eq!(hook(&post, "shop", now, &complaint, &signature("evt_1", now, &complaint)).await.status, 204);
    let kept = post.shop.get("/v1/suppressions?email=ada@example.com").await.expect(200);
    assert_eq!((kept["items"].as_array().unwrap().len(), &kept["items"][0]["reason"]), (1, &json!("complaint")), "{kept}");
    let nonsense = "{\"type\": \"opened\", \"email\": \"ada@example.com\"}";
    hook(&post, "shop", now, nonsense, &signature("evt_1", now, nonsense)).await.problem(422, "validation_failed");

    // Postmark's, with a key that can do nothing else.
    let complaint = json!({
        "RecordType": "SpamComplaint", "MessageStream": "outbound", "ID": 42, "Type": "SpamComplaint", "TypeCode": 512, "Name": "Spam complaint",
        "Email": "eve@example.com", "From": "no-reply@shop.example", "BouncedAt": "2026-11-20T16:33:54.9070259Z", "Inactive": true,
    });
    let key = post.world.sandbox.create_key("shop", "postmark", "hooks:write").await.unwrap();
    let postmark = post.shop.with_key(&key);
    assert_eq!(postmark.post("/v1/hooks/mail/postmark", &complaint).await.status, 204);
    postmark.get("/v1/suppressions?email=eve@example.com").await.problem(403, "scope_missing");
    assert_eq!(why_not(&post, &of("orders", "eve@example.com")).await.as_deref(), NO_MORE);
    let soft = json!({"RecordType": "Bounce", "Type": "SoftBounce", "Email": "bob@example.com"});
    assert_eq!(postmark.post("/v1/hooks/mail/postmark", &soft).await.status, 204);
    assert_eq!(why_not(&post, &of("orders", "bob@example.com")).await, None);
    assert_eq!(post.world.number("SELECT count(*) FROM suppression s WHERE s::text LIKE '%example%'").await, 0, "no address is kept");
}
