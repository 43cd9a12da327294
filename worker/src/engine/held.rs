//! The claims that this process holds: prefetched, running, or finished and not yet settled.
//!
//! Recovery compares the ledger's opinion with this; a wish to cancel finds its job here.
//!
//! What must stay true: a claim that may be in the ledger already, and whose answer is still on its way to us or not yet taken in as a
//! whole, does not look lost.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use shared::{
    job::JobId,
    ledger::claim::{Claimant, ClaimedJob},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[derive(Debug)]
struct Holding {
    token: i64,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct Claims {
    jobs: HashMap<JobId, Holding>,
    /// The tokens of claims under way.
    asked: HashSet<i64>,
}

/// What is held now; shared by reference. Bounded by the queues' credits.
#[derive(Debug, Default)]
pub struct Held(Mutex<Claims>);

/// A claim under way, until all that it brings is held, or its answer is given up.
#[derive(Debug)]
pub struct Asking<'a> {
    held: &'a Held,
    /// Who asks.
    pub by: Claimant,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.held.lock().asked.remove(&self.by.token);
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Claims> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a claim, to be done before it is sent.
    pub fn asking(&self, worker: Uuid) -> Asking<'_> {
        let by = Claimant::from(worker);
        self.lock().asked.insert(by.token);
        Asking { held: self, by }
    }

    /// Holds a fresh claim; the answer is cancelled when the job's owner wants it cancelled.
    pub fn insert(&self, job: &ClaimedJob) -> CancellationToken {
        let cancel = CancellationToken::new();
        let holding = Holding { token: job.token, cancel: cancel.clone() };
        self.lock().jobs.insert(job.id, holding);
        cancel
    }

    /// Holds claims no more.
    pub fn remove(&self, claims: impl IntoIterator<Item = (JobId, i64)>) {
        let mut held = self.lock();
        for (job, token) in claims {
            // A later claim of the same job by this process is another holding.
            if held.jobs.get(&job).is_some_and(|holding| holding.token == token) {
                held.jobs.remove(&job);
            }
        }
    }

    /// Passes wishes to cancel on to what is held.
    pub fn cancel(&self, wished: &[JobId]) {
        let held = self.lock();
        for job in wished {
            if let Some(holding) = held.jobs.get(job) {
                holding.cancel.cancel();
            }
        }
    }

    /// Whether any of these jobs is held.
    pub fn holds_any(&self, wanted: &[JobId]) -> bool {
        let held = self.lock();
        wanted.iter().any(|job| held.jobs.contains_key(job))
    }

    /// Those of `claims` that are not held, and not under way either.
    pub fn not_held(&self, claims: &[(JobId, i64)]) -> Vec<(JobId, i64)> {
        let held = self.lock();
        let is_ours =
            |job: &JobId, token: &i64| held.asked.contains(token) || held.jobs.get(job).is_some_and(|holding| holding.token == *token);
        claims.iter().filter(|(job, token)| !is_ours(job, token)).copied().collect()
    }

    /// All claims that are held.
    pub fn claims(&self) -> Vec<(JobId, i64)> {
        self.lock().jobs.iter().map(|(job, holding)| (*job, holding.token)).collect()
    }

    /// How many claims are held.
    pub fn len(&self) -> usize {
        self.lock().jobs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_under_way_does_not_look_lost() {
        let held = Held::default();
        let asking = held.asking(Uuid::nil());
        let claims = [(JobId(Uuid::from_u128(1)), asking.by.token)];
        assert_eq!(held.not_held(&claims), [], "it is in the ledger, and its answer has not come");
        drop(asking);
        assert_eq!(held.not_held(&claims), claims, "nobody waits for the answer any more");
    }
}
