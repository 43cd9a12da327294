//! The ends of reservations: what a job used, what nobody ended, and what may be forgotten.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::{MOST, amount_of};
use crate::{job::JobId, ledger::LedgerError};

/// Rows that one statement looks at.
const PAGE: i64 = 1_000;

/// How long counters and charges are kept when their month is over.
const KEPT: TimeDelta = TimeDelta::days(62);

/// Notes what a job used of a metric, beside its reservation, which becomes the charge when the job ends. Added up, whatever comes of the
/// run; nothing happens where nothing is reserved.
///
/// # Errors
/// [`LedgerError`].
pub async fn used(connection: &mut PgConnection, job: JobId, metric: &str, amount: u64) -> Result<(), LedgerError> {
    // Of several reservations of one scope the newest: their sum is what counts.
    sqlx::query(
        "UPDATE usage_reservation SET actual = least(coalesce(actual, 0)::numeric + $3, $4)
         WHERE id IN (SELECT max(id) FROM usage_reservation WHERE job_id = $1 AND metric = $2 GROUP BY scope)",
    )
    .bind(job.0)
    .bind(metric)
    .bind(amount_of(amount))
    .bind(amount_of(MOST))
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that a job used nothing of what it is charged for a success: its answer was there already.
///
/// # Errors
/// [`LedgerError`].
pub async fn used_nothing(pool: &PgPool, job: JobId) -> Result<(), LedgerError> {
    sqlx::query("UPDATE usage_reservation SET actual = 0 WHERE job_id = $1 AND actual IS NULL").bind(job.0).execute(pool).await?;
    Ok(())
}

/// What one page of the sweep came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lapsed {
    /// Reservations that had outlived their jobs.
    pub reservations: u64,
    /// Where to go on; `None` at the end.
    pub next: Option<i64>,
}

/// Ends reservations whose jobs have ended without them, or are gone: an older program ended the job, or somebody changed the database by hand. From
/// behind `after` on, a page at a time.
///
/// # Errors
/// [`LedgerError`].
pub async fn lapse(pool: &PgPool, after: i64, now: DateTime<Utc>) -> Result<Lapsed, LedgerError> {
    let rows = sqlx::query(
        "SELECT r.id, r.job_id, EXISTS (SELECT FROM job_state s WHERE s.job_id = r.job_id AND s.state < 3) AS is_alive
         FROM usage_reservation r WHERE r.id > $1 ORDER BY r.id LIMIT $2",
    )
    .bind(after)
    .bind(PAGE)
    .fetch_all(pool)
    .await?;
    let mut dead: Vec<Uuid> = Vec::new();
    let mut last = None;
    for row in &rows {
        last = Some(row.try_get::<i64, _>("id")?);
        if !row.try_get::<bool, _>("is_alive")? {
            dead.push(row.try_get("job_id")?);
        }
    }
    let mut reservations = 0;
    if !dead.is_empty() {
        dead.sort_unstable();
        dead.dedup();
        let ended: i64 = sqlx::query_scalar("SELECT settle_usage($1, $2)").bind(&dead).bind(now).fetch_one(pool).await?;
        reservations = u64::try_from(ended).unwrap_or_default();
    }
    let more = i64::try_from(rows.len()).is_ok_and(|rows| rows >= PAGE);
    Ok(Lapsed { reservations, next: last.filter(|_| more) })
}

/// Forgets counters and charges of months that have been over for long; answers how many rows: call again until none. What counts in a
/// total for ever is carried over in one row.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let before = now - KEPT;
    let rows: i64 = sqlx::query_scalar("SELECT forget_usage($1, $2)").bind(before).bind(PAGE).fetch_one(pool).await?;
    Ok(u64::try_from(rows).unwrap_or_default())
}
