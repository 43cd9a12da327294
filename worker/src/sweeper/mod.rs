//! The sweeper: deletes files whose time is over, what lost runs left in object storage, and history that is not kept any longer.
//!
//! ```text
//!  published files   expired or removed                        → object deleted, `deleted_at`
//!  effects           `object:…`, `upload:…` of gone claims     → upload aborted, object deleted, effect struck out
//!  the store's list  of unfinished uploads, once an hour       → those of gone claims aborted
//!  finished jobs     older, or more, than are to be kept       → removed, a tombstone left
//!  reservations      of jobs that have ended, or are gone      → lapsed ([`shared::usage`])
//! ```
//!
//! Every worker process runs it; a duty in the ledger lets one at a time do the work. Whoever repeats what another did finds
//! nothing to do: deleting and aborting twice is as good as once.
//!
//! What must stay true: what a live claim may still publish, and what a job has published and keeps, is not touched
//! ([`shared::ledger::files`]); what could not be deleted is tried again, more and more rarely, and shows in the figures; a sweep
//! is bounded in what it takes at a time, in its calls under way and in its duration.

mod history;
mod leftovers;
mod published;
mod statistics;
mod uploads;
mod usage;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use shared::{
    ledger::{LedgerError, recover::take_duty},
    storage::{Storage, StorageError, StorageFault},
    tenant::Retention,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::handlers::Services;

/// How often files and leftovers are looked for: two reads of small indexes.
const EVERY: Duration = Duration::from_secs(5);

/// How often the store is asked for all its unfinished uploads.
const UPLOADS_EVERY: Duration = Duration::from_secs(3_600);

/// Objects that one statement names.
const BATCH: i64 = 100;

/// Calls to the store at a time.
const AT_ONCE: usize = 8;

/// After so long a sweep leaves the rest to the next one.
const SWEEP_WITHIN: Duration = Duration::from_secs(60);

/// The pause after a first failed deletion; it doubles.
const FIRST_PAUSE: TimeDelta = TimeDelta::seconds(30);

/// The longest pause between two tries.
const LONGEST_PAUSE: TimeDelta = TimeDelta::minutes(15);

/// Sweeps until `stop`. `retention` is what is kept of history where a manifest says nothing.
pub async fn run(services: Arc<Services>, retention: Retention, stop: CancellationToken) {
    tokio::join!(
        sweep_files(Arc::clone(&services), stop.clone()),
        statistics::run(Arc::clone(&services), stop.clone()),
        history::run(services, retention, stop),
    );
}

async fn sweep_files(services: Arc<Services>, stop: CancellationToken) {
    let worker = services.clock.new_id();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let swept = tokio::select! {
            // Wherever it is dropped: what was done is found done by the next one.
            () = stop.cancelled() => return,
            swept = tokio::time::timeout(SWEEP_WITHIN * 2, sweep_in_turn(&services, worker)) => {
                swept.unwrap_or_else(|_| Err(shared::ledger::timed_out().into()))
            }
        };
        if let Err(error) = swept {
            metrics::counter!("offstage_file_sweep_failures_total").increment(1);
            tracing::debug!(error = &error as &dyn std::error::Error, "a sweep of files was cut short; the next one starts over");
        }
    }
}

async fn sweep_in_turn(services: &Services, worker: Uuid) -> Result<(), SweepError> {
    // First: it does not need the store.
    usage::sweep(services, worker).await?;
    let sweep = Sweep::begin(services);
    if take_duty(&services.pool, "sweep_files", worker, EVERY).await? {
        sweep.published().await?;
        sweep.leftovers().await?;
    }
    if take_duty(&services.pool, "sweep_uploads", worker, UPLOADS_EVERY).await? {
        sweep.uploads().await?;
    }
    Ok(())
}

/// A fault that ends a sweep; the next one starts over.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The ledger did not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Object storage did not answer.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// One sweep.
struct Sweep<'a> {
    services: &'a Services,
    storage: &'a Storage,
    until: Instant,
}

impl<'a> Sweep<'a> {
    fn begin(services: &'a Services) -> Self {
        Self { services, storage: &services.clients.storage, until: Instant::now() + SWEEP_WITHIN }
    }

    fn now(&self) -> DateTime<Utc> {
        self.services.clock.now()
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Aborts an upload. One that is not there counts as aborted.
    async fn abort(&self, key: &str, id: &str) -> Result<(), StorageError> {
        let request = self.storage.client().abort_multipart_upload().bucket(self.storage.bucket()).key(key).upload_id(id).send();
        match self.storage.call("aborting an upload", self.storage.deadline(), request).await {
            Err(error) if error.fault() != StorageFault::UploadMissing => Err(error),
            _ => {
                metrics::counter!("offstage_uploads_aborted_total").increment(1);
                Ok(())
            }
        }
    }
}

/// When to try again what failed so many times before.
fn retry_at(now: DateTime<Utc>, failures: i16) -> DateTime<Utc> {
    let doublings = u32::try_from(failures).unwrap_or(0).min(16);
    now + FIRST_PAUSE.checked_mul(1 << doublings).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE)
}

/// Whether the store answers nobody just now, so that the rest of a sweep may as well wait.
fn is_away(error: &StorageError) -> bool {
    matches!(error.fault(), StorageFault::Unreachable | StorageFault::Timeout(_))
}

#[cfg(test)]
mod tests;
