//! What waits for those who listen to many jobs of a tenant.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use shared::{job::JobId, ledger::find::FoundJob};
use tokio::sync::Notify;

use super::Seen;

/// Changes that may wait for one listener to many jobs; beyond it, it takes a new picture.
pub(super) const MOST_PENDING: usize = 500;

/// Which of a tenant's jobs a listener to many hears of.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// Only this end user's.
    pub owner: Option<String>,
    /// Only this kind's.
    pub kind: Option<String>,
    /// Only this queue's.
    pub queue: Option<String>,
}

impl Interest {
    /// Whether a job is of interest.
    #[must_use]
    pub fn holds(&self, job: &FoundJob) -> bool {
        self.owner.as_ref().is_none_or(|owner| job.owner.as_ref() == Some(owner))
            && self.kind.as_ref().is_none_or(|kind| job.kind == *kind)
            && self.queue.as_ref().is_none_or(|queue| job.queue == *queue)
    }
}

/// What waits for one listener to many jobs.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) pending: HashMap<JobId, Arc<Seen>>,
    /// Something may have been missed: a new picture is to be taken.
    pub(super) missed: bool,
}

impl Inbox {
    pub(super) fn put(&mut self, seen: &Arc<Seen>) {
        if self.missed {
            return;
        }
        if self.pending.len() >= MOST_PENDING && !self.pending.contains_key(&seen.job.id) {
            self.miss();
            return;
        }
        self.pending.insert(seen.job.id, Arc::clone(seen));
    }

    pub(super) fn miss(&mut self) {
        self.missed = true;
        self.pending = HashMap::new();
    }
}

/// A listener to many jobs.
#[derive(Debug)]
pub(super) struct Feed {
    pub interest: Interest,
    pub inbox: Mutex<Inbox>,
    pub news: Notify,
}
