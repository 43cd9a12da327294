//! The plans of the engine's statements, which are made once and kept.

use secrecy::SecretString;
use shared::{
    job::{Outcome, Policy, Priority, Success},
    ledger::{self, Sessions, claim::take, dispatch::Turn},
};

use super::{Ledger, QUEUE};

/// A plan is kept for the life of its connection, so one that was made while the tables were empty, and reading them through cost
/// nothing, is the one that a backlog of a million meets.
#[tokio::test]
async fn what_was_planned_for_empty_tables_reads_none_of_them_through() {
    let ledger = Ledger::start().await;
    let engine = ledger::pool("OFFSTAGE_TEST", &SecretString::from(ledger.sandbox.postgres.engine_url()), Sessions::Engine, 1).unwrap();
    let ledger = Ledger { engine, ..ledger };
    let read_through = async || {
        // Figures are published by whoever made them.
        sqlx::query("SELECT pg_stat_force_next_flush()").execute(&ledger.engine).await.unwrap();
        ledger
            .number(
                "SELECT coalesce(sum(seq_scan), 0) FROM pg_stat_user_tables
                 WHERE relname IN ('job', 'job_state', 'job_waiting', 'job_dispatched', 'job_held', 'job_limited')",
            )
            .await
    };
    sqlx::query("VACUUM ANALYZE").execute(ledger.sandbox.pool()).await.unwrap();
    let before = read_through().await;
    for _ in 0..3 {
        for _ in 0..6 {
            ledger.accept(ledger.tenant, "probe.run").await;
        }
        let turn = [Turn { tenant: ledger.tenant, jobs: 2 }];
        let taken = take(&ledger.engine, QUEUE, Priority::Normal, &turn, ledger.clock.new_id(), ledger.now()).await.unwrap();
        let claimed = ledger.claim().await;
        assert_eq!((taken.len(), claimed.len()), (2, 4));
        for job in taken.iter().chain(&claimed) {
            ledger.settle(job, &Policy::DEFAULT, Outcome::Succeeded(Success::default())).await;
        }
    }
    assert_eq!(read_through().await - before, 0);
}
