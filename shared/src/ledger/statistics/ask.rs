//! Asking for a refresh, and believing what was flagged: what requests do.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, Row};

use super::LedgerError;
use crate::{
    job::{JobId, Unique},
    kinds::{Kind, StatsRefresh},
    ledger::{
        insert::{Inserted, NewJob, insert_within},
        unique,
    },
    statistic::{FRESH, MOST_WISHED, WISHED_WITHIN},
};

/// Who wants a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A person, or the product for one: so often an hour.
    Wish,
    /// Somebody who read what is not fresh: once in the time that a reading is fresh.
    Reader,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A job was made.
    New(JobId),
    /// One is on its way.
    Running(JobId),
    /// There were as many wishes as may be; again from then on.
    Limited(DateTime<Utc>),
    /// It was asked for a moment ago, or may not be asked for yet.
    NotNow,
}

/// Asks for a refresh: one job at a time, however many ask. In a transaction of the caller's, which tells of the job once it is committed.
///
/// # Errors
/// [`LedgerError`].
pub async fn ask(
    connection: &mut PgConnection,
    tenant: i32,
    source: &str,
    by: By,
    job: JobId,
    now: DateTime<Utc>,
) -> Result<Asked, LedgerError> {
    sqlx::query("INSERT INTO statistic (tenant_id, source) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(tenant)
        .bind(source)
        .execute(&mut *connection)
        .await?;
    // Whoever asks meanwhile waits here, and sees what this one wrote.
    let row = sqlx::query(
        "SELECT read_ahead_at, checked_at, not_before, wished_from, wished FROM statistic WHERE tenant_id = $1 AND source = $2 FOR UPDATE",
    )
    .bind(tenant)
    .bind(source)
    .fetch_one(&mut *connection)
    .await?;
    let time = |column: &str| row.try_get::<Option<DateTime<Utc>>, _>(column);
    let payload = StatsRefresh { source: source.to_owned() };
    let key = (tenant, String::new(), StatsRefresh::NAME.to_owned(), payload.unique_key());
    if let Some(running) = unique::holder(&mut *connection, &key, now).await? {
        return Ok(Asked::Running(running));
    }
    match by {
        By::Reader => {
            let asked = [time("read_ahead_at")?, time("checked_at")?].into_iter().flatten().max();
            if asked.is_some_and(|asked| now - asked < FRESH) || time("not_before")?.is_some_and(|at| at > now) {
                return Ok(Asked::NotNow);
            }
            sqlx::query("UPDATE statistic SET read_ahead_at = $3 WHERE tenant_id = $1 AND source = $2")
                .bind(tenant)
                .bind(source)
                .bind(now)
                .execute(&mut *connection)
                .await?;
        }
        By::Wish => {
            let (from, wished): (_, i32) = (time("wished_from")?, row.try_get("wished")?);
            let (from, wished) = match from {
                Some(from) if now - from < WISHED_WITHIN => (from, wished),
                _ => (now, 0),
            };
            if wished >= MOST_WISHED {
                return Ok(Asked::Limited(from + WISHED_WITHIN));
            }
            sqlx::query("UPDATE statistic SET wished_from = $3, wished = $4 WHERE tenant_id = $1 AND source = $2")
                .bind(tenant)
                .bind(source)
                .bind(from)
                .bind(wished + 1)
                .execute(&mut *connection)
                .await?;
        }
    }
    let mut new = NewJob::of(job, tenant, &payload, now);
    new.options.unique = Some(Unique { key: payload.unique_key(), for_seconds: None });
    match insert_within(connection, now, &[new]).await?.into_iter().next() {
        Some(Inserted::Duplicate(running, _) | Inserted::Conflict(running)) => Ok(Asked::Running(running)),
        // It has no owner and no meter: nobody's limits are asked.
        Some(Inserted::Accepted | Inserted::Refused(_)) | None => Ok(Asked::New(job)),
    }
}

/// Believes the reading that was flagged at a time: it is the statistic's from then on, and stands in its history. False where there is no
/// such reading (any more).
///
/// # Errors
/// [`LedgerError`].
pub async fn accept(connection: &mut PgConnection, tenant: i32, source: &str, flagged_at: DateTime<Utc>) -> Result<bool, LedgerError> {
    let row = sqlx::query(
        "SELECT flagged FROM statistic WHERE tenant_id = $1 AND source = $2 AND flagged_at = $3 AND flagged IS NOT NULL FOR UPDATE",
    )
    .bind(tenant)
    .bind(source)
    .bind(flagged_at)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(false) };
    let flagged: Value = row.try_get("flagged")?;
    let part = |name: &str| flagged.get(name).cloned().unwrap_or_default();
    let activity = part("activity").as_str().unwrap_or("unknown").to_owned();
    // The tag that is known is of the figures before: the next answer must come whole.
    sqlx::query(
        "UPDATE statistic SET version = version + 1, figures = $3, activity = $4, measured_at = $5, changed_at = $5, etag = NULL,
                last_modified = NULL, gone_at = NULL, flagged = NULL, flagged_at = NULL, flagged_why = NULL
         WHERE tenant_id = $1 AND source = $2",
    )
    .bind(tenant)
    .bind(source)
    .bind(part("figures"))
    .bind(&activity)
    .bind(flagged_at)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO statistic_reading (tenant_id, source, measured_at, figures, activity, accepted) VALUES ($1, $2, $3, $4, $5, true)
         ON CONFLICT DO NOTHING",
    )
    .bind(tenant)
    .bind(source)
    .bind(flagged_at)
    .bind(part("figures"))
    .bind(&activity)
    .execute(connection)
    .await?;
    Ok(true)
}
