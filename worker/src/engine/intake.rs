//! Where a queue's claimed jobs enter its apalis worker, whichever way they were claimed.

use std::sync::Arc;

use shared::{job::JobId, ledger::claim::ClaimedJob, queue::Queue};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;

use super::{
    Engine,
    announce::Announcement,
    credits::Credits,
    run::{Claimed, Work},
};

/// The way into a queue's apalis worker, which ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(super) struct Intake {
    /// The queue.
    pub queue: Queue,
    /// The rights to hold its jobs.
    pub credits: Arc<Credits>,
    /// The worker's channel.
    pub feed: mpsc::Sender<Work>,
    /// Whether this is the way of those who go first.
    pub goes_first: bool,
}

/// The worker at the other end is gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gone;

impl Intake {
    /// Passes on what was claimed under the lease of `epoch`, and tells listeners.
    pub async fn take_in(&self, engine: &Engine, claimed: Vec<ClaimedJob>, epoch: &CancellationToken) -> Result<(), Gone> {
        let changed: Vec<JobId> = claimed.iter().map(|job| job.id).collect();
        for job in claimed {
            if let Some(lost_for) = job.lost_for {
                metrics::histogram!("offstage_recovery_seconds", "queue" => self.queue.name()).record(lost_for.as_secs_f64());
            }
            let cancelled = engine.held.insert(&job);
            let credit = self.credits.take();
            self.pass_on(Work::Job(Claimed { credit, epoch: epoch.clone(), cancelled, goes_first: self.goes_first, job: Arc::new(job) }))
                .await?;
        }
        engine.announcer.tell(Announcement { changed, ..Announcement::default() });
        Ok(())
    }

    /// The worker ends only after everybody who feeds it: this can't fail while we are here.
    pub async fn pass_on(&self, work: Work) -> Result<(), Gone> {
        // There is room for all that credits let in, and a claimed batch should not be put aside in its middle for the runs of its
        // beginning, as `send` would be.
        let passed = match self.feed.try_send(work) {
            Err(TrySendError::Full(work)) => self.feed.send(work).await.is_ok(),
            other => other.is_ok(),
        };
        if !passed {
            tracing::error!(queue = self.queue.name(), "the queue's worker is gone");
            return Err(Gone);
        }
        Ok(())
    }
}
