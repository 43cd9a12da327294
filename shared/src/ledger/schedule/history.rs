//! What became of a schedule's ticks, and its pruning.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::LedgerError;
use crate::{
    job::{JobId, State},
    schedule::TickOutcome,
};

/// Ticks of a schedule that are kept at most; those that are open stay in any case.
pub const KEPT: i64 = 1_000;

/// How long they are kept at most.
pub const KEPT_FOR: TimeDelta = TimeDelta::days(90);

/// Rows that one statement removes.
const PAGE: i64 = 1_000;

/// A tick as it stands.
#[derive(Debug, Clone)]
pub struct FoundTick {
    /// Its due time, before jitter; of ticks missed in a row the last one's.
    pub due_at: DateTime<Utc>,
    /// The first due time that it stands for.
    pub first_at: DateTime<Utc>,
    /// How many due times it stands for.
    pub ticks: i32,
    /// What became of it.
    pub outcome: TickOutcome,
    /// Whether somebody wished it to run.
    pub manual: bool,
    /// When it was handled.
    pub handled_at: DateTime<Utc>,
    /// Its job.
    pub job: Option<JobId>,
    /// Where that job is; or how it ended, where it is gone.
    pub job_state: Option<State>,
    /// Why no job could be made.
    pub detail: Option<String>,
}

/// A page of a schedule's ticks, latest first.
///
/// # Errors
/// [`LedgerError`].
pub async fn ticks(
    connection: &mut PgConnection,
    tenant: i32,
    schedule: Uuid,
    before: Option<DateTime<Utc>>,
    limit: i64,
) -> Result<Vec<FoundTick>, LedgerError> {
    let rows = sqlx::query(
        "SELECT t.due_at, t.first_at, t.ticks, t.outcome, t.manual, t.handled_at, t.job_id, t.detail,
                coalesce((SELECT j.state FROM job_state j WHERE j.job_id = t.job_id), t.job_state) AS state
         FROM schedule_tick t WHERE t.schedule_id = $1 AND t.tenant_id = $2 AND t.due_at < $3 ORDER BY t.due_at DESC LIMIT $4",
    )
    .bind(schedule)
    .bind(tenant)
    .bind(before.unwrap_or(DateTime::from_timestamp(253_402_300_799, 0).unwrap_or_default()))
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let unknown = |what, code: i16| LedgerError::Unknown { what, value: code.to_string() };
            let outcome: i16 = row.try_get("outcome")?;
            let state: Option<i16> = row.try_get("state")?;
            Ok(FoundTick {
                due_at: row.try_get("due_at")?,
                first_at: row.try_get("first_at")?,
                ticks: row.try_get("ticks")?,
                outcome: TickOutcome::from_code(outcome).ok_or_else(|| unknown("outcome", outcome))?,
                manual: row.try_get("manual")?,
                handled_at: row.try_get("handled_at")?,
                job: row.try_get::<Option<Uuid>, _>("job_id")?.map(JobId),
                job_state: state.map(|code| State::from_code(code).ok_or_else(|| unknown("state", code))).transpose()?,
                detail: row.try_get("detail")?,
            })
        })
        .collect()
}

/// Removes what is beyond [`KEPT`] and [`KEPT_FOR`] of up to 100 schedules after `after`, and closes ticks whose job is gone. Answers how
/// many rows went, and where to go on; `None` at the end.
///
/// # Errors
/// [`LedgerError`].
pub async fn prune(pool: &PgPool, after: Uuid, now: DateTime<Utc>) -> Result<(u64, Option<Uuid>), LedgerError> {
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM schedule WHERE id > $1 ORDER BY id LIMIT 100").bind(after).fetch_all(pool).await?;
    let mut gone = 0;
    for id in &ids {
        // Whoever discarded a job at once, before its end was seen.
        sqlx::query(
            "UPDATE schedule_tick t SET open = false
             WHERE t.open AND t.schedule_id = $1 AND t.job_id IS NOT NULL AND t.handled_at < $2
               AND NOT EXISTS (SELECT FROM job_state j WHERE j.job_id = t.job_id)",
        )
        .bind(id)
        .bind(now - TimeDelta::hours(1))
        .execute(pool)
        .await?;
        loop {
            let removed = sqlx::query(
                "DELETE FROM schedule_tick t USING (
                    SELECT o.due_at FROM schedule_tick o
                    WHERE o.schedule_id = $1 AND NOT o.open
                      AND o.due_at < greatest($2, (SELECT k.due_at FROM schedule_tick k WHERE k.schedule_id = $1 ORDER BY k.due_at DESC OFFSET $3 LIMIT 1))
                    ORDER BY o.due_at LIMIT $4
                 ) old
                 WHERE t.schedule_id = $1 AND t.due_at = old.due_at",
            )
            .bind(id)
            .bind(now - KEPT_FOR)
            .bind(KEPT - 1)
            .bind(PAGE)
            .execute(pool)
            .await?
            .rows_affected();
            gone += removed;
            if i64::try_from(removed).unwrap_or(0) < PAGE {
                break;
            }
        }
    }
    Ok((gone, ids.last().copied()))
}
