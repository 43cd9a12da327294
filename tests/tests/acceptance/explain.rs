//! Why a job is not running: asserted for every reason, at the door, with real workers and real causes.

use acceptance::{PATIENCE, World, probe, until_within};
use sandbox::Launch;
use serde_json::{Value, json};

/// What is said of a job once it says what is expected first.
async fn says(world: &World, id: &str, code: &str) -> Value {
    until_within(PATIENCE, code, async || {
        let said = world.client.get(&format!("/v1/jobs/{id}/explain")).await.expect(200);
        if said["reasons"][0]["code"] == code { Ok(said) } else { Err(said) }
    })
    .await
}

async fn post(world: &World, body: Value) -> String {
    world.client.create_id(&body).await
}

/// Returns when the workers have heard of a pause.
async fn heard(world: &World) {
    until_within(PATIENCE, "workers have heard of it", async || {
        let id = post(world, probe(&json!({}))).await;
        let job = world.client.wait_for(&id, "somewhere", |job| job["state"] != "queued" && job["state"] != "running").await;
        if job["state"] == "waiting" { Ok(()) } else { Err(job) }
    })
    .await;
}

fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

#[tokio::test]
async fn without_a_worker_it_says_so_and_who_comes_later_is_told_of_those_before() {
    let world = World::start().await;
    let first = post(&world, probe(&json!({}))).await;
    let said = says(&world, &first, "no_worker").await;
    assert_eq!((said["state"].as_str(), said["workers"].as_i64()), (Some("queued"), Some(0)));
    assert!(said["summary"].as_str().unwrap().contains("start one"), "{said}");
    assert!(said.get("expected_at").is_none(), "nobody knows when somebody starts one: {said}");

    let low = |body| with(body, "priority", json!("low"));
    let mut last = String::new();
    for _ in 0..300 {
        last = post(&world, low(probe(&json!({})))).await;
    }
    let said = world.client.get(&format!("/v1/jobs/{last}/explain")).await.expect(200);
    let behind = said["reasons"].as_array().unwrap().iter().find(|cause| cause["code"] == "behind").unwrap_or_else(|| panic!("{said}"));
    assert!(behind["ahead"].as_i64().unwrap() > 0, "{said}");
    world.client.acting_for("eve").get(&format!("/v1/jobs/{last}/explain")).await.problem(404, "job_not_found");
}

#[tokio::test]
async fn what_is_planned_put_off_or_tried_again_says_until_when() {
    let (world, _worker) = World::with_worker().await;
    let in_an_hour = world.now().await + chrono::TimeDelta::hours(1);
    let planned = post(&world, with(probe(&json!({})), "run_at", json!(in_an_hour))).await;
    let said = says(&world, &planned, "not_due").await;
    assert_eq!(said["expected_at"], world.client.job(&planned).await["run_at"], "{said}");

    let retried = post(&world, probe(&json!({"outcome": "retry"}))).await;
    let said = says(&world, &retried, "backing_off").await;
    assert_eq!(said["expected_at"], said["reasons"][0]["until"], "{said}");

    // Of a kind that only a newer worker knows.
    world.execute(format!("UPDATE job SET kind = 'probe.newer' WHERE id = '{planned}'")).await;
    world.execute(format!("UPDATE job_waiting SET run_at = now() WHERE job_id = '{planned}'")).await;
    says(&world, &planned, "snoozed").await;
}

#[tokio::test]
async fn what_is_handed_over_waits_for_a_free_place() {
    let world = World::start().await;
    let _worker = world.start_worker(Launch::new().env("OFFSTAGE_CONCURRENCY", "analytics=1")).await;
    let mut last = String::new();
    for _ in 0..6 {
        last = post(&world, probe(&json!({"sleep_ms": 600_000}))).await;
    }
    let said = says(&world, &last, "in_queue").await;
    assert_eq!((said["state"].as_str(), said["workers"].as_i64()), (Some("queued"), Some(1)), "{said}");
    assert!(said["expected_at"].is_string(), "{said}");
}

