//! What was used, for whoever asks. Nothing here takes a lock or writes.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::{PRODUCT, Span, Standing, code_of, period_of};
use crate::{
    job::JobId,
    ledger::LedgerError,
    tenant::{Manifest, Period},
};

/// A metric in a period, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metered {
    /// The metric.
    pub metric: String,
    /// The period.
    pub period: Period,
    /// Which one of them.
    pub span: Span,
    /// What is used, with what jobs that have not ended may yet use.
    pub used: u64,
    /// The most; `None`: no limit.
    pub limit: Option<u64>,
}

/// What one scope has used: a user's, or the product's as a whole, of every metric of which the manifest says something and every one that
/// was counted.
///
/// # Errors
/// [`LedgerError`].
pub async fn standing(
    connection: &mut PgConnection,
    tenant: i32,
    manifest: &Manifest,
    standing: &Standing<'_>,
    now: DateTime<Utc>,
) -> Result<Vec<Metered>, LedgerError> {
    let zone = manifest.usage.zone();
    let spans: Vec<(Period, Span)> = Period::ALL.into_iter().map(|period| (period, Span::of(period, &zone, now))).collect();
    let scope = standing.owner.unwrap_or(PRODUCT);
    let rows = sqlx::query(
        "SELECT c.metric, c.period, c.used FROM usage_counter c
         JOIN unnest($3::smallint[], $4::timestamptz[]) AS s (period, starts) ON c.period = s.period AND c.starts_at = s.starts
         WHERE c.tenant_id = $1 AND c.scope = $2",
    )
    .bind(tenant)
    .bind(scope)
    .bind(spans.iter().map(|(period, _)| code_of(*period)).collect::<Vec<_>>())
    .bind(spans.iter().map(|(_, span)| span.starts_at).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let mut counted: HashMap<(String, Period), u64> = HashMap::new();
    for row in rows {
        let Some(period) = period_of(row.try_get("period")?) else { continue };
        counted.insert((row.try_get("metric")?, period), u64::try_from(row.try_get::<i64, _>("used")?).unwrap_or_default());
    }
    let mut metrics: Vec<String> = match standing.owner {
        Some(_) => manifest.metrics().into_iter().map(str::to_owned).collect(),
        None => {
            manifest.metrics().into_iter().filter(|metric| manifest.usage.of_product(metric).next().is_some()).map(str::to_owned).collect()
        }
    };
    metrics.extend(counted.keys().map(|(metric, _)| metric.clone()));
    metrics.sort_unstable();
    metrics.dedup();
    let mut found = Vec::new();
    for metric in metrics {
        let limits: Vec<(Period, Option<u64>)> = match standing.owner {
            Some(_) => manifest.periods_of(&metric).into_iter().map(|period| (period, standing.limit(manifest, &metric, period))).collect(),
            None => manifest.usage.of_product(&metric).collect(),
        };
        for (period, span) in &spans {
            let limited = limits.iter().find(|(of, _)| of == period);
            let used = counted.get(&(metric.clone(), *period)).copied();
            if limited.is_none() && used.is_none() {
                continue;
            }
            let limit = limited.and_then(|(_, limit)| *limit);
            found.push(Metered { metric: metric.clone(), period: *period, span: *span, used: used.unwrap_or_default(), limit });
        }
    }
    Ok(found)
}

/// What one job has reserved or was charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfJob {
    /// The metric.
    pub metric: String,
    /// What is reserved.
    pub reserved: u64,
    /// What is known to have been used.
    pub used: u64,
    /// Whether it has ended: then what was used was charged.
    pub is_charged: bool,
}

