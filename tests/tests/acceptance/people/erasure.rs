//! Erasure: from the request on nothing is shown, and in the end nothing is left, byte by byte.

use std::process::Command;

use acceptance::{Client, PATIENCE, World, id_of, probe, until_within};
use chrono::TimeDelta;
use reqwest::Method;
use sandbox::{Fault, Launch, Rule};
use serde_json::{Value, json};

const MANIFEST: &str = r#"
[tenant]
name = "initech"
[sources.main]
url_env = "OFFSTAGE_SOURCE_PROMPTLOCKR_URL"
[datasets.words]
source = "main"
audience = "users"
sql = "SELECT :who AS word"
[datasets.words.parameters]
who = { type = "text", from = "owner" }
[datasets.reports]
source = "main"
audience = "users"
sql = "SELECT number, repeat(md5(number::text), 8) AS content FROM generate_series(1, 60000) AS number"
[datasets.broken]
source = "main"
audience = "users"
sql = "SELECT 1 / length('') AS nothing"
[completion]
secret_env = "OFFSTAGE_COMPLETION_MAIN"
private_hosts = ["127.0.0.1:9"]
[mail]
server_env = "OFFSTAGE_SMTP_URL"
from = { email = "no-reply@initech.example" }
[notifications.reply]
channels = ["in_app", "push"]
[notifications.reply.digest]
window_minutes = 10000
[notifications.nudge]
channels = ["push"]
[notifications.nudge.throttle]
most = 5
window_minutes = 60
[metrics.seen]
event = "seen"
aggregate = "count"
dimensions = ["user"]
[metrics.seers]
event = "seen"
aggregate = "uniques"
"#;

/// A provider of models that users bring keys for.
fn models(world: &World) -> String {
    let url = world.sandbox.ai.url();
    format!("[ai.providers.main]\nkind = \"openai\"\nbase_url = \"{url}\"\nbyok = \"openai\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n")
}

const TASK: &str = r#"
[ai.tasks.echo]
models = [{ provider = "main", model = "m" }]
prompt = "{{ input.prompt }}"
input = { type = "object" }
timeout_seconds = 60
cache = { ttl_seconds = 86400 }
own_keys = false
"#;

/// Everything there is of a user, with the marker in each text.
struct Traces {
    jobs: Vec<String>,
    exports: Vec<String>,
    page: String,
    link: String,
}

