//! A job as it was last read, shared by all who follow it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use shared::{
    clock::Clock,
    kinds::Registry,
    ledger::{find::FoundJob, links::LinkHash},
    status::{Job, Reader},
};

/// A job as it was last read, shared by all who follow it.
#[derive(Debug)]
pub struct Seen {
    /// The job; without its payload.
    pub job: FoundJob,
    /// The addresses that lead to it; `None` where nobody follows it by one.
    pub links: Option<Vec<LinkHash>>,
    rendered: [OnceLock<Bytes>; 4],
}

impl Seen {
    /// Of what was read.
    #[must_use]
    pub fn new(job: FoundJob, links: Option<Vec<LinkHash>>) -> Self {
        Self { job, links, rendered: Default::default() }
    }

    /// The job's view as JSON, made once for all readers of a sort; without its result where `brief`.
    #[must_use]
    pub fn view(&self, kinds: &Registry, clock: &Clock, reader: Reader, brief: bool) -> Bytes {
        let sort = usize::from(reader == Reader::User) + 2 * usize::from(brief);
        let make = || {
            let mut job = self.job.clone();
            if brief {
                job.result = None;
            }
            // A view is strings and numbers: nothing in it that JSON can't hold.
            serde_json::to_vec(&Job::of(job, None, kinds, clock.now(), reader)).unwrap_or_default().into()
        };
        self.rendered.get(sort).map_or_else(make, |rendered| rendered.get_or_init(make).clone())
    }
}

/// What is known of a job that is followed.
#[derive(Debug, Clone, Default)]
pub enum Latest {
    /// It has not been read yet.
    #[default]
    Unread,
    /// It was read.
    Seen(Arc<Seen>),
    /// It has been removed.
    Gone,
}
