//! Keeps what is counted of events in order: puts together what commits added, declares new metrics, makes partitions before they are
//! needed, and drops what has had its time.
//!
//! ```text
//!  every second      what was added           → put into the rows of days (any replica; a series is one's at a time)
//!  every 10 s        manifests                → new metrics noted, a job counts their past
//!  every hour        days and weeks to come   → partitions
//!  every 10 minutes  what is kept too long    → dropped by the day, or deleted where another product keeps that day
//! ```
//!
//! What must stay true: reading does not wait for any of it: what is not put together yet is read as it was added. So a replica that dies
//! here delays nothing but its own round.

mod keep;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::ledger::{
    LedgerError,
    recover::take_duty,
    rollups::{compact, series},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::handlers::Services;

/// How often it looks for what was added.
const EVERY: Duration = Duration::from_secs(1);

/// How often manifests are looked through for metrics.
const DECLARE_EVERY: Duration = Duration::from_secs(10);

/// After so long a round leaves the rest to the next one.
const ROUND_WITHIN: Duration = Duration::from_secs(20);

/// The longest that a round may hang.
const HANGS: Duration = Duration::from_secs(120);

/// Counters that are there from the start, so that an alert on one finds it before the first event.
const FROM_THE_START: &[&str] = &[
    "offstage_event_partitions_dropped_total",
    "offstage_rollup_days_rebuilt_total",
    "offstage_rollup_failures_total",
    "offstage_rollup_partials_compacted_total",
    "offstage_rollup_rows_written_total",
];

/// Works until `stop`.
pub async fn run(services: Arc<Services>, stop: CancellationToken) {
    for name in FROM_THE_START {
        metrics::counter!(*name).increment(0);
    }
    let worker = services.clock.new_id();
    tokio::join!(
        again("compacting", EVERY, &stop, || compact_round(Arc::clone(&services))),
        again("declaring metrics", DECLARE_EVERY, &stop, || declare_round(Arc::clone(&services), worker)),
        again("keeping partitions", keep::EVERY, &stop, || keep::round(Arc::clone(&services), worker)),
    );
}

/// Does something again and again until `stop`. Wherever it is dropped: each step is a transaction.
async fn again<F>(what: &'static str, every: Duration, stop: &CancellationToken, work: impl Fn() -> F)
where
    F: Future<Output = Result<(), LedgerError>>,
{
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let done = tokio::select! {
            () = stop.cancelled() => return,
            done = tokio::time::timeout(HANGS, work()) => done.unwrap_or_else(|_| Err(shared::ledger::timed_out())),
        };
        if let Err(error) = done {
            metrics::counter!("offstage_rollup_failures_total").increment(1);
            tracing::debug!(error = &error as &dyn std::error::Error, what, "a round was cut short; the next one goes on");
        }
    }
}

async fn compact_round(services: Arc<Services>) -> Result<(), LedgerError> {
    let until = Instant::now() + ROUND_WITHIN;
    let now = services.clock.now();
    let pending = compact::pending(&services.pool).await?;
    let oldest = pending.values().min().map_or(0, |oldest| (now - *oldest).num_milliseconds().max(0));
    metrics::gauge!("offstage_rollup_lag_seconds").set(oldest as f64 / 1_000.0);
    for (tenant, series) in pending.into_keys() {
        // Some at a time, until there is nothing left or others should have their turn.
        loop {
            let done = compact::compact(&services.pool, tenant, series).await?;
            metrics::counter!("offstage_rollup_partials_compacted_total").increment(done.partials);
            metrics::counter!("offstage_rollup_rows_written_total").increment(done.rows);
            if done.partials < compact::MOST_ROWS.unsigned_abs() || Instant::now() > until {
                break;
            }
        }
    }
    Ok(())
}

async fn declare_round(services: Arc<Services>, worker: Uuid) -> Result<(), LedgerError> {
    if !take_duty(&services.pool, "declare_metrics", worker, DECLARE_EVERY / 2).await? {
        return Ok(());
    }
    for tenant in series::tenants(&services.pool).await? {
        // Who can't be read now is read in the next round.
        if let Ok(Some(found)) = services.tenants.get(tenant).await {
            series::declare(&services.pool, tenant, &found.manifest.metrics, &services.clock).await?;
        }
    }
    Ok(())
}
