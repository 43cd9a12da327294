//! The outside world, as handlers reach it: one concrete client each, with its own deadlines, and with errors that classify
//! themselves. Clients know nothing of jobs.

pub mod ai;
pub mod breaker;
pub mod callback;
mod cause;
pub mod mail;
pub mod outbound;
pub mod push;
pub mod source;
pub mod summary;
pub mod upload;
pub mod vendors;
pub mod webhook;

use std::sync::Arc;

use shared::{config::WorkerConfig, queue::Redis, storage::Storage};

use ai::Models;
use breaker::Breakers;
use callback::Callback;
use mail::Mailer;
use outbound::Outbound;
use push::Push;
use source::Sources;
use vendors::Vendors;
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
    pub mail: Mailer,
    /// Users' browsers.
    pub push: Push,
    /// Which providers are left alone for now.
    pub breakers: Breakers,
    /// Models.
    pub models: Models,
    /// Other people's services that statistics come from.
    pub vendors: Vendors,
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
            // An address that is none keeps the worker from starting, where it is read.
            breakers: Breakers::new(Redis::new(&config.redis.url, &config.redis.prefix).ok()),
            push: Push::new(config.push.keys.clone(), config.push.contact.clone(), Arc::clone(&outbound)),
            models: Models::new(Arc::clone(&outbound)),
            vendors: Vendors::new(&config.vendors, outbound),
        }
    }
}
