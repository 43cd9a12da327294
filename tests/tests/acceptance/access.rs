//! Who may do what: keys, scopes, and the walls between tenants and between users.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use acceptance::{Answer, Client, World, id_of, probe, until_within};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

/// What a door is to somebody whose it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// Open to everybody; there is nobody's data behind it.
    Open,
    /// One job: another's does not exist.
    Job,
    /// One export: another's does not exist.
    Export,
    /// One batch: another's does not exist.
    Batch,
    /// A list: it holds only the caller's.
    List,
    /// A stream without end: it tells only of the caller's.
    Stream,
    /// Makes something, which is the caller's.
    Make,
    /// Open to whoever has the address, and to nobody else.
    Address,
    /// For a tenant's backend, about what is its own: whoever acts for a user is turned away.
    Backend,
}

/// Every door of the API, what is behind it, and the scope it takes. A door that is not here fails the walk.
const DOORS: &[(&str, &str, Walk, &str)] = &[
    ("get", "/health/live", Walk::Open, ""),
    ("get", "/health/ready", Walk::Open, ""),
    ("get", "/metrics", Walk::Open, ""),
    ("get", "/openapi.json", Walk::Open, ""),
    ("post", "/v1/jobs", Walk::Make, "jobs:write"),
    ("get", "/v1/jobs", Walk::List, "jobs:read"),
    ("get", "/v1/jobs/{id}", Walk::Job, "jobs:read"),
    ("get", "/v1/jobs/{id}/events", Walk::Job, "jobs:read"),
    ("get", "/v1/events", Walk::Stream, "jobs:read"),
    ("post", "/v1/jobs/{id}/links", Walk::Job, "jobs:write"),
    ("delete", "/v1/jobs/{id}/links", Walk::Job, "jobs:write"),
    ("get", "/j/{token}", Walk::Address, ""),
    ("get", "/j/{token}/events", Walk::Address, ""),
    ("get", "/v1/jobs/{id}/explain", Walk::Job, "jobs:read"),
    ("post", "/v1/jobs/{id}/cancel", Walk::Job, "jobs:write"),
    ("post", "/v1/jobs/{id}/retry", Walk::Job, "jobs:write"),
    ("post", "/v1/jobs/{id}/discard", Walk::Job, "jobs:write"),
    ("post", "/v1/jobs/retry", Walk::List, "jobs:write"),
    ("post", "/v1/jobs/discard", Walk::List, "jobs:write"),
    ("post", "/v1/jobs/batch", Walk::Make, "jobs:write"),
    ("get", "/v1/batches", Walk::List, "jobs:read"),
    ("get", "/v1/batches/{id}", Walk::Batch, "jobs:read"),
    ("get", "/v1/batches/{id}/jobs", Walk::Batch, "jobs:read"),
    ("post", "/v1/batches/{id}/cancel", Walk::Batch, "jobs:write"),
    ("post", "/v1/exports", Walk::Make, "exports:write"),
    ("get", "/v1/exports", Walk::List, "exports:read"),
    ("get", "/v1/exports/{id}", Walk::Export, "exports:read"),
    ("delete", "/v1/exports/{id}", Walk::Export, "exports:write"),
    ("get", "/v1/exports/{id}/download", Walk::Export, "exports:read"),
    ("post", "/v1/exports/{id}/page", Walk::Export, "exports:write"),
    ("delete", "/v1/exports/{id}/page", Walk::Export, "exports:write"),
    ("post", "/v1/schedules", Walk::Backend, "schedules:write"),
    ("get", "/v1/schedules", Walk::Backend, "schedules:read"),
    ("get", "/v1/schedules/{id}", Walk::Backend, "schedules:read"),
    ("patch", "/v1/schedules/{id}", Walk::Backend, "schedules:write"),
    ("delete", "/v1/schedules/{id}", Walk::Backend, "schedules:write"),
    ("post", "/v1/schedules/{id}/pause", Walk::Backend, "schedules:write"),
    ("post", "/v1/schedules/{id}/resume", Walk::Backend, "schedules:write"),
    ("post", "/v1/schedules/{id}/run", Walk::Backend, "schedules:write"),
    ("get", "/v1/schedules/{id}/preview", Walk::Backend, "schedules:read"),
    ("get", "/v1/schedules/{id}/history", Walk::Backend, "schedules:read"),
    ("get", "/v1/queues", Walk::Backend, "jobs:read"),
    ("post", "/v1/queues/{queue}/pause", Walk::Backend, "jobs:write"),
    ("post", "/v1/queues/{queue}/resume", Walk::Backend, "jobs:write"),
    ("get", "/d/{token}", Walk::Address, ""),
    ("get", "/d/{token}/file", Walk::Address, ""),
];

const SCOPES: [&str; 6] = ["jobs:read", "jobs:write", "exports:read", "exports:write", "schedules:read", "schedules:write"];

