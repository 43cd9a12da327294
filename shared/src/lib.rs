//! What the API and the worker must agree on: the contract of every job kind, the ledger in Postgres, the queues in Redis,
//! and the settings both read. A module enters here when both sides need it; nothing here knows HTTP or a handler.

pub mod analytics;
pub mod byok;
pub mod clock;
pub mod config;
pub mod content;
pub mod job;
pub mod keys;
pub mod kinds;
pub mod ledger;
pub mod mail;
pub mod notification;
pub mod outbound;
pub mod people;
pub mod push;
pub mod queue;
pub mod random;
pub mod schedule;
pub mod shutdown;
pub mod signing;
pub mod statistic;
pub mod status;
pub mod storage;
pub mod telemetry;
pub mod tenant;
pub mod tokens;
pub mod usage;
pub mod vault;
