//! Dead letters, many at a time.

use chrono::TimeDelta;
use shared::{
    job::{Failure, JobId, Outcome, Policy, State},
    ledger::dead::{self, Filter, Purpose},
    queue::Queue,
    tenant,
};

use super::{Ledger, QUEUE, apply};

impl Ledger {
    async fn fails_of(&self, tenant: i32, code: &'static str) -> JobId {
        let id = self.accept(tenant, "email.send").await;
        let job = self.claim_one().await;
        self.settle(&job, &Policy::DEFAULT, Outcome::Failed(Failure::permanent(code, "it failed"))).await;
        self.advance(1);
        id
    }

    async fn redrive(&self, filter: &Filter, limit: i64) -> Vec<(JobId, Option<Queue>)> {
        let mut transaction = tenant::transaction(&self.api, self.tenant).await.unwrap();
        let redriven = dead::redrive(&mut transaction, self.tenant, filter, self.now(), limit).await.unwrap();
        transaction.commit().await.unwrap();
        redriven
    }

    async fn dead(&self, filter: &Filter, purpose: Purpose) -> i64 {
        let mut transaction = tenant::transaction(&self.api, self.tenant).await.unwrap();
        dead::count(&mut transaction, self.tenant, filter, purpose, self.now(), 1_000).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_redriven_as_if_they_were_new_and_nobody_waits_for_a_held_one() {
    let ledger = Ledger::start().await;
    let other = apply(&ledger.sandbox, "globex", &ledger.clock).await;
    let mut ids = Vec::new();
    for code in ["away", "away", "denied", "away"] {
        ids.push(ledger.fails_of(ledger.tenant, code).await);
    }
    ledger.fails_of(other, "away").await;
    // What it went through must not be held against it.
    let worn = format!("UPDATE job_state SET crashes = 4, deaths = 2, snoozes = 99, snoozed_seconds = 9000 WHERE job_id = '{}'", ids[0]);
    sqlx::query(sqlx::AssertSqlSafe(worn)).execute(ledger.sandbox.pool()).await.unwrap();
    let all = Filter::failed_before(ledger.now());
    let away = Filter { error_code: Some("away".into()), ..all.clone() };
    for (filter, count) in [
        (all.clone(), 4),
        (away.clone(), 3),
        (Filter { owner: Some("ada".into()), ..away.clone() }, 3),
        (Filter { owner: Some("eve".into()), ..all.clone() }, 0),
        (Filter { state: State::Expired, ..all.clone() }, 0),
        (Filter { queue: Some(Queue::Ai), ..all.clone() }, 0),
        (Filter { kind: Some("email.send".into()), queue: Some(QUEUE), ..all.clone() }, 4),
        (Filter::failed_before(ledger.now() - TimeDelta::seconds(3)), 2),
    ] {
        assert_eq!(ledger.dead(&filter, Purpose::Redrive).await, count, "{filter:?}");
        assert_eq!(ledger.dead(&filter, Purpose::Discard).await, count, "{filter:?}");
    }
    // One that is past its time could only expire again: it can be discarded, not redriven.
    let late = format!("UPDATE job SET start_by = '2026-11-20T12:00:00Z' WHERE id = '{}'", ids[3]);
    sqlx::query(sqlx::AssertSqlSafe(late)).execute(ledger.sandbox.pool()).await.unwrap();
    assert_eq!((ledger.dead(&away, Purpose::Redrive).await, ledger.dead(&away, Purpose::Discard).await), (2, 3));

    let mut holder = ledger.engine.begin().await.unwrap();
    sqlx::query("SELECT FROM job_state WHERE job_id = $1 FOR UPDATE").bind(ids[1].0).execute(&mut *holder).await.unwrap();
    assert_eq!(ledger.redrive(&away, 10).await, [(ids[0], Some(QUEUE))], "the held one is passed over");
    holder.rollback().await.unwrap();
    assert_eq!(ledger.redrive(&away, 10).await, [(ids[1], Some(QUEUE))]);
    assert_eq!(ledger.redrive(&away, 10).await, []);
    let redriven_at = ledger.now();
    let claimed = ledger.claim().await;
    assert_eq!(claimed.len(), 2);
    for job in claimed {
        assert_eq!((job.attempt, job.attempts_allowed, job.counted_from), (2, 4, redriven_at));
        assert_eq!((job.crashes, job.deaths, job.snoozes, job.snoozed.as_secs()), (0, 0, 0, 0));
        // It fails again at once, and does not match again: it ended later.
        ledger.advance(1);
        ledger.settle(&job, &Policy::DEFAULT, Outcome::Failed(Failure::permanent("away", "it failed"))).await;
    }
    assert_eq!(ledger.dead(&away, Purpose::Redrive).await, 0);

    let mut transaction = tenant::transaction(&ledger.api, ledger.tenant).await.unwrap();
    let filter = Filter::failed_before(ledger.now() + TimeDelta::seconds(1));
    let discarded = dead::discard(&mut transaction, ledger.tenant, &filter, ledger.now(), 3).await.unwrap();
    assert_eq!(discarded, ids[..3]);
    transaction.commit().await.unwrap();
    assert_eq!(ledger.number("SELECT count(*) FROM job").await, 2, "one more than was asked for, and another tenant's");
}
