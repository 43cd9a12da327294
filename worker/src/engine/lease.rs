//! Whether this process may believe that it holds its jobs.
//!
//! The heartbeat renews the lease; when no good heartbeat was *sent* for [`FENCE_AFTER`], the lease ends and with it its
//! [epoch](Lease::epoch): everything that runs under it is dropped, since others may soon run it. A lease that is renewed
//! later begins a new epoch; what was dropped stays dropped and is given back.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use shared::ledger::recover::{DEAD_AFTER, FENCE_AFTER};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Default)]
struct Standing {
    /// The epoch while the lease is held.
    epoch: Option<CancellationToken>,
    /// When the last good heartbeat was sent.
    renewed: Option<Instant>,
    /// Since when every heartbeat came in time.
    gapless_since: Option<Instant>,
}

/// The process' lease; shared by reference.
#[derive(Debug, Default)]
pub struct Lease {
    standing: Mutex<Standing>,
    held: watch::Sender<bool>,
}

impl Lease {
    /// Renews by a heartbeat that was sent at `sent` and answered well. A lease that has run out meanwhile ends first, also where nobody has
    /// noticed yet (a process that stood still may hear this answer before anything else): answers whether it did so now.
    pub fn renew(&self, sent: Instant) -> bool {
        let ran_out = self.expire();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer that came too late renews nothing: by then others were free to judge.
        if sent.elapsed() >= FENCE_AFTER {
            return ran_out;
        }
        standing.renewed = Some(sent);
        standing.gapless_since.get_or_insert(sent);
        if standing.epoch.is_none() {
            standing.epoch = Some(CancellationToken::new());
            drop(standing);
            self.held.send_replace(true);
        }
        ran_out
    }

    /// Ends the lease if it ran out; answers whether it did so now. The heartbeat's thread asks several times a second.
    pub fn expire(&self) -> bool {
        let run_out = {
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            standing.epoch.is_some() && standing.renewed.is_none_or(|renewed| renewed.elapsed() >= FENCE_AFTER)
        };
        run_out && self.fence()
    }

    /// Ends the lease at once: the ledger said that others took over. Answers whether it was held.
    pub fn fence(&self) -> bool {
        let epoch = {
            let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            standing.gapless_since = None;
            standing.epoch.take()
        };
        self.held.send_replace(false);
        epoch.inspect(CancellationToken::cancel).is_some()
    }

    /// The present epoch; `None` while the lease is not held. Cancelled when it ends.
    pub fn epoch(&self) -> Option<CancellationToken> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        // Between the lease's end and the thread that notices there must be no new work either.
        let fresh = standing.renewed.is_some_and(|renewed| renewed.elapsed() < FENCE_AFTER);
        standing.epoch.clone().filter(|_| fresh)
    }

    /// Waits for the lease to be held.
    pub async fn held(&self) -> CancellationToken {
        let mut held = self.held.subscribe();
        loop {
            if let Some(epoch) = self.epoch() {
                return epoch;
            }
            // Woken by the change, and by time for the moment between run out and noticed.
            let _ = tokio::time::timeout(Duration::from_millis(200), held.changed()).await;
        }
    }

    /// Tells when the lease is lost and won.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.held.subscribe()
    }

    /// Whether this process has heard from the ledger without a gap for long enough to judge others. Without that, a ledger
    /// that was away would make everybody look dead to who sees it first.
    pub fn may_judge(&self) -> bool {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.epoch.is_some() && standing.gapless_since.is_some_and(|since| since.elapsed() >= DEAD_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_with_its_epoch_and_begins_a_new_one() {
        let lease = Lease::default();
        assert!(lease.epoch().is_none() && !lease.expire());
        lease.renew(Instant::now());
        let epoch = lease.epoch().unwrap();
        assert!(!lease.expire() && !lease.may_judge());
        assert!(lease.fence() && epoch.is_cancelled() && lease.epoch().is_none());
        assert!(!lease.fence(), "fenced once");
        lease.renew(Instant::now());
        assert!(!lease.epoch().unwrap().is_cancelled());
    }

    #[test]
    fn what_ran_out_unnoticed_is_not_renewed_but_begun_anew() {
        let lease = Lease::default();
        lease.renew(Instant::now());
        let epoch = lease.epoch().unwrap();
        // The process stood still, and its heartbeat is answered before anything else has looked.
        lease.standing.lock().unwrap().renewed = Instant::now().checked_sub(FENCE_AFTER);
        assert!(lease.renew(Instant::now()), "it is told");
        assert!(epoch.is_cancelled(), "others were free to take its jobs over");
        assert!(!lease.epoch().unwrap().is_cancelled());
    }

    #[test]
    fn a_late_answer_renews_nothing() {
        let lease = Lease::default();
        let long_ago = Instant::now().checked_sub(FENCE_AFTER).unwrap();
        lease.renew(long_ago);
        assert!(lease.epoch().is_none());
    }
}
