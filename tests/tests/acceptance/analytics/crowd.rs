//! Heavy readings, more of them than are computed at a time: all other doors stay open, and whoever has no turn is told to come back.

use std::num::NonZero;

use acceptance::{World, until};
use serde_json::json;

use super::{MANIFEST, NOW, run, send, total};

/// Percentiles, uniques and many groups, of a year; and one that is small.
const HEAVY: [&str; 3] = [
    "times?from=2025-11-22&to=2026-11-22&granularity=day",
    "people?from=2025-11-22&to=2026-11-22&granularity=day&compare=previous",
    "runs?from=2025-11-22&to=2026-11-22&granularity=day&group_by=model,user&top=50",
];
const SMALL: &str = "/v1/analytics/tokens?from=2026-11-21&to=2026-11-22";

/// While the gate is shut a reading of the API goes no further than its first row, as if the database had very much to read for it. The lock is
/// by whom it is seen there.
const GATE: [&str; 4] = [
    "CREATE TABLE gate (is_open boolean NOT NULL)",
    "INSERT INTO gate VALUES (false)",
    "CREATE FUNCTION wait_at_gate() RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
     BEGIN
         PERFORM pg_advisory_xact_lock_shared(70301);
         WHILE NOT (SELECT is_open FROM gate) LOOP PERFORM pg_sleep(0.01); END LOOP;
         RETURN true;
     END $$",
    "CREATE POLICY gate ON metric_day AS RESTRICTIVE FOR SELECT TO offstage_api USING (wait_at_gate())",
];

#[tokio::test]
async fn under_heavy_readings_other_doors_stay_open() {
    // As many as are computed at a time; and few connections more than those hold.
    let turns = (std::thread::available_parallelism().map_or(1, NonZero::get) / 2).max(2);
    let (world, clock) = World::start_at(NOW, |api| api.env("OFFSTAGE_API_POOL", (turns + 2).to_string())).await;
    let client = world.tenant_of("forge", MANIFEST).await;
    let event = |n: usize| {
        let properties = json!({"model": format!("m{}", n % 300), "ms": n, "tokens": 1});
        run(n, &format!("2026-11-{:02}T10:00:00Z", 1 + n % 20), &format!("u{n}"), &properties)
    };
    assert_eq!(send(&client, &(0..2_000).map(event).collect::<Vec<_>>()).await["accepted"], 2_000);
    let worker = world.start_worker(clock.launch()).await;
    until("it is put together", async || match world.number("SELECT count(*) FROM metric_partial").await {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    worker.stop().await.unwrap();
    for statement in GATE {
        world.execute(statement).await;
    }

    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 70301";
    let all_wait = async || {
        until("as many as may be are being read", async || match world.number(waiting).await {
            some if some == i64::try_from(turns).unwrap() => Ok(()),
            some => Err(some),
        })
        .await;
    };
    let reading = |number: usize| {
        let client = client.clone();
        tokio::spawn(async move { client.get(&format!("/v1/analytics/{}", HEAVY[number % HEAVY.len()])).await })
    };
    let under_way: Vec<_> = (0..turns).map(reading).collect();
    all_wait().await;
    // Further ones wait, for some seconds, and hold nothing: there are far more of them than connections.
    let more: Vec<_> = (0..20).map(reading).collect();
    let small = tokio::spawn({
        let client = client.clone();
        async move { client.get(SMALL).await }
    });
    for number in 0..20 {
        let job = client.post("/v1/jobs", &json!({"kind": "probe.run", "payload": {}})).await.expect(202);
        client.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).await.expect(200);
        assert_eq!(send(&client, &[event(10_000 + number)]).await["accepted"], 1);
        client.get("/v1/analytics").await.expect(200);
        client.get("/v1/stats").await.expect(200);
    }
    // Nobody has a turn for the small one either: it is said so, and when to ask again.
    for refused in more.into_iter().chain([small]) {
        let refused = refused.await.unwrap();
        refused.problem(503, "overloaded");
        assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    }
    all_wait().await;
    // Those that were under way are answered, and everybody again.
    world.execute("UPDATE gate SET is_open = true").await;
    for (number, answer) in under_way.into_iter().enumerate() {
        let answer = answer.await.unwrap();
        let groups = answer.expect(200)["groups"].as_array().unwrap().len();
        assert_eq!(groups, [1, 1, 51][number % HEAVY.len()], "{}", answer.text());
    }
    client.get(SMALL).await.expect(200);
    assert_eq!(total(&client, "tokens").await, 2_020.0);
}
