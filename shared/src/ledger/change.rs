//! What a person asks of a job: cancel it, run it again. Both run in the caller's transaction for one tenant.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{LedgerError, unique};
use crate::{
    job::{JobId, State},
    kinds::Registry,
    queue::Queue,
    tenant::Manifest,
    usage::{
        Refused,
        reserve::{self, Ensured},
    },
};

/// What became of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Done: the job is in the wished state.
    Done,
    /// The job runs; its worker has been asked, and the state follows.
    Asked,
    /// The job's state does not allow it.
    NotFrom(State),
    /// Another job holds its unique key.
    Held(JobId),
    /// Its `start_by` has passed, so it could only expire again.
    TooLate(DateTime<Utc>),
    /// It would use more than may be used.
    OverLimit,
    /// This tenant has no such job.
    Missing,
    /// It moved on while it was looked at. Nothing was done; roll back, which lets go of it, and ask again.
    Moved,
}

/// Cancels: at once what has not started; what runs is asked to stop, and a success that comes first wins.
///
/// # Errors
/// [`LedgerError`].
pub async fn cancel(connection: &mut PgConnection, tenant: i32, job: JobId, now: DateTime<Utc>) -> Result<Change, LedgerError> {
    // The backlog's row before the state's, as dispatch takes them: the other way round the two would deadlock.
    let held = sqlx::query("SELECT FROM job_waiting WHERE job_id = $1 AND tenant_id = $2 FOR UPDATE")
        .bind(job.0)
        .bind(tenant)
        .execute(&mut *connection)
        .await?;
    let Some(row) = sqlx::query("SELECT state, worker FROM job_state WHERE job_id = $1 AND tenant_id = $2 FOR UPDATE")
        .bind(job.0)
        .bind(tenant)
        .fetch_optional(&mut *connection)
        .await?
    else {
        return Ok(Change::Missing);
    };
    let code: i16 = row.try_get("state")?;
    let state = State::from_code(code).ok_or(LedgerError::Unknown { what: "state", value: code.to_string() })?;
    match state {
        // It came to the backlog between the two statements, so a dispatcher may hold its row there and wait for this one:
        // whoever of the two is aborted, a batch of dispatching should not be.
        State::Waiting if held.rows_affected() == 0 => Ok(Change::Moved),
        State::Waiting | State::Queued => {
            sqlx::query(
                "WITH stopped AS (
                    UPDATE job_state SET state = 5, reason = 0, cancel_requested = true, changed_at = $2, finished_at = $2, version = version + 1
                    WHERE job_id = $1 RETURNING job_id, tenant_id
                 ), waiting AS (DELETE FROM job_waiting WHERE job_id = $1), held AS (DELETE FROM job_held WHERE job_id = $1), dispatched AS (DELETE FROM job_dispatched WHERE job_id = $1)
                 INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, ended_at)
                 SELECT s.job_id, s.tenant_id, 5, j.kind, j.queue, $2 FROM stopped s JOIN job j ON j.id = s.job_id",
            )
            .bind(job.0)
            .bind(now)
            .execute(&mut *connection)
            .await?;
            super::leave_unrun(connection, vec![job.0], now).await?;
            Ok(Change::Done)
        }
        State::Running => {
            let worker: Option<Uuid> = row.try_get("worker")?;
            sqlx::query(
                "WITH asked AS (
                    UPDATE job_state SET cancel_requested = true, changed_at = $2, version = version + 1
                    WHERE job_id = $1 AND NOT cancel_requested RETURNING job_id, tenant_id
                 )
                 INSERT INTO job_cancel (job_id, tenant_id, worker, requested_at) SELECT job_id, tenant_id, $3, $2 FROM asked
                 ON CONFLICT (job_id) DO NOTHING",
            )
            .bind(job.0)
            .bind(now)
            .bind(worker)
            .execute(connection)
            .await?;
            Ok(Change::Asked)
        }
        State::Cancelled => Ok(Change::Done),
        State::Succeeded | State::Failed | State::Expired => Ok(Change::NotFrom(state)),
    }
}

/// What a redrive makes of a `job_state` row, `s`: due at `$now` with the attempts that its job, `$job`, was accepted with, and
/// nothing of what it went through counted any more.
macro_rules! redriven {
    ($now:literal, $job:literal) => {
        concat!(
            "state = 0, reason = 3, run_at = ",
            $now,
            ", changed_at = ",
            $now,
            ", finished_at = NULL, cancel_requested = false,
             crashes = 0, deaths = 0, counted_from = ",
            $now,
            ", snoozes = 0, snoozed_seconds = 0,
             attempts_allowed = least(s.attempt + ",
            $job,
            ".max_attempts, 32767), version = s.version + 1"
        )
    };
}
pub(super) use redriven;

/// What came of a wish to run a job again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retried {
    /// What became of it.
    pub change: Change,
    /// The queue whose dispatcher should look.
    pub queue: Option<Queue>,
    /// Which limit leaves no room, with [`Change::OverLimit`].
    pub over: Option<Refused>,
}

