//! Acceptance tests: real processes, entered by HTTP, judged by the effect. One module a topic.

mod jobs;
mod outcomes;
mod recovery;
