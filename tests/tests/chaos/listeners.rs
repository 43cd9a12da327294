//! Show 4: thousands of listeners to single jobs, dropped and connected again at random while jobs change. Each must end with its job's
//! final state, and hear of no state twice or backwards.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use acceptance::{Client, Events, World, until_within};
use chrono::{DateTime, TimeDelta, Utc};
use sandbox::Launch;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    arena::LONG,
    report::Report,
    seed::{Chance, Seed, size},
};

/// Jobs that fall due in a second.
const JOBS_A_SECOND: usize = 100;

/// A clock that both sides share: the time of the database's machine, carried on by ours.
#[derive(Debug, Clone, Copy)]
struct Since {
    then: DateTime<Utc>,
    instant: Instant,
}

impl Since {
    fn now(self) -> DateTime<Utc> {
        self.then + TimeDelta::from_std(self.instant.elapsed()).expect("a short time")
    }
}

/// What the listeners went through.
#[derive(Debug, Default)]
struct Counts {
    connected: AtomicUsize,
    dropped: AtomicUsize,
    refused: AtomicUsize,
    events: AtomicUsize,
}

/// One listener's end: the final state, and how long after it the event came, where it was listening all the while.
struct Heard {
    job: String,
    state: String,
    late: Option<Duration>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners() {
    let seed = Seed::of("listeners");
    let listeners: usize = size(100, 5_000);
    let jobs = listeners / 2;
    let api = Launch::new().env("OFFSTAGE_STREAMS", "6000").env("OFFSTAGE_STREAMS_OF_TENANT", "6000");
    let world = World::start_with(api).await;
    let _worker = world.worker().await;
    let client = &world.client;
    let clock = Since { then: world.now().await, instant: Instant::now() };
    let pid = resident_of(&world);
    // Due one after the other, once everybody listens.
    let begin = clock.now() + TimeDelta::seconds(size(8, 45));
    let mut ids = Vec::new();
    for first in (0..jobs).step_by(50) {
        let post = (first..jobs.min(first + 50)).map(|index| {
            let due = begin + TimeDelta::milliseconds(i64::try_from(index * 1_000 / JOBS_A_SECOND).expect("a short time"));
            let outcome = if index % 10 == 0 { "fail" } else { "ok" };
            let job = json!({"kind": "probe.run", "payload": {"sleep_ms": 20, "outcome": outcome}, "run_at": due});
            let client = client.clone();
            tokio::spawn(async move { client.create_id(&job).await })
        });
        for posted in post.collect::<Vec<_>>() {
            ids.push(posted.await.expect("a job"));
        }
    }
    let before = pid();
    let counts = Arc::new(Counts::default());
    let mut all = JoinSet::new();
    for index in 0..listeners {
        let chance = seed.chance(index as u64);
        all.spawn(listen(client.clone(), ids[index % jobs].clone(), Arc::clone(&counts), clock, begin, chance));
        if index % 100 == 99 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let idle = until_within(LONG, "everybody listens", async || match world.figure(&world.api, "offstage_streams", &[]).await {
        open if open >= listeners as f64 * 0.98 => Ok(pid()),
        open => Err(open),
    })
    .await;
    let early = clock.now() < begin;
    let mut heard: BTreeMap<String, Vec<Heard>> = BTreeMap::new();
    let mut late = Vec::new();
    while let Some(ended) = all.join_next().await {
        let ended = ended.expect("every listener goes on to the end");
        late.extend(ended.late);
        heard.entry(ended.job.clone()).or_default().push(ended);
    }
    let mut report = Report::of("listeners", "Listeners dropped and connected again", &seed);
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    report.line("listeners", listeners);
    report.line("jobs, and how many fall due in a second", format!("{jobs}, {JOBS_A_SECOND}"));
    report.line("connections, of them dropped by chance", format!("{}, {}", count(&counts.connected), count(&counts.dropped)));
    report.line("answered 503, come back", count(&counts.refused));
    report.line("events", count(&counts.events));
    report.line("an API's memory per idle listener", format!("{:.1} KiB", idle.saturating_sub(before) as f64 / listeners as f64));
    if !early {
        report.line("not everybody listened in time", "latencies include connecting");
    }
    late.sort_unstable();
    let at = |percent: usize| late.get((late.len() * percent).div_ceil(100).max(1) - 1).copied().unwrap_or_default();
    report.line(
        "from a job's end to its event, where nobody was dropped between",
        format!("n={} p50 {} ms p99 {} ms", late.len(), at(50).as_millis(), at(99).as_millis()),
    );
    assert_eq!(heard.len(), jobs, "every job was heard of");
    for (job, ends) in &heard {
        let state = world
            .text(format!(
                "SELECT CASE state WHEN 3 THEN 'succeeded' WHEN 4 THEN 'failed' ELSE state::text END FROM job_state WHERE job_id = '{job}'"
            ))
            .await;
        assert!(ends.len() == listeners / jobs && ends.iter().all(|end| end.state == state), "{job}: {state}");
    }
    until_within(LONG, "no place is left taken", async || match world.figure(&world.api, "offstage_streams", &[]).await {
        0.0 => Ok(()),
        open => Err(open),
    })
    .await;
}

/// Listens to a job until its end, and loses its connection now and then.
async fn listen(client: Client, job: String, counts: Arc<Counts>, clock: Since, begin: DateTime<Utc>, mut chance: Chance) -> Heard {
    let path = format!("/v1/jobs/{job}/events");
    let mut last: Option<String> = None;
    loop {
        let since = clock.now();
        let answer = match client.listen(&path, last.as_deref()).send().await {
            Ok(answer) if answer.status().as_u16() == 200 => answer,
            Ok(answer) => {
                assert_eq!(answer.status().as_u16(), 503, "it has not heard of the end");
                counts.refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(chance.milliseconds(500..=1_500)).await;
                continue;
            }
            Err(_) => {
                tokio::time::sleep(chance.milliseconds(100..=500)).await;
                continue;
            }
        };
        counts.connected.fetch_add(1, Ordering::Relaxed);
        let mut events = Events::of(answer);
        // While the picture is taken of idle listeners nobody is dropped.
        let quiet = (begin - clock.now()).to_std().unwrap_or_default();
        let lasts = quiet + chance.milliseconds(200..=20_000);
        let listened = tokio::time::timeout(lasts, async {
            while let Some(event) = events.next().await {
                counts.events.fetch_add(1, Ordering::Relaxed);
                let version: u64 = event.id.parse().expect("a version");
                let known = last.as_ref().map_or(0, |last| last.parse().expect("a version"));
                assert!(version > known, "{job} went from {known} to {version}");
                last = Some(event.id);
                if event.name == "ended" {
                    let ended: DateTime<Utc> = event.data["finished_at"].as_str().and_then(|at| at.parse().ok()).expect("a time");
                    let late = (ended > since).then(|| (clock.now() - ended).to_std().unwrap_or_default());
                    return Some(Heard { job: job.clone(), state: event.data["state"].as_str().unwrap_or_default().to_owned(), late });
                }
                if chance.number(0..=9) == 0 && clock.now() > begin {
                    return None;
                }
            }
            None
        });
        if let Ok(Some(heard)) = listened.await {
            return heard;
        }
        counts.dropped.fetch_add(1, Ordering::Relaxed);
        drop(events);
        tokio::time::sleep(chance.milliseconds(0..=500)).await;
    }
}

/// Reads how much memory the API holds, in KiB.
fn resident_of(world: &World) -> impl Fn() -> u64 {
    let pid = world.api.pid();
    move || {
        let status = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok()).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or_default()
    }
}
