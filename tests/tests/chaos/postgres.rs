//! Show 3: Postgres restarted in immediate mode, out of connections, its job tables locked.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::{Connection, Executor, PgConnection};

use crate::{
    arena::Arena,
    count,
    report::{Report, seconds},
    seed::{Seed, size},
    traffic::{Mix, QUEUES},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() {
    let seed = Seed::of("postgres");
    let arena = Arena::start(size(1, 2), 2).await;
    arena.all_may_judge().await;
    let traffic = arena.traffic(&seed, Mix { open: size(300, 2_000), clients: size(8, 24), long_one_in: 20, long_ms: 2_000 });
    let mut report = Report::of("postgres", "Postgres under fire", &seed);
    let server = &arena.world.sandbox.postgres;

    let faults = ["restarted in immediate mode", "out of connections, all of ours ended", "job tables locked", "out of connections"];
    for fault in faults.into_iter().take(size(3, 4)) {
        arena.under_way(&traffic, traffic.accepted() + size(40, 500), arena.effects.finished() + size(40, 500)).await;
        let before = traffic.sent();
        let began = Instant::now();
        match fault {
            "restarted in immediate mode" => {
                for _ in 0..size(1, 3) {
                    server.restart_immediately().await.expect("a restart");
                    tokio::time::sleep(size(Duration::ZERO, Duration::from_secs(5))).await;
                }
            }
            "job tables locked" => {
                let mut lock = arena.world.sandbox.pool().begin().await.expect("a transaction");
                lock.execute("LOCK TABLE job, job_state, job_waiting, job_dispatched, job_attempt, effect IN ACCESS EXCLUSIVE MODE")
                    .await
                    .expect("the locks");
                tokio::time::sleep(size(Duration::from_secs(3), Duration::from_secs(30))).await;
                lock.rollback().await.expect("an end");
            }
            _ => {
                let taken = take_all_connections(&arena, fault.ends_with("ended")).await;
                tokio::time::sleep(size(Duration::from_secs(1), Duration::from_secs(20))).await;
                for connection in taken {
                    connection.close().await.expect("an end");
                }
            }
        }
        let lasted = began.elapsed();
        let back: DateTime<Utc> = loop {
            if let Ok(now) = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(arena.world.sandbox.pool()).await {
                break now;
            }
        };
        let again = arena.consuming_again(back, i64::try_from(QUEUES.len()).expect("a number of queues")).await;
        let sent = traffic.sent();
        let turned = |sent: &crate::traffic::Sent| sent.answers.get(&503).copied().unwrap_or_default();
        report.line(
            format!("{fault}: lasted, accepted meanwhile, 503, every queue consumed again after"),
            format!(
                "{}, {}, {}, {}",
                seconds(lasted),
                sent.accepted.len() - before.accepted.len(),
                turned(&sent) - turned(&before),
                seconds(again)
            ),
        );
        let crashed = arena.world.number("SELECT count(*) FROM job_attempt WHERE outcome = 'crashed'").await;
        assert_eq!(crashed, 0, "{fault}: nobody was declared dead for it");
    }
    let sent = traffic.stop().await;
    count::every_job_succeeded(&arena, &sent, &mut report).await;
    assert_eq!(sent.broken, 0, "every request was answered");
    assert!(arena.programs().iter().all(|process| process.exits().is_empty()), "nobody ended by it");
}

/// Opens connections until the server has none left; with `end_ours` the programs' own are ended first, and theirs are among those
/// that are taken.
async fn take_all_connections(arena: &Arena, end_ours: bool) -> Vec<PgConnection> {
    let server = &arena.world.sandbox.postgres;
    let mut taken = Vec::new();
    let mut ended = !end_ours;
    loop {
        match PgConnection::connect(&server.product_url()).await {
            Ok(connection) => taken.push(connection),
            Err(_) if ended => return taken,
            Err(_) => {
                let mut superuser = PgConnection::connect(&server.superuser_url()).await.expect("a place for superusers");
                superuser
                    .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN ('offstage_api', 'offstage_engine')")
                    .await
                    .expect("they are ended");
                superuser.close().await.expect("an end");
                ended = true;
            }
        }
    }
}
