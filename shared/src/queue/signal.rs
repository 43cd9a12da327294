//! Short messages between processes by Redis pub/sub. They only make things quicker: who misses one looks by itself soon.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Commands, Queue, QueueError, Redis, keys::Keys};
use crate::{job::JobId, random};

/// Messages that wait for their reader here; further ones are dropped, and the reader told that it may have missed some.
const BACKLOG: usize = 1_024;
/// Ids in one message.
const IDS: usize = 1_000;

/// What a process hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// The subscription stands (again): anything may have been missed before, so look.
    Subscribed,
    /// A queue has work that its dispatcher should look at.
    Wake(Queue),
    /// These jobs changed.
    Changed(Vec<JobId>),
    /// These jobs are new.
    Accepted(Vec<JobId>),
    /// Owners want these running jobs cancelled.
    Cancel(Vec<JobId>),
    /// This circuit breaker changed.
    Breaker(String),
    /// A model said more in these jobs.
    Said(Vec<JobId>),
}

/// Which channels to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// [`Signal::Wake`].
    Wake,
    /// [`Signal::Changed`].
    Changes,
    /// [`Signal::Accepted`].
    Accepted,
    /// [`Signal::Cancel`].
    Cancels,
    /// [`Signal::Breaker`].
    Breakers,
    /// [`Signal::Said`].
    Said,
}

impl Channel {
    fn name(self, keys: &Keys) -> String {
        match self {
            Self::Wake => keys.wake(),
            Self::Changes => keys.changes(),
            Self::Accepted => keys.accepted(),
            Self::Cancels => keys.cancels(),
            Self::Breakers => keys.breakers(),
            Self::Said => keys.said(),
        }
    }
}

/// Wakes the dispatchers of a queue.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn wake(connection: &mut Commands, keys: &Keys, queue: Queue) -> Result<(), QueueError> {
    redis::cmd("PUBLISH").arg(keys.wake()).arg(queue.name()).query_async(connection).await.map_err(QueueError::during("wake dispatchers"))
}

/// Tells whoever follows jobs that these changed: one message for up to 1,000.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn changed(connection: &mut Commands, keys: &Keys, jobs: impl IntoIterator<Item = JobId>) -> Result<(), QueueError> {
    tell(connection, keys.changes(), jobs).await
}

/// Tells whoever follows all jobs that these are new.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn accepted(connection: &mut Commands, keys: &Keys, jobs: impl IntoIterator<Item = JobId>) -> Result<(), QueueError> {
    tell(connection, keys.accepted(), jobs).await
}

async fn tell(connection: &mut Commands, channel: String, jobs: impl IntoIterator<Item = JobId>) -> Result<(), QueueError> {
    let bytes: Vec<u8> = jobs.into_iter().flat_map(|job| job.0.into_bytes()).collect();
    if bytes.is_empty() {
        return Ok(());
    }
    let mut pipeline = redis::pipe();
    for chunk in bytes.chunks(IDS * 16) {
        pipeline.cmd("PUBLISH").arg(&channel).arg(chunk).ignore();
    }
    pipeline.query_async(connection).await.map_err(QueueError::during("tell of changes"))
}

/// Tells the workers that a running job is to be cancelled; who runs it asks the ledger. Their heartbeats would bring it too, up
/// to two seconds later.
///
/// # Errors
/// [`QueueError::Redis`].
pub async fn cancel(connection: &mut Commands, keys: &Keys, job: JobId) -> Result<(), QueueError> {
    let channel = keys.cancels();
    redis::cmd("PUBLISH")
        .arg(channel)
        .arg(job.0.as_bytes())
        .query_async(connection)
        .await
        .map_err(QueueError::during("tell of a cancellation"))
}

/// Subscribes in a task of its own that reconnects by itself until `stop`. After each (re)connect it says
/// [`Signal::Subscribed`].
#[must_use]
pub fn listen(redis: Redis, channels: &'static [Channel], stop: CancellationToken) -> mpsc::Receiver<Signal> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let mut failures = 0;
        loop {
            let heard = tokio::select! {
                () = stop.cancelled() => return,
                heard = hear(&redis, channels, &sender) => heard,
            };
            match heard {
                Ok(true) => failures = 0,
                Ok(false) => return,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = &error as &dyn std::error::Error, failures, "lost the subscription; trying again");
                }
            }
            let pause = crate::queue::read::reconnect_pause(failures, random::fraction());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    });
    receiver
}

/// Hears until the connection ends (`Ok(true)`) or nobody listens (`Ok(false)`).
async fn hear(redis: &Redis, channels: &[Channel], sender: &mpsc::Sender<Signal>) -> Result<bool, QueueError> {
    let mut subscription = redis.subscriber().await?;
    for channel in channels {
        let name = channel.name(redis.keys());
        // The library gives this command no deadline of its own.
        let subscribed = tokio::time::timeout(super::COMMAND_DEADLINE, subscription.subscribe(name)).await;
        subscribed.unwrap_or_else(|_| Err(super::timed_out())).map_err(QueueError::during("subscribe"))?;
    }
    if sender.send(Signal::Subscribed).await.is_err() {
        return Ok(false);
    }
    let (wake, cancels, accepted) = (redis.keys().wake(), redis.keys().cancels(), redis.keys().accepted());
    let breakers = redis.keys().breakers();
    let said = redis.keys().said();
    let (mut sink, mut messages) = subscription.split();
    let mut missed = false;
    loop {
        // A connection that a firewall forgot looks idle for ever, so silence is probed.
        let message = match tokio::time::timeout(Duration::from_secs(10), messages.next()).await {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(true),
            Err(_) => {
                let probe = tokio::time::timeout(super::COMMAND_DEADLINE, sink.ping::<redis::Value>()).await;
                match probe {
                    Ok(Ok(_)) => continue,
                    Ok(Err(source)) => return Err(QueueError::Redis { action: "probe the subscription", source }),
                    Err(_) => return Err(QueueError::Redis { action: "probe the subscription", source: super::timed_out() }),
                }
            }
        };
        let payload = message.get_payload_bytes();
        let ids = || payload.chunks_exact(16).filter_map(|bytes| Uuid::from_slice(bytes).ok()).map(JobId).collect();
        let signal = match message.get_channel_name() {
            channel if channel == wake => std::str::from_utf8(payload).ok().and_then(Queue::from_name).map(Signal::Wake),
            channel if channel == cancels => Some(Signal::Cancel(ids())),
            channel if channel == breakers => std::str::from_utf8(payload).ok().map(|name| Signal::Breaker(name.to_owned())),
            channel if channel == said => Some(Signal::Said(ids())),
            channel if channel == accepted => Some(Signal::Accepted(ids())),
            _ => Some(Signal::Changed(ids())),
        };
        let Some(signal) = signal else { continue };
        // A reader that fell behind is told once, when it can hear again, that it must look for itself.
        if missed && sender.try_send(Signal::Subscribed).is_ok() {
            missed = false;
        }
        match sender.try_send(signal) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => missed = true,
            Err(mpsc::error::TrySendError::Closed(_)) => return Ok(false),
        }
    }
}