async fn leave_traces(backend: &Client, user: &str, marker: &str, world: &World) -> Traces {
    let mine = backend.acting_for(user);
    let profile = json!({"email": format!("{marker}@example.com"), "name": marker, "roles": [marker, "moderator"], "time_zone": "UTC"});
    backend.put(&format!("/v1/users/{user}"), &profile).await.expect(201);
    mine.put("/v1/byok/openai", &json!({"key": format!("sk-{marker}-0123456789-{marker}")})).await.expect(200);
    mine.put(&format!("/v1/users/{user}/preferences"), &json!({"categories": {marker: {"push": false}}})).await.expect(200);
    backend.put("/v1/users/bob", &json!({"name": "Bob"})).await.expect(201);
    let told = json!({"calls": [{"id": marker, "user": user, "provider": "openai", "model": "m", "input_tokens": 7}]});
    backend.post("/v1/ai/usage", &told).await.expect(200);
    mine.create(&probe(&json!({"meter": {"metric": "traces", "amount": 1}, "pad": marker}))).await;
    for path in [format!("/v1/users/{user}/follows/bob"), format!("/v1/users/bob/follows/{user}")] {
        assert_eq!(backend.send(backend.request(Method::PUT, &path)).await.status, 204);
    }
    let job = |payload: &Value, more: &Value| {
        let mut job = probe(payload);
        job["payload"]["pad"] = json!(marker);
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        job
    };
    let later = world.now().await + TimeDelta::days(300);
    let mut jobs = Vec::new();
    for (payload, more) in [
        (json!({}), json!({"idempotency_key": format!("key-{marker}"), "then": [job(&json!({}), &json!({}))]})),
        (json!({}), json!({"unique": {"key": format!("unique-{marker}"), "for_seconds": 100_000}})),
        (json!({}), json!({"limit": {"key": format!("limit-{marker}"), "running": 1}})),
        (json!({}), json!({"completion_url": format!("http://127.0.0.1:9/{marker}")})),
        (json!({"outcome": "fail"}), json!({})),
    ] {
        let id = mine.create_id(&job(&payload, &more)).await;
        mine.ended(&id).await;
        jobs.push(id);
    }
    let discarded = mine.create_id(&job(&json!({"outcome": "fail"}), &json!({}))).await;
    mine.ended(&discarded).await;
    assert_eq!(mine.post_nothing(&format!("/v1/jobs/{discarded}/discard")).await.status, 204);
    jobs.push(mine.create_id(&job(&json!({}), &json!({"run_at": later}))).await);
    let cancelled = mine.create_id(&job(&json!({}), &json!({"run_at": later}))).await;
    mine.post_nothing(&format!("/v1/jobs/{cancelled}/cancel")).await.expect(200);
    jobs.push(cancelled);
    let running = mine.create_id(&job(&json!({"sleep_ms": 3_000_000}), &json!({}))).await;
    mine.running(&running).await;
    jobs.push(running);
    let then = json!([job(&json!({}), &json!({}))]);
    let batch = json!({"name": marker, "jobs": [job(&json!({}), &json!({})), job(&json!({}), &json!({"run_at": later}))], "then": then});
    mine.post("/v1/jobs/batch", &batch).await.expect(202);
    let planned = json!({"name": "hers", "kind": "probe.run", "every_seconds": 86_400, "owner": user, "payload": {"pad": marker}});
    backend.post("/v1/schedules", &planned).await.expect(201);

    leave_what_others_see(backend, user, marker, world).await;
    let messages = leave_messages(&mine, user, marker, world).await;
    jobs.extend(messages);
    let quiet = json!({"categories": {marker: {"push": false}}, "quiet_hours": {"from": "00:00", "to": "00:01"}});
    mine.put(&format!("/v1/users/{user}/preferences"), &quiet).await.expect(200);
    for (sort, to) in [
        ("reply", json!({"user": user})),
        ("nudge", json!({"user": user})),
        ("like", json!({"users": ["bob", user]})),
        ("share", json!({"followers_of": user})),
        ("mention", json!({"role": "moderator"})),
    ] {
        let told = backend.post("/v1/notifications", &json!({"type": sort, "to": to, "title": "Of interest"})).await.expect(202);
        backend.succeeded(&id_of(&told)).await;
    }
    let counted = "SELECT count(*) FROM notification_sending";
    until_within(PATIENCE, "a nudge was counted", async || match world.number(counted).await {
        0 => Err(0),
        _ => Ok(()),
    })
    .await;

    let export = async |dataset: &str| {
        let asked = json!({"dataset": dataset, "format": "csv", "filename": marker, "idempotency_key": format!("{dataset}-{marker}")});
        id_of(&mine.post("/v1/exports", &asked).await.expect(202))
    };
    let mut exports = vec![export("words").await, export("broken").await];
    mine.succeeded(&exports[0]).await;
    mine.ended(&exports[1]).await;
    let page = mine.post_nothing(&format!("/v1/exports/{}/page", exports[0])).await.expect(200);
    let page = page["page_url"].as_str().unwrap_or_else(|| panic!("{page}")).to_owned();
    let link = mine.post_nothing(&format!("/v1/jobs/{}/links", jobs[0])).await.expect(201)["url"].as_str().unwrap().to_owned();
    // One that stands in the middle of its upload.
    world.sandbox.s3.faults().add(Rule::from(Fault::Hang).on("UploadPart").skip(1));
    exports.push(export("reports").await);
    world
        .sandbox
        .s3
        .faults()
        .wait_for(PATIENCE, |requests| requests.iter().filter(|one| one.request.operation == "UploadPart").count() >= 2)
        .await
        .unwrap();
    Traces { jobs, exports, page, link }
}

