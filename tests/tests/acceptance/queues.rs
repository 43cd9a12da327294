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
