//! The words of models on their way from the worker that hears them to whoever follows their job. Motion only: what was said in the end stands
//! in the ledger.
//!
//! Each answer of a job has a stream of words of its own ([`Words::stream`]), told apart by run and call, so that what two runs heard is
//! never put together; the answer's words are parted by their place in it, in bytes. All of a job's stand under one key, which is bounded in
//! length ([`MOST_ENTRIES`]) and goes [`KEPT_FOR`] after the last word.

use std::time::Duration;

use redis::{FromRedisValue, Value};

use super::{Commands, QueueError, keys::Keys};
use crate::job::JobId;

/// Entries that are kept of a job: a worker gathers words to far fewer.
const MOST_ENTRIES: usize = 20_000;

/// How long words are kept after the last one.
pub const KEPT_FOR: Duration = Duration::from_secs(600);

/// Entries of one reading.
const READ_TOGETHER: usize = 500;

/// Some words of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// Which answer of the job: run and call.
    pub stream: String,
    /// How many bytes of the answer come before them.
    pub offset: usize,
    /// The words; none where the answer only begins.
    pub text: String,
}

/// Words with their place under the job's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where to read on.
    pub place: String,
    /// The words.
    pub words: Words,
}

/// Adds words, and tells who follows them.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn add(connection: &mut Commands, keys: &Keys, job: JobId, words: &Words) -> Result<(), QueueError> {
    let key = keys.words(job);
    let mut pipeline = redis::pipe();
    pipeline.cmd("XADD").arg(&key).arg("MAXLEN").arg("~").arg(MOST_ENTRIES).arg("*");
    pipeline.arg("s").arg(&words.stream).arg("o").arg(words.offset).arg("w").arg(&words.text).ignore();
    pipeline.cmd("EXPIRE").arg(&key).arg(KEPT_FOR.as_secs()).ignore();
    pipeline.cmd("PUBLISH").arg(keys.said()).arg(job.0.as_bytes()).ignore();
    pipeline.query_async(connection).await.map_err(QueueError::during("tell words"))
}

/// The words after a place; from the beginning where that is empty.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn read(connection: &mut Commands, keys: &Keys, job: JobId, after: &str) -> Result<Vec<Entry>, QueueError> {
    let from = if after.is_empty() { "-".to_owned() } else { format!("({after}") };
    let mut command = redis::cmd("XRANGE");
    command.arg(keys.words(job)).arg(from).arg("+").arg("COUNT").arg(READ_TOGETHER);
    let rows: Vec<Value> = command.query_async(connection).await.map_err(QueueError::during("read words"))?;
    Ok(rows.iter().filter_map(entry).collect())
}

/// Forgets the words of jobs.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn forget(connection: &mut Commands, keys: &Keys, jobs: &[JobId]) -> Result<(), QueueError> {
    if jobs.is_empty() {
        return Ok(());
    }
    // One command each, since their keys may lie on different nodes.
    let mut pipeline = redis::pipe();
    for job in jobs {
        pipeline.cmd("DEL").arg(keys.words(*job)).ignore();
    }
    pipeline.query_async(connection).await.map_err(QueueError::during("forget words"))
}

/// What can't be read is nobody's words.
fn entry(row: &Value) -> Option<Entry> {
    let (place, fields) = <(String, Vec<String>)>::from_redis_value_ref(row).ok()?;
    let field = |name: &str| fields.chunks_exact(2).find_map(|pair| (pair.first()? == name).then(|| pair.get(1).cloned())?);
    Some(Entry { place, words: Words { stream: field("s")?, offset: field("o")?.parse().ok()?, text: field("w")? } })
}
