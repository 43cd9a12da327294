//! Show 2: Redis killed with its data, emptied, thrown back, out of reach, cut off, full. Every program reaches it through a
//! proxy, so that the way to it can fail as well.

use std::time::Duration;

use acceptance::World;
use chrono::{DateTime, Utc};
use sandbox::faults::tcp::{Mode, Proxy};

use crate::{
    arena::{Arena, program},
    count,
    report::{Report, seconds},
    seed::{Seed, size},
    traffic::{Mix, QUEUES},
};

/// The promise: so soon after its return jobs are taken from it again.
const PROMISED: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis() {
    let seed = Seed::of("redis");
    let mut proxy: Option<Proxy> = None;
    let world = World::start_where(|sandbox| {
        let there = sandbox.proxy(sandbox.redis.address().expect("its address")).expect("a proxy");
        let launch = program().envs(sandbox.redis.environment_at(there.address()));
        proxy = Some(there);
        launch
    })
    .await;
    let proxy = proxy.expect("made with the world");
    let environment = world.sandbox.redis.environment_at(proxy.address());
    let arena = Arena::start_on(world, size(1, 2), 2, || program().envs(environment.clone())).await;
    let traffic = arena.traffic(&seed, Mix { open: size(300, 2_000), clients: size(6, 16), long_one_in: 50, long_ms: 1_000 });
    let mut report = Report::of("redis", "Redis under fire", &seed);
    let server = &arena.world.sandbox.redis;

    for fault in ["killed, its data deleted", "FLUSHALL", "thrown back by its newest second", "blackhole", "CLIENT KILL", "maxmemory"] {
        arena.under_way(&traffic, traffic.accepted() + size(30, 500), arena.effects.finished() + size(30, 500)).await;
        let accepted = traffic.accepted();
        let lasted = match fault {
            "killed, its data deleted" => {
                server.kill9().await.expect("a kill");
                outage(size(1_000, 5_000)).await
            }
            "FLUSHALL" | "CLIENT KILL" => Duration::ZERO,
            "thrown back by its newest second" => {
                server.append_only().await.expect("an append-only file");
                outage(size(1_500, 5_000)).await;
                server.kill9().await.expect("a kill");
                let lost = server.cut_newest_second().expect("a cut");
                report.line("bytes that Redis forgot of its newest second", lost);
                Duration::ZERO
            }
            "blackhole" => {
                proxy.set(Mode::Blackhole);
                outage(size(2_500, 60_000)).await
            }
            _ => {
                server.command::<()>(::redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1mb")).await.expect("a limit");
                outage(size(1_000, 20_000)).await
            }
        };
        match fault {
            "killed, its data deleted" | "thrown back by its newest second" => server.start().await.expect("a start"),
            "FLUSHALL" => server.flushall().await.expect("it is emptied"),
            "blackhole" => proxy.set(Mode::Pass),
            "CLIENT KILL" => {
                for kind in ["normal", "pubsub"] {
                    server
                        .command::<i64>(::redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg(kind).arg("SKIPME").arg("yes"))
                        .await
                        .expect("they are killed");
                }
            }
            _ => server.command::<()>(::redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("0")).await.expect("no limit"),
        }
        let back: DateTime<Utc> = arena.world.now().await;
        let meanwhile = traffic.accepted() - accepted;
        let again = arena.consuming_again(back, i64::try_from(QUEUES.len()).expect("a number of queues")).await;
        let kept = if again <= PROMISED { "" } else { " (promised: 5 s)" };
        report.line(
            format!("{fault}: gone for, accepted meanwhile, every queue consumed again after"),
            format!("{}, {meanwhile}, {}{kept}", seconds(lasted), seconds(again)),
        );
    }
    let sent = traffic.stop().await;
    count::every_job_succeeded(&arena, &sent, &mut report).await;
    // A machine under load may be slow to open connections to Postgres; that no Redis is there is no reason to say no.
    let turned_away = sent.answers.get(&503).copied().unwrap_or_default();
    assert!(turned_away * 50 < sent.accepted.len() as u64, "accepting needs no Redis: {:?}", sent.answers);
    assert!(arena.programs().iter().all(|process| process.exits().is_empty()), "nobody ended by it");
    let crashed = arena.world.number("SELECT count(*) FROM job_attempt WHERE outcome = 'crashed'").await;
    assert_eq!(crashed, 0, "nobody was declared dead for it");
}

/// Lets a fault last.
async fn outage(milliseconds: u64) -> Duration {
    let lasting = Duration::from_millis(milliseconds);
    tokio::time::sleep(lasting).await;
    lasting
}
