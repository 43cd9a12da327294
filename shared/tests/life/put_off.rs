//! Retries and snoozes, and what bounds them.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use shared::{
    job::{Failure, Outcome, Policy, Priority, Reason, SnoozeBounds, State},
    ledger::{change, claim::take, dispatch::Turn, settle::LONGEST_REQUESTED_PAUSE},
    tenant,
};

use super::{Ledger, QUEUE};

/// Without jitter, so that times can be told.
fn policy() -> Policy {
    let mut policy = Policy::DEFAULT;
    policy.backoff.jitter_percent = 0;
    policy
}

fn transient() -> Outcome {
    Outcome::Failed(Failure::transient("source_away", "the source is away"))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_side_s_retry_after_is_honoured_up_to_a_day() {
    let ledger = Ledger::start().await;
    for (asked, waited) in [
        (Duration::from_secs(90), Duration::from_secs(90)),
        // Less than the backoff (2 s, then 4 s): patience is ours to have.
        (Duration::from_secs(1), Duration::from_secs(4)),
    ] {
        if asked.as_secs() == 90 {
            ledger.accept(ledger.tenant, "email.send").await;
        }
        let job = ledger.claim_one().await;
        let settled = ledger.settle(&job, &policy(), Outcome::Failed(Failure::limited("rate_limited", "come back later", asked))).await;
        assert_eq!((settled.state, settled.reason), (State::Waiting, Reason::BackingOff));
        assert_eq!((settled.run_at - ledger.now()).to_std().unwrap(), waited, "asked for {asked:?}");
        ledger.advance(waited.as_secs().try_into().unwrap());
    }
    let job = ledger.claim_one().await;
    let limited = Failure::limited("rate_limited", "come back later", Duration::from_secs(1));
    let settled = ledger.settle(&job, &policy(), Outcome::Failed(limited)).await;
    assert_eq!(settled.state, State::Failed, "a limit uses attempts like any other trouble in passing");

    ledger.accept(ledger.tenant, "email.send").await;
    let job = ledger.claim_one().await;
    let limited = Failure::limited("rate_limited", "come back next year", Duration::from_secs(365 * 24 * 3_600));
    let settled = ledger.settle(&job, &policy(), Outcome::Failed(limited)).await;
    assert_eq!((settled.run_at - ledger.now()).to_std().unwrap(), LONGEST_REQUESTED_PAUSE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_the_deadline_is_not_waited_for_and_a_redrive_counts_anew() {
    let ledger = Ledger::start().await;
    let policy = Policy { attempts: 3, deadline: Duration::from_secs(60), ..policy() };
    let id = ledger.accept(ledger.tenant, "email.send").await;
    // It waits long before its first run, which is granted all the same; a retry would be too late.
    ledger.advance(59);
    let job = ledger.claim_one().await;
    assert_eq!(job.counted_from, ledger.now() - TimeDelta::seconds(59));
    let settled = ledger.settle(&job, &policy, transient()).await;
    assert_eq!(settled.state, State::Failed);
    let error = ledger.error(id).await;
    assert_eq!((error["code"].as_str(), error["class"].as_str()), (Some("deadline_exceeded"), Some("transient")));
    assert_eq!(
        error["message"],
        "the next try would have begun after the job's deadline, 2026-11-20T12:01:00Z; the last one failed with `source_away`: the source is away"
    );

    // Redriven an hour later, it has its minute again, from then on.
    ledger.advance(3_600);
    let mut transaction = tenant::transaction(&ledger.api, ledger.tenant).await.unwrap();
    let change = change::retry(&mut transaction, ledger.tenant, id, None, ledger.now()).await.unwrap().change;
    transaction.commit().await.unwrap();
    assert_eq!(change, change::Change::Done);
    let redriven_at = ledger.now();
    ledger.advance(10);
    for pause in [4, 8] {
        let job = ledger.claim_one().await;
        assert_eq!(job.counted_from, redriven_at, "also after it was put off");
        let settled = ledger.settle(&job, &policy, transient()).await;
        assert_eq!((settled.state, (settled.run_at - ledger.now()).num_seconds()), (State::Waiting, pause));
        ledger.advance(pause);
    }
    ledger.advance(60);
    let job = ledger.claim_one().await;
    assert_eq!(job.counted_from, redriven_at);
    let settled = ledger.settle(&job, &policy, Outcome::Snoozed(Duration::from_secs(1))).await;
    assert_eq!((settled.state, ledger.error(id).await["code"].as_str()), (State::Failed, Some("deadline_exceeded")), "a snooze as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn snoozes_use_no_attempt_and_are_bounded_in_number() {
    let ledger = Ledger::start().await;
    let policy = Policy { snooze: SnoozeBounds { times: 3, total: Duration::from_secs(3_600) }, ..policy() };
    let id = ledger.accept(ledger.tenant, "email.send").await;
    for snoozes in 0..3 {
        let job = ledger.claim_one().await;
        assert_eq!((job.attempt, job.snoozes, job.snoozed), (1, snoozes, Duration::from_secs(10 * u64::from(snoozes))));
        // Neither what the engine puts off nor what is handed back or given back counts.
        let settled = ledger.settle(&job, &policy, Outcome::Deferred(Duration::from_secs(5))).await;
        assert_eq!((settled.state, settled.reason), (State::Waiting, Reason::Snoozed));
        ledger.advance(5);
        let job = ledger.claim_one().await;
        assert_eq!((job.attempt, job.snoozes), (1, snoozes));
        let settled = ledger.settle(&job, &policy, Outcome::Snoozed(Duration::from_millis(9_500))).await;
        assert_eq!((settled.state, settled.reason), (State::Waiting, Reason::Snoozed));
        ledger.advance(10);
    }
    let job = ledger.claim_one().await;
    let settled = ledger.settle(&job, &policy, Outcome::Snoozed(Duration::ZERO)).await;
    assert_eq!((settled.state, ledger.error(id).await["code"].as_str()), (State::Failed, Some("snoozed_too_often")));
    assert_eq!(ledger.number("SELECT count(*) FROM job_attempt").await, 1, "snoozes leave no record of a run");
}

#[tokio::test(flavor = "multi_thread")]
async fn snoozes_are_bounded_in_time() {
    let ledger = Ledger::start().await;
    let policy = Policy { snooze: SnoozeBounds { times: 100, total: Duration::from_secs(100) }, ..policy() };
    let id = ledger.accept(ledger.tenant, "email.send").await;
    let job = ledger.claim_one().await;
    assert_eq!(ledger.settle(&job, &policy, Outcome::Snoozed(Duration::from_secs(100))).await.state, State::Waiting);
    ledger.advance(100);
    let job = ledger.claim_one().await;
    let settled = ledger.settle(&job, &policy, Outcome::Snoozed(Duration::from_secs(1))).await;
    assert_eq!((settled.state, ledger.error(id).await["code"].as_str()), (State::Failed, Some("snoozed_too_long")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_on_its_way_to_a_slot_has_not_begun() {
    let ledger = Ledger::start().await;
    let id = ledger.accept(ledger.tenant, "email.send").await;
    let started = async || {
        let started: Option<DateTime<Utc>> = sqlx::query_scalar("SELECT started_at FROM job_state WHERE job_id = $1")
            .bind(id.0)
            .fetch_one(ledger.sandbox.pool())
            .await
            .unwrap();
        started
    };
    // By the backlog, where a claim does not ask whether it is late.
    let turns = [Turn { tenant: ledger.tenant, jobs: 1 }];
    let taken = take(&ledger.engine, QUEUE, Priority::Normal, &turns, ledger.clock.new_id(), ledger.now()).await.unwrap();
    assert_eq!(ledger.settle(&taken[0], &policy(), Outcome::Expired).await.state, State::Expired);
    assert_eq!(started().await, None, "no run of it ever began");
    assert_eq!(ledger.number("SELECT attempt FROM job_state").await, 0);

    // One that ran before and expires at its second claim began when it ran.
    let id = ledger.accept(ledger.tenant, "email.send").await;
    let first = ledger.claim_one().await;
    ledger.settle(&first, &policy(), Outcome::Failed(Failure::transient("down", "it is down"))).await;
    ledger.advance(600);
    let second = ledger.claim_one().await;
    assert_eq!(ledger.settle(&second, &policy(), Outcome::Expired).await.state, State::Expired);
    let began = format!("SELECT (started_at = '{}')::integer FROM job_state WHERE job_id = '{id}'", first.started_at.to_rfc3339());
    assert_eq!(ledger.number(&began).await, 1, "at its first run");
}