/// Reports by and on them, what moderators did to them and they as one, what they did and what was done to what is theirs.
async fn leave_what_others_see(backend: &Client, user: &str, marker: &str, world: &World) {
    let mine = backend.acting_for(user);
    let theirs = json!({"type": "prompt", "id": marker});
    let key = format!("report-{marker}");
    let on_bob =
        json!({"content": {"type": "prompt", "id": "1"}, "user": "bob", "reason": "other", "details": marker, "idempotency_key": key});
    let report = id_of(&mine.post("/v1/reports", &on_bob).await.expect(201));
    let on_them = json!({"content": theirs, "user": user, "reason": "spam", "details": marker, "reporter": "bob"});
    let other = id_of(&backend.post("/v1/reports", &on_them).await.expect(201));
    let act = async |report: &str, change: Value| {
        let request = backend.request(Method::PATCH, &format!("/v1/reports/{report}")).json(&change);
        backend.send(request).await.expect(200);
    };
    act(&report, json!({"action": "flag", "notes": "Of Bob's", "moderator": user})).await;
    act(&other, json!({"action": "suspend", "until": world.now().await + TimeDelta::days(300), "notes": marker})).await;
    for (actor, whose) in [(user, "bob"), ("bob", user)] {
        let done = json!({"actor": actor, "verb": "commented", "object": theirs, "user": whose, "title": marker, "url": format!("/{marker}"),
                          "data": {"text": marker}, "idempotency_key": key});
        backend.post("/v1/activities", &done).await.expect(202);
    }
    let event = json!({"id": format!("event-{marker}"), "type": "seen", "user": user, "properties": {"text": marker}});
    assert_eq!(backend.post("/v1/events", &json!({"events": [event]})).await.expect(200)["accepted"], 1);
}

/// A browser, and messages: one that was sent, one that is planned, one that is tried again and again.
async fn leave_messages(mine: &Client, user: &str, marker: &str, world: &World) -> Vec<String> {
    let key = mine.get("/v1/push/key").await.expect(200);
    let browser = world.sandbox.push.subscribe(key["key"].as_str()).unwrap();
    let keys = json!({"p256dh": browser.p256dh, "auth": browser.auth});
    // Nobody answers there.
    let endpoint = format!("https://push.invalid/{marker}");
    mine.post("/v1/push/subscriptions", &json!({"endpoint": endpoint, "keys": keys})).await.expect(200);
    let pushed = id_of(&mine.post("/v1/pushes", &json!({"user": user, "title": marker})).await.expect(202));
    let mail = |more: Value| {
        let to = json!({"email": format!("{marker}@example.com"), "name": marker});
        let mut mail = json!({"to": to, "subject": marker, "text": marker, "category": "orders"});
        mail.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        mail
    };
    let sent = id_of(&mine.post("/v1/emails", &mail(json!({}))).await.expect(202));
    mine.succeeded(&sent).await;
    let later = world.now().await + TimeDelta::days(300);
    let planned = id_of(&mine.post("/v1/emails", &mail(json!({"run_at": later}))).await.expect(202));
    let tried = format!("SELECT count(*) FROM delivery WHERE job_id = '{pushed}'");
    until_within(PATIENCE, "the push was tried", async || match world.number(tried.as_str()).await {
        0 => Err(0),
        _ => Ok(()),
    })
    .await;
    // What a model was asked and said, kept for who asks the same, and on its way to who follows it.
    let asked = json!({"input": {"prompt": marker}, "stream": true});
    let asked = id_of(&mine.post("/v1/ai/echo", &asked).await.expect(202));
    mine.succeeded(&asked).await;
    vec![pushed, sent, planned, asked]
}

/// Where a text still stands: the dump of the database, Redis' keys and values, object storage.
async fn places_of(world: &World, marker: &str) -> Vec<String> {
    let mut places = Vec::new();
    let holds = |bytes: &[u8]| {
        let hex: String = marker.bytes().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        [marker.as_bytes(), hex.as_bytes()].iter().any(|text| bytes.windows(text.len()).any(|window| window == *text))
    };
    let postgres = &world.sandbox.postgres;
    // As one who sees all rows, of the product's own database.
    let (owner, superuser) = (postgres.owner_url(), postgres.superuser_url());
    let url = format!("{}/{}", superuser.rsplit_once('/').unwrap().0, owner.rsplit_once('/').unwrap().1);
    let dump = Command::new(postgres.psql().with_file_name("pg_dump")).arg(url).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let mut table = String::new();
    for line in dump.stdout.split(|byte| *byte == b'\n') {
        if line.starts_with(b"COPY ") {
            table = String::from_utf8_lossy(line).into_owned();
        }
        if holds(line) {
            places.push(format!("{table}: {}", String::from_utf8_lossy(line)));
        }
    }
    assert!(table.starts_with("COPY "), "the dump holds rows");
    let redis = &world.sandbox.redis;
    // Dumped values would else be compressed.
    let () = redis.command(redis::cmd("CONFIG").arg("SET").arg("rdbcompression").arg("no")).await.unwrap();
    let keys: Vec<Vec<u8>> = redis.command(redis::cmd("KEYS").arg("*")).await.unwrap();
    for key in keys {
        let value: Option<Vec<u8>> = redis.command(redis::cmd("DUMP").arg(&key)).await.unwrap();
        if holds(&key) || holds(&value.unwrap_or_default()) {
            places.push(format!("Redis: {}", String::from_utf8_lossy(&key)));
        }
    }
    let s3 = &world.sandbox.s3;
    for object in s3.objects().unwrap() {
        if holds(object.key.as_bytes()) || holds(&s3.object(&object.key).unwrap()) {
            places.push(format!("S3: {}", object.key));
        }
    }
    places.extend(
        s3.unfinished_uploads()
            .unwrap()
            .into_iter()
            .filter(|upload| holds(upload.key.as_bytes()))
            .map(|upload| format!("S3: upload {}", upload.key)),
    );
    places
}

