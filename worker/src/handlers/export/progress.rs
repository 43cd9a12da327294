//! How far an export is, and how fast it asks for rows.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use shared::job::Failure;

use crate::handlers::JobContext;

/// How often the ledger hears how far an export is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// The longest that a note of progress may take; a ledger that is slow must not slow the export down.
const PROGRESS_WITHIN: Duration = Duration::from_secs(5);

/// How far an export is.
pub(super) struct Progress {
    /// Rows written.
    pub(super) done: AtomicU64,
    /// Rows that the source's planner expects; 0 where it does not say.
    expected: AtomicU64,
    /// Else each would have to be asked before the first is read, and a total that grows misleads.
    pub(super) is_of_one_dataset: bool,
}

impl Progress {
    pub(super) fn new(done: u64, is_of_one_dataset: bool) -> Self {
        Self { done: AtomicU64::new(done), expected: AtomicU64::new(0), is_of_one_dataset }
    }

    /// So many rows are still to come, or nobody knows.
    pub(super) fn expect_more(&self, rows: Option<u64>) {
        let expected = rows.map_or(0, |rows| self.done.load(Ordering::Relaxed).saturating_add(rows));
        self.expected.store(expected, Ordering::Relaxed);
    }

    /// Of how many rows so many are, as far as is known. An estimate that was passed is none any more.
    pub(super) fn total(&self, done: u64) -> Option<u64> {
        Some(self.expected.load(Ordering::Relaxed)).filter(|expected| *expected > 0 && *expected >= done)
    }
}

/// Tells the ledger how far the export is, for as long as it is polled; ends when the claim is gone.
pub(super) async fn report(context: &JobContext, progress: &Progress) -> Failure {
    let mut told = 0;
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = progress.done.load(Ordering::Relaxed);
        if now == told {
            continue;
        }
        match tokio::time::timeout(PROGRESS_WITHIN, context.progress(now, progress.total(now))).await {
            Ok(Ok(true)) => told = now,
            Ok(Ok(false)) => return Failure::transient("claim_lost", "another worker took this job over; this run stops"),
            // A courtesy: the next one may get through.
            Ok(Err(failure)) => tracing::debug!(job = %context.job.id, code = failure.code, "progress was not noted"),
            Err(_) => tracing::debug!(job = %context.job.id, "progress was not noted in time"),
        }
    }
}

/// How many rows to ask for at a time: about as many as make [`Pace::TARGET`] bytes, so that a fetch is soon done however
/// long its rows are.
pub(super) struct Pace {
    pub(super) rows: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rows: 100 }
    }
}

impl Pace {
    const TARGET: u64 = 1024 * 1024;
    const MOST: u64 = 10_000;

    pub(super) fn learn(&mut self, rows: u32, bytes: u64) {
        let a_row = (bytes / u64::from(rows.max(1))).max(1);
        // Rows that were short so far prove little: grow in steps.
        let next = (Self::TARGET / a_row).clamp(1, Self::MOST).min(u64::from(rows) * 10);
        self.rows = u32::try_from(next).unwrap_or(rows).max(1);
    }
}
