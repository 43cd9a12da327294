//! A connection for commands that answer at once. Clones share it.
//!
//! Not the library's `ConnectionManager`: that keeps a connection whose answers stopped coming (a timeout is no reason for it
//! to reconnect, so behind a network that swallows everything it stays deaf until the kernel gives up, a quarter of an hour
//! later), and one whose server was demoted to a replica and answers `READONLY` for ever.
//!
//! What must stay true: each command ends within [`COMMAND_DEADLINE`], connecting included; a connection that showed a fault is
//! not used again; connecting anew waits longer after each failure, spread so that a fleet does not return as one.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

use super::{COMMAND_DEADLINE, read::reconnect_pause, timed_out};
use crate::random;

type Attempt = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

/// The connection. It connects at its first command.
#[derive(Clone)]
pub struct Commands(Arc<Inner>);

struct Inner {
    client: Client,
    /// The connection, or the attempt to make it, with its number; none after a fault.
    current: Mutex<Option<(u64, Attempt)>>,
    /// Faults since a command last worked.
    failures: AtomicU32,
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's own Debug shows the password.
        f.debug_struct("Commands").field("failures", &self.0.failures).finish_non_exhaustive()
    }
}

impl Commands {
    pub(super) fn new(client: Client) -> Self {
        Self(Arc::new(Inner { client, current: Mutex::new(None), failures: AtomicU32::new(0) }))
    }

    /// The connection there is, or the attempt under way, or a new one.
    fn current(&self) -> (u64, Attempt) {
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = &*current {
            return current.clone();
        }
        let failures = self.0.failures.load(Ordering::Relaxed);
        let client = self.0.client.clone();
        let attempt: Attempt = async move {
            if failures > 0 {
                // Shorter than a command's patience: whoever asks in the meantime is served by this attempt.
                tokio::time::sleep(reconnect_pause(failures.min(4), random::fraction())).await;
            }
            let config =
                AsyncConnectionConfig::new().set_connection_timeout(Some(COMMAND_DEADLINE)).set_response_timeout(Some(COMMAND_DEADLINE));
            client.get_multiplexed_async_connection_with_config(&config).await
        }
        .boxed()
        .shared();
        let number = u64::from_le_bytes(random::bytes());
        *current = Some((number, attempt.clone()));
        drop(current);
        // Driven also while nobody waits: the next command finds it connected.
        tokio::spawn(attempt.clone().map(drop));
        (number, attempt)
    }

    fn discard(&self, number: u64) {
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|(standing, _)| *standing == number) {
            *current = None;
            self.0.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs one exchange under the deadline; what it shows of the connection decides whether that is kept.
    async fn exchange<T>(&self, ask: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>) -> RedisResult<T> {
        let (number, attempt) = self.current();
        let mut connected = false;
        let outcome = tokio::time::timeout(COMMAND_DEADLINE, async {
            let connection = attempt.clone().await?;
            connected = true;
            ask(connection).await
        });
        let outcome = outcome.await.unwrap_or_else(|_| Err(timed_out()));
        match &outcome {
            Ok(_) => self.0.failures.store(0, Ordering::Relaxed),
            // An attempt to connect has a deadline of its own and is left to it: giving it up here would never let one through
            // that takes nearly as long.
            Err(_) if !connected && attempt.peek().is_none() => {}
            Err(error) if !connected || breaks_connection(error) => self.discard(number),
            Err(_) => {}
        }
        outcome
    }
}

/// Whether an error says that its connection is not to be used again: it broke, did not answer in time, or leads to a server
/// that can't do what we ask (demoted, still loading, another password by now), and the address may lead to another one.
fn breaks_connection(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed => true,
        ErrorKind::Server(kind) => {
            matches!(kind, ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading)
        }
        _ => matches!(error.code(), Some("NOAUTH" | "READONLY")),
    }
}

impl ConnectionLike for Commands {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.exchange(async move |mut connection| connection.send_packed_command(command).await).boxed()
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        self.exchange(async move |mut connection| connection.send_packed_commands(pipeline, offset, count).await).boxed()
    }

    fn get_db(&self) -> i64 {
        self.0.client.get_connection_info().redis_settings().db()
    }
}
