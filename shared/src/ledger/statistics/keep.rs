//! What a run that asks the vendor writes down, under its lease.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::{LedgerError, figures_json, figures_of};
use crate::statistic::{Activity, Figures};

/// A reading stands in the history at least so often, also when nothing changed.
const READING_EVERY: TimeDelta = TimeDelta::days(1);

/// How far back growth is looked at: a month, and a week for days without a reading.
const GROWTH_WITHIN: TimeDelta = TimeDelta::days(37);

/// The longest words of a failure that are kept, in characters.
const LONGEST_FAILURE: usize = 500;

/// What a run finds when it gets the lease.
#[derive(Debug, Clone)]
pub struct Held {
    /// The lease.
    pub lease: Uuid,
    /// Of what the tags are.
    pub asked: Option<Vec<u8>>,
    /// The tag of the last good answer.
    pub etag: Option<String>,
    /// When that was last changed, by the vendor's word.
    pub last_modified: Option<String>,
    /// Where it was moved to for good.
    pub moved_to: Option<String>,
    /// The last good figures.
    pub figures: Option<Figures>,
    /// When the vendor last said so.
    pub measured_at: Option<DateTime<Utc>>,
    /// When something was last done there.
    pub worked_at: Option<DateTime<Utc>>,
    /// The vendor wants not to be asked before.
    pub not_before: Option<DateTime<Utc>>,
    /// The oldest reading of the last weeks, to see growth by.
    pub before: Option<(Figures, DateTime<Utc>)>,
}

/// What came of an attempt.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Figures that are believed.
    Measured {
        /// The figures, and what goes with them.
        standing: Standing,
        /// The figures.
        figures: Figures,
        /// The answer's tag.
        etag: Option<String>,
        /// The answer's time of change.
        last_modified: Option<String>,
    },
    /// The figures are as they were.
    Unchanged(Standing),
    /// The vendor says that there is no such thing.
    Gone,
    /// Figures that are not believed.
    Flagged {
        /// The figures.
        figures: Figures,
        /// How active it would be.
        activity: Activity,
        /// Why.
        why: String,
    },
    /// Nobody was asked, or somebody who will not be asked now: not before then.
    PutOff(DateTime<Utc>),
    /// Nothing.
    Failed {
        /// By which fault.
        code: &'static str,
        /// In words, without secrets.
        message: String,
    },
}

/// What goes with figures.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Of what the tags are.
    pub asked: Vec<u8>,
    /// Where it was moved to for good.
    pub moved_to: Option<String>,
    /// How active it is.
    pub activity: Activity,
    /// When something was last done there.
    pub worked_at: Option<DateTime<Utc>>,
    /// The vendor wants not to be asked before.
    pub not_before: Option<DateTime<Utc>>,
    /// How long readings are kept, in days.
    pub keep_days: u32,
}

/// Takes the lease of a statistic, for so long by Postgres' clock; `None` while another run has it.
///
/// # Errors
/// [`LedgerError`].
pub async fn lease(
    pool: &PgPool,
    tenant: i32,
    source: &str,
    lease: Uuid,
    within: Duration,
    now: DateTime<Utc>,
) -> Result<Option<Held>, LedgerError> {
    let row = sqlx::query(
        "INSERT INTO statistic AS s (tenant_id, source, lease, leased_until)
         VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4))
         ON CONFLICT (tenant_id, source) DO UPDATE SET lease = excluded.lease, leased_until = excluded.leased_until
         WHERE s.lease IS NULL OR s.lease = excluded.lease OR s.leased_until <= clock_timestamp()
         RETURNING s.asked, s.etag, s.last_modified, s.moved_to, s.figures, s.measured_at, s.worked_at, s.not_before",
    )
    .bind(tenant)
    .bind(source)
    .bind(lease)
    .bind(within.as_secs_f64())
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let before = sqlx::query(
        "SELECT figures, measured_at FROM statistic_reading WHERE tenant_id = $1 AND source = $2 AND measured_at >= $3
         ORDER BY measured_at LIMIT 1",
    )
    .bind(tenant)
    .bind(source)
    .bind(now - GROWTH_WITHIN)
    .fetch_optional(pool)
    .await?;
    let before = match before {
        Some(row) => Some((figures_of(row.try_get("figures")?), row.try_get("measured_at")?)),
        None => None,
    };
    Ok(Some(Held {
        lease,
        asked: row.try_get("asked")?,
        etag: row.try_get("etag")?,
        last_modified: row.try_get("last_modified")?,
        moved_to: row.try_get("moved_to")?,
        figures: row.try_get::<Option<Value>, _>("figures")?.map(figures_of),
        measured_at: row.try_get("measured_at")?,
        worked_at: row.try_get("worked_at")?,
        not_before: row.try_get("not_before")?,
        before,
    }))
}

