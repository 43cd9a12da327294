//! Show 6: every replica restarted, one after the other, under load, again and again: as a new version is rolled out.
//!
//! What is counted: a request *fails* when its connection breaks before the answer, when it is answered with anything but
//! success or a 503 that says when to come back, or when no replica takes it. A replica that is down refuses connections (nothing
//! was sent), and its client goes to the other one: that is no failure, and is counted apart, as are 503s.

use std::time::{Duration, Instant};

use crate::{
    arena::{Arena, LONG},
    count,
    report::{Report, spread},
    seed::{Seed, size},
    traffic::Mix,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollout() {
    let seed = Seed::of("rollout");
    let arena = Arena::start(2, 2).await;
    let traffic = arena.traffic(&seed, Mix { open: size(300, 2_000), clients: size(8, 24), long_one_in: 20, long_ms: 2_000 });
    arena.under_way(&traffic, size(100, 1_000), 50).await;

    let rounds = size(1, 3);
    let mut drains = Vec::new();
    let mut codes = Vec::new();
    for _ in 0..rounds {
        for process in arena.programs() {
            let accepted = traffic.accepted();
            let asked = Instant::now();
            process.terminate().await.expect("SIGTERM");
            let exit = process.wait_exit(LONG).await.unwrap_or_else(|error| panic!("{error}"));
            drains.push(asked.elapsed());
            codes.push(exit.code);
            arena.back(&process).await;
            // Each replica is back at work before the next one goes.
            arena.under_way(&traffic, accepted + 50, 0).await;
        }
    }
    let sent = traffic.stop().await;
    let mut report = Report::of("rollout", "Rolling restart of all replicas", &seed);
    report.line("restarts", format!("{} ({rounds} rounds of {} replicas)", drains.len(), arena.programs().len()));
    report.line("from SIGTERM to the end of a process", spread(&drains));
    report.line("requests that failed", sent.broken);
    report.line("answered 503, come back", sent.answers.get(&503).copied().unwrap_or_default());
    count::every_job_succeeded(&arena, &sent, &mut report).await;
    let crashed = arena.world.number("SELECT count(*) FROM job_attempt WHERE outcome <> 'succeeded'").await;
    report.line("runs that were lost", crashed);
    assert!(codes.iter().all(|code| *code == Some(0)), "everybody finished what it held: {codes:?}");
    assert_eq!(crashed, 0, "no run was lost");
    assert_eq!(sent.broken, 0, "no request was broken off: {:#?}", sent.breaks);
    assert!(sent.answers.keys().all(|status| [202, 503].contains(status)), "no request had to be sent twice: {:?}", sent.answers);
    assert!(drains.iter().all(|drain| *drain < Duration::from_secs(60)), "{drains:?}");
}