/// Nothing of whoever is being erased is shown to moderators.
async fn hidden_from_moderators(backend: &Client, user: &str, marker: &str) {
    for door in ["/v1/reports".to_owned(), format!("/v1/reports?user={user}"), "/v1/users/bob/moderation".to_owned()] {
        let text = backend.get(&door).await.expect(200).to_string();
        assert!(!text.contains(marker), "{door}: {text}");
    }
    let standing = backend.get(&format!("/v1/users/{user}/moderation")).await.expect(200);
    assert_eq!((&standing["state"], &standing["history"]), (&json!("active"), &json!([])));
    let onto = json!({"content": {"type": "prompt", "id": "2"}, "user": user, "reason": "spam"});
    backend.post("/v1/reports", &onto).await.problem(409, "user_being_erased");
}

/// What they reported, and what they did as a moderator, is about others: it stays, without them.
async fn kept_by_moderators(backend: &Client) {
    let kept = backend.get("/v1/reports?user=bob").await.expect(200);
    assert_eq!((&kept["items"][0]["status"], &kept["items"][0]["reporter"]), (&json!("reviewed"), &Value::Null), "{kept}");
    let kept = backend.get("/v1/users/bob/moderation").await.expect(200);
    assert_eq!((&kept["history"][0]["notes"], &kept["history"][0]["moderator"]), (&json!("Of Bob's"), &Value::Null), "{kept}");
}