/// Gives the lease back, everything else as it was.
///
/// # Errors
/// [`LedgerError`].
pub async fn release(pool: &PgPool, tenant: i32, source: &str, lease: Uuid) -> Result<(), LedgerError> {
    sqlx::query("UPDATE statistic SET lease = NULL, leased_until = NULL WHERE tenant_id = $1 AND source = $2 AND lease = $3")
        .bind(tenant)
        .bind(source)
        .bind(lease)
        .execute(pool)
        .await?;
    Ok(())
}

/// Writes down what came of an attempt, and gives the lease back. False where the lease is another's by now: nothing was written.
///
/// # Errors
/// [`LedgerError`].
pub async fn keep(
    pool: &PgPool,
    tenant: i32,
    source: &str,
    lease: Uuid,
    outcome: &Outcome,
    now: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    let mut transaction = pool.begin().await?;
    let row = sqlx::query("SELECT figures FROM statistic WHERE tenant_id = $1 AND source = $2 AND lease = $3 FOR UPDATE")
        .bind(tenant)
        .bind(source)
        .bind(lease)
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(row) = row else { return Ok(false) };
    let known: Option<Value> = row.try_get("figures")?;
    match outcome {
        Outcome::Measured { standing, figures, etag, last_modified } => {
            let figures = figures_json(figures);
            good(&mut transaction, tenant, source, standing, &figures, now).await?;
            sqlx::query("UPDATE statistic SET etag = $3, last_modified = $4 WHERE tenant_id = $1 AND source = $2")
                .bind(tenant)
                .bind(source)
                .bind(etag)
                .bind(last_modified)
                .execute(&mut *transaction)
                .await?;
        }
        Outcome::Unchanged(standing) => {
            let figures = known.unwrap_or_else(|| json!({}));
            good(&mut transaction, tenant, source, standing, &figures, now).await?;
        }
        Outcome::Gone => {
            // Whatever is there one day is another thing: it is asked for whole, where it was first.
            sqlx::query(
                "UPDATE statistic SET version = version + 1, gone_at = coalesce(gone_at, $3), checked_at = $3, etag = NULL, last_modified = NULL,
                        moved_to = NULL, flagged = NULL, flagged_at = NULL, flagged_why = NULL, failing_since = NULL, failures = 0,
                        failure_code = NULL, failure = NULL, not_before = NULL
                 WHERE tenant_id = $1 AND source = $2",
            )
            .bind(tenant)
            .bind(source)
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        }
        Outcome::Flagged { figures, activity, why } => {
            sqlx::query(
                "UPDATE statistic SET version = version + 1, flagged = $4, flagged_at = $3, flagged_why = $5, checked_at = $3, failing_since = NULL,
                        failures = 0, failure_code = NULL, failure = NULL, not_before = NULL
                 WHERE tenant_id = $1 AND source = $2",
            )
            .bind(tenant)
            .bind(source)
            .bind(now)
            .bind(json!({ "figures": figures_json(figures), "activity": activity.word() }))
            .bind(why)
            .execute(&mut *transaction)
            .await?;
        }
        Outcome::PutOff(until) => {
            sqlx::query("UPDATE statistic SET version = version + 1, not_before = $3 WHERE tenant_id = $1 AND source = $2")
                .bind(tenant)
                .bind(source)
                .bind(until)
                .execute(&mut *transaction)
                .await?;
        }
        Outcome::Failed { code, message } => {
            let message: String = message.chars().take(LONGEST_FAILURE).collect();
            sqlx::query(
                "UPDATE statistic SET version = version + 1, checked_at = $3, failing_since = coalesce(failing_since, $3), failures = failures + 1,
                        failure_code = $4, failure = $5
                 WHERE tenant_id = $1 AND source = $2",
            )
            .bind(tenant)
            .bind(source)
            .bind(now)
            .bind(code)
            .bind(message)
            .execute(&mut *transaction)
            .await?;
        }
    }
    sqlx::query("UPDATE statistic SET lease = NULL, leased_until = NULL WHERE tenant_id = $1 AND source = $2")
        .bind(tenant)
        .bind(source)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(true)
}

