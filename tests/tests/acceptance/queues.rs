//! What an operator sets: which queues a worker serves, and how many jobs of each at a time.

use acceptance::{Callbacks, PATIENCE, World, probe};
use sandbox::Launch;
use serde_json::json;

#[tokio::test]
async fn a_worker_serves_the_queues_it_was_given_and_no_other() {
    let world = World::start().await;
    let client = &world.client;
    let mut of = Vec::new();
    for queue in ["analytics", "email", "webhooks"] {
        let job = client.create(&probe(&json!({"queue": queue}))).await;
        assert_eq!(job["queue"], queue);
        of.push(acceptance::id_of(&job));
    }
    let _mails = world.start_worker(Launch::new().arg("--queues").arg("email")).await;
    client.succeeded(&of[1]).await;
    let _hooks = world.start_worker(Launch::new().env("OFFSTAGE_QUEUES", "webhooks")).await;
    client.succeeded(&of[2]).await;
    // Both have been at work, and neither touched what is not theirs.
    let left = client.job(&of[0]).await;
    assert_eq!((left["state"].as_str(), left["attempt"].as_i64()), (Some("queued"), Some(0)), "{left}");
    let _all = world.worker().await;
    client.succeeded(&of[0]).await;
}

#[tokio::test]
async fn no_more_jobs_of_a_queue_run_at_a_time_than_was_set() {
    let world = World::start().await;
    let callbacks = Callbacks::listen().await;
    for _ in 0..12 {
        world.client.create(&probe(&json!({"queue": "email", "sleep_ms": 300, "callback_url": callbacks.url()}))).await;
    }
    let _worker = world.start_worker(Launch::new().arg("--queues").arg("email").env("OFFSTAGE_CONCURRENCY", "email=3")).await;
    callbacks.wait_for(PATIENCE, "finished", None, 12).await;
    let (mut running, mut most) = (0_i32, 0_i32);
    for call in callbacks.calls() {
        running += if call.phase == "started" { 1 } else { -1 };
        most = most.max(running);
    }
    assert!((2..=3).contains(&most), "several at a time, and never more than allowed: {most}");
}

#[tokio::test]
async fn no_more_jobs_start_in_a_time_than_a_throttle_lets() {
    let world = World::start().await;
    let throttle = ["throttle", "--tenant", "acme", "--queue", "analytics", "--jobs", "5", "--seconds", "1", "--burst", "2", "--by", "ops"];
    world.sandbox.run_api(throttle).await.unwrap();
    let _worker = world.worker().await;
    let callbacks = Callbacks::listen().await;
    let mut ids = Vec::new();
    for _ in 0..17 {
        ids.push(world.client.create_id(&probe(&json!({"callback_url": callbacks.url()}))).await);
    }
    // Another tenant's jobs, and its own in another queue, are no concern of it.
    let globex = world.tenant("globex").await;
    let theirs = globex.create_id(&probe(&json!({}))).await;
    globex.succeeded(&theirs).await;
    for id in &ids {
        let job = world.client.succeeded(id).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
    let started = callbacks.of_phase("started");
    let took = started.last().unwrap().received.duration_since(started[0].received);
    // Fifteen more than the two at once, five a second, less what the first one came late.
    assert!(took.as_secs_f64() >= 2.5, "17 started in {took:?}");
    world.sandbox.run_api(["throttle", "--tenant", "acme", "--queue", "analytics", "--off", "--by", "ops"]).await.unwrap();
    let holds = world.sandbox.run_api(["holds", "--json"]).await.unwrap();
    let holds = String::from_utf8(holds.stdout).unwrap();
    assert!(holds.contains("\"throttles\":[]"), "{holds}");
}
