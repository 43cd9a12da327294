//! A job's life as a client sees it: created, followed, listed, cancelled, run again, due later, worth nothing any more.

use std::collections::{BTreeMap, BTreeSet};

use acceptance::{Callbacks, Client, PATIENCE, World, id_of, probe, until};
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use sandbox::Launch;
use serde_json::{Value, json};

fn time(value: &Value) -> DateTime<Utc> {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no time"));
    assert!(text.ends_with('Z'), "times are in UTC: {text}");
    text.parse().unwrap_or_else(|error| panic!("{text} is not RFC 3339: {error}"))
}

#[tokio::test]
async fn a_job_is_accepted_runs_once_and_shows_what_came_of_it() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let callbacks = Callbacks::listen().await;
    let payload = json!({"sleep_ms": 20, "callback_url": callbacks.url()});
    let answer = client.post("/v1/jobs", &json!({"kind": "probe.run", "payload": payload, "owner": "ada", "priority": "high"})).await;
    let accepted = answer.expect(202);
    let id = id_of(&accepted);
    assert_eq!(answer.header("location"), format!("/v1/jobs/{id}"));
    assert!(["queued", "waiting"].contains(&accepted["state"].as_str().unwrap()), "{accepted}");
    assert_eq!((accepted["kind"].as_str(), accepted["queue"].as_str()), (Some("probe.run"), Some("analytics")));
    assert!(accepted["estimate_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "R3, the time to the result: {accepted}");
    assert!(accepted["poll_after_ms"].as_u64().is_some_and(|pause| (1..=60_000).contains(&pause)), "R3, when to poll: {accepted}");

    let job = client.succeeded(&id).await;
    assert_eq!(job["id"], id.as_str());
    assert_eq!(job["payload"], payload);
    assert_eq!((job["owner"].as_str(), job["priority"].as_str()), (Some("ada"), Some("high")));
    assert_eq!((job["attempt"].as_i64(), job["attempts_allowed"].as_i64()), (Some(1), Some(3)), "R2: {job}");
    assert!(job["result"].is_object() && job["error"].is_null(), "{job}");
    let times = ["created_at", "started_at", "finished_at"].map(|name| time(&job[name]));
    assert!(times.is_sorted(), "{job}");
    let version = job["version"].as_i64().unwrap();
    assert!(version >= 3, "queued, running, succeeded: {job}");

    // One run, told of twice.
    let phases: Vec<_> = callbacks.calls().into_iter().map(|call| (call.job, call.phase, call.attempt)).collect();
    assert_eq!(phases, [(id.clone(), "started".into(), 1), (id.clone(), "finished".into(), 1)]);
    let runs = client.job_with_attempts(&id).await["attempts"].clone();
    assert_eq!(runs.as_array().unwrap().len(), 1, "{runs}");
    assert_eq!(runs[0]["outcome"], "succeeded");

    // Reading again costs nothing when nothing changed.
    let etag = client.get(&format!("/v1/jobs/{id}")).await.header("etag").to_owned();
    assert!(!etag.is_empty());
    let again = client.send(client.request(Method::GET, &format!("/v1/jobs/{id}")).header("If-None-Match", &etag)).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
}

#[tokio::test]
async fn a_long_poll_answers_as_soon_as_the_job_changes() {
    let world = World::start().await;
    let client = &world.client;
    let created = client.create(&probe(&json!({}))).await;
    let id = id_of(&created);
    let seen = client.job(&id).await;
    let version = seen["version"].as_i64().unwrap();

    // What changed already is answered at once, what did not after the wait, as it stands.
    let at_once = client.get(&format!("/v1/jobs/{id}?wait=30&since={}", version - 1)).await.expect(200);
    assert_eq!(at_once["version"], version);
    let unchanged = client.get(&format!("/v1/jobs/{id}?wait=1&since={version}")).await.expect(200);
    assert_eq!((unchanged["version"].as_i64(), &unchanged["state"]), (Some(version), &seen["state"]));

    // Several wait; one change answers them all.
    let under_way = async || world.figure(&world.api, "offstage_http_requests_under_way", &[]).await;
    let before = under_way().await;
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let (client, path) = (client.clone(), format!("/v1/jobs/{id}?wait=30&since={version}"));
            tokio::spawn(async move { client.get(&path).await.expect(200) })
        })
        .collect();
    until("five long-polls wait", async || match under_way().await - before {
        more if more >= 5.0 => Ok(()),
        more => Err(more),
    })
    .await;
    client.post_nothing(&format!("/v1/jobs/{id}/cancel")).await.expect(200);
    for answer in waiting {
        let answer = answer.await.unwrap();
        assert_eq!(answer["state"], "cancelled", "answered for the change and not for the time: {answer}");
        assert!(answer["version"].as_i64().unwrap() > version);
    }
}

