//! The worker's rooms. `main` puts them together; the benchmark measures the [`clients`] by themselves.
//!
//! [`engine`] (queues, runs, settles, recovers) calls [`handlers`] (how each kind is done), which call [`clients`] (the outside world);
//! beside it the [`scheduler`] makes jobs by the clock, the [`sweeper`] deletes what has had its time, and the
//! [`rollups`] keep what is counted of events. Arrows run one way.

pub mod clients;
pub mod drill;
pub mod engine;
pub mod handlers;
pub mod rollups;
pub mod scheduler;
pub mod sweeper;
