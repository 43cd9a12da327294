//! What models say, followed: who listens to a job's words is woken when there are more, and reads them by itself.
//!
//! What must stay true: whoever follows was registered before they read; a word that nobody follows costs a look into a table; without
//! Redis nothing is heard, and followers look once a second and at the job's end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shared::{
    job::JobId,
    queue::{
        Commands, QueueError, Redis,
        keys::Keys,
        signal::Signal,
        words::{self, Entry},
    },
};
use tokio::sync::{mpsc, watch};

/// The jobs whose words are followed here.
#[derive(Debug)]
pub struct Words {
    followed: Mutex<HashMap<JobId, watch::Sender<()>>>,
    commands: Commands,
    keys: Keys,
}

impl Words {
    pub(super) fn new(redis: &Redis) -> Self {
        Self { followed: Mutex::default(), commands: redis.commands(), keys: redis.keys().clone() }
    }

    /// Wakes followers, until nobody speaks any more.
    pub(super) async fn hear(self: Arc<Self>, mut signals: mpsc::Receiver<Signal>) {
        while let Some(signal) = signals.recv().await {
            match signal {
                Signal::Said(jobs) => {
                    let followed = self.followed();
                    for sender in jobs.iter().filter_map(|job| followed.get(job)) {
                        sender.send_replace(());
                    }
                }
                // Anything may have been missed.
                Signal::Subscribed => {
                    for sender in self.followed().values() {
                        sender.send_replace(());
                    }
                }
                Signal::Wake(_) | Signal::Changed(_) | Signal::Accepted(_) | Signal::Cancel(_) | Signal::Breaker(_) => {}
            }
        }
    }

    /// Follows a job's words from now on.
    #[must_use]
    pub fn follow(self: &Arc<Self>, job: JobId) -> Hearing {
        let news = self.followed().entry(job).or_insert_with(|| watch::Sender::new(())).subscribe();
        Hearing { words: Arc::clone(self), job, news }
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<()>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One follower of a job's words; ends when dropped.
#[derive(Debug)]
pub struct Hearing {
    words: Arc<Words>,
    job: JobId,
    news: watch::Receiver<()>,
}

impl Hearing {
    /// Waits for more than there was when it was last read.
    pub async fn news(&mut self) {
        if self.news.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The words after a place; what is added from now on is news.
    ///
    /// # Errors
    /// [`QueueError`]: Redis is away.
    pub async fn read(&mut self, after: &str) -> Result<Vec<Entry>, QueueError> {
        self.news.mark_unchanged();
        words::read(&mut self.words.commands.clone(), &self.words.keys, self.job, after).await
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        let mut followed = self.words.followed();
        // This one is still among them.
        if followed.get(&self.job).is_some_and(|sender| sender.receiver_count() <= 1) {
            followed.remove(&self.job);
        }
    }
}
