//! Expires what waits past its `start_by`, whatever holds it up. One replica at a time does it, by a duty in the ledger.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use shared::ledger::{LedgerError, late, recover::take_duty};
use tokio_util::sync::CancellationToken;

use super::{Engine, announce::Announcement};

/// How late a job may be noticed to be late.
const EVERY: Duration = Duration::from_secs(2);
/// What is looked at again at each look: clocks differ, and what was accepted a moment ago may have been late then.
const OVERLAP: TimeDelta = TimeDelta::minutes(1);
/// How far back the first look of a process goes, which may be the first after a long time without workers.
const FIRST: TimeDelta = TimeDelta::days(1);

/// Looks until `stop`.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let mut since = engine.services.clock.now() - FIRST;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if engine.lease.epoch().is_none() {
            continue;
        }
        match engine.bounded(look(&engine, since)).await {
            Ok(Some(looked)) => since = looked - OVERLAP,
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "can't look for late jobs; trying again");
            }
        }
    }
}

/// Looks if it is this process' turn; answers up to when.
async fn look(engine: &Engine, since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, LedgerError> {
    let pool = &engine.services.pool;
    if !take_duty(pool, "expire_late", engine.worker, EVERY).await? {
        return Ok(None);
    }
    let now = engine.services.clock.now();
    loop {
        let expired = late::expire(pool, since, now).await?;
        let full = expired.len() == late::BATCH;
        if !expired.is_empty() {
            engine.ended.notify_one();
            engine.limits.notify_one();
            engine.announcer.tell(Announcement { changed: expired, ..Announcement::default() });
        }
        if !full {
            return Ok(Some(now));
        }
    }
}
