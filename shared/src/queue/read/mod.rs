//! Reading a queue's streams as one consumer of its group: blocking, no polling, and never more than asked for.
//!
//! `COUNT` of `XREADGROUP` counts per stream, so while there is plenty the three streams are asked separately, with shares
//! that favour the higher priority and never starve the lower; when a queue runs dry, one blocking read waits on all. The lane of those who go first has a reader of its own.

mod leftovers;
mod shares;

use std::time::Duration;

use redis::{FromRedisValue, RedisError, Value, aio::MultiplexedConnection};
use uuid::Uuid;

use super::{
    Commands, Queue, QueueError, Redis,
    canary::Canary,
    keys::{CANARY_FIELD, GROUP, JOB_FIELD, Keys, Lane},
};
use crate::job::JobId;

pub use leftovers::{forget_consumers, jobs_in_streams, take_abandoned};
use shares::TURNS;
pub use shares::shares;

/// How long a read waits for an entry before it looks at the world again.
pub const BLOCK: Duration = Duration::from_secs(5);

/// A stream's entries as Redis answers them: id and fields.
type Entries = Vec<(String, Value)>;

/// An entry of a stream, read and not yet acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Which of the queue's streams.
    pub lane: Lane,
    /// The entry's own id there.
    pub entry: String,
    /// The job it names; `None` for an entry that no version of ours wrote.
    pub job: Option<JobId>,
}

/// What a read brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Entries of jobs.
    pub deliveries: Vec<Delivery>,
    /// This reader's own canaries.
    pub canaries: Vec<Canary>,
    /// A stream or its group was gone and was made again: Redis may have been emptied.
    pub emptied: bool,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.deliveries.is_empty() && self.canaries.is_empty()
    }
}

/// The lanes by priority, which share one reader's room.
const BY_PRIORITY: [Lane; 3] = [Lane::High, Lane::Normal, Lane::Low];

/// Reads some of a queue's lanes. Reconnects by itself: an error means "not now", the next call tries again.
#[derive(Debug)]
pub struct Reader {
    redis: Redis,
    queue: Queue,
    consumer: String,
    lanes: &'static [Lane],
    /// The lanes' streams, then the canaries' where it reads those.
    streams: Vec<String>,
    connection: Option<MultiplexedConnection>,
    /// Which lanes gave all that they were asked for at the last read: those get the shares.
    plenty: [bool; 3],
    /// Turns of small reads, so that a room of one is shared as well.
    turn: usize,
}

impl Reader {
    /// A reader of the lanes by priority, and of its own canaries, under a consumer's name that no other process uses.
    #[must_use]
    pub fn new(redis: Redis, queue: Queue, consumer: String) -> Self {
        let mut streams = BY_PRIORITY.map(|lane| redis.keys().stream(queue, lane)).to_vec();
        streams.push(redis.keys().canary(queue, &consumer));
        Self { redis, queue, consumer, lanes: &BY_PRIORITY, streams, connection: None, plenty: [false; 3], turn: 0 }
    }

    /// A reader of [`Lane::First`]. It needs no canaries: who finds that the other reader's don't arrive tells this one too.
    #[must_use]
    pub fn of_first(redis: Redis, queue: Queue, consumer: String) -> Self {
        let streams = vec![redis.keys().stream(queue, Lane::First)];
        Self { redis, queue, consumer, lanes: &[Lane::First], streams, connection: None, plenty: [false; 3], turn: 0 }
    }

    /// The queue it reads.
    #[must_use]
    pub const fn queue(&self) -> Queue {
        self.queue
    }

    /// On a new connection first what an earlier one was given and did not bring: this reader's own entries that it never removed.
    /// Else up to `room` entries, of the blocking read two more at most; waits up to [`BLOCK`] for the first, on a new connection not at
    /// all. Empty when none came.
    /// Cancel-safe only by dropping the reader: an answer on its way is then found by recovery.
    ///
    /// # Errors
    /// [`QueueError::Redis`]; the connection is dropped, and the next call makes a new one and the groups where missing.
    pub async fn read(&mut self, room: usize) -> Result<Found, QueueError> {
        self.read_or_connect(Some(room)).await
    }

