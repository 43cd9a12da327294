//! Handing jobs to their queue's stream. Whoever pushes has already committed the job as `queued`; a push that fails is
//! found by recovery, so it is counted and logged and never undone.

use std::collections::BTreeMap;

use super::{
    Commands, Queue, QueueError,
    keys::{JOB_FIELD, Keys},
};
use crate::job::{JobId, Priority};

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
    pub priority: Priority,
}

/// Adds jobs to their streams and answers how deep each touched queue is now (its three streams together).
///
/// # Errors
/// [`QueueError::Redis`]; some of the jobs may have been added.
pub async fn push(connection: &mut Commands, keys: &Keys, jobs: &[Handover]) -> Result<BTreeMap<Queue, u64>, QueueError> {
    let mut depths = BTreeMap::new();
    for chunk in jobs.chunks(PIPELINE) {
        let mut pipeline = redis::pipe();
        let mut touched: Vec<Queue> = Vec::new();
        for handover in chunk {
            let stream = keys.stream(handover.queue, handover.priority);
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
        depths.extend(touched.iter().zip(lengths.chunks(3)).map(|(queue, lengths)| (*queue, lengths.iter().sum())));
    }
    Ok(depths)
}

/// How many entries a queue's streams hold.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn depth(connection: &mut Commands, keys: &Keys, queue: Queue) -> Result<u64, QueueError> {
    let mut pipeline = redis::pipe();
    for stream in keys.streams(queue) {
        pipeline.cmd("XLEN").arg(stream);
    }
    let lengths: Vec<u64> = pipeline.query_async(connection).await.map_err(QueueError::during("measure a queue"))?;
    Ok(lengths.iter().sum())
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
