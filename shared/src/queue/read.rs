//! Reading a queue's streams as one consumer of its group: blocking, no polling, and never more than asked for.
//!
//! `COUNT` of `XREADGROUP` counts per stream, so while there is plenty the three streams are asked separately, with shares
//! that favour the higher priority and never starve the lower; when a queue runs dry, one blocking read waits on all.

use std::time::Duration;

use redis::{FromRedisValue, RedisError, Value, aio::MultiplexedConnection};
use uuid::Uuid;

use super::{
    Commands, Queue, QueueError, Redis,
    canary::Canary,
    keys::{CANARY_FIELD, GROUP, JOB_FIELD, Keys},
};
use crate::job::JobId;

/// How long a read waits for an entry before it looks at the world again.
pub const BLOCK: Duration = Duration::from_secs(5);

/// Shares of the room for high, normal and low priority while all three have plenty.
const SHARES: [usize; 3] = [6, 3, 1];

/// A stream's entries as Redis answers them: id and fields.
type Entries = Vec<(String, Value)>;

/// An entry of a stream, read and not yet acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Which of the queue's streams, by index into [`Keys::streams`].
    pub stream: usize,
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

/// The canaries' place among a reader's streams, behind the three of jobs.
const CANARIES: usize = 3;

/// Reads one queue. Reconnects by itself: an error means "not now", the next call tries again.
#[derive(Debug)]
pub struct Reader {
    redis: Redis,
    queue: Queue,
    consumer: String,
    /// The three of jobs by priority, then the canaries'.
    streams: [String; 4],
    connection: Option<MultiplexedConnection>,
    /// Which streams gave all that they were asked for at the last read: those get the shares.
    plenty: [bool; 3],
    /// Turns of small reads, so that a room of one is shared as well.
    turn: usize,
}

impl Reader {
    /// A reader of `queue` under a consumer's name that no other process uses.
    #[must_use]
    pub fn new(redis: Redis, queue: Queue, consumer: String) -> Self {
        let [high, normal, low] = redis.keys().streams(queue);
        let streams = [high, normal, low, redis.keys().canary(queue, &consumer)];
        Self { redis, queue, consumer, streams, connection: None, plenty: [false; 3], turn: 0 }
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
            None => self.ask(&[(CANARIES, 1)], None).await,
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
        let each = (room / 3).max(1);
        let found = self.ask(&[(0, each), (1, each), (2, each), (CANARIES, each)], block).await?;
        for (index, plenty) in self.plenty.iter_mut().enumerate() {
            *plenty = found.deliveries.iter().filter(|delivery| delivery.stream == index).count() >= each;
        }
        Ok(found)
    }

