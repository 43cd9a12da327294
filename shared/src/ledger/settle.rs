//! Step 7, settle: the one place where a run's outcome becomes the job's state. In batches; each member counts only if its
//! token still holds the claim.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, PgExecutor, Row, postgres::PgRow};

use super::{
    LedgerError,
    claim::ClaimedJob,
    files::page_token,
    recover::{CRASHES_IN_COMPANY, DEATHS_OF_POISON, POISON_FOR_OWNERS},
};
use crate::{
    job::{Failure, FailureClass, JobId, Outcome, Policy, Priority, PublishedFile, Reason, State},
    notification::Addressee,
    queue::{Queue, keys::Lane, push::Handover},
    random,
};

/// The largest result that stands in the database, in bytes of JSON (design §3); larger ones belong in a file.
pub const RESULT_LIMIT: usize = 64 * 1024;

/// The longest pause that another side's `Retry-After` may impose on a job.
pub const LONGEST_REQUESTED_PAUSE: Duration = Duration::from_secs(24 * 3_600);

/// What a run's end makes of its job: decided here, written by [`settle`].
#[derive(Debug, Clone)]
pub struct Settlement {
    claim: Claim,
    state: State,
    reason: Reason,
    /// 1 when the run gives its attempt back.
    gives_back: i16,
    /// What is added to the workers lost under it.
    crashes: i16,
    /// 1 when a process of its own died under it.
    died: i16,
    run_at: Option<DateTime<Utc>>,
    /// The pause in seconds, where the handler asked for it.
    snoozed: Option<i32>,
    /// The word in `job_attempt`; `None` when the run leaves no record (it never began).
    outcome: Option<&'static str>,
    error: Option<Value>,
    result: Option<Value>,
    file: Option<PublishedFile>,
    /// Who is told, should the job end by this.
    addressee: Option<Addressee>,
    /// Whether what becomes of it may matter to others.
    has_options: bool,
    finished_at: DateTime<Utc>,
}

/// What of a claim a settle needs.
#[derive(Debug, Clone)]
struct Claim {
    id: JobId,
    token: i64,
    handover: Handover,
    priority: Priority,
}