/// A request to a door, about the job or export `id` where it is about one.
fn knock(client: &Client, method: &str, path: &str, walk: Walk, id: &str) -> RequestBuilder {
    let address = path.replace("{id}", id).replace("{token}", id).replace("{queue}", "media");
    let request = client.request(method.to_uppercase().parse().unwrap(), &address);
    match (walk, path) {
        (Walk::Make, "/v1/jobs") => request.json(&probe(&json!({}))),
        (Walk::Make, "/v1/jobs/batch") => request.json(&json!({"jobs": [probe(&json!({}))]})),
        (Walk::Make, "/v1/exports") => request.json(&json!({"dataset": "words", "format": "csv"})),
        (Walk::List, "/v1/jobs/retry" | "/v1/jobs/discard") => request.json(&json!({"filter": {}})),
        (Walk::Backend, "/v1/schedules") if method == "post" => {
            request.json(&json!({"name": "walk", "kind": "probe.run", "payload": {}, "every_seconds": 86_400}))
        }
        (Walk::Backend, "/v1/schedules/{id}") if method == "patch" => request.json(&json!({"jitter_seconds": 1})),
        (Walk::Backend, "/v1/queues/{queue}/pause" | "/v1/queues/{queue}/resume") => request.json(&json!({})),
        (Walk::Make, other) => panic!("say here what to send to {other}"),
        _ => request,
    }
}

/// The tenant `name` with a dataset for anybody.
async fn exporting_tenant(world: &World, name: &str) -> Client {
    let manifest = format!(
        "[tenant]\nname = \"{name}\"\n[sources.main]\nurl_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"\n\
         [datasets.words]\nsource = \"main\"\naudience = \"users\"\nsql = \"SELECT 'a' AS word\"\n"
    );
    world.tenant_of(name, &manifest).await
}

#[tokio::test]
async fn the_walk_knows_every_door() {
    let world = World::start().await;
    let document = world.client.without_key().get("/openapi.json").await.expect(200);
    assert_eq!(document["openapi"].as_str().map(|version| &version[..3]), Some("3.1"));
    let mut told = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in
            item.as_object().unwrap().keys().filter(|key| !["parameters", "summary", "description", "servers"].contains(&key.as_str()))
        {
            told.insert((method.as_str(), path.as_str()));
        }
    }
    let walked: BTreeSet<_> = DOORS.iter().map(|(method, path, ..)| (*method, *path)).collect();
    assert_eq!(told, walked, "a new door needs its row in the walk (left: the contract, right: the walk)");
}

