//! Who may do what: keys, scopes, and the walls between tenants and between users.

mod doors;
mod tokens;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use acceptance::{Answer, Client, World, id_of, probe, until_within};
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};

use doors::{DOORS, SCOPES, Walk, knock};

/// The tenant `name` with a dataset for anybody.
async fn exporting_tenant(world: &World, name: &str) -> Client {
    let manifest = format!(
        "[tenant]\nname = \"{name}\"\n[sources.main]\nurl_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"\n\
         [datasets.words]\nsource = \"main\"\naudience = \"users\"\nsql = \"SELECT 'a' AS word\"\n\
         [mail]\nserver_env = \"OFFSTAGE_SMTP_URL\"\nfrom = {{ email = \"no-reply@{name}.example\" }}\n\
         [ai.providers.main]\nkind = \"openai\"\nbase_url = \"https://models.invalid/v1\"\n\
         [ai.tasks.walk]\nmodels = [{{ provider = \"main\", model = \"m\" }}]\nprompt = \"Walk.\"\ninput = {{ type = \"object\" }}\n"
    );
    world.tenant_of(name, &manifest).await
}

#[tokio::test]
async fn what_has_a_door_of_its_own_needs_that_doors_scope_at_every_door() {
    let world = World::start().await;
    let mail = json!({"kind": "email.send", "payload": {"to": {"email": "ada@example.com"}, "subject": "x", "text": "x", "category": "x"}});
    let push = json!({"kind": "push.send", "payload": {"user": "ada", "title": "x"}});
    let told = json!({"kind": "notification.fan_out", "payload": {"to": {"user": "ada"}, "type": "comment", "title": "x"}});
    let tick = json!({"name": "often", "kind": "notification.fan_out", "payload": told["payload"], "every_seconds": 60});
    let probe = json!({"kind": "probe.run", "payload": {}});
    let after = json!({"kind": "probe.run", "payload": {}, "then": [{"kind": "probe.run", "payload": {}, "then": [mail]}]});
    let narrow = world.key("jobs:write,schedules:write").await;
    for job in [&mail, &push, &told, &after] {
        narrow.post("/v1/jobs", job).await.problem(403, "scope_missing");
        narrow.post("/v1/jobs/batch", &json!({"jobs": [probe, job]})).await.problem(403, "scope_missing");
    }
    narrow.post("/v1/jobs/batch", &json!({"jobs": [probe], "then": [told]})).await.problem(403, "scope_missing");
    narrow.post("/v1/schedules", &tick).await.problem(403, "scope_missing");
    narrow.post("/v1/jobs", &probe).await.expect(202);
    assert_eq!(world.number("SELECT count(*) FROM job WHERE kind <> 'probe.run'").await, 0);
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

/// A stranger's knock at a door, about what is not theirs.
struct Knocked<'a> {
    path: &'a str,
    walk: Walk,
    acting: bool,
    /// What it was about.
    id: &'a str,
    /// All that is not theirs.
    ids: &'a [&'a String],
    context: &'a str,
}

/// Holds the answer to a stranger's knock to what strangers may be told.
fn hold_off(answer: &Answer, knocked: &Knocked<'_>) {
    let Knocked { path, walk, acting, id, ids, context } = *knocked;
    match walk {
        Walk::Open => assert!(!answer.text().contains(id), "{context}"),
        Walk::Job => drop(answer.problem(404, "job_not_found")),
        Walk::Batch => drop(answer.problem(404, "batch_not_found")),
        Walk::Export => drop(answer.problem(404, "export_not_found")),
        Walk::List => {
            assert_eq!(answer.status, 200, "{context}");
            assert!(ids.iter().all(|id| !answer.text().contains(id.as_str())), "{context}");
        }
        Walk::Preferences if acting => drop(answer.problem(404, "user_not_found")),
        // A user of such a name at another product.
        Walk::Preferences => assert!([200, 409].contains(&answer.status), "{context}"),
        Walk::Notification => drop(answer.problem(404, "notification_not_found")),
        Walk::Stream | Walk::Inbox => unreachable!("listened to above"),
        Walk::Make => assert_eq!(answer.status, 202, "{context}"),
        Walk::Backend if acting => {
            drop(answer.problem(403, "backend_only"));
        }
        // A user of the same name at another product is another one.
        Walk::Backend if path.starts_with("/v1/users") => {
            assert!([200, 201, 202, 204, 404, 409].contains(&answer.status), "{context}");
            assert!(!answer.text().contains("ada@example.com"), "{context}");
        }
        Walk::Backend if ["/v1/notifications", "/v1/activities"].contains(&path) => assert_eq!(answer.status, 202, "{context}"),
        Walk::Backend if path == "/v1/tokens" => assert_eq!(answer.status, 201, "{context}"),
        Walk::Own => {
            assert!([200, 204, 400, 404, 422].contains(&answer.status), "{context}");
            assert!(!answer.text().contains(id), "{context}");
        }
        Walk::Signed => drop(answer.problem(401, "signature_invalid")),
        Walk::Backend if path.contains("{id}") => {
            let code = match path {
                path if path.contains("suppressions") => "suppression_not_found",
                path if path.contains("notifications") => "job_not_found",
                path if path.contains("reports") => "report_not_found",
                _ => "schedule_not_found",
            };
            drop(answer.problem(404, code));
        }
        // The second schedule of one name is refused because of the first, its own.
        Walk::Backend => {
            let allowed = if path.contains("schedules") || path.contains("suppressions") { &[200, 201, 409][..] } else { &[200] };
            assert!(allowed.contains(&answer.status), "{context}");
            assert!(ids.iter().all(|id| !answer.text().contains(id.as_str())), "{context}");
        }
        Walk::Address => {
            assert_eq!(answer.status, 404, "{context}");
            assert!(!answer.text().contains(id), "{context}");
        }
    }
}

