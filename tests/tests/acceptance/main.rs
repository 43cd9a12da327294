//! Acceptance tests: real processes, entered by HTTP, judged by the effect. One module a topic.

mod access;
mod admission;
mod batches;
mod chains;
mod client;
mod completions;
mod contract;
mod dead_letters;
mod drill;
mod events;
mod explain;
mod exports;
mod faults;
mod files;
mod jobs;
mod outcomes;
mod queues;
mod recovery;
mod refusals;
mod retention;
mod schedules;
mod storage;
mod switches;
mod uniqueness;
