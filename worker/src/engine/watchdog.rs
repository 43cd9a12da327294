//! Handlers that don't let go: a run that computes without an await holds a thread of the runtime and can't be stopped from outside.
//!
//! Each poll of a run is marked, so it is known which job holds which thread since when; the heartbeat's thread, which no run can hold,
//! looks at the marks. What follows is the process' end, for a thread is not to be had back otherwise:
//!
//! - a poll longer than [`LONGEST_POLL`] while the rest moves: its job is returned to the ledger as a suspect (it runs in a
//!   [process of its own](super::trial) next), and this process drains, so that its neighbours finish;
//! - the whole runtime stands still for [`STILL_FOR`]: what holds it is returned as suspects, everything else as it was, and the
//!   process ends at once, before others would have to declare it dead and count a crash for each of its jobs.
//!
//! What must stay true: standing still is counted in looks and not by the clock, so that a process which was paused as a whole (SIGSTOP,
//! a suspended machine) is not taken for one that hangs.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use shared::{job::JobId, ledger::claim::ClaimedJob};

/// The longest that a run may compute without an await. Long compared with what a handler of ours does at a time (a block of a
/// compressed file), on a slow machine too.
pub const LONGEST_POLL: Duration = Duration::from_secs(20);
/// How long the whole runtime may stand still. Less than others wait before they take over, so that the blame is exact.
pub const STILL_FOR: Duration = Duration::from_secs(5);
/// A poll that has lasted so long while the runtime stands still is part of the reason.
pub const HOLDS_A_THREAD: Duration = Duration::from_secs(2);

/// The runs of this process, and since when each is being polled. Bounded by the queues' slots.
#[derive(Debug)]
pub struct Polls {
    base: Instant,
    next: AtomicU64,
    runs: Mutex<HashMap<u64, Arc<Mark>>>,
}

#[derive(Debug)]
struct Mark {
    job: Arc<ClaimedJob>,
    /// Milliseconds from the base, and one; 0 between polls.
    since: AtomicU64,
}

impl Default for Polls {
    fn default() -> Self {
        Self { base: Instant::now(), next: AtomicU64::new(0), runs: Mutex::default() }
    }
}

impl Polls {
    /// Marks the polls of a run until it is dropped.
    pub fn watch<F>(self: &Arc<Self>, job: Arc<ClaimedJob>, run: F) -> Watched<F> {
        let mark = Arc::new(Mark { job, since: AtomicU64::new(0) });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(&mark));
        Watched { run, mark, number, polls: Arc::clone(self) }
    }

    /// The jobs whose present poll has lasted longer than `limit`, and how long.
    pub fn longer_than(&self, limit: Duration) -> Vec<(Arc<ClaimedJob>, Duration)> {
        let now = self.now();
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let held = runs.values().filter_map(|mark| {
            let since = mark.since.load(Ordering::Relaxed);
            let held = Duration::from_millis(now.saturating_sub(since));
            (since != 0 && held > limit).then(|| (Arc::clone(&mark.job), held))
        });
        held.collect()
    }

    /// The jobs that run, for the log.
    pub fn jobs(&self) -> Vec<JobId> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).values().map(|mark| mark.job.id).collect()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

/// A run whose polls are marked.
#[derive(Debug)]
pub struct Watched<F> {
    run: F,
    mark: Arc<Mark>,
    number: u64,
    polls: Arc<Polls>,
}

impl<F: Future + Unpin> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.mark.since.store(self.polls.now(), Ordering::Relaxed);
        let polled = Pin::new(&mut self.run).poll(cx);
        self.mark.since.store(0, Ordering::Relaxed);
        polled
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        self.polls.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