/// The statistic is so now; and was so, for whoever asks one day.
async fn good(
    connection: &mut sqlx::PgConnection,
    tenant: i32,
    source: &str,
    standing: &Standing,
    figures: &Value,
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    sqlx::query(
        "UPDATE statistic SET version = version + 1, asked = $4, figures = $5, activity = $6, worked_at = $7, moved_to = $8, not_before = $9,
                changed_at = CASE WHEN figures IS DISTINCT FROM $5 THEN $3 ELSE changed_at END, measured_at = $3, checked_at = $3,
                gone_at = NULL, flagged = NULL, flagged_at = NULL, flagged_why = NULL, failing_since = NULL, failures = 0,
                failure_code = NULL, failure = NULL
         WHERE tenant_id = $1 AND source = $2",
    )
    .bind(tenant)
    .bind(source)
    .bind(now)
    .bind(&standing.asked)
    .bind(figures)
    .bind(standing.activity.word())
    .bind(standing.worked_at)
    .bind(&standing.moved_to)
    .bind(standing.not_before)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO statistic_reading (tenant_id, source, measured_at, figures, activity)
         SELECT $1, $2, $3, $4, $5 WHERE NOT EXISTS (
             SELECT FROM (SELECT r.figures, r.measured_at FROM statistic_reading r WHERE r.tenant_id = $1 AND r.source = $2
                          ORDER BY r.measured_at DESC LIMIT 1) last
             WHERE last.figures = $4 AND last.measured_at > $6)
         ON CONFLICT DO NOTHING",
    )
    .bind(tenant)
    .bind(source)
    .bind(now)
    .bind(figures)
    .bind(standing.activity.word())
    .bind(now - READING_EVERY)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM statistic_reading WHERE tenant_id = $1 AND source = $2 AND measured_at < $3")
        .bind(tenant)
        .bind(source)
        .bind(now - TimeDelta::days(standing.keep_days.into()))
        .execute(connection)
        .await?;
    Ok(())
}

/// Tenants that have statistics.
///
/// # Errors
/// [`LedgerError`].
pub async fn tenants(pool: &PgPool) -> Result<Vec<i32>, LedgerError> {
    Ok(sqlx::query_scalar("SELECT DISTINCT tenant_id FROM statistic ORDER BY tenant_id").fetch_all(pool).await?)
}

/// Forgets statistics of a tenant that its manifest does not declare any more, with their history; how many.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget_undeclared(pool: &PgPool, tenant: i32, declared: &[&str]) -> Result<u64, LedgerError> {
    let mut transaction = pool.begin().await?;
    sqlx::query("DELETE FROM statistic_reading WHERE tenant_id = $1 AND source <> ALL ($2)")
        .bind(tenant)
        .bind(declared)
        .execute(&mut *transaction)
        .await?;
    let gone = sqlx::query("DELETE FROM statistic WHERE tenant_id = $1 AND source <> ALL ($2)")
        .bind(tenant)
        .bind(declared)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(gone.rows_affected())
}

/// How old each statistic is that has been measured: tenant, source, when.
///
/// # Errors
/// [`LedgerError`].
pub async fn ages(pool: &PgPool) -> Result<Vec<(String, String, DateTime<Utc>)>, LedgerError> {
    Ok(sqlx::query_as(
        "SELECT t.name, s.source, s.measured_at FROM statistic s JOIN tenant t ON t.id = s.tenant_id WHERE s.measured_at IS NOT NULL LIMIT 2000",
    )
    .fetch_all(pool)
    .await?)
}
