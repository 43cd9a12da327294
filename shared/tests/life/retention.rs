//! History that has had its time.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::json;
use shared::{
    job::{Failure, JobId, Outcome, Policy, PublishedFile, Success},
    ledger::{
        claim::ClaimedJob,
        dead::{self, Tombstone},
        effects::{self, Reach},
        files,
        retention::{self, Cut, PAGE, STAYS_FOR, TOMBSTONES_STAND_FOR},
    },
    tenant::{self, Keep, Retention},
};
use sqlx::AssertSqlSafe;

use super::Ledger;

const KIND: &str = "export.create";

fn failed() -> Outcome {
    Outcome::Failed(Failure::permanent("gone", "it is gone"))
}

impl Ledger {
    async fn ended(&self, outcome: Outcome) -> JobId {
        let id = self.accept(self.tenant, KIND).await;
        let job = self.claim_one().await;
        self.settle(&job, &Policy::DEFAULT, outcome).await;
        id
    }

    async fn prune(&self, retention: Retention) -> u64 {
        let cut = Cut::find(&self.engine, self.tenant, KIND, retention, self.now()).await.unwrap();
        let (mut gone, mut after) = (0, None);
        loop {
            let pruned = retention::prune(&self.engine, self.tenant, KIND, &cut, after).await.unwrap();
            gone += pruned.gone;
            after = pruned.next;
            if after.is_none() {
                return gone;
            }
        }
    }

    async fn is_there(&self, job: JobId) -> bool {
        self.number(&format!("SELECT count(*) FROM job WHERE id = '{job}'")).await == 1
    }