    /// One read a stream, each with its share of the room; the first brings the canaries too.
    async fn read_shares(&mut self, room: usize) -> Result<Found, RedisError> {
        self.turn = (self.turn + 1) % SHARES.iter().sum::<usize>();
        let shares = shares(room, self.plenty, self.turn);
        let mut found = Found::default();
        let mut first = true;
        for (index, share) in shares.into_iter().enumerate() {
            if share == 0 {
                continue;
            }
            let streams = [(index, share), (CANARIES, share)];
            let part = self.ask(if first { &streams } else { &streams[..1] }, None).await?;
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
        let each = (room / 3).max(1);
        self.ask_from("0", &[(0, each), (1, each), (2, each)], None).await
    }

    /// What is new in some streams, with the same count each.
    async fn ask(&mut self, streams: &[(usize, usize)], block: Option<Duration>) -> Result<Found, RedisError> {
        self.ask_from(">", streams, block).await
    }

    /// `XREADGROUP`.
    async fn ask_from(&mut self, from: &str, streams: &[(usize, usize)], block: Option<Duration>) -> Result<Found, RedisError> {
        let mut found = Found::default();
        let Some(connection) = self.connection.as_mut() else { return Ok(found) };
        let count = streams.first().map_or(1, |(_, count)| *count);
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(&self.consumer).arg("COUNT").arg(count);
        if let Some(block) = block {
            command.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        }
        command.arg("STREAMS");
        for (index, _) in streams {
            command.arg(&self.streams[*index]);
        }
        for _ in streams {
            command.arg(from);
        }
        let answer: Option<Vec<(String, Entries)>> = command.query_async(connection).await?;
        for (name, entries) in answer.into_iter().flatten() {
            let stream = self.streams.iter().position(|stream| *stream == name).unwrap_or(1);
            if stream == CANARIES {
                found.canaries.extend(entries.into_iter().map(|(entry, fields)| Canary { entry, mark: mark_of(fields) }));
            } else {
                found.deliveries.extend(entries.into_iter().map(|(entry, fields)| Delivery { stream, entry, job: job_of(fields) }));
            }
        }
        Ok(found)
    }
}

/// The room's shares for the three streams: those with plenty share by weight, the others get one to be noticed by. A room
/// too small for that goes to one stream, by turns in the proportion of the weights.
fn shares(room: usize, plenty: [bool; 3], turn: usize) -> [usize; 3] {
    let wanting: Vec<usize> = (0..3).filter(|index| plenty.get(*index) == Some(&true)).collect();
    let mut shares = [0; 3];
    if room < 6 {
        let mut place = turn;
        for (index, weight) in SHARES.iter().enumerate() {
            if place < *weight {
                // Its turn, but if it has nothing the room goes to the first that has.
                let chosen = if wanting.contains(&index) { index } else { wanting.first().copied().unwrap_or(index) };
                if let Some(share) = shares.get_mut(chosen) {
                    *share = room;
                }
                return shares;
            }
            place -= weight;
        }
        return shares;
    }
    let divided = room - (3 - wanting.len());
    let weights: usize = wanting.iter().filter_map(|index| SHARES.get(*index)).sum();
    for (index, (slot, weight)) in shares.iter_mut().zip(SHARES).enumerate() {
        *slot = if wanting.contains(&index) { (divided * weight / weights.max(1)).max(1) } else { 1 };
    }
    // What the divisions left over goes to the highest priority that has plenty.
    let left = room.saturating_sub(shares.iter().sum());
    if let Some(slot) = wanting.first().and_then(|first| shares.get_mut(*first)) {
        *slot += left;
    }
    shares
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
    for (index, stream) in keys.streams(queue).into_iter().enumerate() {
        let entries: Vec<&str> =
            deliveries.iter().filter(|delivery| delivery.stream == index).map(|delivery| delivery.entry.as_str()).collect();
        if !entries.is_empty() {
            pipeline.cmd("XACK").arg(&stream).arg(GROUP).arg(&entries).ignore();
            pipeline.cmd("XDEL").arg(&stream).arg(&entries).ignore();
        }
    }
    pipeline.query_async(connection).await.map_err(QueueError::during("acknowledge jobs"))
}

/// The jobs in a queue's streams now, read or not: what recovery need not push again.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn jobs_in_streams(connection: &mut Commands, keys: &Keys, queue: Queue) -> Result<Vec<JobId>, QueueError> {
    const PAGE: usize = 2_000;
    let mut jobs = Vec::new();
    for stream in keys.streams(queue) {
        let mut from = "-".to_owned();
        loop {
            let page: Entries = redis::cmd("XRANGE")
                .arg(&stream)
                .arg(&from)
                .arg("+")
                .arg("COUNT")
                .arg(PAGE)
                .query_async(connection)
                .await
                .map_err(QueueError::during("read a stream"))?;
            let full = page.len() == PAGE;
            if let Some((last, _)) = page.last() {
                from = format!("({last}");
            }
            jobs.extend(page.into_iter().filter_map(|(_, fields)| job_of(fields)));
            if !full {
                break;
            }
        }
    }
    Ok(jobs)
}

