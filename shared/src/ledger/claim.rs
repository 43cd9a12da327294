//! Step 5, claim: `queued` rows become `running` under a fresh token, by one compare-and-set for a whole read. A duplicate
//! delivery finds nothing to claim.
//!
//! Steps 3 and 5 in one, [`take`]: due jobs of the backlog become `running` for the worker that asks, without the way through Redis.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgExecutor, Row, postgres::PgRow};
use uuid::Uuid;

use super::{LedgerError, dispatch::Turn};
use crate::{
    job::{JobId, Options, Priority},
    queue::Queue,
    random,
};

/// A job that this process holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimedJob {
    /// The job.
    pub id: JobId,
    /// What proves the claim.
    pub token: i64,
    /// Whose product.
    pub tenant: i32,
    /// Which end user's, if any.
    pub owner: Option<String>,
    /// Its kind, as stored.
    pub kind: String,
    /// Its queue.
    pub queue: Queue,
    /// Its priority.
    pub priority: Priority,
    /// The payload as JSON text.
    pub payload: String,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it was due.
    pub run_at: DateTime<Utc>,
    /// When it is no longer worth starting.
    pub start_by: Option<DateTime<Utc>>,
    /// When this run began.
    pub started_at: DateTime<Utc>,
    /// This attempt's number, from 1.
    pub attempt: u16,
    /// Attempts it may take in all.
    pub attempts_allowed: u16,
    /// Runs so far, counted or not, this one included.
    pub runs: i32,
    /// Workers that were lost while they ran it.
    pub crashes: u16,
    /// Processes of its own that died under it.
    pub deaths: u16,
    /// How long ago the lost worker gave its last sign of life from which this claim takes the job over, by Postgres' clock.
    pub lost_for: Option<Duration>,
    /// What its total deadline counts from: when it was due, or redriven.
    pub counted_from: DateTime<Utc>,
    /// How often its handler has snoozed it since.
    pub snoozes: u16,
    /// How long in all.
    pub snoozed: Duration,
    /// What it carries beside its payload; `None` for most jobs.
    #[serde(default)]
    pub options: Option<Box<Options>>,
}

/// Who claims, and what will prove it.
#[derive(Debug, Clone, Copy)]
pub struct Claimant {
    /// The worker.
    pub worker: Uuid,
    /// What the claim's jobs will be settled by: of this claim alone.
    pub token: i64,
}

impl From<Uuid> for Claimant {
    fn from(worker: Uuid) -> Self {
        Self { worker, token: random::token() }
    }
}

/// Claims those of `jobs` that are still queued.
///
/// The caller's sessions commit asynchronously ([`super::Sessions::Claims`]).
///
/// # Errors
/// [`LedgerError`]; when the answer was lost the rows may be ours all the same: recovery gives back what a worker owns and
/// does not hold.
pub async fn claim(
    executor: impl PgExecutor<'_>,
    jobs: &[JobId],
    by: impl Into<Claimant>,
    now: DateTime<Utc>,
) -> Result<Vec<ClaimedJob>, LedgerError> {
    let Claimant { worker, token } = by.into();
    let mut ids: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
    // One order for all batches that lock several rows, so that they queue up and don't deadlock.
    ids.sort_unstable();
    ids.dedup();
    let rows = sqlx::query(
        "WITH claimed AS (
            UPDATE job_state s
            SET state = 2, reason = 0, token = $2, worker = $3, started_at = $4, changed_at = $4,
                attempt = s.attempt + 1, runs = s.runs + 1, version = s.version + 1, progress_done = NULL, progress_total = NULL
            FROM unnest($1::uuid[]) AS wanted (id)
            WHERE s.job_id = ANY (ARRAY[wanted.id]) AND s.state = 1
            RETURNING s.job_id, s.run_at, s.attempt, s.attempts_allowed, s.runs, s.crashes, s.deaths,
                      coalesce(s.counted_from, s.run_at) AS counted_from, s.snoozes, s.snoozed_seconds
        ), found_again AS (
            -- Of jobs whose worker was lost; told once, so that a later claim does not count from there.
            UPDATE job_dispatched d SET lost_at = NULL FROM claimed c WHERE c.crashes > 0 AND d.job_id = ANY (ARRAY[c.job_id]) AND d.lost_at IS NOT NULL
        )
        SELECT c.job_id, c.run_at, c.attempt, c.attempts_allowed, c.runs, c.crashes, c.deaths, c.counted_from, c.snoozes, c.snoozed_seconds,
               CASE WHEN c.crashes > 0 THEN (
                   SELECT extract(epoch FROM clock_timestamp() - d.lost_at)::float8 FROM job_dispatched d WHERE d.job_id = c.job_id
               ) END AS lost_seconds,
               j.tenant_id, j.owner, j.kind, j.queue, j.priority, j.payload::text AS payload, j.created_at, j.start_by, j.options::text AS options
        FROM claimed c JOIN job j ON j.id = ANY (ARRAY[c.job_id])",
    )
    .bind(&ids)
    .bind(token)
    .bind(worker)
    .bind(now)
    .fetch_all(executor)
    .await?;

    rows.iter().map(|row| claimed(row, token, now)).collect()
}

