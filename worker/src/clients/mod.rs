//! The outside world, as handlers reach it: one concrete client each, with its own deadlines, and with errors that classify
//! themselves. Clients know nothing of jobs.

pub mod callback;
mod cause;
#[cfg_attr(not(test), expect(dead_code, reason = "the kinds that send mail come next"))]
pub mod mail;
pub mod outbound;
#[cfg_attr(not(test), expect(dead_code, reason = "the kinds that push come next"))]
pub mod push;
pub mod source;
pub mod upload;
pub mod webhook;

use std::sync::Arc;

use shared::{config::WorkerConfig, storage::Storage};

use callback::Callback;
use mail::Mailer;
use outbound::Outbound;
use push::Push;
use source::Sources;
use webhook::Webhook;

/// Every client, one for the process.
#[derive(Debug)]
pub struct Clients {
    /// Object storage; [`upload`] writes to it.
    pub storage: Storage,
    /// The databases that datasets are read from.
    pub sources: Sources,
    /// Observers of probes.
    pub callback: Callback,
    /// Endpoints of tenants' choice.
    pub webhook: Webhook,
    /// Users' mailboxes.
    #[expect(dead_code, reason = "the kinds that send mail come next")]
    pub mail: Mailer,
    /// Users' browsers.
    #[expect(dead_code, reason = "the kinds that push come next")]
    pub push: Push,
}

impl Clients {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(config: &WorkerConfig) -> Self {
        let outbound = Arc::new(Outbound::new(config.outbound.clone()));
        Self {
            storage: Storage::new(&config.s3),
            sources: Sources::default(),
            callback: Callback::new(Arc::clone(&outbound)),
            webhook: Webhook::new(config.signing_keys.clone(), Arc::clone(&outbound)),
            mail: Mailer::new(&config.mail),
            push: Push::new(config.push.keys.clone(), config.push.contact.clone(), outbound),
        }
    }
}
