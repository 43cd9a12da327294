//! Rebuilding: a day's rows from its raw events, for repair, for events from before the metric, and to prove that adding up came to the
//! same.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use sqlx::{PgPool, Row};

use super::{compact::Additions, unreadable};
use crate::{
    analytics::{Bundle, EventFacts, bucket_of, bucket_start, observe},
    ledger::LedgerError,
    tenant::Metric,
};

/// Counts a UTC day of a metric anew, in one transaction; answers how many events counted. Where somebody else changed the series meanwhile
/// it fails as transient, and nothing has changed.
///
/// # Errors
/// [`LedgerError`].
pub async fn day(pool: &PgPool, tenant: i32, metric: &Metric, day: NaiveDate) -> Result<u64, LedgerError> {
    let series = metric.series();
    let number = (day - bucket_start(0).date_naive()).num_days();
    let user_place = metric.user_place();
    let mut transaction = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL statement_timeout = '10min'").await?;
    // The first statement, so the snapshot of all that follow is from before or after another's turn, and never within.
    let turn = sqlx::query("UPDATE metric_series SET version = version + 1 WHERE tenant_id = $1 AND series = $2");
    let turn = turn.bind(tenant).bind(series).execute(&mut *transaction).await?;
    if turn.rows_affected() == 0 {
        // It is declared by another program in a moment; or not any more.
        return Ok(0);
    }
    // What is not compacted: the other days' is added to them, this day's is in the raw events.
    let mut others = Additions::default();
    let partials: Vec<Vec<u8>> = sqlx::query_scalar("DELETE FROM metric_partial WHERE tenant_id = $1 AND series = $2 RETURNING body")
        .bind(tenant)
        .bind(series)
        .fetch_all(&mut *transaction)
        .await?;
    for body in partials {
        others.add(&Bundle::decode(&body).map_err(unreadable(series))?, Some(number));
    }
    others.write(&mut transaction, tenant, series, user_place, false).await?;
    sqlx::query(
        "DELETE FROM metric_day WHERE tenant_id = $1 AND series = $2 AND day = $3 AND grouping = ANY (ARRAY[0, 1, 2, 3, 4, 5, 6, 7]::smallint[])",
    )
    .bind(tenant)
    .bind(series)
    .bind(day)
    .execute(&mut *transaction)
    .await?;
    let (mut counted, mut bundle) = (0, Bundle::new(metric.shape()));
    {
        let from: DateTime<Utc> = bucket_start(number * crate::analytics::BUCKETS_OF_DAY);
        let mut rows = sqlx::query(
            "SELECT user_id, time, properties::text FROM event WHERE tenant_id = $1 AND type = $2 AND time >= $3 AND time < $4",
        )
        .bind(tenant)
        .bind(metric.event())
        .bind(from)
        .bind(from + TimeDelta::days(1))
        .fetch(&mut *transaction);
        while let Some(row) = rows.try_next().await? {
            let (user, time, text): (Option<String>, DateTime<Utc>, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let properties: Map<String, Value> = serde_json::from_str(&text)
                .map_err(|error| LedgerError::Unknown { what: "an event's properties", value: error.to_string() })?;
            let facts = EventFacts { sort: metric.event(), user: user.as_deref(), properties: &properties };
            if let Some((labels, observation)) = observe(metric, &facts) {
                bundle.add(bucket_of(time), labels, observation);
                counted += 1;
            }
        }
    }
    let mut anew = Additions::default();
    anew.add(&bundle, None);
    anew.write(&mut transaction, tenant, series, user_place, true).await?;
    transaction.commit().await?;
    Ok(counted)
}
