//! Users' tokens: which doors they open, and when they end.

use std::time::Duration;

use acceptance::{World, id_of, probe, until_within};
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::json;

use super::{DOORS, Walk, exporting_tenant, knock};

/// The doors that open to a user's token. It gets 403 at every other one that is not open to everybody.
const OF_TOKENS: &[(&str, &str)] = &[
    ("get", "/v1/jobs"),
    ("get", "/v1/jobs/{id}"),
    ("get", "/v1/jobs/{id}/events"),
    ("get", "/v1/jobs/{id}/stream"),
    ("get", "/v1/events"),
    ("get", "/v1/exports"),
    ("get", "/v1/exports/{id}"),
    ("get", "/v1/exports/{id}/download"),
    ("get", "/v1/notifications"),
    ("get", "/v1/notifications/events"),
    ("post", "/v1/notifications/read"),
    ("post", "/v1/notifications/{id}/read"),
    ("post", "/v1/notifications/{id}/clicked"),
    ("post", "/v1/notifications/{id}/archived"),
    ("get", "/v1/users/{id}/preferences"),
    ("put", "/v1/users/{id}/preferences"),
    ("get", "/v1/push/key"),
    ("post", "/v1/push/subscriptions"),
    ("delete", "/v1/push/subscriptions"),
    ("get", "/v1/analytics"),
    ("get", "/v1/analytics/{metric}"),
    ("get", "/v1/analytics/views/{view}"),
    ("get", "/v1/feed"),
    ("get", "/v1/byok"),
    ("get", "/v1/byok/{provider}"),
    ("put", "/v1/byok/{provider}"),
    ("delete", "/v1/byok/{provider}"),
    ("post", "/v1/byok/{provider}/test"),
    ("get", "/v1/usage"),
    ("get", "/v1/ai/usage"),
];