#[tokio::test]
async fn no_byte_is_left_of_the_erased() {
    let (world, clock) = World::start_at("2026-11-21T12:00:00Z", |api| api).await;
    let launch = || clock.launch().env("OFFSTAGE_COMPLETION_MAIN", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let _worker = world.start_worker(launch()).await;
    let backend = world.tenant_of("initech", &format!("{MANIFEST}{}{TASK}", models(&world))).await;
    let marker = format!("m{:x}k", std::process::id()) + &world.text("SELECT md5(random()::text)").await;
    let user = format!("u-{marker}");
    let traces = leave_traces(&backend, &user, &marker, &world).await;
    let bobs = backend.acting_for("bob").create_id(&probe(&json!({"pad": "of-bob"}))).await;
    backend.acting_for("bob").succeeded(&bobs).await;
    let before = places_of(&world, &marker).await;
    let tables: Vec<&str> = before.iter().filter_map(|place| place.strip_prefix("COPY public.")?.split(' ').next()).collect();
    for table in [
        "activity",
        "ai_cache",
        "batch",
        "delivery",
        "effect",
        "end_user",
        "end_user_role",
        "feed_entry",
        "follow",
        "idempotency_key",
        "job",
        "job_file",
        "job_tombstone",
        "job_unique",
        "limit_key",
        "moderation_action",
        "notification",
        "notification_digest",
        "notification_sending",
        "preference",
        "push_subscription",
        "quiet_hours",
        "report",
        "schedule",
        "suspension",
    ] {
        assert!(tables.contains(&table), "the marker was in {table} before: {tables:?}");
    }
    assert!(before.iter().any(|place| place.starts_with("S3:")), "and in a file");
    assert!(before.iter().any(|place| place.starts_with("Redis:")), "and on its way to who follows a model's words");
    let s3 = &world.sandbox.s3;
    assert_eq!((s3.objects().unwrap().len(), s3.unfinished_uploads().unwrap().len()), (1, 1), "and something is on its way there");

    let answer = backend.delete(&format!("/v1/users/{user}")).await;
    let job = id_of(&answer.expect(202));
    assert_eq!(answer.header("location"), format!("/v1/jobs/{job}"));
    assert!(!answer.text().contains(&marker), "{}", answer.text());
    // At once, and whoever asks.
    let mine = backend.acting_for(&user);
    for client in [&backend, &mine] {
        for id in &traces.jobs {
            assert!([404, 410].contains(&client.get(&format!("/v1/jobs/{id}")).await.status), "{id}");
        }
        for id in &traces.exports {
            assert!([404, 410].contains(&client.get(&format!("/v1/exports/{id}")).await.status), "{id}");
            assert!([404, 410].contains(&client.get(&format!("/v1/exports/{id}/download")).await.status), "{id}");
        }
        for list in
            ["/v1/jobs?limit=200", "/v1/exports", "/v1/batches", "/v1/notifications", "/v1/feed", &format!("/v1/deliveries?user={user}")]
        {
            let text = client.get(list).await.expect(200).to_string();
            assert!(!text.contains(&marker), "{list}: {text}");
        }
    }
    assert_eq!(mine.get("/v1/notifications").await.expect(200)["unread_count"], 0);
    backend.get(&format!("/v1/users/{user}")).await.problem(404, "user_not_found");
    hidden_from_moderators(&backend, &user, &marker).await;
    for address in [&traces.page, &traces.link] {
        let visitor = backend.without_key();
        assert_eq!(visitor.get(address).await.status, 404, "{address}");
    }
    let again = backend.delete(&format!("/v1/users/{user}")).await.expect(202);
    assert_eq!(id_of(&again), job, "asked for once more, it is the same");
    let refused = backend.put(&format!("/v1/users/{user}"), &json!({})).await;
    assert!([201, 409].contains(&refused.status), "{}", refused.text());

    // What was being uploaded is looked for a second time when nothing can still be on its way.
    world.sandbox.s3.faults().clear();
    until_within(PATIENCE * 4, "the job has succeeded", async || {
        clock.advance(TimeDelta::minutes(1));
        let job = backend.job(&job).await;
        if job["state"] == "succeeded" { Ok(()) } else { Err(job) }
    })
    .await;
    if refused.status == 409 {
        assert_eq!(refused.json()["code"], "user_being_erased");
    }
    let left = places_of(&world, &marker).await;
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!((s3.objects().unwrap().len(), s3.unfinished_uploads().unwrap().len()), (0, 0));
    // Others keep what is theirs, and the name is free.
    kept_by_moderators(&backend).await;
    assert_eq!(backend.acting_for("bob").job(&bobs).await["state"], "succeeded");
    assert_eq!(backend.get("/v1/users/bob").await.expect(200)["name"], "Bob");
    backend.put(&format!("/v1/users/{user}"), &json!({})).await.expect(201);
    assert_eq!(mine.get("/v1/jobs").await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn an_erasure_goes_on_where_a_killed_worker_left_it() {
    let world = World::start().await;
    let ada = world.client.acting_for("ada");
    let later = world.now().await + TimeDelta::days(300);
    let job = json!({"kind": "probe.run", "payload": {"pad": "hers"}, "run_at": later});
    for _ in 0..2 {
        ada.post("/v1/jobs/batch", &json!({"jobs": vec![job.clone(); 1_000]})).await.expect(202);
    }
    let erasure = id_of(&world.client.delete("/v1/users/ada").await.expect(202));
    let worker = world.start_worker(Launch::new().once()).await;
    until_within(PATIENCE, "some are gone", async || match world.number("SELECT count(*) FROM job WHERE owner = 'ada'").await {
        left if left < 1_900 => Ok(()),
        left => Err(left),
    })
    .await;
    worker.kill9().await.unwrap();
    assert_ne!(world.number("SELECT count(*) FROM job WHERE owner = 'ada'").await, 0, "in the middle");
    let _second = world.worker().await;
    world.client.succeeded(&erasure).await;
    assert_eq!(world.number("SELECT (SELECT count(*) FROM job WHERE owner = 'ada') + (SELECT count(*) FROM batch)").await, 0);
    assert_eq!(world.number("SELECT count(*) FROM erasure").await, 0);
}
