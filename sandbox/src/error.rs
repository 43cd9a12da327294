//! What can go wrong while the miniature world is set up or told to do something. Each message says what to do next.

use std::path::PathBuf;

/// The one error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the sandbox runs is not on this machine.
    #[error("{program} was not found: {advice}")]
    Missing {
        /// What was looked for.
        program: String,
        /// How to get it.
        advice: String,
    },

    /// The machine refused a file, a process or a socket.
    #[error("could not {action}")]
    Io {
        /// What was tried, as a verb with its object.
        action: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },

    /// Another sandbox holds the directory.
    #[error("{} is in use by another sandbox{details}: stop that one, or name another directory", directory.display())]
    Busy {
        /// The directory that both want.
        directory: PathBuf,
        /// What is known about the other one; empty or starting with a space.
        details: String,
    },

    /// A process ended, or stayed silent, before it answered.
    #[error("{name} is not ready: {reason}. Its log is {}{}", log.display(), quoted(tail))]
    NotReady {
        /// The process, as in `api-1`.
        name: String,
        /// What happened instead.
        reason: String,
        /// Where its output went.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },

    /// A command ran and reported failure.
    #[error("`{command}` ended with {status}{}", quoted(output))]
    Command {
        /// The command line, without secrets.
        command: String,
        /// Exit code or signal.
        status: String,
        /// What it printed.
        output: String,
    },

    /// Postgres refused a statement or a connection.
    #[error("could not {action}")]
    Sql {
        /// What was tried.
        action: String,
        /// Postgres' answer.
        #[source]
        source: sqlx::Error,
    },

    /// Something that the sandbox was given, or found, makes no sense.
    #[error("{0}")]
    Invalid(String),

    /// The sandbox is being taken down.
    #[error("the sandbox is stopping")]
    Stopping,
}

/// What fallible functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

/// Output below a message, set off by indentation; nothing when there is none.
fn quoted(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    text.lines().fold(":".to_owned(), |mut all, line| {
        all.push_str("\n    ");
        all.push_str(line);
        all
    })
}

/// Names the action that an I/O error interrupted.
pub(crate) trait Doing<T> {
    /// `action` reads as "could not {action}".
    fn doing(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { action: action(), source })
    }
}

impl<T> Doing<T> for sqlx::Result<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Sql { action: action(), source })
    }
}