/// Claims due jobs of a priority straight from a queue's backlog: of each tenant as many as its turn allows, oldest due time first. The
/// answer has them in turns: one of each tenant's at a time.
///
/// One statement, and so one way to Postgres and back: the three of a transaction cost a busy worker more than the claims. It does not ask
/// after `start_by`; who runs a job does, right before.
///
/// The caller's sessions commit asynchronously ([`super::Sessions::Claims`]).
///
/// # Errors
/// [`LedgerError`]; when the answer was lost the rows may be ours all the same, as with [`claim`].
pub async fn take(
    executor: impl PgExecutor<'_>,
    queue: Queue,
    priority: Priority,
    turns: &[Turn],
    by: impl Into<Claimant>,
    now: DateTime<Utc>,
) -> Result<Vec<ClaimedJob>, LedgerError> {
    let Claimant { worker, token } = by.into();
    let rows = sqlx::query(
        "WITH due AS MATERIALIZED (
            SELECT d.place FROM unnest($3::integer[], $4::bigint[]) AS turn (tenant_id, jobs)
            CROSS JOIN LATERAL (
                SELECT w.ctid AS place FROM job_waiting w
                WHERE w.queue = $1 AND w.priority = $5 AND w.tenant_id = turn.tenant_id AND w.run_at <= $2
                ORDER BY w.run_at, w.job_id LIMIT turn.jobs FOR UPDATE SKIP LOCKED
            ) d
        ), taken AS (
            -- A row that is locked stays where it is.
            DELETE FROM job_waiting w USING due WHERE w.ctid = due.place RETURNING w.job_id, w.run_at AS due_at
        ), claimed AS (
            UPDATE job_state s
            SET state = 2, reason = 0, token = $6, worker = $7, started_at = $2, changed_at = $2,
                attempt = s.attempt + 1, runs = s.runs + 1, version = s.version + 1, progress_done = NULL, progress_total = NULL
            FROM taken t
            WHERE s.job_id = ANY (ARRAY[t.job_id]) AND s.state = 0
            RETURNING s.job_id, s.tenant_id, s.run_at, s.attempt, s.attempts_allowed, s.runs, s.crashes, s.deaths,
                      coalesce(s.counted_from, s.run_at) AS counted_from, s.snoozes, s.snoozed_seconds, t.due_at
        ), dispatched AS (
            INSERT INTO job_dispatched (job_id, tenant_id, dispatched_at, priority, queue)
            SELECT job_id, tenant_id, now(), $5, $1 FROM claimed
        )
        SELECT c.job_id, c.run_at, c.attempt, c.attempts_allowed, c.runs, c.crashes, c.deaths, c.counted_from, c.snoozes, c.snoozed_seconds,
               NULL::float8 AS lost_seconds,
               j.tenant_id, j.owner, j.kind, j.queue, j.priority, j.payload::text AS payload, j.created_at, j.start_by, j.options::text AS options
        FROM claimed c JOIN job j ON j.id = ANY (ARRAY[c.job_id])
        ORDER BY row_number() OVER (PARTITION BY c.tenant_id ORDER BY c.due_at, c.job_id), c.tenant_id",
    )
    .bind(queue.name())
    .bind(now)
    .bind(turns.iter().map(|turn| turn.tenant).collect::<Vec<_>>())
    .bind(turns.iter().map(|turn| i64::try_from(turn.jobs).unwrap_or(0)).collect::<Vec<_>>())
    .bind(priority.code())
    .bind(token)
    .bind(worker)
    .fetch_all(executor)
    .await?;

    rows.iter().map(|row| claimed(row, token, now)).collect()
}

fn claimed(row: &PgRow, token: i64, now: DateTime<Utc>) -> Result<ClaimedJob, LedgerError> {
    let queue: String = row.try_get("queue")?;
    let priority: i16 = row.try_get("priority")?;
    let options: Option<String> = row.try_get("options")?;
    let count = |column: &str| row.try_get::<i16, _>(column).map(|value| u16::try_from(value).unwrap_or(0));
    Ok(ClaimedJob {
        id: JobId(row.try_get("job_id")?),
        token,
        tenant: row.try_get("tenant_id")?,
        owner: row.try_get("owner")?,
        kind: row.try_get("kind")?,
        queue: Queue::from_name(&queue).ok_or(LedgerError::Unknown { what: "queue", value: queue })?,
        priority: Priority::from_code(priority).unwrap_or(Priority::Normal),
        payload: row.try_get("payload")?,
        created_at: row.try_get("created_at")?,
        run_at: row.try_get("run_at")?,
        start_by: row.try_get("start_by")?,
        started_at: now,
        attempt: count("attempt")?,
        attempts_allowed: count("attempts_allowed")?,
        runs: row.try_get("runs")?,
        crashes: count("crashes")?,
        deaths: count("deaths")?,
        lost_for: row.try_get::<Option<f64>, _>("lost_seconds")?.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        counted_from: row.try_get("counted_from")?,
        snoozes: count("snoozes")?,
        snoozed: Duration::from_secs(u64::try_from(row.try_get::<i32, _>("snoozed_seconds")?).unwrap_or(0)),
        options: options.map(|options| options_of(&options)).transpose()?.map(Box::new),
    })
}

/// What a row says of a job's options.
pub(super) fn options_of(text: &str) -> Result<Options, LedgerError> {
    serde_json::from_str(text).map_err(|_| LedgerError::Unknown { what: "options", value: text.chars().take(200).collect() })
}