impl Settlement {
    /// Decides by outcome, policy and attempts.
    #[must_use]
    pub fn decide(job: &ClaimedJob, policy: &Policy, outcome: Outcome, now: DateTime<Utc>) -> Self {
        let claim = Claim {
            id: job.id,
            token: job.token,
            handover: Handover { job: job.id, queue: job.queue, lane: Lane::of(job.priority) },
            priority: job.priority,
        };
        let addressee = Addressee::of(job.id, &job.kind, job.owner.as_deref(), &job.payload);
        let plain = Self { addressee, has_options: job.options.is_some(), ..Self::plain(claim, now) };
        match outcome {
            Outcome::Succeeded(success) => {
                let size = success.result.as_ref().map_or(0, |result| result.to_string().len());
                if size > RESULT_LIMIT {
                    let failure = Failure::permanent(
                        "result_too_large",
                        format!("the result has {size} bytes of JSON, {RESULT_LIMIT} are allowed; write it to a file instead"),
                    );
                    return plain.failed(&failure);
                }
                Self { outcome: Some("succeeded"), result: success.result, file: success.file, ..plain }
            }
            Outcome::Failed(failure) => {
                if failure.class == FailureClass::Permanent || job.attempt >= job.attempts_allowed {
                    return plain.failed(&failure);
                }
                let own = policy.backoff.pause(job.attempt, random::fraction());
                let pause = own.max(failure.retry_after.unwrap_or_default().min(LONGEST_REQUESTED_PAUSE));
                let run_at = later(now, pause);
                if let Some(deadline) = passed(job, policy, run_at) {
                    let failure = Failure {
                        message: format!(
                            "the next try would have begun after the job's deadline, {}; the last one failed with `{}`: {}",
                            deadline.format("%FT%TZ"),
                            failure.code,
                            failure.message
                        ),
                        for_owner: failure.for_owner.map(|words| format!("it took too long; the last try: {words}")),
                        code: "deadline_exceeded",
                        ..failure
                    };
                    return plain.failed(&failure);
                }
                let error = Some(error_json(&failure));
                Self { state: State::Waiting, reason: Reason::BackingOff, run_at: Some(run_at), outcome: Some("retry"), error, ..plain }
            }
            Outcome::Snoozed(pause) => {
                let pause = pause.min(LONGEST_REQUESTED_PAUSE);
                let run_at = later(now, pause);
                if let Some(failure) = no_snooze(job, policy, pause, run_at) {
                    return plain.failed(&failure);
                }
                let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
                Self { snoozed: Some(i32::try_from(seconds).unwrap_or(i32::MAX)), ..plain.put_off(Reason::Snoozed, Some(run_at)) }
            }
            Outcome::Deferred(pause) => plain.put_off(Reason::Snoozed, Some(later(now, pause.min(LONGEST_REQUESTED_PAUSE)))),
            // When it was due stays; the release finds it by its reason.
            Outcome::SwitchedOff => plain.put_off(Reason::SwitchedOff, None),
            Outcome::Paused => plain.put_off(Reason::Paused, None),
            Outcome::Paced(pause) => plain.put_off(Reason::Limited, Some(later(now, pause.min(LONGEST_REQUESTED_PAUSE)))),
            Outcome::Expired => Self { state: State::Expired, gives_back: 1, outcome: None, ..plain },
            Outcome::Cancelled => Self { state: State::Cancelled, outcome: Some("cancelled"), ..plain },
            Outcome::HandedBack => Self { state: State::Queued, gives_back: 1, ..plain },
            Outcome::Died(how) => plain.died(job, policy, &how),
            Outcome::Stuck(held) => {
                let message = format!(
                    "the run kept a thread of its worker for {} s without letting go; it runs in a process of its own next",
                    held.as_secs()
                );
                let error = Some(error_json(&Failure::transient("worker_stuck", message)));
                // Proved, and not by accident: it is a suspect at once.
                let crashes = i16::try_from(CRASHES_IN_COMPANY.saturating_sub(job.crashes).max(1)).unwrap_or(1);
                Self { state: State::Queued, gives_back: 1, crashes, outcome: Some("crashed"), error, ..plain }
            }
        }
    }

    /// An outcome of no job: `id` must be none's. Writing it runs the statement and changes nothing, which proves that outcomes can be
    /// written.
    #[must_use]
    pub fn of_nothing(id: JobId) -> Self {
        // Any queue and priority will do: there is no row to take them.
        let handover = Handover { job: id, queue: Queue::Analytics, lane: Lane::Normal };
        Self::plain(Claim { id, token: 0, handover, priority: Priority::Normal }, DateTime::UNIX_EPOCH)
    }

    /// A success that says nothing, which the others differ from.
    const fn plain(claim: Claim, now: DateTime<Utc>) -> Self {
        Self {
            claim,
            state: State::Succeeded,
            reason: Reason::None,
            gives_back: 0,
            crashes: 0,
            died: 0,
            run_at: None,
            snoozed: None,
            outcome: None,
            error: None,
            result: None,
            file: None,
            addressee: None,
            has_options: false,
            finished_at: now,
        }
    }

    /// A process of the job's own died under it.
    fn died(self, job: &ClaimedJob, policy: &Policy, how: &str) -> Self {
        let deaths = job.deaths.saturating_add(1);
        if deaths >= DEATHS_OF_POISON {
            let message = format!(
                "each of the {deaths} processes of its own that this job was given died under it, the last one {how}; look at its log before retrying it"
            );
            return Self { died: 1, ..self.failed(&Failure::permanent("poison", message)) };
        }
        let failure = Failure::transient("process_died", format!("the process of its own in which this job ran died: {how}"));
        let run_at = later(self.finished_at, policy.backoff.pause(deaths, random::fraction()));
        Self { died: 1, outcome: Some("crashed"), error: Some(error_json(&failure)), ..self.put_off(Reason::BackingOff, Some(run_at)) }
    }

    fn failed(self, failure: &Failure) -> Self {
        Self { state: State::Failed, outcome: Some("failed"), error: Some(error_json(failure)), ..self }
    }

