//! Rates: how many may start in a time, counted for the whole fleet in Redis.
//!
//! The generic cell rate algorithm (GCRA; ITU-T Recommendation I.371, virtual scheduling): one number a rate, the time at which the next
//! start is due if all are evenly spread. A key that vanishes forgets the past and allows one burst more.

use std::time::Duration;

use redis::Script;

use super::{Commands, QueueError, keys::Keys};
use crate::job::Rate;

/// What a rate says to one that wants to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It may, after this; nobody else gets that place.
    After(Duration),
    /// Not so soon: it may ask again after this.
    Later(Duration),
}

/// KEYS: the rate. ARGV: microseconds between two starts, burst, the longest wait in microseconds. Redis' own clock, so that all ask
/// the same one.
const RESERVE: &str = "
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local every, burst, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local due = tonumber(redis.call('GET', KEYS[1]) or now)
if due < now then due = now end
local wait = math.max(0, math.floor(due - (burst - 1) * every - now))
if wait > longest then return {0, wait} end
redis.call('SET', KEYS[1], string.format('%.0f', due + every), 'PX', math.ceil((due + every - now) / 1000) + 1000)
return {1, wait}
";

/// KEYS: the rate. ARGV: microseconds between two starts, burst, how many are wanted. Takes as many of them as are due.
const DRAW: &str = "
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local every, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local due = tonumber(redis.call('GET', KEYS[1]) or now)
if due < now then due = now end
local count = math.max(0, math.min(wanted, math.floor((now - due) / every + burst + 0.000001)))
if count > 0 then
  due = due + count * every
  redis.call('SET', KEYS[1], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000) + 1000)
end
return count
";

/// The time between two starts.
#[must_use]
pub fn interval(rate: Rate) -> Duration {
    Duration::from_secs(rate.seconds.into()) / rate.jobs.max(1)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// A place for one start, at most `longest` ahead.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn reserve(connection: &mut Commands, keys: &Keys, name: &str, rate: Rate, longest: Duration) -> Result<Pace, QueueError> {
    let (granted, wait): (u8, u64) = Script::new(RESERVE)
        .key(keys.rate("start", name))
        .arg(micros(interval(rate)))
        .arg(rate.burst)
        .arg(micros(longest))
        .invoke_async(connection)
        .await
        .map_err(QueueError::during("reserve a start"))?;
    let wait = Duration::from_micros(wait);
    Ok(if granted == 1 { Pace::After(wait) } else { Pace::Later(wait) })
}

/// As many of the `wanted` as are due to be dispatched now.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn draw(connection: &mut Commands, keys: &Keys, name: &str, rate: Rate, wanted: usize) -> Result<usize, QueueError> {
    Script::new(DRAW)
        .key(keys.rate("dispatch", name))
        .arg(micros(interval(rate)))
        .arg(rate.burst)
        .arg(wanted)
        .invoke_async(connection)
        .await
        .map_err(QueueError::during("draw from a rate"))
}