#[tokio::test]
async fn of_what_runs_and_what_has_ended_it_says_how() {
    let (world, _worker) = World::with_worker().await;
    let summary = async |id: &str| world.client.get(&format!("/v1/jobs/{id}/explain")).await.expect(200);
    let running = post(&world, probe(&json!({"sleep_ms": 600_000}))).await;
    world.client.wait_for(&running, "running", |job| job["state"] == "running").await;
    let said = summary(&running).await;
    assert!(said["summary"].as_str().unwrap().starts_with("It runs, since") && said["reasons"] == json!([]), "{said}");
    world.client.post_nothing(&format!("/v1/jobs/{running}/cancel")).await;
    world.client.ended(&running).await;
    assert!(summary(&running).await["summary"].as_str().unwrap().starts_with("It was cancelled at"), "{said}");

    let done = post(&world, probe(&json!({}))).await;
    world.client.succeeded(&done).await;
    assert!(summary(&done).await["summary"].as_str().unwrap().starts_with("It succeeded at"));

    let failed = post(&world, probe(&json!({"outcome": "fail"}))).await;
    world.client.ended(&failed).await;
    let said = summary(&failed).await;
    assert!(said["summary"].as_str().unwrap().contains("at attempt 1 of"), "{said}");

    world.client.post("/v1/queues/analytics/pause", &json!({"reason": "to let it expire"})).await.expect(200);
    heard(&world).await;
    let soon = world.now().await + chrono::TimeDelta::seconds(1);
    let late = post(&world, with(probe(&json!({})), "start_by", json!(soon))).await;
    until_within(PATIENCE, "its time is over", async || if world.now().await > soon { Ok(()) } else { Err(()) }).await;
    world.client.post("/v1/queues/analytics/resume", &json!({})).await.expect(200);
    world.client.ended(&late).await;
    let said = summary(&late).await;
    assert_eq!(said["state"], "expired", "{said}");
    assert!(said["summary"].as_str().unwrap().contains("not worth starting"), "{said}");
}

#[tokio::test]
async fn pauses_stop_what_they_name_say_by_whom_and_lose_nothing() {
    let (world, _worker) = World::with_worker().await;
    let paused = world.client.post("/v1/queues/analytics/pause", &json!({"reason": "the month's end"})).await.expect(200);
    assert_eq!((paused["pauses"][0]["own"].as_bool(), paused["pauses"][0]["reason"].as_str()), (Some(true), Some("the month's end")));
    let globex = world.tenant_of("globex", "[tenant]\nname = \"globex\"\n").await;
    heard(&world).await;
    let held = post(&world, probe(&json!({}))).await;
    let said = says(&world, &held, "paused").await;
    let cause = &said["reasons"][0];
    assert!(cause["by"].as_str().unwrap().starts_with("key ") && cause["message"].as_str().unwrap().contains("the month's end"), "{said}");
    let theirs = globex.create_id(&probe(&json!({}))).await;
    globex.succeeded(&theirs).await;

    world.sandbox.run_api(["pause", "--kind", "probe.run", "--reason", "an incident", "--by", "ops"]).await.unwrap();
    world.client.post("/v1/queues/analytics/resume", &json!({})).await.expect(200);
    let said = says(&world, &held, "paused").await;
    assert_eq!(said["reasons"].as_array().unwrap().len(), 1, "{said}");
    assert_eq!(said["reasons"][0]["by"], "the operator");
    assert!(!said.to_string().contains("incident"), "the operator's words are not the product's to read: {said}");
    world.sandbox.run_api(["resume", "--kind", "probe.run", "--by", "ops"]).await.unwrap();
    world.client.succeeded(&held).await;
    assert_eq!(world.client.job(&held).await["attempt"], 1);
}

#[tokio::test]
async fn keys_switches_and_rates_are_named() {
    let (world, _worker) = World::with_worker().await;
    let limited = |ms: u64| with(probe(&json!({"sleep_ms": ms})), "limit", json!({"key": "endpoint:1", "running": 1}));
    let holder = post(&world, limited(600_000)).await;
    world.client.wait_for(&holder, "running", |job| job["state"] == "running").await;
    let second = post(&world, limited(0)).await;
    let third = post(&world, limited(0)).await;
    let said = says(&world, &third, "key_busy").await;
    assert_eq!(said["reasons"][0]["ahead"], 1, "{said}");
    says(&world, &second, "key_busy").await;
    world.client.post_nothing(&format!("/v1/jobs/{holder}/cancel")).await;
    world.client.succeeded(&second).await;
    world.client.succeeded(&third).await;

    let rated = || with(probe(&json!({})), "limit", json!({"key": "slow", "rate": {"jobs": 1, "seconds": 3_600}}));
    let first = post(&world, rated()).await;
    world.client.succeeded(&first).await;
    let next = post(&world, rated()).await;
    let said = says(&world, &next, "rate_limited").await;
    let until: chrono::DateTime<chrono::Utc> = said["expected_at"].as_str().unwrap().parse().unwrap();
    let ahead = (until - world.now().await).num_minutes();
    assert!((50..=60).contains(&ahead), "in an hour: {said}");

    world.sandbox.run_api(["switch", "off", "--reason", "a drill", "--by", "ops"]).await.unwrap();
    let outward = probe(&json!({"callback_url": "http://127.0.0.1:9/"}));
    let held = until_within(PATIENCE, "held by the switch", async || {
        let id = post(&world, outward.clone()).await;
        let job = world.client.wait_for(&id, "somewhere", |job| job["state"] != "queued" && job["state"] != "running").await;
        if job["reason"] == "switched_off" { Ok(id) } else { Err(job) }
    })
    .await;
    says(&world, &held, "switched_off").await;
}