#[tokio::test]
async fn pages_have_no_gap_and_no_repeat_while_jobs_are_created() {
    let world = World::start().await;
    let client = &world.client;
    let mut before = BTreeSet::new();
    for _ in 0..60 {
        before.insert(client.create_id(&probe(&json!({}))).await);
    }
    let mut seen: Vec<String> = Vec::new();
    let mut path = "/v1/jobs?limit=7".to_owned();
    loop {
        let page = client.get(&path).await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 7);
        seen.extend(items.iter().map(id_of));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/jobs?limit=7&cursor={cursor}");
        client.create(&probe(&json!({}))).await;
    }
    assert!(seen.is_sorted_by(|one, next| one > next), "newest first, none twice: {seen:?}");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), before, "those that were there when the reading began");
}

#[tokio::test]
async fn lists_are_narrowed_by_kind_state_owner_and_time() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let mut made = BTreeMap::new();
    for (name, body) in [
        ("succeeds", json!({"kind": "probe.run", "payload": {}})),
        ("fails", json!({"kind": "probe.run", "payload": {"outcome": "fail"}})),
        ("waits", json!({"kind": "probe.run", "payload": {}, "run_at": world.now().await + TimeDelta::days(1), "owner": "ada"})),
        ("is grace's", json!({"kind": "probe.run", "payload": {}, "owner": "grace"})),
    ] {
        made.insert(name, client.create_id(&body).await);
    }
    for name in ["succeeds", "fails", "is grace's"] {
        client.ended(&made[name]).await;
    }
    let between = time(&client.job(&made["waits"]).await["created_at"]);
    let listed = async |query: &str| -> BTreeSet<String> {
        let page = client.get(&format!("/v1/jobs?{query}")).await.expect(200);
        page["items"].as_array().unwrap().iter().map(id_of).collect()
    };
    let of = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| made[name].clone()).collect() };
    let all = ["succeeds", "fails", "waits", "is grace's"];
    assert_eq!(listed("").await, of(&all));
    assert_eq!(listed("kind=probe.run").await, of(&all));
    assert_eq!(listed("kind=export.create").await, of(&[]));
    assert_eq!(listed("state=succeeded").await, of(&["succeeds", "is grace's"]));
    assert_eq!(listed("state=failed").await, of(&["fails"]));
    assert_eq!(listed("state=waiting").await, of(&["waits"]));
    assert_eq!(listed("state=running").await, of(&[]));
    assert_eq!(listed("owner=ada").await, of(&["waits"]));
    assert_eq!(listed("owner=grace&state=succeeded").await, of(&["is grace's"]));
    assert_eq!(listed("owner=grace&state=failed").await, of(&[]));
    let between = between.format("%Y-%m-%dT%H:%M:%S%.6fZ");
    assert_eq!(listed(&format!("created_before={between}")).await, of(&["succeeds", "fails"]));
    assert_eq!(listed(&format!("created_from={between}")).await, of(&["waits", "is grace's"]));
    // Only what one's user owns.
    let page = client.acting_for("ada").get("/v1/jobs").await.expect(200);
    assert_eq!(page["items"].as_array().unwrap().iter().map(id_of).collect::<BTreeSet<_>>(), of(&["waits"]));
}

