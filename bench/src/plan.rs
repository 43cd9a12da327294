//! What is run: the same numbers for everybody.

use std::time::Duration;

/// A payload's JSON, in bytes.
pub const BYTES: usize = 200;
/// Jobs that one worker process runs at a time.
pub const CONCURRENCY: usize = 100;
/// Jobs of one bulk call.
pub const BULK: usize = 1_000;
/// Bulk calls under way at a time.
pub const BULK_IN_FLIGHT: usize = 3;
/// Single calls, or connections, under way at a time.
pub const SINGLE_IN_FLIGHT: usize = 64;
/// Jobs a second of the pick-up figure.
pub const RATE: usize = 100;
/// Jobs that a pick-up begins with and does not count: connections open, caches fill.
pub const WARM_UP: usize = RATE;

/// Jobs that a worker process of the scaling figure runs at a time, each of which waits [`WAIT`]: at most 1,250 a second.
pub const SCALING_CONCURRENCY: usize = 25;
/// How long a job of the scaling figure waits, in milliseconds.
pub const WAIT: usize = 20;
/// Worker processes of the scaling figure.
pub const PROCESSES: [usize; 3] = [1, 2, 4];
/// Clients that poll once a second, and the jobs that run meanwhile.
pub const POLLERS: usize = 900;
/// Jobs a second that run while clients poll.
pub const POLLED_RATE: usize = 500;
/// Listeners to single jobs.
pub const LISTENERS: usize = 5_000;
/// Jobs whose end is told a second.
pub const CHANGES: usize = 100;

/// Browsers that pushes go to in turn.
pub const BROWSERS: usize = 100;
/// Browsers of one user where a job pushes to many: as many as a user may have.
pub const BROWSERS_OF_ONE: usize = 20;
/// Connections that a mailer keeps to one server, ours by default.
pub const MAIL_CONNECTIONS: usize = 10;

/// Users whom one notification is told to.
pub const FOLLOWERS: usize = 100_000;

/// The part of the machine that others may use before a run counts as disturbed.
pub const DISTURBED: f64 = 0.10;
/// How often a disturbed run is made again before it counts as it is.
pub const AGAIN: u32 = 2;

/// How much.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Jobs of the drain and of each enqueue.
    pub jobs: usize,
    /// Seconds of the pick-up.
    pub seconds: usize,
    /// Runs of each figure.
    pub rounds: usize,
    /// Finished jobs that growth loads.
    pub finished: usize,
    /// How long to wait for a calm machine before each run.
    pub patience: Duration,
}

impl Plan {
    /// Small numbers show that all works, and nothing else.
    #[must_use]
    pub const fn small(&self) -> bool {
        self.jobs < 10_000
    }

    /// Seconds of what lasts as long as one likes.
    #[must_use]
    pub const fn short(&self) -> usize {
        self.seconds.div_ceil(2)
    }

    /// Pushes, and mails.
    #[must_use]
    pub const fn messages(&self) -> usize {
        self.jobs.div_ceil(5)
    }

    /// Listeners, clients that poll: as many as said, fewer where all is small.
    #[must_use]
    pub const fn crowd(&self, wanted: usize) -> usize {
        if self.small() { wanted / 50 } else { wanted }
    }

    /// Jobs of the pick-up, the warm-up included.
    #[must_use]
    pub const fn paced(&self) -> usize {
        WARM_UP + self.seconds * RATE
    }
}

/// The payload as JSON text: `{"pad":"xxx…"}`.
#[must_use]
pub fn payload() -> String {
    let pad = "x".repeat(BYTES - r#"{"pad":""}"#.len());
    format!(r#"{{"pad":"{pad}"}}"#)
}

/// The payload of a job that waits for [`WAIT`], as JSON text.
#[must_use]
pub fn waiting_payload() -> String {
    format!(r#"{{"sleep_ms":{WAIT}}}"#)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_payload_is_as_large_as_said() {
        let payload = super::payload();
        assert_eq!(payload.len(), super::BYTES);
        assert!(serde_json::from_str::<serde_json::Value>(&payload).unwrap().is_object());
    }
}