#[tokio::test]
async fn nobody_enters_another_tenants_or_another_users_door() {
    let (world, _worker) = World::with_worker().await;
    let owner = exporting_tenant(&world, "initech").await;
    let ada = owner.acting_for("ada");
    let job = ada.create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": world.now().await + chrono::TimeDelta::hours(1)})).await;
    let failed = ada.create_id(&probe(&json!({"outcome": "fail"}))).await;
    let export = id_of(&ada.post("/v1/exports", &json!({"dataset": "words", "format": "csv"})).await.expect(202));
    let planned = json!({"name": "nightly", "kind": "probe.run", "every_seconds": 86_400, "owner": "ada"});
    let schedule = id_of(&owner.post("/v1/schedules", &planned).await.expect(201));
    let member = json!({"kind": "probe.run", "payload": {}, "run_at": world.now().await + chrono::TimeDelta::hours(1)});
    let accepted = ada.post("/v1/jobs/batch", &json!({"jobs": [member]})).await.expect(202);
    let (batch, member) = (id_of(&accepted), accepted["items"][0]["job"].as_str().unwrap().to_owned());
    ada.ended(&failed).await;
    assert_eq!(ada.ended(&export).await["state"], "succeeded");
    let download = async |client: &Client| client.get(&format!("/v1/exports/{export}/download")).await.status;
    assert_eq!((download(&ada).await, download(&owner).await), (302, 302), "the owner and its backend get in");
    let state = "SELECT coalesce(sum(version), 0) FROM job_state";
    let downloads = "SELECT coalesce(sum(downloads), 0) FROM job_file";
    let before = (world.number(state).await, world.number(downloads).await);

    let globex = exporting_tenant(&world, "globex").await;
    let strangers = [
        ("another tenant", globex.clone(), false),
        ("another tenant's user of the same name", globex.acting_for("ada"), true),
        ("another user", owner.acting_for("eve"), true),
    ];
    for (who, stranger, acting) in &strangers {
        for (method, path, walk, _) in DOORS {
            for id in [&job, &failed, &export, &batch, &schedule] {
                if *walk == Walk::Stream {
                    let mut stream = stranger.events(path, None).await;
                    loop {
                        let event = stream.must("the picture's end").await;
                        assert!(
                            [&job, &failed, &export, &batch, &schedule].iter().all(|id| event.data["id"] != id.as_str()),
                            "{who} at {path}: {event:?}"
                        );
                        if event.name == "snapshot" {
                            break;
                        }
                    }
                    continue;
                }
                let answer = stranger.send(knock(stranger, method, path, *walk, id)).await;
                let context = format!("{who} at {method} {path}: {}", answer.text());
                match walk {
                    Walk::Open => assert!(!answer.text().contains(id.as_str()), "{context}"),
                    Walk::Job => drop(answer.problem(404, "job_not_found")),
                    Walk::Batch => drop(answer.problem(404, "batch_not_found")),
                    Walk::Export => drop(answer.problem(404, "export_not_found")),
                    Walk::List => {
                        assert_eq!(answer.status, 200, "{context}");
                        assert!([&job, &failed, &export, &batch].iter().all(|id| !answer.text().contains(id.as_str())), "{context}");
                    }
                    Walk::Stream => unreachable!("listened to above"),
                    Walk::Make => assert_eq!(answer.status, 202, "{context}"),
                    Walk::Backend if *acting => {
                        drop(answer.problem(403, "backend_only"));
                    }
                    Walk::Backend if path.contains("{id}") => drop(answer.problem(404, "schedule_not_found")),
                    // The second schedule of one name is refused because of the first, its own.
                    Walk::Backend => {
                        let allowed = if path.contains("schedules") { &[200, 201, 409][..] } else { &[200] };
                        assert!(allowed.contains(&answer.status), "{context}");
                        assert!([&job, &failed, &export, &schedule].iter().all(|id| !answer.text().contains(id.as_str())), "{context}");
                    }
                    Walk::Address => {
                        assert_eq!(answer.status, 404, "{context}");
                        assert!(!answer.text().contains(id.as_str()), "{context}");
                    }
                }
            }
        }
    }
    // The owner's own users have no business there either.
    ada.get(&format!("/v1/schedules/{schedule}")).await.problem(403, "backend_only");
    assert_eq!(owner.get(&format!("/v1/schedules/{schedule}")).await.expect(200)["version"], 1);
    assert_eq!(owner.get("/v1/schedules").await.expect(200)["items"].as_array().unwrap().len(), 1);
    // What they made is theirs; what was there is untouched.
    let ours = format!("SELECT coalesce(sum(version), 0) FROM job_state WHERE job_id IN ('{job}', '{failed}', '{export}', '{member}')");
    assert_eq!((world.number(ours).await, world.number(downloads).await), before);
    for list in ["/v1/jobs?limit=200", "/v1/exports?limit=200"] {
        let mine = ada.get(list).await.expect(200);
        let ids: BTreeSet<_> = mine["items"].as_array().unwrap().iter().map(id_of).collect();
        let expected: BTreeSet<_> =
            if list.contains("jobs") { [&job, &failed, &export, &member].into_iter().cloned().collect() } else { [export.clone()].into() };
        assert_eq!(ids, expected, "{list}");
    }
}

#[tokio::test]
async fn one_user_is_not_served_as_another() {
    let world = World::start().await;
    let ada = world.client.acting_for("ada");
    let mut body = probe(&json!({}));
    body["owner"] = json!("eve");
    let answer = ada.post("/v1/jobs", &body).await;
    answer.problem(422, "validation_failed");
    assert_eq!(answer.pointers(), ["/owner"]);
    ada.get("/v1/jobs?owner=eve").await.problem(400, "query_invalid");
    assert_eq!(world.number("SELECT count(*) FROM job").await, 0);
    // A job without an owner is the backend's own, and no user's.
    let backends = world.client.create_id(&probe(&json!({}))).await;
    ada.get(&format!("/v1/jobs/{backends}")).await.problem(404, "job_not_found");
    assert_eq!(world.client.job(&backends).await["owner"], Value::Null);
    // Two names for one's user are none.
    let request = ada.request(Method::GET, "/v1/jobs").header("X-Acting-User", "eve");
    ada.send(request).await.problem(400, "header_invalid");
}