#[tokio::test]
async fn what_waits_is_queued_or_runs_can_be_cancelled() {
    let world = World::start().await;
    let client = &world.client;
    let cancel = async |id: &str| client.post_nothing(&format!("/v1/jobs/{id}/cancel")).await;

    let waiting = client.create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": world.now().await + TimeDelta::hours(1)})).await;
    let queued = client.create_id(&probe(&json!({}))).await;
    for (id, state) in [(&waiting, "waiting"), (&queued, "queued")] {
        assert_eq!(client.job(id).await["state"], state);
        assert_eq!(cancel(id).await.expect(200)["state"], "cancelled");
        let job = client.job(id).await;
        assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("cancelled"), Some(0)), "{job}");
        assert_eq!(cancel(id).await.expect(200)["state"], "cancelled", "asking again changes nothing");
    }

    let _worker = world.worker().await;
    let callbacks = Callbacks::listen().await;
    let running = client.create_id(&probe(&json!({"sleep_ms": 3_000_000, "callback_url": callbacks.url()}))).await;
    client.running(&running).await;
    let asked = cancel(&running).await;
    assert!([200, 202].contains(&asked.status), "{}", asked.text());
    let job = client.ended(&running).await;
    assert_eq!(job["state"], "cancelled", "{job}");
    assert!(callbacks.of_phase("finished").is_empty(), "it did not run on");

    let done = client.create_id(&probe(&json!({}))).await;
    client.succeeded(&done).await;
    cancel(&done).await.problem(409, "job_not_cancellable");
    assert_eq!(client.job(&done).await["state"], "succeeded");
    // The cancelled one that was queued is not run by the worker that came later.
    assert_eq!(client.job(&queued).await["state"], "cancelled");
    assert_eq!(world.number("SELECT count(*) FROM job_run WHERE outcome = 'succeeded'").await, 1);
}

#[tokio::test]
async fn a_failed_job_can_be_run_again() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let retry = async |id: &str| client.post_nothing(&format!("/v1/jobs/{id}/retry")).await;

    let failing = client.create_id(&probe(&json!({"outcome": "fail"}))).await;
    let failed = client.ended(&failing).await;
    assert_eq!((failed["state"].as_str(), failed["attempt"].as_i64()), (Some("failed"), Some(1)));
    let again = retry(&failing).await;
    assert!([200, 202].contains(&again.status), "{}", again.text());
    let version = failed["version"].as_i64().unwrap();
    let ended = client.wait_for(&failing, "failed again", |job| job["state"] == "failed" && job["version"].as_i64() > Some(version)).await;
    assert_eq!(ended["attempt"].as_i64(), Some(2), "{ended}");
    assert_eq!(client.job_with_attempts(&failing).await["attempts"].as_array().unwrap().len(), 2);

    // Cancelled is not for ever either; done is done.
    let cancelled = client.create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": world.now().await + TimeDelta::hours(1)})).await;
    client.post_nothing(&format!("/v1/jobs/{cancelled}/cancel")).await.expect(200);
    let again = retry(&cancelled).await;
    assert!([200, 202].contains(&again.status), "{}", again.text());
    client.succeeded(&cancelled).await;
    retry(&cancelled).await.problem(409, "job_not_retryable");
}

#[tokio::test]
async fn a_job_for_later_waits_and_runs_when_it_is_due() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let run_at = world.now().await + TimeDelta::seconds(2);
    let waiting = client.create(&json!({"kind": "probe.run", "payload": {}, "run_at": run_at})).await;
    let id = id_of(&waiting);
    assert_eq!((waiting["state"].as_str(), waiting["reason"].as_str()), (Some("waiting"), Some("not_due")), "{waiting}");
    assert_eq!(time(&waiting["run_at"]).timestamp_millis(), run_at.timestamp_millis());
    let job = client.succeeded(&id).await;
    assert!(time(&job["started_at"]) >= time(&job["run_at"]), "not before it was due: {job}");
}

