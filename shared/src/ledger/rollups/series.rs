//! Which series there are: what manifests declare, from when, and whether what happened before is counted too.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    clock::Clock,
    job::JobId,
    kinds::MetricRebuild,
    ledger::{
        LedgerError,
        insert::{NewJob, insert_within},
    },
    tenant::Metric,
};

/// How long after a metric was first seen its past is counted: by then every program knows it, so an event is either there to be counted, or
/// counted as it is taken.
const KNOWN_TO_ALL: TimeDelta = TimeDelta::seconds(90);

/// How long after the job that counts a metric's past came to nothing another one is made.
const AGAIN_AFTER: TimeDelta = TimeDelta::hours(6);

/// How long the numbers of a metric that is not declared any more are kept, should it come back.
const RETIRED_FOR: TimeDelta = TimeDelta::days(7);

/// Tenants that have metrics, or had.
///
/// # Errors
/// [`LedgerError`].
pub async fn tenants(pool: &PgPool) -> Result<Vec<i32>, LedgerError> {
    let tenants = sqlx::query_scalar(
        "SELECT t.id FROM tenant t WHERE t.manifest ? 'metrics' OR EXISTS (SELECT FROM metric_series s WHERE s.tenant_id = t.id) ORDER BY t.id",
    );
    Ok(tenants.fetch_all(pool).await?)
}

/// Notes which series a manifest begins or ceases to declare, in the transaction that changes it: whoever takes events goes by the manifest at
/// once, or some seconds later, and what is taken meanwhile may be counted or not. So each of them is not whole until [`declare`] has seen to
/// its past being counted, also where it comes back before any worker looked.
///
/// # Errors
/// [`LedgerError`].
pub async fn changed(
    connection: &mut PgConnection,
    tenant: i32,
    before: &BTreeMap<String, Metric>,
    after: &BTreeMap<String, Metric>,
) -> Result<(), LedgerError> {
    let series = |metrics: &BTreeMap<String, Metric>| metrics.values().map(Metric::series).collect::<BTreeSet<_>>();
    let changed: Vec<Uuid> = series(before).symmetric_difference(&series(after)).copied().collect();
    if !changed.is_empty() {
        let insert = sqlx::query("INSERT INTO metric_left (tenant_id, series) SELECT $1, c.series FROM unnest($2::uuid[]) AS c (series)");
        insert.bind(tenant).bind(changed).execute(connection).await?;
    }
    Ok(())
}

