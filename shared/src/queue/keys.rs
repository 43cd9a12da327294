//! Every name we use in Redis, in one place.
//!
//! | name | what | lost when emptied |
//! |---|---|---|
//! | `{prefix:queue}:first`, `:high`, `:normal`, `:low` | streams of a queue's jobs, by [`Lane`]; field `j` = the job's id, 16 bytes; group `workers` | pushed again by recovery |
//! | `{prefix:queue}:canary:<worker>` | stream of a worker's own canaries; field `c` = its mark, 8 bytes; expires after a minute | sent again within 5 s |
//! | `prefix:rate:start:<name>`, `:dispatch:<name>` | when a rate's next start is due, in microseconds; expires with it | one burst more than the rate allows |
//! | `{prefix:breaker:<name>}` | hash: where a circuit breaker stands, its window of calls, its probe; expires three hours after its last change | the breaker is closed, and opens anew as the calls fail |
//! | `prefix:wake` | channel: a queue has work that its dispatcher should look at | the dispatcher looks by itself every 5 s |
//! | `prefix:changes` | channel: these jobs changed (16 bytes each) | listeners re-read |
//! | `prefix:accepted` | channel: these jobs are new (16 bytes each) | listeners to all jobs take a new picture every half minute |
//! | `prefix:breakers` | channel: this circuit breaker changed (its name) | who uses it looks every 2 s |
//! | `prefix:words:<job>` | stream of what a model says in a job; expires ten minutes after the last word | who follows gets the whole at the end |
//! | `prefix:said` | channel: words were added (a job's 16 bytes) | followers look every second |
//! | `prefix:cancels` | channel: these running jobs are to be cancelled (16 bytes each) | the next heartbeat brings it |
//!
//! The braces make one Cluster slot of a queue's streams, so one command may read them all.

use crate::{
    job::{JobId, Priority},
    queue::Queue,
};

/// The consumer group that all workers of a queue read as.
pub const GROUP: &str = "workers";

/// The field of an entry that carries the job's id.
pub const JOB_FIELD: &str = "j";

/// The field of a canary that carries its sender's mark.
pub const CANARY_FIELD: &str = "c";

/// Which of a queue's streams carries a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Of those who have hardly anything in hand: read beside the others, by a reader of its own, so that nobody waits behind
    /// somebody else's many. Each tenant may have a few in it.
    First,
    /// High priority.
    High,
    /// Normal priority.
    Normal,
    /// Low priority.
    Low,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 4] = [Self::First, Self::High, Self::Normal, Self::Low];

    /// The lane of a priority.
    #[must_use]
    pub const fn of(priority: Priority) -> Self {
        match priority {
            Priority::High => Self::High,
            Priority::Normal => Self::Normal,
            Priority::Low => Self::Low,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// The names under one prefix, so that several installations can share a Redis.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The stream of one of a queue's lanes.
    #[must_use]
    pub fn stream(&self, queue: Queue, lane: Lane) -> String {
        format!("{{{}:{}}}:{}", self.prefix, queue.name(), lane.word())
    }

    /// The streams of a queue, in the order of [`Lane::ALL`].
    #[must_use]
    pub fn streams(&self, queue: Queue) -> [String; 4] {
        Lane::ALL.map(|lane| self.stream(queue, lane))
    }

    /// The stream of one worker's canaries beside a queue.
    #[must_use]
    pub fn canary(&self, queue: Queue, worker: &str) -> String {
        format!("{{{}:{}}}:canary:{worker}", self.prefix, queue.name())
    }

    /// Where a rate is counted, at one of the two places where it is asked.
    #[must_use]
    pub fn rate(&self, place: &str, name: &str) -> String {
        format!("{}:rate:{place}:{name}", self.prefix)
    }

    /// Where a circuit breaker stands.
    #[must_use]
    pub fn breaker(&self, name: &str) -> String {
        format!("{{{}:breaker:{name}}}", self.prefix)
    }

    /// The channel that tells of changed circuit breakers.
    #[must_use]
    pub fn breakers(&self) -> String {
        format!("{}:breakers", self.prefix)
    }

    /// The channel that wakes dispatchers.
    #[must_use]
    pub fn wake(&self) -> String {
        format!("{}:wake", self.prefix)
    }

    /// The channel that tells of changed jobs.
    #[must_use]
    pub fn changes(&self) -> String {
        format!("{}:changes", self.prefix)
    }

    /// The channel that tells of new jobs. Another one than that of changes: who put a job into a stream waits for its first change.
    #[must_use]
    pub fn accepted(&self) -> String {
        format!("{}:accepted", self.prefix)
    }

    /// What a model says in a job.
    #[must_use]
    pub fn words(&self, job: JobId) -> String {
        format!("{}:words:{job}", self.prefix)
    }

    /// The channel that tells that words were added.
    #[must_use]
    pub fn said(&self) -> String {
        format!("{}:said", self.prefix)
    }

    /// The channel that tells of running jobs to cancel.
    #[must_use]
    pub fn cancels(&self) -> String {
        format!("{}:cancels", self.prefix)
    }
}