    /// Waits, without having used an attempt.
    fn put_off(self, reason: Reason, run_at: Option<DateTime<Utc>>) -> Self {
        Self { state: State::Waiting, reason, gives_back: 1, run_at, ..self }
    }

    /// What went wrong, as the ledger keeps it.
    #[must_use]
    pub const fn error(&self) -> Option<&Value> {
        self.error.as_ref()
    }

    /// The job it settles.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.claim.id
    }

    /// What its end tells the job's owner.
    fn notification(&self) -> Option<Value> {
        let poison = self.error.as_ref().filter(|error| error.get("code").is_some_and(|code| code == "poison"));
        let for_owners = poison.map(|_| json!({ "message": POISON_FOR_OWNERS }));
        self.addressee.as_ref()?.told(self.state, self.file.as_ref(), for_owners.as_ref().or(self.error.as_ref()))
    }

    /// Fails the job in place of an outcome that the database would not take.
    #[must_use]
    pub fn refused(self) -> Self {
        let failure = Failure::permanent("result_refused", "the database refused the job's result or error; see the worker's log");
        Self {
            state: State::Failed,
            outcome: Some("failed"),
            error: Some(error_json(&failure)),
            result: None,
            file: None,
            run_at: None,
            snoozed: None,
            gives_back: 0,
            reason: Reason::None,
            ..self
        }
    }
}

fn later(now: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    now + TimeDelta::from_std(pause).unwrap_or(TimeDelta::days(1))
}

/// The job's deadline, if a run that begins then is too late for it.
fn passed(job: &ClaimedJob, policy: &Policy, run_at: DateTime<Utc>) -> Option<DateTime<Utc>> {
    policy.deadline_of(job.counted_from).filter(|deadline| run_at > *deadline)
}

/// Why a job may not be snoozed for so long, if it may not.
fn no_snooze(job: &ClaimedJob, policy: &Policy, pause: Duration, run_at: DateTime<Utc>) -> Option<Failure> {
    let bounds = policy.snooze;
    if job.snoozes >= bounds.times {
        let message = format!("it has been put off {} times, which is as often as its kind allows, and asked for it again", job.snoozes);
        return Some(Failure::permanent("snoozed_too_often", message));
    }
    let total = job.snoozed.saturating_add(pause);
    if total > bounds.total {
        let message = format!(
            "with the pause it asked for it would have been put off for {} s in all; its kind allows {} s",
            total.as_secs(),
            bounds.total.as_secs()
        );
        return Some(Failure::permanent("snoozed_too_long", message));
    }
    passed(job, policy, run_at).map(|deadline| {
        let deadline = deadline.format("%FT%TZ");
        Failure::permanent("deadline_exceeded", format!("it asked to be called again after the job's deadline, {deadline}"))
    })
}

fn error_json(failure: &Failure) -> Value {
    // Postgres stores no NUL; what the outside said may hold one.
    let clean = |text: &str| text.replace('\0', "\u{fffd}").chars().take(4_000).collect::<String>();
    json!({
        "code": failure.code,
        "class": failure.class,
        "message": clean(&failure.message),
        "for_owner": failure.for_owner.as_deref().map(clean),
        "causes": failure.causes.iter().map(|cause| clean(cause)).collect::<Vec<_>>(),
    })
}

/// A job as a settle left it.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The job.
    pub job: JobId,
    /// Its state now: a retry of a job that was to be cancelled is cancelled.
    pub state: State,
    /// Why it waits, if it does.
    pub reason: Reason,
    /// When it runs again, if it waits.
    pub run_at: DateTime<Utc>,
    /// The handover that must follow, if it was handed back.
    pub handover: Option<Handover>,
}

/// Writes a batch. Who is missing in the answer had lost its claim; its outcome changed nothing.
///
/// Jobs with options cost a second statement, in one transaction with the first: what they mean to others.
///
/// # Errors
/// [`LedgerError`]: nothing of the batch is known to be written; settling again is harmless, since the token is gone with
/// the first time.
pub async fn settle(connection: &mut PgConnection, batch: &[Settlement]) -> Result<Vec<Settled>, LedgerError> {
    let Some(now) = batch.iter().filter(|settlement| settlement.has_options).map(|settlement| settlement.finished_at).max() else {
        return write(connection, batch).await;
    };
    let mut transaction = connection.begin().await?;
    let settled = write(&mut *transaction, batch).await?;
    let optioned: HashSet<JobId> = batch.iter().filter(|settlement| settlement.has_options).map(Settlement::job).collect();
    let left = settled.iter().filter(|settled| settled.state != State::Queued && optioned.contains(&settled.job));
    super::leave(&mut transaction, left.map(|settled| settled.job.0).collect(), now).await?;
    transaction.commit().await?;
    Ok(settled)
}

