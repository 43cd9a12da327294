//! Canaries: entries by which a worker proves to itself that it can read its queues.
//!
//! Each worker has a stream of its own beside each queue's three, in the same slot and under the same group, and its reader
//! names all four in one command: an answer that brings the canary comes over the connection, from the server and through the group
//! that bring jobs. A stream a worker, because an entry in a shared one could be read by another.

use redis::Value;

use super::{
    Commands, Queue, QueueError,
    keys::{CANARY_FIELD, GROUP, Keys},
};

/// How long a canary's stream outlives its last entry, so that none stays behind of a worker that is gone.
const EXPIRES_SECONDS: u32 = 60;

/// A canary that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// The entry's own id.
    pub entry: String,
    /// What its sender wrote; `None` for what no version of ours wrote.
    pub mark: Option<u64>,
}

/// Sends a canary with the sender's mark, in the place of an earlier one that was not read.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn send(connection: &mut Commands, keys: &Keys, queue: Queue, consumer: &str, mark: u64) -> Result<(), QueueError> {
    let stream = keys.canary(queue, consumer);
    let mut pipeline = redis::pipe();
    pipeline.cmd("XADD").arg(&stream).arg("MAXLEN").arg(1).arg("*").arg(CANARY_FIELD).arg(&mark.to_be_bytes()[..]).ignore();
    pipeline.cmd("EXPIRE").arg(&stream).arg(EXPIRES_SECONDS).ignore();
    pipeline.query_async(connection).await.map_err(QueueError::during("send a canary"))
}

/// Acknowledges canaries that were read.
///
/// # Errors
/// [`QueueError::Redis`]; what is not acknowledged goes with its stream.
pub async fn acknowledge(
    connection: &mut Commands,
    keys: &Keys,
    queue: Queue,
    consumer: &str,
    canaries: &[Canary],
) -> Result<(), QueueError> {
    let mut command = redis::cmd("XACK");
    command.arg(keys.canary(queue, consumer)).arg(GROUP);
    for canary in canaries {
        command.arg(&canary.entry);
    }
    command.query_async::<Value>(connection).await.map(drop).map_err(QueueError::during("acknowledge a canary"))
}