    async fn tombstone(&self, owner: Option<&str>, job: JobId) -> Option<Tombstone> {
        let mut transaction = tenant::transaction(&self.api, self.tenant).await.unwrap();
        dead::tombstone(&mut transaction, self.tenant, owner, job).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_enough_goes_with_all_that_belongs_to_it() {
    let ledger = Ledger::start().await;
    let result = Success::with(json!({"rows": 1}));
    let (succeeded, dead) = (ledger.ended(Outcome::Succeeded(result.clone())).await, ledger.ended(failed()).await);
    let waits = ledger.accept(ledger.tenant, KIND).await;
    let other = ledger.accept(ledger.tenant, "email.send").await;
    let [running, mail] = <[ClaimedJob; 2]>::try_from(ledger.claim().await).unwrap();
    assert_eq!((running.id, mail.id), (waits, other));
    ledger.settle(&mail, &Policy::DEFAULT, Outcome::Succeeded(result)).await;
    let later = ledger.accept(ledger.tenant, KIND).await;
    ledger.advance(7 * 86_400);
    let retention = Retention::days(7, 14);
    assert_eq!(ledger.prune(retention).await, 0, "it has a moment left");
    ledger.advance(1);
    assert_eq!(ledger.prune(retention).await, 1);
    let gone = Tombstone { kind: KIND.into(), gone_at: ledger.now(), discarded: false };
    assert_eq!(ledger.tombstone(Some("ada"), succeeded).await, Some(gone));
    assert_eq!(ledger.tombstone(Some("eve"), succeeded).await, None, "nobody else is told");
    for table in ["job WHERE id", "job_state WHERE job_id", "job_attempt WHERE job_id", "job_result WHERE job_id"] {
        assert_eq!(ledger.number(&format!("SELECT count(*) FROM {table} = '{succeeded}'")).await, 0, "{table}");
    }
    // What failed is kept longer, what runs or waits for as long as it does, another kind is another matter.
    ledger.advance(365 * 86_400);
    assert_eq!(ledger.prune(retention).await, 1);
    assert!(!ledger.is_there(dead).await && ledger.tombstone(None, dead).await.is_some());
    assert_eq!(ledger.number("SELECT count(*) FROM job_unsuccessful").await, 0);
    for id in [waits, other, later] {
        assert!(ledger.is_there(id).await, "{id}");
    }
    let mut kinds = retention::kinds(&ledger.engine).await.unwrap();
    kinds.sort();
    // An export's end is told by a job.
    assert_eq!(kinds, ["email.send", KIND, "notification.fan_out"].map(|kind| (ledger.tenant, kind.to_owned())));
    // A tombstone stands for its time.
    assert_eq!(retention::forget_tombstones(&ledger.engine, ledger.now()).await.unwrap(), 1);
    ledger.clock.advance(TOMBSTONES_STAND_FOR + TimeDelta::seconds(1));
    assert_eq!(retention::forget_tombstones(&ledger.engine, ledger.now()).await.unwrap(), 1);
    assert_eq!(ledger.tombstone(None, dead).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_are_kept_by_number_and_what_just_ended_in_any_case() {
    let ledger = Ledger::start().await;
    let slow = ledger.accept(ledger.tenant, KIND).await;
    let run = ledger.claim_one().await;
    let (mut succeeded, mut dead) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        succeeded.push(ledger.ended(Outcome::Succeeded(Success::default())).await);
        dead.push(ledger.ended(failed()).await);
    }
    let keep = |count| Keep { days: 3_650, count: Some(count) };
    let retention = Retention { succeeded: keep(3), unsuccessful: keep(1) };
    assert_eq!(ledger.prune(retention).await, 0, "somebody may still wait for them");
    ledger.clock.advance(STAYS_FOR + TimeDelta::seconds(1));
    assert_eq!(ledger.prune(Retention { succeeded: keep(4), unsuccessful: keep(100) }).await, 0);
    assert_eq!(ledger.prune(retention).await, 1 + 3);
    for (ids, kept) in [(&succeeded, 3), (&dead, 1)] {
        let mut there = Vec::new();
        for id in ids {
            there.push(ledger.is_there(*id).await);
        }
        assert_eq!(there, [vec![false; 4 - kept], vec![true; kept]].concat());
    }
    assert_eq!(ledger.prune(retention).await, 0);
    // The oldest of all, but it ended a moment ago.
    ledger.settle(&run, &Policy::DEFAULT, Outcome::Succeeded(Success::default())).await;
    assert_eq!(ledger.prune(retention).await, 0);
    ledger.clock.advance(STAYS_FOR + TimeDelta::seconds(1));
    assert_eq!(ledger.prune(retention).await, 1);
    assert!(!ledger.is_there(slow).await);
    // The newer of the two bounds counts.
    ledger.advance(86_400);
    assert_eq!(ledger.prune(Retention { succeeded: Keep { days: 1, count: Some(100) }, unsuccessful: keep(1) }).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_kept_while_its_file_stands() {
    let ledger = Ledger::start().await;
    let id = ledger.accept(ledger.tenant, KIND).await;
    let job = ledger.claim_one().await;
    effects::intend(&ledger.engine, &job, "object:1", &json!({"key": "k"}), Reach::Ours, ledger.now()).await.unwrap();
    effects::intend(&ledger.engine, &job, "upload:lost", &json!({"key": "lost"}), Reach::Ours, ledger.now()).await.unwrap();
    let file = PublishedFile {
        object_key: "k".into(),
        file_name: "k.csv".into(),
        content_type: "text/csv".into(),
        bytes: 1,
        sha256: [0; 32],
        expires_at: ledger.now() + TimeDelta::days(7),
    };
    ledger.settle(&job, &Policy::DEFAULT, Outcome::Succeeded(Success { result: None, file: Some(file) })).await;
    files::set_published_aside(&ledger.engine, 10).await.unwrap();
    ledger.advance(2 * 86_400);
    let retention = Retention::days(1, 1);
    assert_eq!(ledger.prune(retention).await, 0);
    ledger.advance(7 * 86_400);
    assert_eq!(ledger.prune(retention).await, 0, "its time is over, and its object not deleted yet");
    files::deleted(&ledger.engine, &[id], ledger.now()).await.unwrap();
    assert_eq!(ledger.prune(retention).await, 1);
    assert_eq!(ledger.number("SELECT count(*) FROM job_file").await, 0);
    // What may still lie in the store is the sweep's to find.
    let left = files::leftovers(&ledger.engine, ledger.now(), 10).await.unwrap();
    assert_eq!(left.iter().map(|left| left.effect.as_str()).collect::<Vec<_>>(), ["upload:lost"]);
    assert_eq!(ledger.number("SELECT count(*) FROM effect").await, 1);
    let named = |job| {
        let claim = files::ClaimOfKey { tenant: ledger.tenant, job, token: 1 };
        files::NamedKey { claim, key: format!("{}/{job}/{:016x}/lost", ledger.tenant, 1) }
    };
    let unknown = JobId(ledger.clock.new_id());
    assert_eq!(
        files::gone(&ledger.engine, &[named(unknown), named(id)]).await.unwrap(),
        [1],
        "its uploads are nobody's; a stranger's are not ours"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_waits_for_nobody_and_goes_on_where_it_was() {
    let ledger = Ledger::start().await;
    // More than a page of them, behind the ledger's back: how they came is not what this is about.
    let many = PAGE * 2 + 10;
    let first = ledger.ended(Outcome::Succeeded(Success::default())).await;
    let fill = format!(
        "WITH more AS (SELECT gen_random_uuid() AS id FROM generate_series(2, {many})), kept AS (
            INSERT INTO job SELECT overlay(m.id::text PLACING left('{first}', 18) FROM 1)::uuid, tenant_id, priority, max_attempts, created_at,
                start_by, kind, queue, owner, subject, payload FROM job, more m WHERE job.id = '{first}' RETURNING id)
         INSERT INTO job_state (job_id, tenant_id, run_at, changed_at, finished_at, state, attempts_allowed)
         SELECT k.id, s.tenant_id, s.run_at, s.changed_at, s.finished_at, 3, 3 FROM kept k, job_state s WHERE s.job_id = '{first}'"
    );
    sqlx::query(AssertSqlSafe(fill)).execute(ledger.sandbox.pool()).await.unwrap();
    ledger.advance(10 * 86_400);
    let mut holder = ledger.engine.begin().await.unwrap();
    sqlx::query("SELECT FROM job_state WHERE job_id = $1 FOR UPDATE").bind(first.0).execute(&mut *holder).await.unwrap();
    let retention = Retention::days(1, 1);
    let gone = tokio::time::timeout(Duration::from_secs(60), ledger.prune(retention)).await.expect("it does not wait");
    assert_eq!(gone, u64::try_from(many).unwrap() - 1);
    assert!(ledger.is_there(first).await, "somebody holds it just now");
    holder.rollback().await.unwrap();
    assert_eq!(ledger.prune(retention).await, 1);
    assert_eq!(ledger.number("SELECT count(*) FROM job_tombstone").await, many);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_tenant_buries_nobody_else_s() {
    let ledger = Ledger::start().await;
    let other = super::apply(&ledger.sandbox, "globex", &ledger.clock).await;
    let id = ledger.ended(failed()).await;
    for (session, named) in [(other, ledger.tenant), (other, other)] {
        let mut transaction = tenant::transaction(&ledger.api, session).await.unwrap();
        let done = dead::discard_one(&mut transaction, named, id, ledger.now()).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(done, dead::Discarded::Missing);
    }
    assert!(ledger.is_there(id).await);
}