#[tokio::test]
async fn nobody_enters_another_tenants_or_another_users_door() {
    let (world, _worker) = World::with_worker().await;
    let owner = exporting_tenant(&world, "initech").await;
    let ada = owner.acting_for("ada");
    let job = ada.create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": world.now().await + TimeDelta::hours(1)})).await;
    let failed = ada.create_id(&probe(&json!({"outcome": "fail"}))).await;
    let export = id_of(&ada.post("/v1/exports", &json!({"dataset": "words", "format": "csv"})).await.expect(202));
    let planned = json!({"name": "nightly", "kind": "probe.run", "every_seconds": 86_400, "owner": "ada"});
    let schedule = id_of(&owner.post("/v1/schedules", &planned).await.expect(201));
    let member = json!({"kind": "probe.run", "payload": {}, "run_at": world.now().await + TimeDelta::hours(1)});
    let accepted = ada.post("/v1/jobs/batch", &json!({"jobs": [member]})).await.expect(202);
    let (batch, member) = (id_of(&accepted), accepted["items"][0]["job"].as_str().unwrap().to_owned());
    ada.ended(&failed).await;
    assert_eq!(ada.ended(&export).await["state"], "succeeded");
    let download = async |client: &Client| client.get(&format!("/v1/exports/{export}/download")).await.status;
    assert_eq!((download(&ada).await, download(&owner).await), (302, 302), "the owner and its backend get in");
    owner.put("/v1/users/ada", &json!({"email": "ada@example.com"})).await.expect(201);
    let notification = id_of(&ada.get("/v1/notifications").await.expect(200)["items"][0]);
    let report = id_of(
        &ada.post("/v1/reports", &json!({"content": {"type": "prompt", "id": "7"}, "user": "bob", "reason": "spam"})).await.expect(201),
    );
    let done = json!({"actor": "ada", "verb": "created", "object": {"type": "prompt", "id": "8"}});
    let activity = id_of(&owner.post("/v1/activities", &done).await.expect(202));
    let ids = [&job, &failed, &export, &batch, &schedule, &notification, &report, &activity];
    let ours = format!("SELECT coalesce(sum(version), 0) FROM job_state WHERE job_id IN ('{job}', '{failed}', '{export}', '{member}')");
    let downloads = "SELECT coalesce(sum(downloads), 0) FROM job_file";
    let before = (world.number(ours.as_str()).await, world.number(downloads).await);

    let globex = exporting_tenant(&world, "globex").await;
    let strangers = [
        ("another tenant", globex.clone(), false),
        ("another tenant's user of the same name", globex.acting_for("ada"), true),
        ("another user", owner.acting_for("eve"), true),
    ];
    for (who, stranger, acting) in &strangers {
        for (method, path, walk, _) in DOORS {
            for id in ids {
                if *walk == Walk::Inbox {
                    let told = stranger.events(path, None).await.must("how many are unread").await;
                    // Of what they made themselves at other doors.
                    assert_eq!(told.name, "inbox", "{who}: {told:?}");
                    assert!(ids.iter().all(|id| !told.data.to_string().contains(id.as_str())), "{who}: {told:?}");
                    continue;
                }
                if *walk == Walk::Stream {
                    let mut stream = stranger.events(path, None).await;
                    loop {
                        let event = stream.must("the picture's end").await;
                        assert!(ids.iter().all(|id| event.data["id"] != id.as_str()), "{who} at {path}: {event:?}");
                        if event.name == "snapshot" {
                            break;
                        }
                    }
                    continue;
                }
                let answer = stranger.send(knock(stranger, method, path, *walk, id)).await;
                let context = format!("{who} at {method} {path}: {}", answer.text());
                hold_off(&answer, &Knocked { path, walk: *walk, acting: *acting, id, ids: &ids, context: &context });
            }
        }
    }
    // The owner's own users have no business there either.
    ada.get(&format!("/v1/schedules/{schedule}")).await.problem(403, "backend_only");
    assert_eq!(owner.get(&format!("/v1/schedules/{schedule}")).await.expect(200)["version"], 1);
    assert_eq!(owner.get("/v1/schedules").await.expect(200)["items"].as_array().unwrap().len(), 1);
    // What they made is theirs; what was there is untouched.
    assert_eq!(owner.get(&format!("/v1/reports/{report}")).await.expect(200)["status"], "pending");
    assert_eq!(ada.get("/v1/feed").await.expect(200)["items"][0]["id"], activity.as_str());
    assert_eq!(owner.get("/v1/users/ada/moderation").await.expect(200)["state"], "active");
    let read = ada.get("/v1/notifications").await.expect(200);
    assert_eq!((&read["unread_count"], &read["items"][0]["id"]), (&json!(1), &json!(notification)));
    assert_eq!(owner.get("/v1/users/ada").await.expect(200)["email"], "ada@example.com");
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
        if *walk == Walk::Signed {
            for client in [&nobody, &stranger, &world.client] {
                client.send(knock(client, method, path, *walk, &id)).await.problem(401, "signature_invalid");
            }
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