/// Notes what a manifest declares, and makes the jobs that count what happened before. The same again changes nothing.
///
/// # Errors
/// [`LedgerError`].
pub async fn declare(pool: &PgPool, tenant: i32, metrics: &BTreeMap<String, Metric>, clock: &Clock) -> Result<(), LedgerError> {
    let now = clock.now();
    let series: Vec<Uuid> = metrics.values().map(Metric::series).collect();
    let names: Vec<&str> = metrics.keys().map(String::as_str).collect();
    let places: Vec<Option<i16>> = metrics.values().map(|metric| metric.user_place().and_then(|place| i16::try_from(place).ok())).collect();
    let mut transaction = pool.begin().await?;
    // Seen to in this transaction: those that are declared are not whole, the others are retired.
    let left: Vec<Uuid> = sqlx::query_scalar("DELETE FROM metric_left WHERE tenant_id = $1 RETURNING series")
        .bind(tenant)
        .fetch_all(&mut *transaction)
        .await?;
    // What comes back was not counted meanwhile. What is known already is left out, and not left to the conflict, which would wait for whoever
    // has that series' turn.
    sqlx::query(
        "INSERT INTO metric_series AS s (tenant_id, series, metric, user_place, seen_at)
         SELECT $1, d.series, d.metric, d.user_place, $2 FROM unnest($3::uuid[], $4::text[], $5::smallint[]) AS d (series, metric, user_place)
         WHERE NOT EXISTS (SELECT FROM metric_series k WHERE k.tenant_id = $1 AND k.series = d.series AND k.retired_at IS NULL AND k.series <> ALL ($6))
         ON CONFLICT (tenant_id, series) DO UPDATE SET retired_at = NULL, is_whole = false, rebuild = NULL, seen_at = excluded.seen_at
         WHERE s.retired_at IS NOT NULL OR s.series = ANY ($6)",
    )
    .bind(tenant)
    .bind(now)
    .bind(&series)
    .bind(names)
    .bind(places)
    .bind(left)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("UPDATE metric_series SET retired_at = $2 WHERE tenant_id = $1 AND retired_at IS NULL AND series <> ALL ($3)")
        .bind(tenant)
        .bind(now)
        .bind(&series)
        .execute(&mut *transaction)
        .await?;
    let due: Vec<(Uuid, String)> = sqlx::query_as(
        "SELECT s.series, s.metric FROM metric_series s WHERE s.tenant_id = $1 AND s.retired_at IS NULL AND NOT s.is_whole
           AND (s.rebuild IS NULL
                OR NOT EXISTS (SELECT FROM job_state j WHERE j.job_id = s.rebuild AND (j.finished_at IS NULL OR j.finished_at > $2)))
         ORDER BY s.series FOR UPDATE OF s SKIP LOCKED",
    )
    .bind(tenant)
    .bind(now - AGAIN_AFTER)
    .fetch_all(&mut *transaction)
    .await?;
    for (series, metric) in due {
        let job = JobId(clock.new_id());
        let payload = MetricRebuild { metric, from: None, to: None };
        let new = NewJob { run_at: now + KNOWN_TO_ALL, ..NewJob::of(job, tenant, &payload, now) };
        insert_within(&mut transaction, now, &[new]).await?;
        sqlx::query("UPDATE metric_series SET rebuild = $3 WHERE tenant_id = $1 AND series = $2")
            .bind(tenant)
            .bind(series)
            .bind(job.0)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Notes that a job has counted what happened before the metric, unless the manifest ceased to declare it meanwhile: then the job that is to
/// count its past is another one, which has not ended.
///
/// # Errors
/// [`LedgerError`].
pub async fn is_whole(pool: &PgPool, tenant: i32, series: Uuid, job: JobId) -> Result<(), LedgerError> {
    let update = sqlx::query(
        "UPDATE metric_series s SET is_whole = true, version = version + 1 WHERE s.tenant_id = $1 AND s.series = $2 AND s.retired_at IS NULL
         AND NOT EXISTS (SELECT FROM metric_left l WHERE l.tenant_id = s.tenant_id AND l.series = s.series)
         AND NOT EXISTS (SELECT FROM job_state j WHERE j.job_id = s.rebuild AND j.job_id <> $3 AND j.finished_at IS NULL)",
    );
    update.bind(tenant).bind(series).bind(job.0).execute(pool).await?;
    Ok(())
}

/// Forgets what has had its time, a bounded part of it: days of a tenant before `before`, and series that are not declared any more. Answers
/// how many rows.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, tenant: i32, before: Option<NaiveDate>, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let mut gone = 0;
    if let Some(before) = before {
        let days = sqlx::query(
            "DELETE FROM metric_day WHERE ctid = ANY (ARRAY (SELECT ctid FROM metric_day WHERE tenant_id = $1 AND day < $2 LIMIT 5000))",
        );
        gone += days.bind(tenant).bind(before).execute(pool).await?.rows_affected();
    }
    let retired: Vec<Uuid> = sqlx::query_scalar("SELECT series FROM metric_series WHERE tenant_id = $1 AND retired_at < $2")
        .bind(tenant)
        .bind(now - RETIRED_FOR)
        .fetch_all(pool)
        .await?;
    for series in retired {
        let mut removed = 0;
        for table in ["metric_partial", "metric_day"] {
            // Words of this file, both of them.
            let statement = format!(
                "DELETE FROM {table} WHERE ctid = ANY (ARRAY (SELECT ctid FROM {table} WHERE tenant_id = $1 AND series = $2 LIMIT 5000))"
            );
            removed += sqlx::query(sqlx::AssertSqlSafe(statement)).bind(tenant).bind(series).execute(pool).await?.rows_affected();
        }
        if removed == 0 {
            let series_row = sqlx::query("DELETE FROM metric_series WHERE tenant_id = $1 AND series = $2 AND retired_at < $3");
            removed += series_row.bind(tenant).bind(series).bind(now - RETIRED_FOR).execute(pool).await?.rows_affected();
        }
        gone += removed;
    }
    Ok(gone)
}
