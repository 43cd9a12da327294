//! Summaries of products' own databases: when each was last brought up to date, what that took, and what went wrong since.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, PgPool};
use uuid::Uuid;

use super::LedgerError;

/// The longest words of a failure that are kept, in characters.
const LONGEST_FAILURE: usize = 500;

/// A summary as it stands.
#[derive(Debug, Clone, FromRow)]
pub struct FoundSummary {
    /// Its name in the manifest.
    pub name: String,
    /// When the last attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// The job that made it.
    pub job_id: Option<Uuid>,
    /// When it was last brought up to date.
    pub refreshed_at: Option<DateTime<Utc>>,
    /// What that took, in milliseconds.
    pub took_ms: Option<i64>,
    /// Whether readers could go on meanwhile.
    #[sqlx(rename = "is_concurrent")]
    pub concurrently: Option<bool>,
    /// Since when attempts fail.
    pub failing_since: Option<DateTime<Utc>>,
    /// How many in a row.
    pub failures: i32,
    /// By which fault.
    pub failure_code: Option<String>,
    /// The same in words.
    pub failure: Option<String>,
}

/// A tenant's summaries that were tried at least once, by name.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(connection: &mut PgConnection, tenant: i32) -> Result<Vec<FoundSummary>, LedgerError> {
    Ok(sqlx::query_as(
        "SELECT name, started_at, job_id, refreshed_at, took_ms, is_concurrent, failing_since, failures, failure_code, failure
         FROM summary WHERE tenant_id = $1 ORDER BY name",
    )
    .bind(tenant)
    .persistent(false)
    .fetch_all(connection)
    .await?)
}

/// An attempt begins.
///
/// # Errors
/// [`LedgerError`].
pub async fn started(pool: &PgPool, tenant: i32, name: &str, job: Uuid, now: DateTime<Utc>) -> Result<(), LedgerError> {
    sqlx::query(
        "INSERT INTO summary (tenant_id, name, started_at, job_id) VALUES ($1, $2, $3, $4)
         ON CONFLICT (tenant_id, name) DO UPDATE SET started_at = excluded.started_at, job_id = excluded.job_id",
    )
    .bind(tenant)
    .bind(name)
    .bind(now)
    .bind(job)
    .execute(pool)
    .await?;
    Ok(())
}

/// It is up to date.
///
/// # Errors
/// [`LedgerError`].
pub async fn refreshed(
    pool: &PgPool,
    tenant: i32,
    name: &str,
    took: Duration,
    concurrently: bool,
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    sqlx::query(
        "UPDATE summary SET refreshed_at = $3, took_ms = $4, is_concurrent = $5, failing_since = NULL, failures = 0, failure_code = NULL, failure = NULL
         WHERE tenant_id = $1 AND name = $2",
    )
    .bind(tenant)
    .bind(name)
    .bind(now)
    .bind(i64::try_from(took.as_millis()).unwrap_or(i64::MAX))
    .bind(concurrently)
    .execute(pool)
    .await?;
    Ok(())
}

/// It is not.
///
/// # Errors
/// [`LedgerError`].
pub async fn failed(pool: &PgPool, tenant: i32, name: &str, code: &str, message: &str, now: DateTime<Utc>) -> Result<(), LedgerError> {
    let message: String = message.chars().take(LONGEST_FAILURE).collect();
    sqlx::query(
        "UPDATE summary SET failing_since = coalesce(failing_since, $3), failures = failures + 1, failure_code = $4, failure = $5
         WHERE tenant_id = $1 AND name = $2",
    )
    .bind(tenant)
    .bind(name)
    .bind(now)
    .bind(code)
    .bind(message)
    .execute(pool)
    .await?;
    Ok(())
}