impl From<Change> for Retried {
    fn from(change: Change) -> Self {
        Self { change, queue: None, over: None }
    }
}

/// By what it is known how much a job may use.
#[derive(Debug, Clone, Copy)]
pub struct Meters<'a> {
    /// The kinds.
    pub kinds: &'a Registry,
    /// What the product declares.
    pub manifest: &'a Manifest,
}

/// Runs a failed, cancelled or expired job again with its kind's full number of attempts: it waits as due now, and the caller
/// wakes its queue's dispatcher. One that is metered reserves anew what it may use; without `meters` it does so when it starts.
///
/// # Errors
/// [`LedgerError`].
pub async fn retry(
    connection: &mut PgConnection,
    tenant: i32,
    job: JobId,
    meters: Option<Meters<'_>>,
    now: DateTime<Utc>,
) -> Result<Retried, LedgerError> {
    let Some(row) = sqlx::query(
        "SELECT s.state, j.start_by, j.queue, coalesce((j.options ->> 'metered')::boolean, false) AS metered FROM job_state s JOIN job j ON j.id = s.job_id
         WHERE s.job_id = $1 AND s.tenant_id = $2 FOR UPDATE OF s",
    )
    .bind(job.0)
    .bind(tenant)
    .fetch_optional(&mut *connection)
    .await?
    else {
        return Ok(Change::Missing.into());
    };
    let code: i16 = row.try_get("state")?;
    let state = State::from_code(code).ok_or(LedgerError::Unknown { what: "state", value: code.to_string() })?;
    let start_by: Option<DateTime<Utc>> = row.try_get("start_by")?;
    let queue: String = row.try_get("queue")?;
    if !matches!(state, State::Failed | State::Cancelled | State::Expired) {
        return Ok(Change::NotFrom(state).into());
    }
    if let Some(start_by) = start_by.filter(|start_by| *start_by < now) {
        return Ok(Change::TooLate(start_by).into());
    }
    // Behind the state's row and before unique keys, as everybody takes counters.
    if let Some(meters) = meters.filter(|_| row.try_get("metered").unwrap_or(false))
        && let Some(over) = reserve_again(connection, tenant, job, meters, now).await?
    {
        return Ok(Retried { over: Some(over), ..Change::OverLimit.into() });
    }
    if let Some(holder) = unique::hold(connection, job, now).await? {
        return Ok(Change::Held(holder).into());
    }
    sqlx::query(concat!(
        "WITH again AS (
            UPDATE job_state s SET ",
        redriven!("$2", "j"),
        " FROM job j WHERE s.job_id = $1 AND j.id = s.job_id
            RETURNING s.job_id, s.tenant_id, j.priority, j.queue
        ), gone AS (DELETE FROM job_unsuccessful WHERE job_id = $1)
        INSERT INTO job_waiting (job_id, tenant_id, run_at, priority, reason, queue)
        SELECT job_id, tenant_id, $2, priority, 3, queue FROM again"
    ))
    .bind(job.0)
    .bind(now)
    .execute(&mut *connection)
    .await?;
    super::limit(connection, vec![job.0], now).await?;
    Ok(Retried { queue: Queue::from_name(&queue), ..Change::Done.into() })
}

/// Reserves what a job that has ended may use when it runs again; the limit that leaves no room, where one does.
async fn reserve_again(
    connection: &mut PgConnection,
    tenant: i32,
    job: JobId,
    meters: Meters<'_>,
    now: DateTime<Utc>,
) -> Result<Option<Refused>, LedgerError> {
    // What an older program left behind must not be counted twice.
    super::settle_usage(connection, &[job.0], now).await?;
    let row = sqlx::query("SELECT kind, owner, payload::text AS payload FROM job WHERE id = $1 AND tenant_id = $2")
        .bind(job.0)
        .bind(tenant)
        .fetch_one(&mut *connection)
        .await?;
    let (kind, owner, payload): (String, Option<String>, String) = (row.try_get("kind")?, row.try_get("owner")?, row.try_get("payload")?);
    let Some(kind) = meters.kinds.find(&kind) else { return Ok(None) };
    let charges = (kind.charges)(&payload, meters.manifest, owner.as_deref(), now);
    match reserve::again(connection, meters.manifest, (job, tenant, owner.as_deref()), &charges, now).await? {
        Ensured::Yes => Ok(None),
        Ensured::No(refused) => Ok(Some(refused)),
    }
}
