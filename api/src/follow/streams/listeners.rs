//! Who follows one job, and who listens to many; each ends when dropped.

use std::sync::Arc;

use shared::job::JobId;
use tokio::sync::watch;

use super::{super::places::Place, Interest, Latest, READ_WITHIN, Seen, Streams, feeds::Feed, lock};

/// One listener's interest in a job; ends when dropped.
#[derive(Debug)]
pub struct Following {
    pub(super) streams: Arc<Streams>,
    pub(super) tenant: i32,
    pub(super) job: JobId,
    pub(super) by_link: bool,
    pub(super) receiver: watch::Receiver<Latest>,
    pub(super) _place: Place,
}

impl Following {
    /// What is known of the job; from now on news is what comes after it.
    pub fn latest(&mut self) -> Latest {
        self.receiver.borrow_and_update().clone()
    }

    /// What is known of the job, read where it is not known yet: together with what others wait for. `None` when that took too long.
    pub async fn known(&mut self) -> Option<Latest> {
        let reading = async {
            loop {
                match self.latest() {
                    Latest::Unread => {
                        self.streams.changed(&[self.job]);
                        self.news().await;
                    }
                    known => return known,
                }
            }
        };
        tokio::time::timeout(READ_WITHIN, reading).await.ok()
    }

    /// Waits until there is something after what [`Self::latest`] told.
    pub async fn news(&mut self) {
        // The room outlives its followers, so its sender is there.
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut rooms = lock(&self.streams.rooms);
        let Some(of_job) = rooms.get_mut(&self.job) else { return };
        if let Some(room) = of_job.iter_mut().find(|room| room.tenant == self.tenant) {
            room.followers = room.followers.saturating_sub(1);
            room.by_link = room.by_link.saturating_sub(usize::from(self.by_link));
        }
        of_job.retain(|room| room.followers > 0);
        if of_job.is_empty() {
            rooms.remove(&self.job);
        }
    }
}

/// One listener's interest in many jobs; ends when dropped.
#[derive(Debug)]
pub struct Listening {
    pub(super) streams: Arc<Streams>,
    pub(super) tenant: i32,
    pub(super) feed: Arc<Feed>,
    pub(super) _place: Place,
}

impl Listening {
    /// What of the tenant's jobs it hears.
    #[must_use]
    pub fn interest(&self) -> &Interest {
        &self.feed.interest
    }

    /// Takes what has come, in the order of the jobs; `None` when something was missed, and a new picture is to be taken.
    #[must_use]
    pub fn take(&self) -> Option<Vec<Arc<Seen>>> {
        let inbox = std::mem::take(&mut *lock(&self.feed.inbox));
        if inbox.missed {
            return None;
        }
        let mut seen: Vec<_> = inbox.pending.into_values().collect();
        seen.sort_unstable_by_key(|seen| (seen.job.finished_at.is_none(), seen.job.id));
        Some(seen)
    }

    /// Waits until something came since the last time this returned.
    pub async fn news(&self) {
        self.feed.news.notified().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut feeds = lock(&self.streams.feeds);
        if let Some(of_tenant) = feeds.get_mut(&self.tenant) {
            of_tenant.retain(|feed| !Arc::ptr_eq(feed, &self.feed));
            if of_tenant.is_empty() {
                feeds.remove(&self.tenant);
            }
        }
    }
}
