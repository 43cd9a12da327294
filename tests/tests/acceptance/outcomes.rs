//! How runs end: well, in passing trouble, for good, in a panic, with their process; and jobs that no worker can read.

use std::time::Duration;

use acceptance::{Callbacks, World, probe, until};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

async fn waits_for_later(world: &World) -> String {
    world.client.create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": world.now().await + TimeDelta::hours(1)})).await
}

/// Makes a waiting job due, once it was changed behind the product's back.
async fn make_due(world: &World, id: &str) {
    world.execute(format!("UPDATE job_waiting SET run_at = now() WHERE job_id = '{id}'")).await;
}

#[tokio::test]
async fn a_passing_failure_is_tried_again_with_backoff_and_fails_in_the_end() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let callbacks = Callbacks::listen().await;
    let id = client.create_id(&probe(&json!({"outcome": "retry", "callback_url": callbacks.url()}))).await;
    let time = |value: &Value| value.as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    let mut seen = 0;
    for (attempt, pause) in [(1, 2_000), (2, 4_000)] {
        let seen_so = |job: &Value| job["reason"] == "backing_off" && job["attempt"] == attempt;
        let waiting = client.wait_for(&id, "backing off", |job| seen_so(job) || job["attempt"].as_i64() > Some(attempt)).await;
        // On a machine that stands still for seconds it may be over before it is seen.
        if !seen_so(&waiting) {
            continue;
        }
        seen += 1;
        assert_eq!(waiting["state"], "waiting");
        assert!(waiting["error"]["code"].is_string() && waiting["error"]["message"].is_string(), "it says what happened: {waiting}");
        let runs = client.job_with_attempts(&id).await["attempts"].clone();
        let run = runs.as_array().unwrap().iter().find(|run| run["attempt"] == attempt).unwrap();
        // R2: from 2 s, doubling, with jitter (±20 %).
        let planned = (time(&waiting["run_at"]) - time(&run["finished_at"])).num_milliseconds();
        assert!((pause * 8 / 10..=pause * 12 / 10).contains(&planned), "after attempt {attempt}: {planned} ms");
    }
    assert!(seen > 0, "it was never seen to back off");
    let failed = client.ended(&id).await;
    assert_eq!(
        (failed["state"].as_str(), failed["attempt"].as_i64(), failed["attempts_allowed"].as_i64()),
        (Some("failed"), Some(3), Some(3)),
        "{failed}"
    );
    assert!(failed["error"]["code"].is_string() && failed["result"].is_null(), "{failed}");
    assert!(failed["error"]["causes"].is_null(), "causes are for operators: {failed}");
    let started: Vec<_> = callbacks.of_phase("started").into_iter().map(|call| call.attempt).collect();
    assert_eq!(started, [1, 2, 3]);
    let runs = client.job_with_attempts(&id).await["attempts"].clone();
    let mut outcomes: Vec<_> =
        runs.as_array().unwrap().iter().map(|run| (run["attempt"].as_i64(), run["outcome"].as_str().unwrap())).collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, [(Some(1), "retry"), (Some(2), "retry"), (Some(3), "failed")]);
}

#[tokio::test]
async fn a_permanent_failure_is_not_tried_again() {
    let (world, _worker) = World::with_worker().await;
    let failed = world.client.ended(&world.client.create_id(&probe(&json!({"outcome": "fail"}))).await).await;
    assert_eq!((failed["state"].as_str(), failed["attempt"].as_i64()), (Some("failed"), Some(1)), "{failed}");
    assert!(failed["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{failed}");
}

#[tokio::test]
async fn a_panic_fails_its_job_and_nothing_else() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let panics = client.create_id(&probe(&json!({"outcome": "panic"}))).await;
    let waiting = client.wait_for(&panics, "backing off", |job| job["reason"] == "backing_off").await;
    assert_eq!(waiting["error"]["code"], "panic", "{waiting}");
    // The same process goes on, in the same queue.
    for _ in 0..3 {
        client.succeeded(&client.create_id(&probe(&json!({}))).await).await;
    }
    let failed = client.ended(&panics).await;
    assert_eq!((failed["state"].as_str(), failed["attempt"].as_i64()), (Some("failed"), Some(3)), "{failed}");
    assert_eq!(failed["error"]["code"], "panic");
    assert_eq!((worker.starts(), worker.exits().len()), (1, 0));
}