    /// The canaries that are there, and no jobs; waits for none. For a worker that has no room for jobs just now.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn read_canaries(&mut self) -> Result<Found, QueueError> {
        self.read_or_connect(None).await
    }

    /// Gives the connection up, whose answers don't come: the next read makes a new one, and first asks again for what this one was given.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    async fn read_or_connect(&mut self, room: Option<usize>) -> Result<Found, QueueError> {
        // The first read of a connection does not wait: it tells at once that the queue is served, idle as it may be.
        let is_new = self.connection.is_none();
        let block = (!is_new).then_some(BLOCK);
        if is_new {
            let mut connection = self.redis.blocking(BLOCK).await?;
            make_groups(&mut connection, &self.streams).await?;
            self.connection = Some(connection);
        }
        let outcome = match room {
            Some(room) if is_new => match self.ask_again(room).await {
                Ok(found) if found.is_empty() => self.read_connected(room, block).await,
                outcome => outcome,
            },
            Some(room) => self.read_connected(room, block).await,
            None => self.ask(&[self.lanes.len()], 1, None).await,
        };
        match outcome {
            Ok(found) => Ok(found),
            // The stream was deleted (a FLUSHALL) under the group or under a blocked read: make it again from its start.
            Err(error) if is_group_missing(&error) => {
                if let Some(connection) = self.connection.as_mut()
                    && let Err(error) = make_groups(connection, &self.streams).await
                {
                    self.connection = None;
                    return Err(error);
                }
                Ok(Found { emptied: true, ..Found::default() })
            }
            Err(error) => {
                self.connection = None;
                Err(QueueError::Redis { action: "read a queue", source: error })
            }
        }
    }

    async fn read_connected(&mut self, room: usize, block: Option<Duration>) -> Result<Found, RedisError> {
        if self.plenty.iter().any(|plenty| *plenty) {
            let found = self.read_shares(room).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let each = (room / self.lanes.len()).max(1);
        let all: Vec<usize> = (0..self.streams.len()).collect();
        let found = self.ask(&all, each, block).await?;
        if self.lanes.len() > 1 {
            for (lane, plenty) in self.lanes.iter().zip(&mut self.plenty) {
                *plenty = found.deliveries.iter().filter(|delivery| delivery.lane == *lane).count() >= each;
            }
        }
        Ok(found)
    }

    /// One read a lane, each with its share of the room; the first brings the canaries too.
    async fn read_shares(&mut self, room: usize) -> Result<Found, RedisError> {
        self.turn = (self.turn + 1) % TURNS;
        let shares = shares(room, self.plenty, self.turn);
        let mut found = Found::default();
        let mut first = true;
        for (index, share) in shares.into_iter().enumerate() {
            if share == 0 {
                continue;
            }
            let streams = [index, self.lanes.len()];
            let part = self.ask(if first { &streams } else { &streams[..1] }, share, None).await?;
            first = false;
            if let Some(plenty) = self.plenty.get_mut(index) {
                *plenty = part.deliveries.len() >= share;
            }
            found.deliveries.extend(part.deliveries);
            found.canaries.extend(part.canaries);
        }
        Ok(found)
    }

    /// What was delivered to this consumer and is not acknowledged.
    async fn ask_again(&mut self, room: usize) -> Result<Found, RedisError> {
        let lanes: Vec<usize> = (0..self.lanes.len()).collect();
        self.ask_from("0", &lanes, (room / self.lanes.len()).max(1), None).await
    }

    /// What is new in some streams, with the same count each.
    async fn ask(&mut self, streams: &[usize], count: usize, block: Option<Duration>) -> Result<Found, RedisError> {
        self.ask_from(">", streams, count, block).await
    }

    /// `XREADGROUP`.
    async fn ask_from(&mut self, from: &str, streams: &[usize], count: usize, block: Option<Duration>) -> Result<Found, RedisError> {
        let mut found = Found::default();
        let names: Vec<&String> = streams.iter().filter_map(|index| self.streams.get(*index)).collect();
        let Some(connection) = self.connection.as_mut() else { return Ok(found) };
        if names.is_empty() {
            return Ok(found);
        }
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(&self.consumer).arg("COUNT").arg(count);
        if let Some(block) = block {
            command.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        }
        command.arg("STREAMS").arg(&names);
        for _ in &names {
            command.arg(from);
        }
        let answer: Option<Vec<(String, Entries)>> = command.query_async(connection).await?;
        for (name, entries) in answer.into_iter().flatten() {
            let place = self.streams.iter().position(|stream| *stream == name);
            match place.and_then(|place| self.lanes.get(place)) {
                Some(lane) => {
                    let deliveries = entries.into_iter().map(|(entry, fields)| Delivery { lane: *lane, entry, job: job_of(fields) });
                    found.deliveries.extend(deliveries);
                }
                None => found.canaries.extend(entries.into_iter().map(|(entry, fields)| Canary { entry, mark: mark_of(fields) })),
            }
        }
        Ok(found)
    }
}

