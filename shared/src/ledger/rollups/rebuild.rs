//! Rebuilding: a day's rows from its raw events, for repair, for events from before the metric, and to prove that adding up came to the
//! same.
//!
//! What must stay true: what is held at a time is bounded, and computed off the threads that everybody shares; a day that comes to more
//! fails by itself and stays as it is. Nobody waits for another's turn on a connection, nor for a second one while it holds one: a pool has
//! few, and everything else needs them.

use std::sync::Arc;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};

use super::{
    compact::{Additions, MOST_DAY_ROWS, compact, turn},
    compute, unreadable,
};
use crate::{
    analytics::{Bundle, EventFacts, bucket_of, bucket_start, observe},
    ledger::{LedgerError, events},
    tenant::Metric,
};

/// Events that are counted at a time.
const SLICE: usize = 2_000;

/// Rounds of compaction before a day, so that little is left to be moved within it.
const ROUNDS: u32 = 200;

/// A day that was not counted anew. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The database.
    #[error(transparent)]
    Ledger(LedgerError),
    /// Somebody else counts days of the series, or puts it together, or changed it meanwhile: again in a moment.
    #[error("somebody else has the turn of the metric")]
    Busy,
    /// More was added meanwhile than one transaction moves: again in a moment.
    #[error("more is waiting to be put together than one transaction moves")]
    Behind,
    /// Its raw events went for their age, some of them at least: what was counted of them is all there is.
    #[error("the raw events of {0} are not kept any more")]
    Gone(NaiveDate),
    /// The day has more groups than are counted at a time.
    #[error("{0} has more groups than can be counted anew (it would come to more than {MOST_DAY_ROWS} rows)")]
    TooManyGroups(NaiveDate),
}

impl From<LedgerError> for RebuildError {
    fn from(error: LedgerError) -> Self {
        match &error {
            // It would not have been as if one came after the other (PostgreSQL's appendix A, `serialization_failure`).
            LedgerError::Unavailable(sqlx::Error::Database(database)) if database.code().as_deref() == Some("40001") => Self::Busy,
            _ => Self::Ledger(error),
        }
    }
}

impl From<sqlx::Error> for RebuildError {
    fn from(error: sqlx::Error) -> Self {
        LedgerError::from(error).into()
    }
}

/// Counts a UTC day of a metric anew, in one transaction; answers how many events counted.
///
/// # Errors
/// [`RebuildError`].
pub async fn day(pool: &PgPool, tenant: i32, metric: &Metric, day: NaiveDate) -> Result<u64, RebuildError> {
    let series = metric.series();
    for _ in 0..ROUNDS {
        if compact(pool, tenant, series).await?.partials == 0 {
            break;
        }
    }
    // No partition is dropped from here on: that takes the whole table's lock. To take a lock takes no snapshot yet (PostgreSQL's manual,
    // 13.2.2), so what was dropped before is known to be gone by the one that follows.
    let mut transaction = pool
        .begin_with(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL statement_timeout = '10min'; LOCK TABLE ONLY event IN ACCESS SHARE MODE",
        )
        .await?;
    let counted = within(&mut transaction, tenant, metric, day).await;
    match counted {
        Ok(_) => transaction.commit().await?,
        // Dropped, it would keep the turn until the pool has taken it back.
        Err(_) => transaction.rollback().await?,
    }
    counted
}

async fn within(transaction: &mut PgConnection, tenant: i32, metric: &Metric, day: NaiveDate) -> Result<u64, RebuildError> {
    let series = metric.series();
    let number = (day - bucket_start(0).date_naive()).num_days();
    let user_place = metric.user_place();
    // The first statement, so the snapshot of all that follow is from before or after another's turn, and never within.
    if turn(transaction, tenant, series).await?.is_none() {
        let known = sqlx::query_scalar("SELECT EXISTS (SELECT FROM metric_series WHERE tenant_id = $1 AND series = $2)");
        let is_known: bool = known.bind(tenant).bind(series).fetch_one(&mut *transaction).await?;
        // One that is not known is declared by another program in a moment; or not any more.
        return if is_known { Err(RebuildError::Busy) } else { Ok(0) };
    }
    if events::horizon(&mut *transaction, tenant).await?.is_some_and(|horizon| day < horizon) {
        return Err(RebuildError::Gone(day));
    }
    // What is not compacted: the other days' is added to them, this day's is in the raw events.
    let mut others = Additions::default();
    {
        let mut partials = sqlx::query_scalar("DELETE FROM metric_partial WHERE tenant_id = $1 AND series = $2 RETURNING body")
            .bind(tenant)
            .bind(series)
            .fetch(&mut *transaction);
        while let Some(body) = partials.try_next().await? {
            let body: Vec<u8> = body;
            let work = move || {
                others.add(&Bundle::decode(&body)?, Some(number));
                Ok(others)
            };
            others = compute(work).await?.map_err(unreadable(series))?;
            if others.is_too_much() {
                return Err(RebuildError::Behind);
            }
        }
    }
    others.write(transaction, tenant, series, user_place, false).await?;
    sqlx::query(
        "DELETE FROM metric_day WHERE tenant_id = $1 AND series = $2 AND day = $3 AND grouping = ANY (ARRAY[0, 1, 2, 3, 4, 5, 6, 7]::smallint[])",
    )
    .bind(tenant)
    .bind(series)
    .bind(day)
    .execute(&mut *transaction)
    .await?;
    let (mut counted, mut anew) = (0, Additions::default());
    {
        let shared = Arc::new(metric.clone());
        let from: DateTime<Utc> = bucket_start(number * crate::analytics::BUCKETS_OF_DAY);
        let mut rows = sqlx::query(
            "SELECT user_id, time, properties::text FROM event WHERE tenant_id = $1 AND type = $2 AND time >= $3 AND time < $4",
        )
        .bind(tenant)
        .bind(metric.event())
        .bind(from)
        .bind(from + TimeDelta::days(1))
        .fetch(&mut *transaction);
        loop {
            let mut slice = Vec::with_capacity(SLICE);
            while slice.len() < SLICE
                && let Some(row) = rows.try_next().await?
            {
                slice.push(row);
            }
            if slice.is_empty() {
                break;
            }
            let metric = Arc::clone(&shared);
            let work = move || {
                let (bundle, events) = count(&metric, &slice)?;
                anew.add(&bundle, None);
                Ok::<_, LedgerError>((anew, events))
            };
            let events;
            (anew, events) = compute(work).await??;
            counted += events;
            if anew.is_too_much() {
                return Err(RebuildError::TooManyGroups(day));
            }
        }
    }
    anew.write(transaction, tenant, series, user_place, true).await?;
    Ok(counted)
}

/// What events come to, and how many of them counted.
fn count(metric: &Metric, rows: &[PgRow]) -> Result<(Bundle, u64), LedgerError> {
    let (mut bundle, mut counted) = (Bundle::new(metric.shape()), 0);
    for row in rows {
        let (user, time, text): (Option<&str>, DateTime<Utc>, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let properties: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| LedgerError::Unknown { what: "an event's properties", value: error.to_string() })?;
        let facts = EventFacts { sort: metric.event(), user, properties: &properties };
        if let Some((labels, observation)) = observe(metric, &facts) {
            bundle.add(bucket_of(time), labels, observation);
            counted += 1;
        }
    }
    Ok((bundle, counted))
}
