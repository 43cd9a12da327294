//! End users: put, followed, told, erased; and their browsers.

mod erasure;
mod inbox;
mod origins;

use acceptance::World;
use serde_json::{Value, json};

#[tokio::test]
async fn a_user_is_what_was_put_last() {
    let world = World::start().await;
    let client = &world.client;
    client.get("/v1/users/ada").await.problem(404, "user_not_found");
    let ada = json!({
        "email": "ada@example.com", "name": "Ada Lovelace", "time_zone": "europe/london", "locale": "en-gb",
        "roles": ["moderator", "author"], "channels": {"push": false},
    });
    let answer = client.put("/v1/users/ada", &ada).await;
    let first = answer.expect(201);
    assert_eq!(answer.header("location"), "/v1/users/ada");
    assert_eq!(client.get("/v1/users/ada").await.expect(200), first);
    let shown: Vec<_> = ["id", "email", "name", "time_zone", "locale", "roles", "channels"].map(|field| first[field].clone()).to_vec();
    assert_eq!(
        Value::from(shown),
        json!(["ada", "ada@example.com", "Ada Lovelace", "Europe/London", "en-GB", ["author", "moderator"], {"push": false, "email": true}])
    );
    // What is left out is gone.
    let second = client.put("/v1/users/ada", &json!({"roles": ["author"]})).await.expect(200);
    assert_eq!((&second["email"], &second["roles"], &second["channels"]["push"]), (&Value::Null, &json!(["author"]), &json!(true)));
    assert_eq!(second["created_at"], first["created_at"]);
    assert_eq!(world.number("SELECT count(*) FROM end_user_role").await, 1);
    // Names hold what can be seen.
    let answer = client.put("/v1/users/zo%C3%AB%2F%7C+%3F", &json!({})).await;
    assert_eq!(answer.expect(201)["id"], "zo\u{eb}/|+?");
    assert_eq!(client.get(answer.header("location")).await.expect(200)["id"], "zo\u{eb}/|+?");
    client.get("/v1/users/a%20b").await.problem(404, "user_not_found");
    let wrong =
        client.put("/v1/users/ada", &json!({"email": "a, b@example.com", "time_zone": "Mars", "locale": "x", "roles": ["A"]})).await;
    wrong.problem(422, "validation_failed");
    assert_eq!(wrong.pointers(), ["/email", "/locale", "/roles", "/time_zone"]);
    let wrong = client.put("/v1/users/ada", &json!({"mail": "ada@example.com"})).await;
    assert_eq!((wrong.status, wrong.pointers()), (422, vec!["/mail".to_owned()]));
    // Another product's are others.
    let globex = world.tenant("globex").await;
    globex.get("/v1/users/ada").await.problem(404, "user_not_found");
    globex.put("/v1/users/ada", &json!({})).await.expect(201);
    assert_eq!(client.get("/v1/users/ada").await.expect(200)["roles"], json!(["author"]));
    client.acting_for("ada").get("/v1/users/ada").await.problem(403, "backend_only");
}

#[tokio::test]
async fn two_who_put_the_same_user_leave_one_of_the_two() {
    let world = World::start().await;
    let put = async |role: &str| {
        let client = world.client.clone();
        for _ in 0..20 {
            let answer = client.put("/v1/users/ada", &json!({"name": role, "roles": [role]})).await;
            assert!([200, 201].contains(&answer.status), "{}", answer.text());
        }
    };
    tokio::join!(put("one"), put("two"), put("three"));
    let ada = world.client.get("/v1/users/ada").await.expect(200);
    assert_eq!(ada["roles"], json!([ada["name"]]), "what one request said, as a whole");
}

#[tokio::test]
async fn users_follow_users() {
    let world = World::start().await;
    let client = &world.client;
    for user in ["ada", "bob"] {
        client.put(&format!("/v1/users/{user}"), &json!({})).await.expect(201);
    }
    let follow = async |path: &str| client.send(client.request(reqwest::Method::PUT, path)).await;
    for _ in 0..2 {
        assert_eq!(follow("/v1/users/ada/follows/bob").await.status, 204);
    }
    assert_eq!(world.text("SELECT follower || '>' || followed FROM follow").await, "ada>bob");
    follow("/v1/users/ada/follows/eve").await.problem(404, "user_not_found");
    follow("/v1/users/eve/follows/ada").await.problem(404, "user_not_found");
    follow("/v1/users/ada/follows/ada").await.problem(422, "validation_failed");
    for _ in 0..2 {
        assert_eq!(client.delete("/v1/users/ada/follows/bob").await.status, 204);
    }
    assert_eq!(world.number("SELECT count(*) FROM follow").await, 0);
}

#[tokio::test]
async fn a_users_preferences_are_their_own_words() {
    let world = World::start().await;
    let token = world.client.post("/v1/tokens", &json!({"user": "ada"})).await.expect(201)["token"].as_str().unwrap().to_owned();
    let (ada, path) = (world.client.with_key(&token), "/v1/users/ada/preferences");
    assert_eq!(ada.get(path).await.expect(200), json!({"categories": {}}));
    let said = json!({"categories": {"comment": {"email": false, "push": true}, "digest": {"in_app": false}, "like": {}}});
    ada.put(path, &said).await.expect(200);
    let kept = world.client.get(path).await.expect(200);
    assert_eq!(
        kept,
        json!({"categories": {
            "comment": {"in_app": null, "push": true, "email": false}, "digest": {"in_app": false, "push": null, "email": null},
        }})
    );
    world.client.acting_for("ada").put(path, &json!({"categories": {"digest": {"email": true}}})).await.expect(200);
    assert_eq!(ada.get(path).await.expect(200)["categories"].as_object().unwrap().len(), 1, "as a whole");
    ada.get("/v1/users/eve/preferences").await.problem(404, "user_not_found");
    ada.put("/v1/users/eve/preferences", &json!({"categories": {}})).await.problem(404, "user_not_found");
    let wrong = ada.put(path, &json!({"categories": {"A b": {"sms": true}}})).await;
    assert_eq!((wrong.status, wrong.pointers()), (422, vec!["/categories/A b/sms".to_owned()]));
    // Two at a time leave what one of them said.
    let put = async |category: &str| {
        for _ in 0..15 {
            ada.put(path, &json!({"categories": {category: {"push": true}}})).await.expect(200);
        }
    };
    tokio::join!(put("one"), put("two"));
    assert_eq!(ada.get(path).await.expect(200)["categories"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn tokens_are_made_for_what_can_be() {
    let world = World::start().await;
    let wrong = world.client.post("/v1/tokens", &json!({"user": "a b", "scopes": ["jobs:write"], "expires_in_seconds": 59})).await;
    wrong.problem(422, "validation_failed");
    assert_eq!(wrong.pointers(), ["/expires_in_seconds", "/scopes/0", "/user"]);
    world.client.acting_for("ada").post("/v1/tokens", &json!({"user": "ada"})).await.problem(403, "backend_only");
    // Without a key to sign with nobody signs, and nothing is taken for signed.
    let keyless = World::start_with(sandbox::Launch::new().env("OFFSTAGE_TOKEN_KEYS", "")).await;
    keyless.client.post("/v1/tokens", &json!({"user": "ada"})).await.problem(403, "tokens_not_enabled");
    let token = world.client.post("/v1/tokens", &json!({"user": "ada"})).await.expect(201)["token"].as_str().unwrap().to_owned();
    keyless.client.with_key(&token).get("/v1/jobs").await.problem(401, "token_invalid");
}
