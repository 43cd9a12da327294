//! Mail over SMTP (RFC 5321): one mail, one recipient, and a verdict that knows at which stage it was given.
//!
//! What must stay true: every stage has a deadline of its own; a password goes over TLS only; a recipient is given up only for what its
//! mailbox's server says of the mailbox, never for our own standing; what was cut after the message was sent is unknown, and is sent
//! again under the same Message-ID; on a staging installation no mail leaves for anybody but its one address.
//!
//! lettre speaks the protocol and writes the messages; its own timeout covers connecting only, so stages and deadlines are ours.

mod connection;
mod dkim;
mod error;
mod message;
mod pool;
mod wire;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use shared::{config, mail::DkimKey};

pub use error::{MailError, SENDER_PAUSE, Stage, Trouble, Verdict};
pub use message::{Composed, Dkim, Mail, MessageError, Party};
use pool::Pool;
pub use pool::PoolLimits;

/// How long each stage may take. RFC 5321, section 4.5.3.2, allows minutes, for servers that look things up meanwhile; ours is a relay
/// that was chosen, and a job waits. Sending the message has the longest, since a late answer there costs a second copy.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Lookup and connection, and TLS where it comes first.
    pub connect: Duration,
    /// The greeting.
    pub greeting: Duration,
    /// EHLO.
    pub ehlo: Duration,
    /// STARTTLS, the handshake, and EHLO under it.
    pub starttls: Duration,
    /// Signing in.
    pub auth: Duration,
    /// MAIL, RCPT, DATA and RSET, each.
    pub command: Duration,
    /// The message, to the answer to it.
    pub message: Duration,
}

impl Deadlines {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        connect: Duration::from_secs(10),
        greeting: Duration::from_secs(30),
        ehlo: Duration::from_secs(15),
        starttls: Duration::from_secs(15),
        auth: Duration::from_secs(30),
        command: Duration::from_secs(30),
        message: Duration::from_secs(120),
    };

    /// The longest that one mail may take, once it is its turn: a job's timeout must be above it, or it cuts what might have been answered.
    /// A connection that was kept may have to be made anew after its first command.
    #[cfg(test)]
    #[must_use]
    pub fn total(&self) -> Duration {
        self.connect + self.greeting + self.ehlo + self.starttls + self.auth + 5 * self.command + self.message
    }
}

/// What a server said to a mail that it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The reply's code, 250 as a rule.
    pub code: u16,
    /// Its words, often with the server's own id of the mail.
    pub text: String,
}

/// What becomes of mails, as metrics name it: [`Verdict`]s, and one that was taken.
pub const OUTCOMES: [&str; 6] = ["accepted", "retry", "suppress", "fail", "pause_sender", "unknown"];

/// The sender: a pool of connections for each server that the settings name. One for the process.
#[derive(Debug)]
pub struct Mailer {
    pools: BTreeMap<String, Pool>,
    dkim: BTreeMap<String, Arc<DkimKey>>,
    redirect: Option<String>,
}

impl Mailer {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(config: &config::Mail) -> Self {
        Self::with(config, Deadlines::DEFAULT, PoolLimits::DEFAULT)
    }

    /// The same with deadlines and limits of one's own.
    #[must_use]
    pub fn with(config: &config::Mail, deadlines: Deadlines, limits: PoolLimits) -> Self {
        let pools = config.servers.iter().map(|(name, server)| {
            let opener = connection::Opener::new(server.clone(), config.authorities.clone(), config.hello.clone(), deadlines);
            (name.clone(), Pool::new(opener, limits))
        });
        Self { pools: pools.collect(), dkim: config.dkim.clone(), redirect: config.redirect.clone() }
    }

    /// Writes a mail's bytes, the same for the same mail: on a staging installation for its one address, and signed where `mail` says so.
    ///
    /// # Errors
    /// [`MessageError`]: trying again can't help.
    pub fn compose(&self, mail: &Mail<'_>) -> Result<Composed, MessageError> {
        message::compose(mail, &self.dkim, self.redirect.as_deref())
    }

    /// Whether all mail goes to the one address of a staging installation: what its server says of that says nothing of whom it was for.
    #[must_use]
    pub fn redirects(&self) -> bool {
        self.redirect.is_some()
    }

    /// Sends a mail over the server that a variable names.
    ///
    /// # Errors
    /// [`MailError`], with its [`Verdict`].
    pub async fn send(&self, server: &str, mail: &Composed) -> Result<Accepted, MailError> {
        let sent = match self.pools.get(server) {
            Some(pool) => pool.send(mail).await,
            None => Err(MailError::NoServer(server.to_owned())),
        };
        let outcome = sent.as_ref().map_or_else(|error| error.verdict().word(), |_| "accepted");
        metrics::counter!("offstage_mails_total", "outcome" => outcome).increment(1);
        if let Err(error) = &sent
            && error.verdict() == Verdict::PauseSender
        {
            tracing::error!(error = error as &dyn std::error::Error, server, "a mail server refuses us; no recipient is to blame");
        }
        sent
    }
}

#[cfg(test)]
mod tests;
