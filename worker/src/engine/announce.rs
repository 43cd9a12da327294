//! Tells Redis what the ledger already says: pushes jobs to their streams, wakes dispatchers, tells listeners of changes.
//!
//! A task of its own behind a bounded channel, so that a Redis that is away holds nobody up. What can't be told is dropped
//! and counted: recovery pushes what is missing, dispatchers and listeners look by themselves.

use std::sync::{Arc, Mutex, PoisonError};

use shared::{
    job::JobId,
    queue::{
        Commands, QueueError,
        push::{self, Handover},
        signal,
    },
};
use tokio::sync::mpsc;

use super::Engine;

/// Announcements that may wait.
const WAITING: usize = 1_024;
/// Announcements told together.
const TOGETHER: usize = 64;

/// Something to tell.
#[derive(Debug, Default)]
pub struct Announcement {
    /// Jobs to push.
    pub handovers: Vec<Handover>,
    /// Jobs that changed.
    pub changed: Vec<JobId>,
}

/// Where the engine's tasks leave their announcements.
#[derive(Debug)]
pub struct Announcer {
    sender: Mutex<Option<mpsc::Sender<Announcement>>>,
}

impl Announcer {
    pub fn new() -> (Self, mpsc::Receiver<Announcement>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { sender: Mutex::new(Some(sender)) }, receiver)
    }

    /// Leaves an announcement; never waits.
    pub fn tell(&self, announcement: Announcement) {
        if announcement.handovers.is_empty() && announcement.changed.is_empty() {
            return;
        }
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref()
            && sender.try_send(announcement).is_err()
        {
            metrics::counter!("offstage_announcements_dropped_total").increment(1);
        }
    }

    /// Takes no more; the task ends when it has told what is left.
    pub fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Tells what is left here until the announcer is closed.
pub(super) async fn run(engine: Arc<Engine>, mut announcements: mpsc::Receiver<Announcement>, mut connection: Commands) {
    let mut batch = Vec::with_capacity(TOGETHER);
    let mut failing = false;
    while announcements.recv_many(&mut batch, TOGETHER).await > 0 {
        let handovers: Vec<Handover> = batch.iter().flat_map(|announcement| announcement.handovers.iter().copied()).collect();
        let changed: Vec<JobId> = batch.drain(..).flat_map(|announcement| announcement.changed).collect();
        let told = tell(&engine, &mut connection, &handovers, changed).await;
        match told {
            Ok(()) => failing = false,
            Err(error) => {
                metrics::counter!("offstage_announcements_dropped_total").increment(1);
                if !failing {
                    tracing::warn!(error = &error as &dyn std::error::Error, "could not tell Redis; recovery will");
                }
                failing = true;
            }
        }
    }
}

async fn tell(engine: &Engine, connection: &mut Commands, handovers: &[Handover], changed: Vec<JobId>) -> Result<(), QueueError> {
    if !handovers.is_empty() {
        push::push(connection, engine.redis.keys(), handovers).await?;
    }
    signal::changed(connection, engine.redis.keys(), changed).await
}
