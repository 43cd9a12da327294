//! A key that lets five run at a time and one that lets ten start a second, with workers that are killed all along: neither is ever passed.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use acceptance::{Call, Callbacks, Load, Loaded, World};
use serde_json::{Value, json};

use crate::{
    arena::{LONG, program},
    report::Report,
    seed::{Seed, size},
};

const RUNNING: usize = 5;
const RATE: u32 = 10;
const BURST: u32 = 5;
/// How much later than it was allowed to start a job's call may arrive on a busy machine, so that it comes closer to the next one.
const LATE: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits() {
    let seed = Seed::of("limits");
    let mut chance = seed.chance(1);
    let world = World::start_with(program()).await;
    let mut workers = Vec::new();
    for _ in 0..size(2, 4) {
        workers.push(world.start_worker(program()).await);
    }
    let (few, even) = (Callbacks::listen().await, Callbacks::listen().await);
    let job = |sleep_ms: u64, callback: &Callbacks, limit: Value| json!({"kind": "probe.run", "payload": {"sleep_ms": sleep_ms, "callback_url": callback.url()}, "limit": limit});
    let mut jobs = Vec::new();
    for _ in 0..size(40, 600) {
        jobs.push(job(chance.number(50..=400), &few, json!({"key": "few", "running": RUNNING})));
    }
    for _ in 0..size(40, 400) {
        jobs.push(job(0, &even, json!({"key": "even", "rate": {"jobs": RATE, "seconds": 1, "burst": BURST}})));
    }
    let count = jobs.len();
    let loaded: Loaded = Load::start(&world.client, jobs, 16).finish().await;
    assert_eq!(loaded.ids.len(), count);

    let kills = size(3, 20);
    for _ in 0..kills {
        tokio::time::sleep(chance.milliseconds(size(300..=1_200, 1_000..=3_000))).await;
        drop(chance.choose(&workers).kill9().await);
    }
    for id in &loaded.ids {
        let job = world.client.wait_for_within(LONG, id, "at its end", acceptance::is_terminal).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }

    let mut report = Report::of("limits", "Keys' limits under kills", &seed);
    report.line("jobs, kills", format!("{count}, {kills}"));
    let most = most_at_a_time(&few.calls());
    report.line(format!("of a key of {RUNNING}, at most at a time"), most);
    let (window, starts) = worst_window(&even.of_phase("started"), Duration::from_secs(5));
    report.line(
        format!("of a key of {RATE} a second and {BURST} at once, at most in 5 s"),
        format!("{starts} in {:.2} s", window.as_secs_f64()),
    );
    let (_, in_a_second) = worst_window(&even.of_phase("started"), Duration::from_secs(1));
    report.line("in 1 s", in_a_second);
    assert!(most <= RUNNING, "{most} ran at a time");
    let allowed = f64::from(BURST) + f64::from(RATE) * (window + LATE).as_secs_f64();
    assert!(starts as f64 <= allowed, "{starts} started in {window:?}, {allowed:.1} may");
    let left = "SELECT count(*) FROM job_limited";
    assert_eq!(world.number(left).await, 0, "nobody holds a place any more");
}

/// How many jobs were at work at a time, at most. One whose worker was killed holds its place until it has run again; where that happened
/// after its work was done, before it was settled, the second run says that it starts and nothing more, which begins no work.
fn most_at_a_time(calls: &[Call]) -> usize {
    let last: BTreeMap<&str, usize> =
        calls.iter().enumerate().filter(|(_, call)| call.phase == "finished").map(|(place, call)| (call.job.as_str(), place)).collect();
    let (mut running, mut most) = (BTreeSet::new(), 0);
    for (place, call) in calls.iter().enumerate() {
        match last.get(call.job.as_str()).map_or(Ordering::Less, |last| place.cmp(last)) {
            Ordering::Less => running.insert(call.job.as_str()),
            Ordering::Equal => running.remove(call.job.as_str()),
            Ordering::Greater => continue,
        };
        most = most.max(running.len());
    }
    most
}

/// The window of about that length into which most calls fell, and how many.
fn worst_window(calls: &[Call], length: Duration) -> (Duration, usize) {
    let mut times: Vec<Instant> = calls.iter().map(|call| call.received).collect();
    times.sort_unstable();
    let mut worst = (length, 0);
    for (place, from) in times.iter().enumerate() {
        let until = times[place..].iter().take_while(|time| time.duration_since(*from) <= length).count();
        if until > worst.1 {
            worst = (length, until);
        }
    }
    worst
}

#[test]
fn who_runs_again_after_its_work_was_done_is_not_at_work_for_ever() {
    let call =
        |job: &str, phase: &str| Call { job: job.into(), attempt: 1, phase: phase.into(), at: String::new(), received: Instant::now() };
    let calls =
        [("a", "started"), ("a", "finished"), ("a", "started"), ("b", "started"), ("b", "finished")].map(|(job, phase)| call(job, phase));
    assert_eq!(most_at_a_time(&calls), 1);
    let calls =
        [("a", "started"), ("a", "started"), ("b", "started"), ("a", "finished"), ("b", "finished")].map(|(job, phase)| call(job, phase));
    assert_eq!(most_at_a_time(&calls), 2, "and one that was killed at work holds its place");
}