#[tokio::test]
async fn a_door_opens_to_its_scope_alone() {
    let world = World::start().await;
    let id = world.client.create_id(&probe(&json!({}))).await;
    let refused = |answer: &Answer, status, code| {
        let problem = answer.problem(status, code);
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{problem} {:?}", answer.headers);
        problem
    };
    let nobody = world.client.without_key();
    let stranger = world.client.with_key("pk_00000000000000000000000000000000");
    let nonsense = world.client.with_key("sk_live_hello");
    for (method, path, walk, scope) in DOORS {
        if *walk == Walk::Open {
            assert_eq!(nobody.send(knock(&nobody, method, path, *walk, &id)).await.status, 200, "{path}");
            continue;
        }
        if *walk == Walk::Address {
            // An address is as good as a key, and nothing else is: no key helps who has none.
            for client in [&nobody, &stranger, &world.client] {
                for token in [id.as_str(), "a", "00000000000000000000000000000000", "%00", "..%2F..%2Fv1%2Fjobs"] {
                    assert_eq!(client.send(knock(client, method, path, *walk, token)).await.status, 404, "{path} {token}");
                }
            }
            continue;
        }
        for (client, code) in [(&nobody, "key_missing"), (&stranger, "key_unknown"), (&nonsense, "key_malformed")] {
            refused(&client.send(knock(client, method, path, *walk, &id)).await, 401, code);
        }
        assert!(SCOPES.contains(scope));
    }
    for scope in SCOPES {
        let others: Vec<_> = SCOPES.into_iter().filter(|other| *other != scope).collect();
        let lacking = world.key(&others.join(",")).await;
        let only = world.key(scope).await;
        for (method, path, walk, needs) in DOORS {
            if *needs == scope {
                let problem = refused(&lacking.send(knock(&lacking, method, path, *walk, &id)).await, 403, "scope_missing");
                assert!(problem["detail"].as_str().unwrap().contains(scope), "it names the scope: {problem}");
                // Its head alone: a stream has no end.
                let answer = knock(&only, method, path, *walk, &id).send().await.unwrap();
                assert!(![401, 403].contains(&answer.status().as_u16()), "{scope} is enough for {method} {path}: {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn keys_end() {
    let world = World::start().await;
    let random = |client: &Client| client.key().trim_start_matches("pk_").to_owned();
    let expired = world.key("*").await;
    let tail = random(&expired).split_off(28);
    world.execute(format!("UPDATE api_key SET expires_at = now() - interval '1 second' WHERE last_four = '{tail}'")).await;
    expired.get("/v1/jobs").await.problem(401, "key_expired");

    let revoked = world.key("*").await;
    let _ = revoked.get("/v1/jobs").await.expect(200);
    let tail = random(&revoked).split_off(28);
    let id: String = world.text(format!("SELECT id::text FROM api_key WHERE last_four = '{tail}'")).await;
    world.sandbox.run_api(["key", "revoke", &id]).await.unwrap();
    let began = Instant::now();
    // Busy all the time, so that no answer comes from a cache that went cold.
    until_within(Duration::from_secs(5), "a revoked key is refused within 5 s (R52)", async || {
        let answer = revoked.get("/v1/jobs").await;
        if answer.status == 401 { Ok(answer.problem(401, "key_revoked")) } else { Err(answer.status) }
    })
    .await;
    println!("a revoked key was refused after {:.1} s", began.elapsed().as_secs_f64());
    let _ = world.client.get("/v1/jobs").await.expect(200);
}

#[tokio::test]
async fn secrets_are_written_down_nowhere() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let padded = "a-secret-in-a-payload";
    client.succeeded(&client.create_id(&probe(&json!({"pad": padded}))).await).await;
    client.get("/v1/nothing").await.problem(404, "route_not_found");
    client.with_key(&format!("{}x", client.key())).get("/v1/jobs").await.problem(401, "key_malformed");
    client.post("/v1/jobs", &json!({"kind": "probe.run", "payload": {"sleep_ms": padded}})).await.problem(422, "validation_failed");

    let random = client.key().trim_start_matches("pk_").to_owned();
    let (_, s3_secret) = world.sandbox.s3.credentials();
    let password = |url: &str| {
        url.split_once("://").and_then(|(_, rest)| rest.split_once('@')).and_then(|(user, _)| user.split_once(':')).unwrap().1.to_owned()
    };
    let postgres = &world.sandbox.postgres;
    let mut secrets: Vec<String> =
        [postgres.owner_url(), postgres.api_url(), postgres.engine_url(), postgres.source_url()].iter().map(|url| password(url)).collect();
    secrets.extend([password(world.sandbox.redis.url()), s3_secret.to_owned(), random.clone(), padded.to_owned()]);
    let figures = async |url: String| client.without_key().get(&format!("{url}/metrics")).await.text();
    for (what, text) in [
        ("the API's log", world.api.log()),
        ("the worker's log", worker.log()),
        ("the API's figures", figures(world.api.url()).await),
        ("the worker's figures", figures(worker.url()).await),
    ] {
        assert!(!text.is_empty(), "{what}");
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{what} shows the secret {secret}");
        }
    }
    // Of a key the database has the hash and the last four characters.
    assert_eq!(world.number(format!("SELECT count(*) FROM api_key WHERE api_key::text LIKE '%{random}%'")).await, 0);
    assert_eq!(world.number(format!("SELECT count(*) FROM api_key WHERE hash = sha256('{}'::bytea)", client.key())).await, 1);
}
