//! The effect ledger: what a run is about to do outside, written before it does it, and what the outside answered.
//!
//! A handler calls [`intend`] before each outward step; the insert succeeds only under a live claim, so a worker whose claim
//! was taken over is fenced off here. Also the running job's own notes: its progress.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgPool, Row};

use super::{LedgerError, claim::ClaimedJob};
use crate::job::JobId;

/// The state of an effect that may have happened more than once, or not at all (the migrations list all states).
const UNKNOWN: i16 = 2;

/// What the ledger says of an effect that a run intends.
#[derive(Debug, Clone, PartialEq)]
pub enum Intent {
    /// Go ahead: it was never intended before.
    New,
    /// An earlier run did it: do not repeat it.
    Done {
        /// What the outside answered.
        receipt: Value,
    },
    /// An earlier run intended it, and whether it came to pass nobody wrote down. The ledger lists it as unknown from now on, and
    /// for good: whoever repeats it may do it a second time.
    Unknown,
    /// The claim is gone: do nothing, somebody else has the job.
    Fenced,
    /// Outward effects are switched off, and this one is not known to be done: do nothing now.
    SwitchedOff,
}

/// How far an effect reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Within the installation: an object in its own store. No switch stops it.
    Ours,
    /// Outside of it.
    Outward,
}

/// Writes down that a run is about to do something outside.
///
/// An effect without a receipt that was intended before becomes [`Intent::Unknown`] in the same statement, so that what may
/// happen twice is on the list before it does.
///
/// # Errors
/// [`LedgerError`].
pub async fn intend(
    pool: &PgPool,
    job: &ClaimedJob,
    key: &str,
    intent: &Value,
    reach: Reach,
    now: DateTime<Utc>,
) -> Result<Intent, LedgerError> {
    let row = sqlx::query(
        "WITH live AS (
            SELECT job_id, tenant_id FROM job_state WHERE job_id = $1 AND token = $2 AND state = 2 FOR SHARE
        ), switched AS MATERIALIZED (
            SELECT CASE WHEN $6 THEN outward_is_off($7, $8) ELSE false END AS off
        ), fresh AS (
            INSERT INTO effect (job_id, key, tenant_id, token, intended_at, intent)
            SELECT job_id, $3, tenant_id, $2, $4, $5 FROM live, switched WHERE NOT off
            ON CONFLICT (job_id, key) DO UPDATE
                SET state = CASE WHEN effect.receipt IS NULL THEN 2 ELSE effect.state END, token = excluded.token
            RETURNING state, receipt
        )
        SELECT EXISTS (SELECT 1 FROM live) AS live, (SELECT off FROM switched) AS off, (SELECT state FROM fresh) AS state,
               (SELECT receipt FROM effect WHERE job_id = $1 AND key = $3) AS receipt",
    )
    .bind(job.id.0)
    .bind(job.token)
    .bind(key)
    .bind(now)
    .bind(intent)
    .bind(reach == Reach::Outward)
    .bind(job.tenant)
    .bind(&job.kind)
    .fetch_one(pool)
    .await?;
    let (live, off): (bool, bool) = (row.try_get("live")?, row.try_get("off")?);
    let state: Option<i16> = row.try_get("state")?;
    let receipt: Option<Value> = row.try_get("receipt")?;
    Ok(match (state, receipt) {
        _ if !live => Intent::Fenced,
        // What is known to be done stays done, and is not done again: the run may go on, switched off or not.
        (_, Some(receipt)) => Intent::Done { receipt },
        _ if off => Intent::SwitchedOff,
        (Some(UNKNOWN), None) => Intent::Unknown,
        (_, None) => Intent::New,
    })
}

/// Lists an effect as unknown whose outcome this run could not learn (the answer was lost on the way).
///
/// # Errors
/// [`LedgerError`].
pub async fn unknown(pool: &PgPool, job: JobId, key: &str) -> Result<(), LedgerError> {
    sqlx::query("UPDATE effect SET state = $3 WHERE job_id = $1 AND key = $2 AND receipt IS NULL")
        .bind(job.0)
        .bind(key)
        .bind(UNKNOWN)
        .execute(pool)
        .await?;
    Ok(())
}

/// Writes down what the outside answered. What was listed as unknown stays so: it may have happened before as well.
///
/// # Errors
/// [`LedgerError`].
pub async fn receipt(pool: &PgPool, job: JobId, key: &str, receipt: &Value, now: DateTime<Utc>) -> Result<(), LedgerError> {
    sqlx::query(
        "UPDATE effect SET state = CASE state WHEN 2 THEN 2 ELSE 1 END, receipt = $3, finished_at = $4 WHERE job_id = $1 AND key = $2",
    )
    .bind(job.0)
    .bind(key)
    .bind(receipt)
    .bind(now)
    .execute(pool)
    .await?;
    Ok(())
}

/// Strikes an effect out that was undone, or never came about.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, job: JobId, key: &str) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM effect WHERE job_id = $1 AND key = $2").bind(job.0).bind(key).execute(pool).await?;
    Ok(())
}

/// Notes how far a running job is. Answers whether the claim still stands.
///
/// # Errors
/// [`LedgerError`].
pub async fn progress(pool: &PgPool, job: &ClaimedJob, done: u64, total: Option<u64>, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let changed = sqlx::query(
        "UPDATE job_state SET progress_done = $3, progress_total = $4, changed_at = $5, version = version + 1
         WHERE job_id = $1 AND token = $2 AND state = 2",
    )
    .bind(job.id.0)
    .bind(job.token)
    .bind(number(done))
    .bind(total.map(number))
    .bind(now)
    .execute(pool)
    .await?;
    Ok(changed.rows_affected() == 1)
}
