//! Show 5: jobs that panic, hang, spin, end their process, take all memory, or can't be read, among thousands that do what they
//! should.
//!
//! Each ends with the reason, within its policy; no neighbour fails for it or has an attempt counted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use acceptance::{is_terminal, probe};
use chrono::TimeDelta;
use sandbox::Launch;
use serde_json::{Value, json};

use crate::{
    arena::{Arena, program},
    count,
    report::{Report, seconds},
    seed::{Seed, size},
    traffic::{Mix, Traffic},
};

/// Five deaths with some seconds of silence each, suspects one at a time.
const PATIENCE: Duration = Duration::from_secs(400);
/// What a worker may take: several times what it needs, and little enough to be taken soon.
const MEMORY: u64 = 2_000 * 1024 * 1024;

/// A limit of memory, and an allocator that does not reserve much more than it uses.
fn limited() -> Launch {
    program().memory_limit(MEMORY).env("MALLOC_ARENA_MAX", "2")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misbehaviour() {
    let seed = Seed::of("misbehaviour");
    let world = acceptance::World::start_with(program()).await;
    let arena = Arena::start_on(world, 1, size(2, 3), limited).await;
    let traffic = arena.traffic(&seed, Mix { open: size(200, 1_000), clients: size(4, 12), long_one_in: 20, long_ms: 1_500 });
    arena.under_way(&traffic, size(50, 500), 20).await;

    let hang = json!({"outcome": "hang", "timeout_ms": 500});
    let mut wanted: Vec<(&str, Value, &[&str])> = vec![
        ("panics", json!({"outcome": "panic"}), &["panic"]),
        ("hangs", hang, &["timeout"]),
        ("can't be read", json!({}), &["payload_invalid"]),
    ];
    if crate::seed::full() {
        wanted.push(("ends its process", json!({"outcome": "exit", "sleep_ms": 50}), &["poison"]));
        wanted.push(("takes all memory", json!({"outcome": "allocate"}), &["poison"]));
        wanted.push(("spins", json!({"outcome": "spin", "timeout_ms": 3_000}), &["poison", "timeout"]));
    }
    let began = Instant::now();
    let mut posted: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (what, payload, _) in &wanted {
        for _ in 0..size(2, 3) {
            let id = if *what == "can't be read" { garbage(&arena, &traffic).await } else { traffic.post_apart(&probe(payload)).await };
            posted.entry(what).or_default().push(id);
        }
    }
    let mut report = Report::of("misbehaviour", "Jobs that misbehave", &seed);
    for (what, _, codes) in &wanted {
        let mut worst = (Duration::ZERO, 0);
        for id in &posted[what] {
            let job = arena.world.client.wait_for_within(PATIENCE, id, "at its end", is_terminal).await;
            let code = job["error"]["code"].as_str().unwrap_or_default();
            assert!(job["state"] == "failed" && codes.contains(&code), "{what}: fails with one of {codes:?}: {job}");
            let attempt = job["attempt"].as_i64().unwrap_or_default();
            assert!((1..=3).contains(&attempt), "{what}: within its policy: {job}");
            worst = (worst.0.max(began.elapsed()), worst.1.max(attempt));
        }
        report.line(
            format!("a job that {what}: jobs, attempts counted, all ended after"),
            format!("{}, {}, {}", posted[what].len(), worst.1, seconds(worst.0)),
        );
    }
    let deaths: usize = arena.workers.iter().map(|worker| worker.exits().len()).sum();
    // The queue goes on behind all that.
    let finished = arena.effects.finished();
    arena.under_way(&traffic, traffic.accepted() + 50, finished + 50).await;
    let sent = traffic.stop().await;
    report.line("worker processes that died of it", deaths);
    count::every_job_succeeded(&arena, &sent, &mut report).await;
}

/// A job whose payload no worker can read: changed behind the product's back before it is due.
async fn garbage(arena: &Arena, traffic: &Traffic) -> String {
    let later = arena.world.now().await + TimeDelta::hours(1);
    let id = traffic.post_apart(&json!({"kind": "probe.run", "payload": {}, "run_at": later})).await;
    arena.world.execute(format!("UPDATE job SET payload = '\"garbage\"' WHERE id = '{id}'")).await;
    arena.world.execute(format!("UPDATE job_waiting SET run_at = now() WHERE job_id = '{id}'")).await;
    id
}