#[tokio::test]
async fn a_job_that_nobody_started_in_time_expires() {
    let world = World::start().await;
    let client = &world.client;
    let start_by = world.now().await + TimeDelta::seconds(2);
    let callbacks = Callbacks::listen().await;
    let late = json!({"callback_url": callbacks.url()});
    let queued = client.create_id(&json!({"kind": "probe.run", "payload": late, "start_by": start_by})).await;
    let waiting = client
        .create_id(&json!({"kind": "probe.run", "payload": late, "run_at": start_by - TimeDelta::milliseconds(1), "start_by": start_by}))
        .await;
    let in_time = client.create_id(&json!({"kind": "probe.run", "payload": {}, "start_by": start_by + TimeDelta::hours(1)})).await;
    until("its time has passed", async || if world.now().await > start_by { Ok(()) } else { Err(()) }).await;
    let _worker = world.worker().await;
    for id in [&queued, &waiting] {
        let job = client.ended(id).await;
        assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("expired"), Some(0)), "{job}");
    }
    client.succeeded(&in_time).await;
    assert!(callbacks.calls().is_empty());
    client.post_nothing(&format!("/v1/jobs/{queued}/retry")).await.problem(409, "job_not_retryable");
}

#[tokio::test]
async fn what_is_held_up_expires_in_its_time_too() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let with = |queue: &str, mut rest: Value| {
        let mut job = probe(&json!({"queue": queue}));
        job.as_object_mut().expect("an object").append(rest.as_object_mut().expect("an object"));
        job
    };
    let limit = json!({"key": "endpoint:1", "running": 1});
    let mut holder = with("email", json!({"limit": limit}));
    holder["payload"]["sleep_ms"] = json!(600_000);
    let holder = client.create_id(&holder).await;
    client.running(&holder).await;
    client.pause("webhooks").await;
    let start_by = world.now().await + TimeDelta::seconds(3);
    let paused = client.create_id(&with("webhooks", json!({"start_by": start_by}))).await;
    let batch = json!({"jobs": [with("email", json!({"limit": limit, "start_by": start_by}))], "then": [probe(&json!({}))]});
    let batch = client.post("/v1/jobs/batch", &batch).await.expect(202);
    let job = client.ended(&paused).await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("expired"), Some(0)), "{job}");
    until("the batch goes on without it", async || {
        let batch = client.get(&format!("/v1/batches/{}", id_of(&batch))).await.expect(200);
        if batch["state"] == "finished" && batch["counts"]["expired"] == 1 { Ok(()) } else { Err(batch) }
    })
    .await;
    assert_eq!(client.job(&holder).await["state"], "running");
    assert_eq!(world.number("SELECT (SELECT count(*) FROM job_waiting) + (SELECT count(*) FROM job_held)").await, 2, "one that is held");
    client.post_nothing("/v1/queues/webhooks/resume").await.expect(200);
}

#[tokio::test]
async fn higher_priorities_go_first_and_lower_ones_are_not_starved() {
    let world = World::start().await;
    let client = &world.client;
    let callbacks = Callbacks::listen().await;
    let mut of = BTreeMap::new();
    for _ in 0..20 {
        for priority in ["low", "normal", "high"] {
            let payload = json!({"callback_url": callbacks.url()});
            of.insert(client.create_id(&json!({"kind": "probe.run", "payload": payload, "priority": priority})).await, priority);
        }
    }
    let _worker = world.start_worker(Launch::new().arg("--queues").arg("analytics").env("OFFSTAGE_CONCURRENCY", "analytics=1")).await;
    let started = callbacks.wait_for(PATIENCE, "started", None, 60).await;
    let last = |priority: &str| started.iter().rposition(|call| of[&call.job] == priority).unwrap();
    let first = |priority: &str| started.iter().position(|call| of[&call.job] == priority).unwrap();
    assert!(
        last("high") < last("normal") && last("normal") <= last("low"),
        "{:?}",
        started.iter().map(|call| of[&call.job]).collect::<Vec<_>>()
    );
    assert!(first("low") < last("high"), "the lowest gets its share from the start");
}

