//! The claims that this process holds: prefetched, running, or finished and not yet settled.
//!
//! Recovery compares the ledger's opinion with this; a wish to cancel finds its job here.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use shared::{job::JobId, ledger::claim::ClaimedJob};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Holding {
    token: i64,
    cancel: CancellationToken,
}

/// What is held now; shared by reference. Bounded by the queues' credits.
#[derive(Debug, Default)]
pub struct Held {
    jobs: Mutex<HashMap<JobId, Holding>>,
}

impl Held {
    /// Holds a fresh claim; the answer is cancelled when the job's owner wants it cancelled.
    pub fn insert(&self, job: &ClaimedJob) -> CancellationToken {
        let cancel = CancellationToken::new();
        let holding = Holding { token: job.token, cancel: cancel.clone() };
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(job.id, holding);
        cancel
    }

    /// Holds claims no more.
    pub fn remove(&self, claims: impl IntoIterator<Item = (JobId, i64)>) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for (job, token) in claims {
            // A later claim of the same job by this process is another holding.
            if jobs.get(&job).is_some_and(|holding| holding.token == token) {
                jobs.remove(&job);
            }
        }
    }

    /// Passes wishes to cancel on to what is held.
    pub fn cancel(&self, wished: &[JobId]) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for job in wished {
            if let Some(holding) = jobs.get(job) {
                holding.cancel.cancel();
            }
        }
    }

    /// Whether any of these jobs is held.
    pub fn holds_any(&self, wanted: &[JobId]) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.iter().any(|job| jobs.contains_key(job))
    }

    /// Those of `claims` that are not held.
    pub fn not_held(&self, claims: &[(JobId, i64)]) -> Vec<(JobId, i64)> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        claims.iter().filter(|(job, token)| jobs.get(job).is_none_or(|holding| holding.token != *token)).copied().collect()
    }

    /// All claims that are held.
    pub fn claims(&self) -> Vec<(JobId, i64)> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.iter().map(|(job, holding)| (*job, holding.token)).collect()
    }

    /// How many claims are held.
    pub fn len(&self) -> usize {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
