//! How many jobs of a queue this process may hold: running, waiting for a slot, and finished but not settled, together.
//!
//! Long jobs are fetched one for each free slot, so that none waits here while another replica is idle. Short ones are
//! fetched ahead, about [`AHEAD`] of work, so that slots do not wait for the way to Redis and Postgres and back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

/// How much work to hold ahead of the slots.
const AHEAD: Duration = Duration::from_millis(20);
/// The most jobs to hold beyond the slots: a batch is a quarter of them, as many as one settle writes. Half as many cost more a job (ADR 0006).
const MOST_AHEAD: usize = 2_000;
/// The most bytes of payloads to hold beyond the slots, by what payloads had lately: with those of 16 KiB and less jobs are still as many.
const MOST_BYTES_AHEAD: u64 = 32 * 1024 * 1024;
/// Jobs ahead that make a batch: from here on fetching costs more than running.
const LEAST_BATCH: usize = 200;
/// What a queue's jobs are thought to take before one was seen.
const FIRST_GUESS: Duration = Duration::from_secs(1);

/// A queue's credits in this process.
#[derive(Debug)]
pub struct Credits {
    slots: usize,
    held: AtomicUsize,
    /// Moving average of a job's run, in nanoseconds.
    average: AtomicU64,
    /// Moving average of a payload, in bytes.
    payload: AtomicU64,
    freed: Notify,
}

/// The right to hold one job; returned by dropping it.
#[derive(Debug)]
pub struct Credit {
    credits: Arc<Credits>,
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.credits.held.fetch_sub(1, Ordering::AcqRel);
        self.credits.freed.notify_one();
    }
}

impl Credits {
    /// Credits for a queue that runs `slots` jobs at a time here.
    #[must_use]
    pub fn new(slots: usize) -> Arc<Self> {
        let average = u64::try_from(FIRST_GUESS.as_nanos()).unwrap_or(u64::MAX);
        Arc::new(Self {
            slots,
            held: AtomicUsize::new(0),
            average: AtomicU64::new(average),
            payload: AtomicU64::new(0),
            freed: Notify::new(),
        })
    }

    /// Learns from a run of a job whose payload has so many bytes.
    pub fn learn(&self, run: Duration, payload: usize) {
        learn(&self.average, u64::try_from(run.as_nanos()).unwrap_or(u64::MAX));
        learn(&self.payload, payload as u64);
    }

    /// How many jobs may be held at a time, however short they are.
    pub const fn most(&self) -> usize {
        self.slots + MOST_AHEAD
    }

    fn limit(&self) -> usize {
        let average = u128::from(self.average.load(Ordering::Acquire)).max(1);
        let ahead = (AHEAD.as_nanos() / average).saturating_mul(self.slots as u128);
        let by_bytes = MOST_BYTES_AHEAD / self.payload.load(Ordering::Acquire).max(1);
        self.slots + usize::try_from(ahead.min(u128::from(by_bytes))).unwrap_or(MOST_AHEAD).min(MOST_AHEAD)
    }

    /// How many jobs to claim now, where jobs are so short that they are fetched ahead by the batch; `None` where they are not, or there
    /// is not room enough for a batch. Never all there is room for: while one batch runs and is settled, the next one is claimed.
    pub fn room_for_batch(&self) -> Option<usize> {
        let limit = self.limit();
        let batch = (limit - self.slots) / 4;
        let room = limit.saturating_sub(self.held.load(Ordering::Acquire));
        (self.are_for_batches() && room >= batch).then_some(batch)
    }

    /// Whether jobs are so short that they are fetched ahead by the batch.
    pub fn are_for_batches(&self) -> bool {
        self.limit() - self.slots >= LEAST_BATCH
    }

    /// Waits until there is room and answers how much. While a backlog is worked off it waits for a quarter of the limit, so
    /// that reads and claims stay batches.
    pub async fn room(&self) -> usize {
        loop {
            let freed = self.freed.notified();
            let limit = self.limit();
            let held = self.held.load(Ordering::Acquire);
            let room = limit.saturating_sub(held);
            let ahead = limit - self.slots;
            if room > 0 && (room >= ahead / 4 || held <= self.slots / 2) {
                return room;
            }
            freed.await;
        }
    }

    /// Takes a credit for a job that was claimed. Never waits: a blocking read may bring two more than there was room for.
    pub fn take(self: &Arc<Self>) -> Credit {
        self.held.fetch_add(1, Ordering::AcqRel);
        Credit { credits: Arc::clone(self) }
    }
}

/// An eighth of the weight to the newest: quick enough to notice that the mix of jobs changed.
fn learn(average: &AtomicU64, newest: u64) {
    let _ = average.fetch_update(Ordering::AcqRel, Ordering::Acquire, |average| Some(average - average / 8 + newest / 8));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_jobs_are_not_fetched_ahead_and_short_ones_are() {
        let credits = Credits::new(4);
        assert_eq!(credits.room().await, 4);
        let held: Vec<_> = (0..4).map(|_| credits.take()).collect();
        assert!(tokio::time::timeout(Duration::from_millis(10), credits.room()).await.is_err(), "full");
        for _ in 0..100 {
            credits.learn(Duration::from_micros(10), 200);
        }
        drop(held);
        assert!(credits.room().await > 500);
        assert!(credits.room().await <= 4 + MOST_AHEAD);
        assert!(credits.are_for_batches());
        for _ in 0..100 {
            credits.learn(Duration::from_micros(10), 256 * 1024);
        }
        assert_eq!(credits.room().await, 4 + 128, "large ones only as far as memory is worth it");
        assert!(!credits.are_for_batches());
    }
}