#[tokio::test]
async fn a_job_that_kills_its_process_fails_as_poison_and_its_neighbours_finish() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    // The poison goes first, so that its neighbours run or wait beside it each time.
    let poison = client.create_id(&probe(&json!({"outcome": "exit", "sleep_ms": 300}))).await;
    let mut neighbours = Vec::new();
    for _ in 0..6 {
        neighbours.push(client.create_id(&probe(&json!({"sleep_ms": 800}))).await);
    }
    let job = client.wait_for_within(Duration::from_secs(120), &poison, "failed", |job| job["state"] == "failed").await;
    assert_eq!(job["error"]["code"], "poison", "{job}");
    let deaths = worker.exits().len();
    assert_eq!(deaths, 3, "from then on it ran in processes of its own, and killed those");
    assert_eq!(world.number(format!("SELECT deaths FROM job_state WHERE job_id = '{poison}'")).await, 3);
    for id in &neighbours {
        let job = client.succeeded(id).await;
        assert_eq!(job["attempt"], 1, "a crash costs a neighbour no attempt: {job}");
    }
    // The worker that came back stays.
    client.succeeded(&client.create_id(&probe(&json!({}))).await).await;
    assert_eq!(worker.exits().len(), deaths);
    println!("poison: {deaths} processes died of it");
}

#[tokio::test]
async fn a_job_that_spins_ends_with_its_reason_and_its_neighbours_finish() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let mut spinning = Vec::new();
    for _ in 0..2 {
        spinning.push(client.create_id(&probe(&json!({"outcome": "spin", "sleep_ms": 200, "timeout_ms": 1_000}))).await);
    }
    let mut neighbours = Vec::new();
    for _ in 0..6 {
        neighbours.push(client.create_id(&probe(&json!({"sleep_ms": 800}))).await);
    }
    for id in &spinning {
        let job = client.wait_for_within(Duration::from_secs(180), id, "failed", |job| job["state"] == "failed").await;
        assert_eq!((job["error"]["code"].as_str(), job["attempt"].as_i64()), (Some("timeout"), Some(3)), "within its policy: {job}");
    }
    for id in &neighbours {
        assert_eq!(client.succeeded(id).await["attempt"], 1, "no attempt lost by a neighbour");
    }
    // A thread is not to be had back, so the process ended by itself, and said why.
    let exits = worker.exits();
    assert!(!exits.is_empty() && exits.iter().all(|exit| exit.code == Some(5)), "{exits:?}");
    assert!(spinning.iter().any(|id| worker.log().contains(&format!("the run does not let its thread go job={id}"))), "{}", worker.log());
    println!("two jobs that spin: the worker was started anew {} times", exits.len());
}

#[tokio::test]
async fn a_payload_that_no_worker_can_read_fails_alone() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let mut unreadable = Vec::new();
    for payload in [r#""text""#, r#"{"sleep_ms": "long"}"#, "null"] {
        let id = waits_for_later(&world).await;
        world.execute(format!("UPDATE job SET payload = '{payload}' WHERE id = '{id}'")).await;
        unreadable.push(id);
    }
    let good = waits_for_later(&world).await;
    // Due together, so that one claim takes them all.
    world.execute("UPDATE job_waiting SET run_at = now()").await;
    client.succeeded(&good).await;
    for id in &unreadable {
        let job = client.ended(id).await;
        assert_eq!(
            (job["state"].as_str(), job["error"]["code"].as_str(), job["attempt"].as_i64()),
            (Some("failed"), Some("payload_invalid"), Some(1)),
            "{job}"
        );
    }
    assert_eq!(worker.exits().len(), 0);
}

#[tokio::test]
async fn a_kind_that_no_worker_knows_waits_for_one_that_does() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let id = waits_for_later(&world).await;
    world.execute(format!("UPDATE job SET kind = 'probe.tomorrow' WHERE id = '{id}'")).await;
    make_due(&world, &id).await;
    let job = client.wait_for(&id, "snoozed", |job| job["reason"] == "snoozed").await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("waiting"), Some(0)), "it used no attempt: {job}");
    // A replica that knows the kind finishes it: here the kind becomes known.
    world.execute(format!("UPDATE job SET kind = 'probe.run' WHERE id = '{id}'")).await;
    until("the snooze is written", async || {
        if world.execute(format!("UPDATE job_waiting SET run_at = now() WHERE job_id = '{id}'")).await == 1 {
            Ok(())
        } else {
            Err("not waiting")
        }
    })
    .await;
    let job = client.succeeded(&id).await;
    assert_eq!(job["attempt"], 1, "{job}");
}

#[tokio::test]
async fn a_ledger_that_does_not_answer_a_handler_costs_its_job_no_attempt() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let callbacks = Callbacks::listen().await;
    world.execute("ALTER TABLE effect RENAME TO effect_away").await;
    let id = client.create_id(&probe(&json!({"callback_url": callbacks.url()}))).await;
    let job = client.wait_for(&id, "put off", |job| job["state"] == "waiting").await;
    assert_eq!((job["attempt"].as_i64(), &job["error"]), (Some(0), &Value::Null), "not the job's fault: {job}");
    assert_eq!(callbacks.calls().len(), 0, "nothing is done outside that could not be written down before");
    world.execute("ALTER TABLE effect_away RENAME TO effect").await;
    assert_eq!(client.succeeded(&id).await["attempt"], 1);
    assert_eq!(callbacks.calls().len(), 2);
    assert_eq!(worker.exits().len(), 0);
}