#[tokio::test]
async fn a_users_token_opens_what_is_its_users_own_and_nothing_else() {
    let (world, _worker) = World::with_worker().await;
    let owner = exporting_tenant(&world, "initech").await;
    let mut users = Vec::new();
    for user in ["ada", "eve"] {
        let client = owner.acting_for(user);
        let job = client.create_id(&probe(&json!({}))).await;
        let export = id_of(&client.post("/v1/exports", &json!({"dataset": "words", "format": "csv"})).await.expect(202));
        client.succeeded(&job).await;
        client.succeeded(&export).await;
        let notification = id_of(&client.get("/v1/notifications").await.expect(200)["items"][0]);
        users.push((job, export, notification));
    }
    let made = owner.post("/v1/tokens", &json!({"user": "ada"})).await.expect(201);
    let all = [
        "jobs:read",
        "exports:read",
        "notifications:read",
        "notifications:write",
        "pushes:read",
        "pushes:write",
        "feeds:read",
        "byok:read",
        "byok:write",
        "analytics:read",
        "usage:read",
    ];
    assert_eq!(made["scopes"], json!(all));
    let ada = owner.with_key(made["token"].as_str().unwrap());
    for (method, path, walk, _) in DOORS {
        for (whose, (job, export, notification)) in users.iter().enumerate() {
            let id = match walk {
                Walk::Export => export.as_str(),
                Walk::Notification => notification,
                Walk::Preferences => ["ada", "eve"][whose],
                _ => job,
            };
            let is_open = OF_TOKENS.contains(&(*method, *path));
            let context = format!("{method} {path}");
            if is_open && matches!(walk, Walk::Stream | Walk::Inbox) {
                let mut stream = ada.events(path, None).await;
                let first = stream.must("a first event").await;
                assert!(["snapshot", "inbox"].contains(&first.name.as_str()), "{context}: {first:?}");
                continue;
            }
            let answer = knock(&ada, method, path, *walk, id).send().await.unwrap();
            let status = answer.status().as_u16();
            match walk {
                Walk::Open => assert_eq!(status, 200, "{context}"),
                Walk::Address => assert_eq!(status, 404, "{context}"),
                // Whoever can sign, whatever else they send.
                Walk::Signed => assert_eq!(status, 401, "{context}"),
                _ if !is_open => {
                    let answer = ada.send(knock(&ada, method, path, *walk, id)).await;
                    answer.problem(403, "token_not_allowed");
                }
                Walk::List => {
                    let text = answer.text().await.unwrap();
                    let (_, hers, _) = &users[1];
                    assert!(status == 200 && !text.contains(hers.as_str()) && !text.contains(users[1].0.as_str()), "{context}: {text}");
                }
                // Let in, with nothing that is a browser, or a key.
                Walk::Own => assert!([404, 422].contains(&status) || path.starts_with("/v1/byok") && status == 200, "{context}: {status}"),
                // The product declares none.
                Walk::Declared => assert_eq!(status, 404, "{context}"),
                _ => assert_eq!(
                    status,
                    // No model speaks in the user's own job.
                    if whose > 0 || path.ends_with("/stream") {
                        404
                    } else if path.ends_with("/download") {
                        302
                    } else {
                        200
                    },
                    "{context} {whose}"
                ),
            }
        }
    }
    // It is its user's, whoever else is named.
    let named = |user: &str| ada.request(Method::GET, "/v1/jobs").header("X-Acting-User", user);
    ada.send(named("eve")).await.problem(403, "token_not_allowed");
    let mine = ada.send(named("ada")).await.expect(200);
    assert_eq!(mine["items"].as_array().unwrap().len(), 2, "{mine}");
    ada.get("/v1/jobs?owner=eve").await.problem(400, "query_invalid");
    // Another product's user of the same name is another one.
    let globex = exporting_tenant(&world, "globex").await;
    let token = globex.post("/v1/tokens", &json!({"user": "ada"})).await.expect(201)["token"].as_str().unwrap().to_owned();
    globex.with_key(&token).get(&format!("/v1/jobs/{}", users[0].0)).await.problem(404, "job_not_found");
    // A changed one is none, and a token of less opens less.
    let token = made["token"].as_str().unwrap();
    let forged = format!("{}{}", &token[..token.len() - 2], if token.ends_with("AA") { "BB" } else { "AA" });
    owner.with_key(&forged).get("/v1/jobs").await.problem(401, "token_invalid");
    let less = owner.post("/v1/tokens", &json!({"user": "ada", "scopes": ["exports:read"]})).await.expect(201);
    let less = owner.with_key(less["token"].as_str().unwrap());
    less.get("/v1/jobs").await.problem(403, "scope_missing");
    less.get("/v1/exports").await.expect(200);
}

#[tokio::test]
async fn tokens_end_with_their_time_and_with_their_key() {
    let (world, clock) = World::start_at("2026-11-21T12:00:00Z", |api| api).await;
    let maker = world.key("tokens:write,jobs:read").await;
    let made = maker.post("/v1/tokens", &json!({"user": "ada", "expires_in_seconds": 60})).await.expect(201);
    assert_eq!(made["scopes"], json!(["jobs:read"]), "no more than its key may");
    let ada = maker.with_key(made["token"].as_str().unwrap());
    ada.get("/v1/jobs").await.expect(200);
    clock.advance(TimeDelta::seconds(60));
    ada.get("/v1/jobs").await.problem(401, "token_expired");
    clock.advance(TimeDelta::seconds(-1));
    let mut stream = ada.events("/v1/events", None).await;
    stream.must("the picture").await;
    let tail = maker.key().to_owned().split_off(31);
    let id: String = world.text(format!("SELECT id::text FROM api_key WHERE last_four = '{tail}'")).await;
    world.sandbox.run_api(["key", "revoke", &id]).await.unwrap();
    until_within(Duration::from_secs(5), "a token is refused within 5 s of its key's end", async || {
        match ada.get("/v1/jobs").await.status {
            401 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    ada.get("/v1/jobs").await.problem(401, "key_revoked");
    stream.rest().await;
}
