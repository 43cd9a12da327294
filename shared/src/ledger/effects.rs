//! The effect ledger: what a run is about to do outside, written before it does it, and what the outside answered.
//!
//! A handler calls [`intend`] before each outward step; the insert succeeds only under a live claim, so a worker whose claim
//! was taken over is fenced off here. Also the running job's own notes: its progress.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};

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

/// An effect that a run is about to bring about.
#[derive(Debug, Clone, PartialEq)]
pub struct Intention {
    /// The job.
    pub job: JobId,
    /// What proves the claim.
    pub token: i64,
    /// Whose product.
    pub tenant: i32,
    /// The job's kind, as stored.
    pub kind: String,
    /// The effect, unique within the job.
    pub key: String,
    /// What is needed to undo it, or to ask about it.
    pub intent: Value,
    /// How far it reaches.
    pub reach: Reach,
}

impl Intention {
    /// Of a claim.
    #[must_use]
    pub fn of(job: &ClaimedJob, key: &str, intent: &Value, reach: Reach) -> Self {
        let ClaimedJob { id, token, tenant, ref kind, .. } = *job;
        Self { job: id, token, tenant, kind: kind.clone(), key: key.to_owned(), intent: intent.clone(), reach }
    }
}

/// Writes down that a run is about to do something outside.
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
    let mut connection = pool.acquire().await?;
    let said = intend_all(&mut connection, &[Intention::of(job, key, intent, reach)], now).await?;
    // One for each.
    Ok(said.into_iter().next().unwrap_or(Intent::Fenced))
}

/// The same for runs of many jobs in one statement, in their order; no two may be the same effect of the same job.
///
/// An effect without a receipt that was intended before becomes [`Intent::Unknown`] in the same statement, so that what may
/// happen twice is on the list before it does.
///
/// # Errors
/// [`LedgerError`].
pub async fn intend_all(connection: &mut PgConnection, all: &[Intention], now: DateTime<Utc>) -> Result<Vec<Intent>, LedgerError> {
    let mut places: Vec<(usize, &Intention)> = all.iter().enumerate().collect();
    // One order for all batches that lock several rows, so that they queue up and don't deadlock.
    places.sort_unstable_by_key(|(_, one)| one.job.0);
    let rows = sqlx::query(
        "WITH wanted AS MATERIALIZED (
            SELECT * FROM unnest($1::integer[], $2::uuid[], $3::bigint[], $4::integer[], $5::text[], $6::text[], $7::text[], $8::boolean[])
                AS w (place, job_id, token, tenant_id, kind, key, intent, is_outward)
        ), switched AS MATERIALIZED (
            SELECT asked.tenant_id, asked.kind, outward_is_off(asked.tenant_id, asked.kind) AS off
            FROM (SELECT DISTINCT tenant_id, kind FROM wanted WHERE is_outward) AS asked
        ), looked AS MATERIALIZED (
            SELECT w.*, live.tenant_id AS owner_id, coalesce(w.is_outward AND s.off, false) AS off
            FROM wanted w
            LEFT JOIN switched s ON s.tenant_id = w.tenant_id AND s.kind = w.kind
            LEFT JOIN LATERAL (
                SELECT j.tenant_id FROM job_state j WHERE j.job_id = ANY (ARRAY[w.job_id]) AND j.token = w.token AND j.state = 2 FOR SHARE
            ) AS live ON true
        ), fresh AS (
            INSERT INTO effect (job_id, key, tenant_id, token, intended_at, intent)
            SELECT job_id, key, owner_id, token, $9, intent::jsonb FROM looked WHERE owner_id IS NOT NULL AND NOT off
            ON CONFLICT (job_id, key) DO UPDATE
                SET state = CASE WHEN effect.receipt IS NULL THEN 2 ELSE effect.state END, token = excluded.token
            RETURNING job_id, key, state
        )
        SELECT l.place, l.owner_id IS NOT NULL AS live, l.off,
               (SELECT f.state FROM fresh f WHERE f.job_id = l.job_id AND f.key = l.key) AS state,
               (SELECT e.receipt FROM effect e WHERE e.job_id = l.job_id AND e.key = l.key) AS receipt
        FROM looked l",
    )
    .bind(places.iter().map(|(place, _)| i32::try_from(*place).unwrap_or(i32::MAX)).collect::<Vec<_>>())
    .bind(places.iter().map(|(_, one)| one.job.0).collect::<Vec<_>>())
    .bind(places.iter().map(|(_, one)| one.token).collect::<Vec<_>>())
    .bind(places.iter().map(|(_, one)| one.tenant).collect::<Vec<_>>())
    .bind(places.iter().map(|(_, one)| one.kind.as_str()).collect::<Vec<_>>())
    .bind(places.iter().map(|(_, one)| one.key.as_str()).collect::<Vec<_>>())
    .bind(places.iter().map(|(_, one)| one.intent.to_string()).collect::<Vec<_>>())
    .bind(places.iter().map(|(_, one)| one.reach == Reach::Outward).collect::<Vec<_>>())
    .bind(now)
    .fetch_all(connection)
    .await?;
    let mut said = vec![Intent::Fenced; all.len()];
    for row in &rows {
        let place: i32 = row.try_get("place")?;
        if let Some(slot) = usize::try_from(place).ok().and_then(|place| said.get_mut(place)) {
            *slot = intent_of(row)?;
        }
    }
    Ok(said)
}

fn intent_of(row: &PgRow) -> Result<Intent, LedgerError> {
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