/// Takes over up to `limit` entries a stream that somebody read longer than `idle` ago and never removed: their reader died
/// between reading and claiming. The caller claims them as if it had read them.
///
/// # Errors
/// [`QueueError::Redis`]; a missing group is no error, there is nothing to take then.
pub async fn take_abandoned(
    connection: &mut Commands,
    keys: &Keys,
    queue: Queue,
    consumer: &str,
    idle: Duration,
    limit: usize,
) -> Result<Vec<Delivery>, QueueError> {
    let mut taken = Vec::new();
    for (index, stream) in keys.streams(queue).into_iter().enumerate() {
        let answer: Result<(String, Entries, Value), RedisError> = redis::cmd("XAUTOCLAIM")
            .arg(&stream)
            .arg(GROUP)
            .arg(consumer)
            .arg(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX))
            .arg("0-0")
            .arg("COUNT")
            .arg(limit)
            .query_async(connection)
            .await;
        match answer {
            Ok((_, entries, _)) => {
                taken.extend(entries.into_iter().map(|(entry, fields)| Delivery { stream: index, entry, job: job_of(fields) }));
            }
            Err(error) if is_group_missing(&error) => {}
            Err(source) => return Err(QueueError::Redis { action: "take abandoned entries", source }),
        }
    }
    Ok(taken)
}

/// Forgets consumers that are not in `alive` and hold nothing, so that the group does not grow with every process that ever was.
///
/// # Errors
/// [`QueueError::Redis`]; a missing stream is no error.
pub async fn forget_consumers(connection: &mut Commands, keys: &Keys, queue: Queue, alive: &[String]) -> Result<(), QueueError> {
    for stream in keys.streams(queue) {
        let answer: Result<Vec<std::collections::HashMap<String, Value>>, RedisError> =
            redis::cmd("XINFO").arg("CONSUMERS").arg(&stream).arg(GROUP).query_async(connection).await;
        let consumers = match answer {
            Ok(consumers) => consumers,
            Err(error) if is_group_missing(&error) || error.to_string().contains("no such key") => continue,
            Err(source) => return Err(QueueError::Redis { action: "list consumers", source }),
        };
        for consumer in consumers {
            let name = consumer.get("name").cloned().and_then(|name| String::from_redis_value(name).ok());
            let pending = consumer.get("pending").cloned().and_then(|pending| u64::from_redis_value(pending).ok());
            if let (Some(name), Some(0)) = (name, pending)
                && !alive.contains(&name)
            {
                redis::cmd("XGROUP")
                    .arg("DELCONSUMER")
                    .arg(&stream)
                    .arg(GROUP)
                    .arg(&name)
                    .query_async::<Value>(connection)
                    .await
                    .map_err(QueueError::during("forget a consumer"))?;
            }
        }
    }
    Ok(())
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
    fn shares_fill_the_room_and_starve_nobody() {
        for room in 1..200 {
            for mask in 1..8_u8 {
                let plenty = [mask & 1 != 0, mask & 2 != 0, mask & 4 != 0];
                let mut served = [0; 3];
                for turn in 0..10 {
                    let shares = shares(room, plenty, turn);
                    assert_eq!(shares.iter().sum::<usize>(), room, "room {room} of {plenty:?} at turn {turn}: {shares:?}");
                    for (total, share) in served.iter_mut().zip(shares) {
                        *total += share;
                    }
                }
                for (index, has) in plenty.into_iter().enumerate() {
                    assert!(!has || served[index] > 0, "{index} is starved: room {room}, {plenty:?}");
                }
                if mask == 7 {
                    assert!(served[0] >= served[1] && served[1] >= served[2]);
                }
            }
        }
    }

    #[test]
    fn reconnecting_starts_quickly_and_stays_bounded() {
        assert!(reconnect_pause(0, 1.0) <= Duration::from_millis(50));
        assert!(reconnect_pause(u32::MAX, 1.0) <= Duration::from_secs(1));
        assert!(reconnect_pause(3, 0.0) >= Duration::from_millis(150));
    }
}
