//! Connections to one server: some at a time, kept for the next mail, for a while.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{
    Accepted, Composed, MailError, Stage, Trouble,
    connection::{Connection, Failed, Opener},
};

/// How many, how long, how often.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Connections at a time, and so mails under way.
    pub connections: usize,
    /// How long one is kept without a mail; servers close theirs after some minutes at most.
    pub idle: Duration,
    /// Mails over one; servers have limits of their own, often a hundred.
    pub mails: u32,
}

impl PoolLimits {
    /// The defaults.
    pub const DEFAULT: Self = Self { connections: 10, idle: Duration::from_secs(20), mails: 100 };
}

/// The pool.
#[derive(Debug)]
pub(super) struct Pool {
    opener: Opener,
    limits: PoolLimits,
    slots: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
    mails: u32,
}

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Idle({} mails)", self.mails)
    }
}

impl Pool {
    pub(super) fn new(opener: Opener, limits: PoolLimits) -> Self {
        Self { opener, limits, slots: Semaphore::new(limits.connections.max(1)), idle: Mutex::default() }
    }

    /// Sends a mail over a connection that is at hand, or over a new one. Waits for its turn as long as it takes: the caller has a timeout.
    pub(super) async fn send(&self, mail: &Composed) -> Result<Accepted, MailError> {
        // Never closed.
        let _slot = self.slots.acquire().await;
        if let Some(Idle { connection, mails, .. }) = self.kept() {
            match self.send_over(connection, mails, mail).await {
                // The server had closed it, or had enough of it; nothing has happened yet.
                Err((Stage::Mail, Trouble::Cut(_) | Trouble::Tls(_) | Trouble::Reply { code: 421, .. })) => {}
                done => return done.map_err(|failed| self.failed(failed)),
            }
        }
        let connection = self.opener.open().await.map_err(|failed| self.failed(failed))?;
        self.send_over(connection, 0, mail).await.map_err(|failed| self.failed(failed))
    }

    async fn send_over(&self, mut connection: Connection, mails: u32, mail: &Composed) -> Result<Accepted, Failed> {
        let sent = connection.send(mail).await;
        let in_order = match &sent {
            Ok(_) => true,
            // Between two mails all is as before; half way into one the server must be told to forget it.
            Err((Stage::Message | Stage::Mail, Trouble::Reply { code, .. })) => *code != 421,
            Err((Stage::Rcpt | Stage::Data, Trouble::Reply { code, .. })) => *code != 421 && connection.reset().await,
            Err(_) => false,
        };
        if in_order {
            self.keep(Idle { connection, since: Instant::now(), mails: mails + 1 });
        }
        sent
    }

    /// The connection that was used last; the others may come to their end.
    fn kept(&self) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let (fresh, stale): (Vec<_>, Vec<_>) = idle.drain(..).partition(|kept| kept.since.elapsed() < self.limits.idle);
        *idle = fresh;
        let kept = idle.pop();
        drop(idle);
        for Idle { connection, .. } in stale {
            tokio::spawn(connection.farewell());
        }
        kept
    }

    fn keep(&self, kept: Idle) {
        if kept.mails >= self.limits.mails {
            tokio::spawn(kept.connection.farewell());
            return;
        }
        // Bounded by the slots.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
    }

    fn failed(&self, (stage, trouble): Failed) -> MailError {
        MailError::At { host: self.opener.host().to_owned(), stage, trouble }
    }
}