fn job_of(fields: Value) -> Option<JobId> {
    Uuid::from_slice(&field(fields, JOB_FIELD)?).ok().map(JobId)
}

fn mark_of(fields: Value) -> Option<u64> {
    field(fields, CANARY_FIELD)?.try_into().ok().map(u64::from_be_bytes)
}

fn field(fields: Value, wanted: &str) -> Option<Vec<u8>> {
    let fields: Vec<Vec<u8>> = Vec::from_redis_value(fields).ok()?;
    let mut pairs = fields.into_iter();
    while let (Some(name), Some(value)) = (pairs.next(), pairs.next()) {
        if name == wanted.as_bytes() {
            return Some(value);
        }
    }
    None
}

/// Makes each stream's group where it is missing, from the start of the stream: what was pushed before counts.
async fn make_groups(connection: &mut MultiplexedConnection, streams: &[String]) -> Result<(), QueueError> {
    for stream in streams {
        let made: Result<(), RedisError> =
            redis::cmd("XGROUP").arg("CREATE").arg(stream).arg(GROUP).arg("0").arg("MKSTREAM").query_async(connection).await;
        match made {
            Ok(()) => {}
            Err(error) if error.code() == Some("BUSYGROUP") => {}
            Err(source) => return Err(QueueError::Redis { action: "make a consumer group", source }),
        }
    }
    Ok(())
}

/// `NOGROUP`: the stream or group is gone. `UNBLOCKED`: it went while a read was blocked on it (Redis 7).
fn is_group_missing(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOGROUP" | "UNBLOCKED"))
}

/// Takes entries off their streams for good: `XACK` and `XDEL` of each stream in one round trip.
///
/// # Errors
/// [`QueueError::Redis`]; the entries stay, are delivered again some day, and lose at the claim.
pub async fn remove(connection: &mut Commands, keys: &Keys, queue: Queue, deliveries: &[Delivery]) -> Result<(), QueueError> {
    let mut pipeline = redis::pipe();
    for (lane, stream) in Lane::ALL.into_iter().zip(keys.streams(queue)) {
        let entries: Vec<&str> =
            deliveries.iter().filter(|delivery| delivery.lane == lane).map(|delivery| delivery.entry.as_str()).collect();
        if !entries.is_empty() {
            pipeline.cmd("XACK").arg(&stream).arg(GROUP).arg(&entries).ignore();
            pipeline.cmd("XDEL").arg(&stream).arg(&entries).ignore();
        }
    }
    pipeline.query_async(connection).await.map_err(QueueError::during("acknowledge jobs"))
}

/// The pause before reconnecting after `failures` in a row: 50 ms doubling to 1 s, so that a Redis that returns is used within
/// seconds, spread by half so that a fleet does not return as one.
#[must_use]
pub fn reconnect_pause(failures: u32, spread: f64) -> Duration {
    Duration::from_millis(50).saturating_mul(1 << failures.min(6)).min(Duration::from_secs(1)).mul_f64(0.5 + spread / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnecting_starts_quickly_and_stays_bounded() {
        assert!(reconnect_pause(0, 1.0) <= Duration::from_millis(50));
        assert!(reconnect_pause(u32::MAX, 1.0) <= Duration::from_secs(1));
        assert!(reconnect_pause(3, 0.0) >= Duration::from_millis(150));
    }
}
