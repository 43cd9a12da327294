//! The outside world, as handlers reach it: one concrete client each, with its own deadlines, and with errors that classify
//! themselves. Clients know nothing of jobs.

pub mod callback;
pub mod source;
pub mod upload;

use shared::{config::WorkerConfig, storage::Storage};

use callback::Callback;
use source::Sources;

/// Every client, one for the process.
#[derive(Debug)]
pub struct Clients {
    /// Object storage; [`upload`] writes to it.
    pub storage: Storage,
    /// The databases that datasets are read from.
    pub sources: Sources,
    /// Observers of probes.
    pub callback: Callback,
}

impl Clients {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(config: &WorkerConfig) -> Self {
        Self { storage: Storage::new(&config.s3), sources: Sources::default(), callback: Callback::default() }
    }
}
