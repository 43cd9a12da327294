//! Queues on Redis Streams: motion only. Every key may vanish at any moment (`FLUSHALL`, eviction, failover) and nothing
//! accepted is lost, because the ledger in Postgres knows each job that should be here and recovery pushes it again.
//!
//! This room holds all there is to know about Redis' side: the [keys], how jobs are [pushed](push), how a worker [reads](read)
//! them, the [signals](signal) between processes, and the [backend] that feeds an apalis worker. An entry carries a job's
//! id and nothing else; what the job is stands in Postgres, and the claim there decides who runs it.

pub mod backend;
pub mod canary;
mod commands;
pub mod keys;
pub mod pace;
pub mod push;
pub mod read;
pub mod signal;
pub mod words;

use std::{fmt, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, RedisError,
    aio::{MultiplexedConnection, PubSub},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use commands::Commands;
use keys::Keys;

/// A queue: a stream a priority, and a concurrency budget that the kinds in it share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Queue {
    /// Files of data.
    Exports,
    /// Mail.
    Email,
    /// Web push.
    Push,
    /// Calls of models.
    Ai,
    /// Rollups and other short work inside the house.
    Analytics,
    /// Statistics of other people's services.
    Stats,
    /// Calls of customers' endpoints.
    Webhooks,
    /// Images.
    Media,
    /// Drills (`worker drill`): served by the drill's own worker and by nobody else.
    Drill,
}

impl Queue {
    /// Every queue that there is: those in use and the drill's.
    pub const EVERY: [Self; 9] = {
        let [a, b, c, d, e, f, g, h] = Self::ALL;
        [a, b, c, d, e, f, g, h, Self::Drill]
    };

    /// Every queue that workers serve unless told otherwise.
    pub const ALL: [Self; 8] =
        [Self::Exports, Self::Email, Self::Push, Self::Ai, Self::Analytics, Self::Stats, Self::Webhooks, Self::Media];

    /// Its name in settings, keys, rows and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exports => "exports",
            Self::Email => "email",
            Self::Push => "push",
            Self::Ai => "ai",
            Self::Analytics => "analytics",
            Self::Stats => "stats",
            Self::Webhooks => "webhooks",
            Self::Media => "media",
            Self::Drill => "drill",
        }
    }

    /// The queue of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::EVERY.into_iter().find(|queue| queue.name() == name)
    }

    /// How many of its jobs one worker process runs at a time unless told otherwise: few where a job is heavy (a file in
    /// memory-bounded parts, an image), many where it mostly waits for somebody else.
    #[must_use]
    pub const fn default_concurrency(self) -> usize {
        match self {
            Self::Exports | Self::Media => 4,
            Self::Stats | Self::Drill => 16,
            Self::Email | Self::Ai => 32,
            Self::Push | Self::Analytics | Self::Webhooks => 64,
        }
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A fault of Redis or of the way to it. Always passing for the engine: it tries again, and the ledger keeps the work.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The address can't be used at all.
    #[error("OFFSTAGE_REDIS_URL is not a Redis address")]
    Address(#[source] RedisError),
    /// Redis did not answer, or answered with an error.
    #[error("Redis did not do as asked ({action})")]
    Redis {
        /// What was asked.
        action: &'static str,
        /// What it said.
        #[source]
        source: RedisError,
    },
}

impl QueueError {
    pub(crate) fn during(action: &'static str) -> impl FnOnce(RedisError) -> Self {
        move |source| Self::Redis { action, source }
    }
}

/// The longest a command that does not block may take, the way there and back included. Longer than any healthy answer,
/// shorter than a person's patience: callers fall back on the ledger.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(2);

/// How to reach Redis, and under which names.
#[derive(Clone)]
pub struct Redis {
    client: Client,
    keys: Keys,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's own Debug shows the password.
        f.debug_struct("Redis").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Redis {
    /// Checks the address; connects to nothing yet.
    ///
    /// # Errors
    /// [`QueueError::Address`] for what is no Redis address.
    pub fn new(url: &SecretString, prefix: &str) -> Result<Self, QueueError> {
        let client = Client::open(url.expose_secret()).map_err(QueueError::Address)?;
        Ok(Self { client, keys: Keys::new(prefix) })
    }

    /// The names in use.
    #[must_use]
    pub const fn keys(&self) -> &Keys {
        &self.keys
    }

    /// A connection for commands that answer at once, shared by clones; it reconnects by itself, and each command fails
    /// within [`COMMAND_DEADLINE`] rather than wait for that.
    #[must_use]
    pub fn commands(&self) -> Commands {
        Commands::new(self.client.clone())
    }

    /// A connection for one reader that blocks up to `block`. The library's own response timeout of 500 ms is shorter than a
    /// blocking read, so ours is that and the command's deadline on top.
    pub(crate) async fn blocking(&self, block: Duration) -> Result<MultiplexedConnection, QueueError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(COMMAND_DEADLINE))
            .set_response_timeout(Some(block + COMMAND_DEADLINE));
        self.client.get_multiplexed_async_connection_with_config(&config).await.map_err(QueueError::during("connect"))
    }

    pub(crate) async fn subscriber(&self) -> Result<PubSub, QueueError> {
        match tokio::time::timeout(COMMAND_DEADLINE, self.client.get_async_pubsub()).await {
            Ok(connected) => connected.map_err(QueueError::during("connect to subscribe")),
            Err(_) => Err(QueueError::Redis { action: "connect to subscribe", source: timed_out() }),
        }
    }
}

fn timed_out() -> RedisError {
    RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))
}

/// What Redis is set to do when its memory is full. Anything but `noeviction` may drop our streams: nothing is lost, but
/// jobs wait for recovery (R9 asks to warn of it at start).
///
/// # Errors
/// [`QueueError::Redis`]; managed Redis services often forbid `CONFIG`.
pub async fn eviction_policy(connection: &mut Commands) -> Result<Option<String>, QueueError> {
    let answer: Vec<String> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("maxmemory-policy")
        .query_async(connection)
        .await
        .map_err(QueueError::during("read maxmemory-policy"))?;
    Ok(answer.into_iter().nth(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for queue in Queue::EVERY {
            assert_eq!(Queue::from_name(queue.name()), Some(queue));
            assert_eq!(serde_json::to_value(queue).unwrap(), queue.name());
        }
    }

    #[test]
    fn the_password_stays_out_of_debug() {
        let redis = Redis::new(&SecretString::from("redis://:hunter2@127.0.0.1/"), "offstage").unwrap();
        assert!(!format!("{redis:?}").contains("hunter2"));
    }
}
