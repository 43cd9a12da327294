//! The plans of the engine's statements, which are made once and kept.

use secrecy::SecretString;
use shared::{
    job::{JobId, Outcome, Policy, Priority, State, Success},
    ledger::{
        self, Sessions,
        claim::{claim, take},
        dispatch::{self, Turn},
        find::{self, Filter},
    },
    tenant,
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

/// A table that was empty when it was vacuumed, and kept its pages, counts as empty until the next vacuum, however many rows it gets: to
/// walk through all of them by an index looks as cheap as to look one up.
#[tokio::test]
async fn what_was_empty_when_it_was_vacuumed_is_not_walked_through_for_each_job() {
    const WAITING: usize = 200;
    let ledger = Ledger::start().await;
    let engine = ledger::pool("OFFSTAGE_TEST", &SecretString::from(ledger.sandbox.postgres.engine_url()), Sessions::Engine, 1).unwrap();
    let ledger = Ledger { engine, ..ledger };
    for statement in [
        "INSERT INTO job_state (job_id, tenant_id, run_at, changed_at, state, attempts_allowed)
         SELECT gen_random_uuid(), 1, now(), now(), 0, 1 FROM generate_series(1, 1000)",
        "INSERT INTO job_dispatched SELECT gen_random_uuid(), 1, now(), 1, 'email' FROM generate_series(1, 1000)",
        "INSERT INTO job (id, tenant_id, priority, max_attempts, created_at, kind, queue, payload)
         SELECT gen_random_uuid(), 1, 1, 1, now(), 'probe.run', 'email', '{}' FROM generate_series(1, 1000)",
        "DELETE FROM job",
        "DELETE FROM job_state",
        "DELETE FROM job_dispatched",
        "VACUUM (TRUNCATE false) job, job_state, job_dispatched",
    ] {
        sqlx::query(statement).execute(ledger.sandbox.pool()).await.unwrap();
    }
    let empty = "SELECT count(*) FROM pg_class WHERE relname IN ('job', 'job_state', 'job_dispatched') AND reltuples = 0 AND relpages > 0";
    assert_eq!(ledger.number(empty).await, 3, "the trap is set");
    for _ in 0..WAITING {
        ledger.accept(ledger.tenant, "probe.run").await;
    }
    let fetched = async || {
        sqlx::query("SELECT pg_stat_force_next_flush()").execute(&ledger.engine).await.unwrap();
        ledger.number("SELECT sum(idx_tup_fetch) FROM pg_stat_user_tables WHERE relname IN ('job', 'job_state', 'job_dispatched')").await
    };
    let before = fetched().await;
    let turn = [Turn { tenant: ledger.tenant, jobs: 1 }];
    let taken = take(&ledger.engine, QUEUE, Priority::Normal, &turn, ledger.clock.new_id(), ledger.now()).await.unwrap();
    let dispatched = dispatch::dispatch(&ledger.engine, QUEUE, Priority::Normal, ledger.now(), &turn).await.unwrap();
    let jobs: Vec<JobId> = dispatched.handovers.iter().map(|handover| handover.job).collect();
    let claimed = claim(&ledger.engine, &jobs, ledger.clock.new_id(), ledger.now()).await.unwrap();
    assert_eq!((taken.len(), claimed.len()), (1, 1));
    for job in taken.iter().chain(&claimed) {
        ledger.settle(job, &Policy::DEFAULT, Outcome::Succeeded(Success::default())).await;
    }
    let fetched = fetched().await - before;
    assert!(fetched < 50, "two jobs of {WAITING} were taken to their end, and {fetched} rows were fetched");
}

/// After a few uses of a kept statement Postgres may take one plan for whatever is asked. What is best for a list depends on it: the one
/// plan read all of a tenant's jobs for a page (3 s with 2 million, from the sixth time on).
#[tokio::test]
async fn no_plan_of_a_list_is_kept() {
    let ledger = Ledger::start().await;
    let api = ledger::pool("OFFSTAGE_TEST", &SecretString::from(ledger.sandbox.postgres.api_url()), Sessions::Plain, 1).unwrap();
    let job = ledger.accept(ledger.tenant, "probe.run").await;
    let states =
        [State::Waiting, State::Running, State::Succeeded, State::Failed].map(|state| Filter { state: Some(state), ..Filter::default() });
    let of_code = Filter { state: Some(State::Failed), error_code: Some("boom".into()), ..Filter::default() };
    let of_owner = Filter { owner: Some("ada".into()), ..Filter::default() };
    let mut reading = tenant::transaction(&api, ledger.tenant).await.unwrap();
    let mut found = 0;
    for filter in states.iter().chain([&of_code, &of_owner, &Filter::default()]) {
        found += find::list(&mut reading, ledger.tenant, filter, 20).await.unwrap().iter().filter(|listed| listed.id == job).count();
    }
    assert_eq!(found, 3, "by its state, by its owner, among all");
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE $1")
        .bind("%job_state%")
        .fetch_one(&mut *reading)
        .await
        .unwrap();
    assert_eq!(kept, 0);
}
