//! Show 1: `kill -9` of workers and APIs at random moments, hundreds of times.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    arena::Arena,
    count,
    report::{Report, spread},
    seed::{Seed, size},
    traffic::Mix,
};

/// The goal for the time until a killed worker's jobs run again, at the 99th percentile.
const GOAL: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills() {
    let seed = Seed::of("kills");
    let mut chance = seed.chance(1);
    let arena = Arena::start(2, size(3, 4)).await;
    arena.all_may_judge().await;
    let traffic = arena.traffic(&seed, Mix { open: size(400, 2_000), clients: size(8, 24), long_one_in: 10, long_ms: 4_000 });
    arena.under_way(&traffic, size(100, 1_000), 50).await;

    let programs = arena.programs();
    // When each worker that was killed died, by its id in the ledger.
    let mut deaths: BTreeMap<String, Instant> = BTreeMap::new();
    let kills = size(6, 200);
    let began = Instant::now();
    for _ in 0..kills {
        tokio::time::sleep(chance.milliseconds(size(200..=1_200, 300..=4_500))).await;
        let victim = chance.choose(&programs);
        let Some(pid) = victim.pid() else { continue };
        let ids: Vec<String> = sqlx::query_scalar("SELECT id::text FROM worker WHERE name LIKE '%-' || $1")
            .bind(pid.to_string())
            .fetch_all(arena.world.sandbox.pool())
            .await
            .expect("the workers");
        victim.kill9().await.expect("a kill");
        deaths.extend(ids.into_iter().map(|id| (id, Instant::now())));
    }
    let took = began.elapsed();
    let sent = traffic.stop().await;
    let mut report = Report::of("kills", "kill -9 of workers and APIs", &seed);
    let died: u32 = programs.iter().map(|process| process.starts() - 1).sum();
    report.line("kills", format!("{died} of {} processes in {:.0} s", programs.len(), took.as_secs_f64()));
    count::settled(&arena).await;
    let (undisturbed, all) = recoveries(&arena, &deaths).await;
    report.line("recovery (kill to running again), no further kill in between", spread(&undisturbed));
    report.line("recovery, whatever happened in between", spread(&all));
    let late = undisturbed.iter().filter(|time| **time > GOAL).count();
    report.line("of the undisturbed, longer than the goal of 10 s", late);
    assert!(!all.is_empty(), "kills hit running jobs");
    count::every_job_succeeded(&arena, &sent, &mut report).await;
}

/// From a kill to the next sign of life of each job that it hit: those that were left alone until then, and all.
async fn recoveries(arena: &Arena, deaths: &BTreeMap<String, Instant>) -> (Vec<Duration>, Vec<Duration>) {
    let crashed: Vec<(String, String)> =
        sqlx::query_as("SELECT job_id::text, worker::text FROM job_attempt WHERE outcome = 'crashed' AND worker IS NOT NULL")
            .fetch_all(arena.world.sandbox.pool())
            .await
            .expect("the runs");
    let mut hits: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
    for (job, worker) in crashed {
        if let Some(death) = deaths.get(&worker) {
            hits.entry(job).or_default().push(*death);
        }
    }
    let arrived = arena.effects.arrived();
    let (mut undisturbed, mut all) = (Vec::new(), Vec::new());
    for (job, hits) in hits {
        let starts = arrived.get(&job).map(|arrived| arrived.started.as_slice()).unwrap_or_default();
        for hit in &hits {
            let Some(again) = starts.iter().filter(|start| *start > hit).min() else { continue };
            all.push(*again - *hit);
            if !hits.iter().any(|other| other > hit && other < again) {
                undisturbed.push(*again - *hit);
            }
        }
    }
    (undisturbed, all)
}
