//! What readers left in a queue's streams: for recovery.

use std::time::Duration;

use redis::{FromRedisValue, RedisError, Value};

use super::{Delivery, Entries, is_group_missing, job_of};
use crate::{
    job::JobId,
    queue::{
        Commands, Queue, QueueError,
        keys::{GROUP, Keys, Lane},
    },
};

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
    for (lane, stream) in Lane::ALL.into_iter().zip(keys.streams(queue)) {
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
                taken.extend(entries.into_iter().map(|(entry, fields)| Delivery { lane, entry, job: job_of(fields) }));
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
