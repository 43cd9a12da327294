//! What can go wrong in a benchmark. Nothing here is retried: a run that failed is no figure.

/// The one error of this program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The miniature world did not come up or did not do as told.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] shared::ledger::LedgerError),
    /// The queues.
    #[error(transparent)]
    Queue(#[from] shared::queue::QueueError),
    /// The database was asked directly.
    #[error("the database refused a question of the benchmark's")]
    Database(#[from] sqlx::Error),
    /// A file, a socket or a process.
    #[error("could not {action}")]
    Machine {
        /// What was tried, as a verb with its object.
        action: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// HTTP to the API.
    #[error("a request to the API failed")]
    Http(#[from] hyper::Error),
    /// Something answered what it should not have.
    #[error("{0}")]
    Unexpected(String),
}

/// What fallible functions of this program return.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the action that an I/O error interrupted.
pub trait Doing<T> {
    /// `action` reads as "could not {action}".
    fn doing(self, action: impl Into<String>) -> Result<T>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Machine { action: action.into(), source })
    }
}