async fn post_with_key(client: &Client, key: &str, body: &Value) -> acceptance::Answer {
    client.send(client.request(Method::POST, "/v1/jobs").header("Idempotency-Key", key).json(body)).await
}

#[tokio::test]
async fn a_key_makes_a_job_happen_once() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let body = json!({"kind": "probe.run", "payload": {"sleep_ms": 1, "pad": "x"}});
    let first = post_with_key(client, "order-1", &body).await.expect(202);
    let id = id_of(&first);

    // The same again: the first job, as it stands now. Neither white space nor the order of fields matters.
    client.succeeded(&id).await;
    let again = post_with_key(client, "order-1", &body).await;
    assert_eq!((id_of(&again.expect(200)), again.json()["state"].as_str()), (id.clone(), Some("succeeded")));
    assert_eq!(again.header("location"), format!("/v1/jobs/{id}"));
    let shuffled = "{ \"payload\" : {\"pad\":\"x\", \"sleep_ms\":1},\n \"kind\":\"probe.run\" }";
    let request = client
        .request(Method::POST, "/v1/jobs")
        .header("Idempotency-Key", "order-1")
        .header("Content-Type", "application/json")
        .body(shuffled);
    assert_eq!(id_of(&client.send(request).await.expect(200)), id);
    // In the body the key says the same as in the header.
    let in_body = json!({"kind": "probe.run", "payload": {"sleep_ms": 1, "pad": "x"}, "idempotency_key": "order-1"});
    assert_eq!(id_of(&client.post("/v1/jobs", &in_body).await.expect(200)), id);
    assert_eq!(id_of(&post_with_key(client, "order-1", &in_body).await.expect(200)), id, "both, and the same");

    // Something else under the same key is a mistake, and says whose place it would take.
    for other in [
        json!({"kind": "probe.run", "payload": {"sleep_ms": 2, "pad": "x"}}),
        json!({"kind": "probe.run", "payload": {"sleep_ms": 1, "pad": "x"}, "priority": "low"}),
    ] {
        let refused = post_with_key(client, "order-1", &other).await.problem(409, "idempotency_conflict");
        assert!(refused.to_string().contains(&id), "it names the first job: {refused}");
    }

    // A key is its owner's: another user's or tenant's is another key.
    let mut owned = body.clone();
    owned["owner"] = json!("ada");
    let ada = id_of(&post_with_key(client, "order-1", &owned).await.expect(202));
    assert_eq!(
        id_of(&post_with_key(&client.acting_for("ada"), "order-1", &body).await.expect(200)),
        ada,
        "named or acted for is the same owner"
    );
    let grace = id_of(&post_with_key(&client.acting_for("grace"), "order-1", &body).await.expect(202));
    let elsewhere = id_of(&post_with_key(&world.tenant("globex").await, "order-1", &body).await.expect(202));
    assert_eq!(BTreeSet::from([id, ada, grace, elsewhere]).len(), 4);
    assert_eq!(world.number("SELECT count(*) FROM job").await, 4);
}

#[tokio::test]
async fn of_fifty_at_once_under_one_key_one_becomes_a_job() {
    let (world, _worker) = World::with_worker().await;
    let callbacks = Callbacks::listen().await;
    let body = probe(&json!({"callback_url": callbacks.url()}));
    let posts: Vec<_> = (0..50)
        .map(|_| {
            let (client, body) = (world.client.clone(), body.clone());
            tokio::spawn(async move { post_with_key(&client, "one", &body).await })
        })
        .collect();
    let mut statuses = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for post in posts {
        let answer = post.await.unwrap();
        *statuses.entry(answer.status).or_insert(0) += 1;
        ids.insert(id_of(&answer.json()));
    }
    assert_eq!(statuses, BTreeMap::from([(200, 49), (202, 1)]));
    assert_eq!(ids.len(), 1, "{ids:?}");
    world.client.succeeded(ids.first().unwrap()).await;
    assert_eq!(world.number("SELECT count(*) FROM job").await, 1);
    assert_eq!(callbacks.of_phase("started").len(), 1);
}
