//! What is counted of events, as it stands in the database.
//!
//! ```text
//!  a commit of events ─▶ metric_partial (inserted)  ─ compact ─▶ metric_day        ◀─ rebuild ─ event (raw)
//!                              └──────────────── read: both, in one statement ──────────┘
//! ```
//!
//! What must stay true:
//! - an event is counted by exactly one of `metric_partial` and `metric_day`, at every moment that a statement may see: [`compact`] moves it
//!   from one to the other in one transaction, and whoever reads does so in one statement;
//! - a day's rows are changed by one at a time: by whoever holds the row of its series. [`rebuild`] reads raw events in one snapshot and
//!   fails, to be tried again, where somebody changed the series meanwhile; what commits add while it reads, it neither sees nor deletes;
//! - so the numbers are those of `GROUP BY` over the raw events, whatever came late, twice or in another order, and wherever a program died.

pub mod ask;
pub mod compact;
pub mod read;
pub mod rebuild;
pub mod series;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{LedgerError, events::NewEvent};
use crate::{
    analytics::{Bundle, Unreadable, bucket_of, observe},
    tenant::Metric,
};

/// The form of days in rows: days from 1970.
fn date(day: i64) -> chrono::NaiveDate {
    crate::analytics::bucket_start(day * crate::analytics::BUCKETS_OF_DAY).date_naive()
}

/// Adds what newly taken events come to, in the transaction that takes them.
pub(super) async fn add(
    connection: &mut PgConnection,
    tenant: i32,
    metrics: &[&Metric],
    events: &[&NewEvent],
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    let (mut series, mut bodies) = (Vec::new(), Vec::new());
    for metric in metrics {
        let mut bundle = Bundle::new(metric.shape());
        for event in events {
            if let Some((labels, observation)) = observe(metric, &event.facts()) {
                bundle.add(bucket_of(event.time), labels, observation);
            }
        }
        if !bundle.is_empty() {
            series.push(metric.series());
            bodies.push(bundle.encode());
        }
    }
    if series.is_empty() {
        return Ok(());
    }
    sqlx::query("INSERT INTO metric_partial (tenant_id, series, taken_at, body) SELECT $1, p.series, $2, p.body FROM unnest($3::uuid[], $4::bytea[]) AS p (series, body)")
        .bind(tenant)
        .bind(now)
        .bind(series)
        .bind(bodies)
        .execute(connection)
        .await?;
    Ok(())
}

/// Computes what takes more than a moment where it holds nobody up: on a thread for such things. A panic goes on here.
async fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, LedgerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The program ends.
            Err(_) => Err(super::timed_out()),
        },
    }
}

/// What is stored of a series can't be read.
fn unreadable(series: Uuid) -> impl Fn(Unreadable) -> LedgerError {
    move |error| LedgerError::Unknown { what: "a rollup", value: format!("of series {series}: {error}") }
}