async fn write(executor: impl PgExecutor<'_>, batch: &[Settlement]) -> Result<Vec<Settled>, LedgerError> {
    fn column<'a, T>(batch: &[&'a Settlement], value: impl Fn(&'a Settlement) -> T) -> Vec<T> {
        batch.iter().map(|settlement| value(settlement)).collect()
    }
    // One order for all batches that lock several rows, so that they queue up and don't deadlock.
    let mut batch: Vec<&Settlement> = batch.iter().collect();
    batch.sort_unstable_by_key(|settlement| settlement.claim.id);
    let batch = batch.as_slice();
    let rows = sqlx::query(
        "WITH outcome AS (
            SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::smallint[], $4::smallint[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
                                 $9::text[], $10::timestamptz[], $11::text[], $12::smallint[], $13::smallint[], $14::text[],
                                 $15::integer[], $16::smallint[], $17::smallint[])
                AS o (id, token, state, gives_back, run_at, outcome, error, result, file, finished_at, queue, priority, reason, notification, snoozed, crashes, died)
        ), settled AS (
            UPDATE job_state s
            SET state = CASE WHEN s.cancel_requested AND o.state IN (0, 1) THEN 5 ELSE o.state END,
                reason = CASE WHEN s.cancel_requested THEN 0 ELSE o.reason END,
                attempt = s.attempt - o.gives_back,
                run_at = coalesce(o.run_at, s.run_at),
                finished_at = CASE WHEN o.state > 2 OR s.cancel_requested THEN o.finished_at END,
                changed_at = o.finished_at,
                -- Of a job that was never put off before, `run_at` still says when it was due.
                counted_from = CASE WHEN o.state = 0 THEN coalesce(s.counted_from, s.run_at) ELSE s.counted_from END,
                snoozes = s.snoozes + (o.snoozed IS NOT NULL)::integer,
                snoozed_seconds = s.snoozed_seconds + coalesce(o.snoozed, 0),
                crashes = s.crashes + o.crashes,
                deaths = s.deaths + o.died,
                token = 0,
                version = s.version + 1
            FROM outcome o
            WHERE s.job_id = o.id AND s.token = o.token AND s.state = 2
            RETURNING s.job_id, s.tenant_id, s.state, s.reason, s.run_at, s.runs, s.attempt, s.started_at, s.worker,
                      o.outcome, o.error, o.result, o.file, o.finished_at, o.queue, o.priority, o.notification
        ), attempts AS (
            INSERT INTO job_attempt (job_id, run, attempt, tenant_id, started_at, finished_at, worker, outcome, error)
            SELECT job_id, runs, attempt, tenant_id, started_at, finished_at, worker, outcome, error::jsonb FROM settled WHERE outcome IS NOT NULL
        ), left_dispatched AS (
            DELETE FROM job_dispatched d USING settled s WHERE d.job_id = s.job_id AND s.state <> 1
        ), to_waiting AS (
            INSERT INTO job_waiting (job_id, tenant_id, run_at, priority, reason, queue)
            -- What is switched off or paused is never due: the dispatcher does not come by it, however many there are.
            SELECT job_id, tenant_id, CASE WHEN reason IN (5, 7) THEN 'infinity' ELSE run_at END, priority, reason, queue FROM settled WHERE state = 0
        ), held AS (
            INSERT INTO job_held (job_id, tenant_id, kind, queue)
            SELECT s.job_id, s.tenant_id, j.kind, s.queue FROM settled s JOIN job j ON j.id = s.job_id WHERE s.state = 0 AND s.reason IN (5, 7)
        ), results AS (
            INSERT INTO job_result (job_id, tenant_id, result)
            SELECT job_id, tenant_id, result::jsonb FROM settled WHERE state = 3 AND result IS NOT NULL
        ), files AS (
            INSERT INTO job_file (job_id, tenant_id, object_key, file_name, content_type, bytes, sha256, completed_at, expires_at, page_token)
            SELECT s.job_id, s.tenant_id, f.object_key, f.file_name, f.content_type, f.bytes, decode(f.sha256, 'hex'), s.finished_at, f.expires_at,
                   convert_to(f.page_token, 'UTF8')
            FROM settled s,
                 jsonb_to_record(s.file::jsonb) AS f (object_key text, file_name text, content_type text, bytes bigint, sha256 text,
                                                      expires_at timestamptz, page_token text)
            WHERE s.state = 3 AND s.file IS NOT NULL
        ), notifications AS (
            INSERT INTO notification (tenant_id, owner, type, title, message, data, created_at)
            SELECT s.tenant_id, n.owner, 'system', n.title, n.message, n.data, s.finished_at
            FROM settled s, jsonb_to_record(s.notification::jsonb) AS n (owner text, title text, message text, data jsonb)
            -- A cancelled job's owner knows.
            WHERE s.state IN (3, 4) AND s.notification IS NOT NULL
        ), unsuccessful AS (
            INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, error_code, ended_at)
            SELECT s.job_id, s.tenant_id, s.state, j.kind, s.queue, CASE WHEN s.state = 4 THEN s.error::jsonb ->> 'code' END, s.finished_at
            FROM settled s JOIN job j ON j.id = s.job_id WHERE s.state > 3
        )
        SELECT job_id, state, reason, run_at FROM settled",
    )
    .bind(column(batch, |settlement| settlement.claim.id.0))
    .bind(column(batch, |settlement| settlement.claim.token))
    .bind(column(batch, |settlement| settlement.state.code()))
    .bind(column(batch, |settlement| settlement.gives_back))
    .bind(column(batch, |settlement| settlement.run_at))
    .bind(column(batch, |settlement| settlement.outcome))
    .bind(column(batch, |settlement| settlement.error.as_ref().map(Value::to_string)))
    .bind(column(batch, |settlement| settlement.result.as_ref().map(Value::to_string)))
    .bind(column(batch, |settlement| settlement.file.as_ref().map(file_json)))
    .bind(column(batch, |settlement| settlement.finished_at))
    .bind(column(batch, |settlement| settlement.claim.handover.queue.name()))
    .bind(column(batch, |settlement| settlement.claim.priority.code()))
    .bind(column(batch, |settlement| settlement.reason.code()))
    .bind(column(batch, |settlement| settlement.notification().map(|notification| notification.to_string())))
    .bind(column(batch, |settlement| settlement.snoozed))
    .bind(column(batch, |settlement| settlement.crashes))
    .bind(column(batch, |settlement| settlement.died))
    .fetch_all(executor)
    .await?;

    rows.iter().map(|row| settled(row, batch)).collect()
}

fn settled(row: &PgRow, batch: &[&Settlement]) -> Result<Settled, LedgerError> {
    let job = JobId(row.try_get("job_id")?);
    let code: i16 = row.try_get("state")?;
    let state = State::from_code(code).ok_or(LedgerError::Unknown { what: "state", value: code.to_string() })?;
    let code: i16 = row.try_get("reason")?;
    let reason = Reason::from_code(code).ok_or(LedgerError::Unknown { what: "reason", value: code.to_string() })?;
    let handover = batch
        .binary_search_by_key(&job, |settlement| settlement.claim.id)
        .ok()
        .and_then(|index| batch.get(index))
        .map(|settlement| settlement.claim.handover)
        .filter(|_| state == State::Queued);
    Ok(Settled { job, state, reason, run_at: row.try_get("run_at")?, handover })
}

fn file_json(file: &PublishedFile) -> String {
    json!({
        "object_key": file.object_key,
        "file_name": file.file_name,
        "content_type": file.content_type,
        "bytes": file.bytes,
        "sha256": hex::encode(file.sha256),
        "expires_at": file.expires_at,
        "page_token": page_token(),
    })
    .to_string()
}
