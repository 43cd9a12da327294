//! Handing jobs to their queue's stream. Whoever pushes has already committed the job as `queued`; a push that fails is
//! found by recovery, so it is counted and logged and never undone.

use std::collections::BTreeMap;

use super::{
    Commands, Queue, QueueError,
    keys::{JOB_FIELD, Keys, Lane},
};
use crate::job::JobId;

/// Entries of one pipeline: enough to make the round trip cheap, small enough not to hold Redis up for others.
const PIPELINE: usize = 500;

/// A job on its way to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handover {
    /// The job.
    pub job: JobId,
    /// Its queue.
    pub queue: Queue,
    /// Which of the queue's streams.
    pub lane: Lane,
}

/// How many entries a queue's streams hold, by lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth([u64; 4]);

impl Depth {
    /// In all of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// In one of them.
    #[must_use]
    pub fn of(&self, lane: Lane) -> u64 {
        self.0.get(lane as usize).copied().unwrap_or_default()
    }

    /// One entry more in a lane.
    pub fn add(&mut self, lane: Lane) {
        if let Some(depth) = self.0.get_mut(lane as usize) {
            *depth += 1;
        }
    }
}

/// Adds jobs to their streams and answers how deep each touched queue is now.
///
/// # Errors
/// [`QueueError::Redis`]; some of the jobs may have been added.
pub async fn push(connection: &mut Commands, keys: &Keys, jobs: &[Handover]) -> Result<BTreeMap<Queue, Depth>, QueueError> {
    let mut depths = BTreeMap::new();
    for chunk in jobs.chunks(PIPELINE) {
        let mut pipeline = redis::pipe();
        let mut touched: Vec<Queue> = Vec::new();
        for handover in chunk {
            let stream = keys.stream(handover.queue, handover.lane);
            pipeline.cmd("XADD").arg(stream).arg("*").arg(JOB_FIELD).arg(handover.job.0.as_bytes()).ignore();
            if !touched.contains(&handover.queue) {
                touched.push(handover.queue);
            }
        }
        for queue in &touched {
            for stream in keys.streams(*queue) {
                pipeline.cmd("XLEN").arg(stream);
            }
        }
        let lengths: Vec<u64> = pipeline.query_async(connection).await.map_err(QueueError::during("push jobs"))?;
        let (lengths, _) = lengths.as_chunks::<4>();
        depths.extend(touched.iter().zip(lengths).map(|(queue, lengths)| (*queue, Depth(*lengths))));
    }
    Ok(depths)
}

/// How many entries a queue's streams hold.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn depth(connection: &mut Commands, keys: &Keys, queue: Queue) -> Result<Depth, QueueError> {
    let mut pipeline = redis::pipe();
    for stream in keys.streams(queue) {
        pipeline.cmd("XLEN").arg(stream);
    }
    let lengths: [u64; 4] = pipeline.query_async(connection).await.map_err(QueueError::during("measure a queue"))?;
    Ok(Depth(lengths))
}

/// Deletes a queue's streams with all that is in them: for a queue that nobody uses any more.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn delete_streams(connection: &mut Commands, keys: &Keys, queue: Queue) -> Result<(), QueueError> {
    let mut command = redis::cmd("DEL");
    for stream in keys.streams(queue) {
        command.arg(stream);
    }
    command.query_async::<redis::Value>(connection).await.map(drop).map_err(QueueError::during("delete a queue"))
}
