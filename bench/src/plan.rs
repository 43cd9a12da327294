//! What is run: the same numbers for everybody.

use std::time::Duration;

/// A payload's JSON, in bytes.
pub const BYTES: usize = 200;
/// Jobs that one worker process runs at a time.
pub const CONCURRENCY: usize = 100;
/// Jobs of one bulk call.
pub const BULK: usize = 1_000;
/// Bulk calls under way at a time.
pub const IN_FLIGHT_BULK: usize = 3;
/// Single calls, or connections, under way at a time.
pub const IN_FLIGHT_SINGLE: usize = 64;
/// Jobs a second of the pick-up figure.
pub const RATE: usize = 100;
/// Jobs that a pick-up begins with and does not count: connections open, caches fill.
pub const WARM_UP: usize = RATE;

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
    /// How long to wait for a calm machine before each run.
    pub patience: Duration,
}

impl Plan {
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

#[cfg(test)]
mod tests {
    #[test]
    fn a_payload_is_as_large_as_said() {
        let payload = super::payload();
        assert_eq!(payload.len(), super::BYTES);
        assert!(serde_json::from_str::<serde_json::Value>(&payload).unwrap().is_object());
    }
}