/// What a job has reserved, or was charged each time that it ended.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_job(connection: &mut PgConnection, tenant: i32, job: JobId) -> Result<Vec<OfJob>, LedgerError> {
    // The same amounts stand under the user and under the product; either will do.
    let rows = sqlx::query(
        "SELECT metric, max(reserved)::bigint AS reserved, max(used)::bigint AS used, is_charged FROM (
            SELECT scope, metric, sum(amount) AS reserved, coalesce(sum(actual), 0) AS used, false AS is_charged
            FROM usage_reservation WHERE job_id = $2 AND tenant_id = $1 GROUP BY scope, metric
            UNION ALL
            SELECT scope, metric, 0, sum(amount), true FROM usage_charge WHERE job_id = $2 AND tenant_id = $1 GROUP BY scope, metric
         ) AS entries GROUP BY metric, is_charged ORDER BY metric, is_charged",
    )
    .bind(tenant)
    .bind(job.0)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let amount = |column: &str| row.try_get::<i64, _>(column).map(|amount| u64::try_from(amount).unwrap_or_default());
            Ok(OfJob {
                metric: row.try_get("metric")?,
                reserved: amount("reserved")?,
                used: amount("used")?,
                is_charged: row.try_get("is_charged")?,
            })
        })
        .collect()
}

/// A counter that is not the sum of its reservations and charges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// Whose product.
    pub tenant: i32,
    /// Whose counter; empty: the product's.
    pub scope: String,
    /// The metric.
    pub metric: String,
    /// The period's number, see [`code_of`].
    pub period: i16,
    /// When it began.
    pub starts_at: DateTime<Utc>,
    /// What the counter says.
    pub counted: i64,
    /// What it should.
    pub held: i64,
}

/// What was found wrong, and how much was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Counters.
    pub counters: i64,
    /// Reservations of jobs that have not ended.
    pub reservations: i64,
    /// Reservations that have outlived their jobs.
    pub outlived: i64,
    /// Jobs that are under way and should have a reservation, and have none. Those that the house made, or that were redriven with others,
    /// get theirs when they start.
    pub unreserved: Vec<Uuid>,
    /// Counters that are wrong, at most a hundred.
    pub drift: Vec<Drift>,
}

impl Checked {
    /// Whether the books balance.
    #[must_use]
    pub const fn is_right(&self) -> bool {
        self.drift.is_empty() && self.outlived == 0
    }
}

/// Adds everything up, at one moment. Reads all counters, reservations and charges.
///
/// # Errors
/// [`LedgerError`].
pub async fn check(pool: &PgPool) -> Result<Checked, LedgerError> {
    let mut transaction = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let rows = sqlx::query("SELECT tenant_id, scope, metric, period, starts_at, counted, held FROM usage_drift LIMIT 100")
        .fetch_all(&mut *transaction)
        .await?;
    let drift = rows.into_iter().map(|row| {
        Ok::<_, LedgerError>(Drift {
            tenant: row.try_get("tenant_id")?,
            scope: row.try_get("scope")?,
            metric: row.try_get("metric")?,
            period: row.try_get("period")?,
            starts_at: row.try_get("starts_at")?,
            counted: row.try_get("counted")?,
            held: row.try_get("held")?,
        })
    });
    let drift = drift.collect::<Result<Vec<_>, _>>()?;
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM usage_counter) AS counters, (SELECT count(*) FROM usage_reservation) AS reservations,
                (SELECT count(*) FROM usage_reservation r
                 WHERE NOT EXISTS (SELECT FROM job_state s WHERE s.job_id = r.job_id AND s.state < 3)) AS outlived",
    )
    .fetch_one(&mut *transaction)
    .await?;
    let unreserved: Vec<Uuid> = sqlx::query_scalar(
        "SELECT j.id FROM job_state s JOIN job j ON j.id = s.job_id
         WHERE s.state < 3 AND s.runs = 0 AND s.counted_from IS NULL AND (j.options ->> 'metered')::boolean
           AND NOT j.options ? 'parent' AND NOT j.options ? 'schedule'
           AND NOT EXISTS (SELECT FROM usage_reservation r WHERE r.job_id = j.id) LIMIT 100",
    )
    .fetch_all(&mut *transaction)
    .await?;
    let checked = Checked {
        counters: row.try_get("counters")?,
        reservations: row.try_get("reservations")?,
        outlived: row.try_get("outlived")?,
        unreserved,
        drift,
    };
    transaction.rollback().await?;
    Ok(checked)
}
