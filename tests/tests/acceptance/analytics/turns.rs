//! Many rebuilds of a series whose turn somebody else has: whoever waits holds neither a connection nor a place. And those under which
//! workers died: they run in processes of their own, which have few connections.

use acceptance::{World, id_of, until};
use chrono::Utc;
use sandbox::Launch;
use serde_json::json;

use super::{MANIFEST, run, send};

#[tokio::test]
async fn rebuilds_that_wait_hold_up_nothing() {
    let world = World::start().await;
    let client = world.tenant_of("forge", MANIFEST).await;
    // More rebuilds than connections, and than places in their queue.
    let launch = Launch::new().env("OFFSTAGE_ENGINE_POOL", "8").env("OFFSTAGE_CONCURRENCY", "analytics=16");
    let _worker = world.start_worker(launch).await;
    #[expect(clippy::disallowed_methods, reason = "snoozes go by the worker's own clock, so nothing is set here")]
    let now = Utc::now().to_rfc3339();
    assert_eq!(send(&client, &[run(1, &now, "ada", &json!({"tokens": 3}))]).await["accepted"], 1);
    until("the metrics are known", async || match world.number("SELECT count(*) FROM metric_series WHERE metric = 'tokens'").await {
        1 => Ok(()),
        none => Err(none),
    })
    .await;

    let mut holding = world.sandbox.pool().begin().await.unwrap();
    sqlx::query("SELECT series FROM metric_series FOR UPDATE").execute(&mut *holding).await.unwrap();
    let mut rebuilds = Vec::new();
    for _ in 0..20 {
        rebuilds.push(id_of(&client.post("/v1/analytics/tokens/rebuild", &json!({})).await.expect(202)));
    }
    let waiting = "SELECT count(*) FROM job_state JOIN job ON id = job_id WHERE kind = 'metric.rebuild' AND snoozes > 0";
    until("each of them gave its place back", async || match world.number(waiting).await {
        20.. => Ok(()),
        some => Err(some),
    })
    .await;
    let other = id_of(&client.post("/v1/jobs", &json!({"kind": "probe.run", "payload": {}})).await.expect(202));
    client.succeeded(&other).await;
    assert_eq!(world.number("SELECT count(*) FROM job_state JOIN job ON id = job_id WHERE kind = 'metric.rebuild' AND state > 2").await, 0);

    holding.rollback().await.unwrap();
    for rebuild in &rebuilds {
        let done = client.succeeded(rebuild).await;
        assert_eq!((&done["attempt"], &done["result"]["events"]), (&json!(1), &json!(1)), "{done}");
    }
}

#[tokio::test]
async fn what_brings_numbers_succeeds_also_in_a_process_of_its_own() {
    let world = World::start().await;
    let client = world.tenant_of("forge", MANIFEST).await;
    #[expect(clippy::disallowed_methods, reason = "whoever runs the jobs goes by a clock of its own, so nothing is set here")]
    let now = Utc::now().to_rfc3339();
    assert_eq!(send(&client, &[run(1, &now, "ada", &json!({"tokens": 3}))]).await["accepted"], 1);
    let rebuild = id_of(&client.post("/v1/analytics/tokens/rebuild", &json!({})).await.expect(202));
    let export = id_of(&client.post("/v1/exports", &json!({"metric": "tokens", "format": "csv"})).await.expect(202));
    assert_eq!(world.execute("UPDATE job_state SET crashes = 3").await, 2);

    let _worker = world.worker().await;
    assert_eq!(client.succeeded(&rebuild).await["result"]["events"], 1);
    client.succeeded(&export).await;
}
