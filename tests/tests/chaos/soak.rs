//! Show 7: mixed load with random faults for a long time (`SOAK_MINUTES`); nothing may grow.
//!
//! Every program may be killed, paused and restarted but one API and one worker: these two live through it all, and their memory
//! is what is looked at. The last third of the samples is held against the middle third; the first one is for getting warm.

use std::time::{Duration, Instant};

use acceptance::{is_terminal, probe, until_within};
use reqwest::Method;
use sandbox::{
    Launch, Process,
    faults::tcp::{Mode, Proxy},
};
use serde_json::json;
use tokio::process::Command;

use crate::{
    arena::{Arena, LONG, program},
    count,
    report::Report,
    seed::{Chance, Seed, size},
    traffic::{Mix, Traffic},
};

/// The time between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// So many samples in a third, and growth is judged and not only shown: ten minutes in all.
const ENOUGH: usize = 40;
/// Growth from the middle third to the last one that is still flat: allocators and autovacuum come and go.
const FLAT: f64 = 1.15;

/// What is looked at, in the order of [`Samples::take`], and what of it may not grow at all steps: below this much it is noise.
const FIGURES: [(&str, f64); 8] = [
    ("memory of the API that lived through it, MiB", 10.0),
    ("memory of the worker that lived through it, MiB", 20.0),
    ("connections to Postgres", 10.0),
    ("connections to Redis", 15.0),
    ("keys in Redis", 20.0),
    ("memory of Redis, MiB", 2.0),
    ("job_waiting and job_dispatched, KiB", 2_048.0),
    ("job_state, bytes a row", 100.0),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak() {
    let seed = Seed::of("soak");
    let minutes = std::env::var("SOAK_MINUTES").ok().map(|text| text.parse::<f64>().expect("SOAK_MINUTES is a number"));
    let lasts = Duration::from_secs_f64(minutes.map_or(size(8.0, 180.0), |minutes| minutes * 60.0));

    let mut proxy: Option<Proxy> = None;
    let world = acceptance::World::start_where(|sandbox| {
        let there = sandbox.proxy(sandbox.redis.address().expect("its address")).expect("a proxy");
        let launch = program().envs(sandbox.redis.environment_at(there.address()));
        proxy = Some(there);
        launch
    })
    .await;
    let proxy = proxy.expect("made with the world");
    let environment = world.sandbox.redis.environment_at(proxy.address());
    let launch = || -> Launch { program().envs(environment.clone()) };
    let arena = Arena::start_on(world, 2, size(2, 3), launch).await;
    let traffic = arena.traffic(&seed, Mix { open: size(150, 400), clients: size(4, 8), long_one_in: 20, long_ms: 3_000 });
    arena.under_way(&traffic, 50, 20).await;

    let began = Instant::now();
    let mut samples = Samples::default();
    let mut chance = seed.chance(1);
    let mut faults: Vec<&str> = Vec::new();
    let mut others = Others::default();
    let mut next_fault = began + chance.milliseconds(1_000..=4_000);
    let mut next_sample = began;
    while began.elapsed() < lasts {
        if Instant::now() >= next_fault {
            faults.push(fault(&arena, &proxy, &mut chance).await);
            next_fault = Instant::now() + chance.milliseconds(size(2_000..=5_000, 4_000..=16_000));
        }
        if Instant::now() >= next_sample {
            next_sample = Instant::now() + SAMPLE_EVERY;
            samples.take(&arena).await;
            others.post(&arena, &traffic).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    others.all_ended_as_they_should(&arena).await;
    let sent = traffic.stop().await;
    let mut report = Report::of("soak", &format!("Soak, {:.0} minutes", lasts.as_secs_f64() / 60.0), &seed);
    for kind in FAULTS {
        report.line(format!("fault: {kind}"), faults.iter().filter(|fault| *fault == &kind).count());
    }
    report.line("jobs that failed, panicked or were cancelled as they should", others.posted.len());
    let grown = samples.report(&mut report);
    count::every_job_succeeded(&arena, &sent, &mut report).await;
    assert!([&arena.apis[0], &arena.workers[0]].iter().all(|process| process.exits().is_empty()), "nobody killed these two");
    assert!(grown.is_empty(), "grew from the middle third to the last one: {grown:?}");
}

const FAULTS: [&str; 9] = [
    "worker killed",
    "API killed",
    "worker restarted",
    "worker paused",
    "Redis emptied",
    "Redis killed, empty",
    "Redis blackholed",
    "Redis connections cut",
    "Postgres restarted",
];

/// One fault, to its end.
async fn fault(arena: &Arena, proxy: &Proxy, chance: &mut Chance) -> &'static str {
    let worker = chance.choose(&arena.workers[1..]).clone();
    let fault = *chance.choose(&FAULTS);
    match fault {
        "worker killed" => drop(worker.kill9().await.expect("a kill")),
        "API killed" => drop(chance.choose(&arena.apis[1..]).kill9().await.expect("a kill")),
        "worker restarted" => {
            worker.stop().await.expect("an end");
            worker.start().await.expect("a start");
        }
        "worker paused" => {
            worker.pause().await.expect("SIGSTOP");
            tokio::time::sleep(chance.milliseconds(1_000..=9_000)).await;
            worker.resume().await.expect("SIGCONT");
        }
        "Redis emptied" => arena.world.sandbox.redis.flushall().await.expect("it is emptied"),
        "Redis killed, empty" => {
            arena.world.sandbox.redis.kill9().await.expect("a kill");
            tokio::time::sleep(chance.milliseconds(100..=3_000)).await;
            arena.world.sandbox.redis.start().await.expect("a start");
        }
        "Redis blackholed" => {
            proxy.set(Mode::Blackhole);
            tokio::time::sleep(chance.milliseconds(1_000..=10_000)).await;
            proxy.set(Mode::Pass);
        }
        "Redis connections cut" => proxy.cut(),
        _ => arena.world.sandbox.postgres.restart_immediately().await.expect("a restart"),
    }
    fault
}

/// Jobs that end otherwise than by success.
#[derive(Debug, Default)]
struct Others {
    posted: Vec<(String, &'static str)>,
    /// Runs for an hour unless it is cancelled, which is the next thing that happens to it.
    running: Option<String>,
}

impl Others {
    async fn post(&mut self, arena: &Arena, traffic: &Traffic) {
        self.cancel(arena).await;
        for outcome in ["fail", "panic", "retry"] {
            self.posted.push((traffic.post_apart(&probe(&json!({"outcome": outcome}))).await, "failed"));
        }
        let long = traffic.post_apart(&probe(&json!({"sleep_ms": 3_600_000}))).await;
        self.posted.push((long.clone(), "cancelled"));
        self.running = Some(long);
    }

    async fn cancel(&mut self, arena: &Arena) {
        let Some(id) = self.running.take() else { return };
        let client = &arena.world.client;
        until_within(LONG, "the wish is taken", async || {
            match client.try_send(client.request(Method::POST, &format!("/v1/jobs/{id}/cancel"))).await {
                Ok(answer) if answer.status < 300 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Looks at each.
    async fn all_ended_as_they_should(&mut self, arena: &Arena) {
        self.cancel(arena).await;
        for (id, ends) in &self.posted {
            let job = arena.world.client.wait_for_within(LONG, id, "at its end", is_terminal).await;
            assert_eq!(job["state"], *ends, "{job}");
        }
    }
}

/// Samples of all [`FIGURES`], one row a time.
#[derive(Debug, Default)]
struct Samples(Vec<[f64; FIGURES.len()]>);

impl Samples {
    /// Takes one; skipped when a server does not answer just now.
    async fn take(&mut self, arena: &Arena) {
        if let Some(sample) = sample(arena).await {
            self.0.push(sample);
        }
    }

    /// Tells of each figure's three thirds; which have grown.
    fn report(&self, report: &mut Report) -> Vec<String> {
        let third = self.0.len() / 3;
        let mean = |figure: usize, from: usize, to: usize| -> f64 {
            let rows = self.0.get(from..to).unwrap_or_default();
            rows.iter().map(|row| row[figure]).sum::<f64>() / rows.len().max(1) as f64
        };
        let mut grown = Vec::new();
        for (figure, (name, noise)) in FIGURES.iter().enumerate() {
            let (first, middle, last) = (mean(figure, 0, third), mean(figure, third, 2 * third), mean(figure, 2 * third, self.0.len()));
            report.line(format!("{name}: first, middle, last third"), format!("{first:.1}, {middle:.1}, {last:.1}"));
            if third >= ENOUGH && last > middle * FLAT && last - middle > *noise {
                grown.push(format!("{name}: {middle:.1} to {last:.1}"));
            }
        }
        report.line("samples", self.0.len());
        grown
    }
}

async fn sample(arena: &Arena) -> Option<[f64; FIGURES.len()]> {
    let (redis, pool) = (&arena.world.sandbox.redis, arena.world.sandbox.pool());
    let text: String = redis.command(redis::cmd("INFO").arg("all")).await.ok()?;
    let info = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse::<f64>().ok());
    let keys: f64 = redis.command(&redis::cmd("DBSIZE")).await.ok()?;
    let (connections, small, state): (i64, i64, f64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE usename IN ('offstage_api', 'offstage_engine')),
                pg_total_relation_size('job_waiting') + pg_total_relation_size('job_dispatched'),
                pg_total_relation_size('job_state')::float8 / greatest((SELECT count(*) FROM job_state), 1)",
    )
    .fetch_one(pool)
    .await
    .ok()?;
    Some([
        memory(&arena.apis[0]).await?,
        memory(&arena.workers[0]).await?,
        connections as f64,
        info("connected_clients")?,
        keys,
        info("used_memory")? / 1_048_576.0,
        small as f64 / 1_024.0,
        state,
    ])
}

/// What a process holds in memory, in MiB.
async fn memory(process: &Process) -> Option<f64> {
    let output = Command::new("ps").args(["-o", "rss=", "-p", &process.pid()?.to_string()]).output().await.ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().parse::<f64>().ok()? / 1_024.0)
}
