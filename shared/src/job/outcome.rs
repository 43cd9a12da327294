//! How a run ends. Errors classify themselves; a handler just uses `?`.

use std::{error::Error, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a handler returns when its work is done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Success {
    /// What the client reads as `result`; at most 64 KiB of JSON.
    pub result: Option<Value>,
    /// The file that the job publishes with its success.
    pub file: Option<PublishedFile>,
}

impl Success {
    /// Done, with a result for the client.
    #[must_use]
    pub fn with(result: Value) -> Self {
        Self { result: Some(result), file: None }
    }
}

/// A file in object storage that becomes visible with the settle that finishes its job.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct PublishedFile {
    /// The object's key; it carries the claim's token, so no two runs write the same object.
    pub object_key: String,
    /// The name that a browser saves it under.
    pub file_name: String,
    /// Its media type.
    pub content_type: String,
    /// Its length.
    pub bytes: u64,
    /// The SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// When it is deleted.
    pub expires_at: DateTime<Utc>,
}

/// What kind of trouble a failure is; decides whether the job is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// May pass by itself: tried again with backoff.
    Transient,
    /// The other side said when to come back: tried again no sooner.
    Limited,
    /// Trying again can't help.
    Permanent,
}

/// A run that did not succeed, in words for the job's owner and with the chain of causes for the operator.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Whether trying again may help.
    pub class: FailureClass,
    /// Stable word for programs: `timeout`, `panic`, `payload_invalid`, `source_unavailable` …
    pub code: &'static str,
    /// One sentence for whoever built the product: what, where, and what to do. Never a secret, never a value of somebody's data.
    pub message: String,
    /// The same for the end user whose job it is, who knows nothing of servers and settings; the message will do where `None`.
    pub for_owner: Option<String>,
    /// What lay beneath, outermost first; for operators, not sent to end users.
    pub causes: Vec<String>,
    /// The pause that the other side asked for (`Retry-After`).
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// May pass: tried again by the kind's policy.
    #[must_use]
    pub fn transient(code: &'static str, message: impl Into<String>) -> Self {
        Self { class: FailureClass::Transient, code, message: message.into(), for_owner: None, causes: Vec::new(), retry_after: None }
    }

    /// Trying again can't help.
    #[must_use]
    pub fn permanent(code: &'static str, message: impl Into<String>) -> Self {
        Self { class: FailureClass::Permanent, ..Self::transient(code, message) }
    }

    /// The other side asked to come back after `pause`.
    #[must_use]
    pub fn limited(code: &'static str, message: impl Into<String>, pause: Duration) -> Self {
        Self { class: FailureClass::Limited, retry_after: Some(pause), ..Self::transient(code, message) }
    }

    /// Says it in other words to the end user whose job it is.
    #[must_use]
    pub fn for_owner(mut self, words: impl Into<String>) -> Self {
        self.for_owner = Some(words.into());
        self
    }

    /// Adds the chain of an error's causes: `error` itself first, then its sources, at most eight of 1,000 characters.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let (Some(cause), true) = (next, self.causes.len() < 8) {
            self.causes.push(cause.to_string().chars().take(1_000).collect());
            next = cause.source();
        }
        self
    }
}

/// Why a handler stopped short of success: it failed, or it wants to be called again later.
///
/// Everything that converts into a [`Failure`] converts into this, so a handler that may snooze still just uses `?`. One that
/// never does returns `Result<Success, Failure>`.
#[derive(Debug, Clone)]
pub enum Interrupt {
    /// It failed.
    Failed(Failure),
    /// Not now: call again after the pause. Uses no attempt; bounded by the kind's [`SnoozeBounds`](super::SnoozeBounds).
    Snoozed(Duration),
    /// The outward effect that it was about to have is switched off: call again when that is over. Bounded by nothing.
    SwitchedOff,
    /// It has paused its own kind for its tenant ([`crate::ledger::holds`]), since the outside takes none of it now: call again when that is
    /// over. Bounded by nothing.
    Paused,
    /// The circuit breaker of this name lets it call nobody now: call again when it does. Bounded by the kind's deadline and by
    /// [`crate::ledger::breakers::LONGEST_WAIT`].
    BreakerOpen(String),
    /// The same, and its own call was one of those for which the breaker stays open: counted among the job's snoozes, so that whoever has
    /// not failed goes before it.
    BreakerProbed(String),
}

// Not for `Interrupt` itself, which is no `Into<Failure>`: a snooze must not become a failure by a question mark.
impl<E: Into<Failure>> From<E> for Interrupt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// How a run ended, as settle writes it.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Done.
    Succeeded(Success),
    /// Not done; the class, the attempts left and a wish to cancel decide what follows.
    Failed(Failure),
    /// Its handler asks to be called again after the pause: no attempt used, bounded by the kind's policy.
    Snoozed(Duration),
    /// The engine can't run it now and looks again after the pause: no attempt used, and no concern of the policy.
    Deferred(Duration),
    /// It would have, or was about to have, an outward effect that is switched off: it waits for the switch. No attempt used.
    SwitchedOff,
    /// Somebody paused its queue, tenant or kind: it waits for that to be over. No attempt used.
    Paused,
    /// The circuit breaker of this name is open: it waits for that. No attempt used.
    BreakerOpen(String),
    /// The same, and its own call failed: it goes behind the others that wait, and it counts as a snooze. No attempt used.
    BreakerProbed(String),
    /// No more may start now, by a rate that it shares: it may ask again after the pause. No attempt used.
    Paced(Duration),
    /// Its `start_by` had passed when it was claimed; nothing ran.
    Expired,
    /// Its owner cancelled it and it stopped.
    Cancelled,
    /// Claimed and not run, or stopped by our own shutdown: returned to its queue; costs no attempt.
    HandedBack,
    /// The process of its own in which it ran died, in these words; costs no attempt, and comes to an end as poison.
    Died(String),
    /// It kept a thread of its worker for so long without letting go: returned to its queue, to run in a process of its own next.
    Stuck(Duration),
}

impl From<Result<Success, Interrupt>> for Outcome {
    fn from(result: Result<Success, Interrupt>) -> Self {
        match result {
            Ok(success) => Self::Succeeded(success),
            Err(Interrupt::Failed(failure)) => Self::Failed(failure),
            Err(Interrupt::Snoozed(pause)) => Self::Snoozed(pause),
            Err(Interrupt::SwitchedOff) => Self::SwitchedOff,
            Err(Interrupt::Paused) => Self::Paused,
            Err(Interrupt::BreakerOpen(breaker)) => Self::BreakerOpen(breaker),
            Err(Interrupt::BreakerProbed(breaker)) => Self::BreakerProbed(breaker),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a handler is written.
    fn handler(trouble: Option<Failure>, pause: Option<Duration>) -> Result<Success, Interrupt> {
        if let Some(failure) = trouble {
            Err(failure)?;
        }
        if let Some(pause) = pause {
            return Err(Interrupt::Snoozed(pause));
        }
        Ok(Success::default())
    }

    #[test]
    fn handlers_fail_by_a_question_mark_and_snooze_on_purpose() {
        assert!(matches!(Outcome::from(handler(None, None)), Outcome::Succeeded(_)));
        let failed = Outcome::from(handler(Some(Failure::permanent("gone", "it is gone")), None));
        assert!(matches!(failed, Outcome::Failed(Failure { code: "gone", class: FailureClass::Permanent, .. })));
        let pause = Duration::from_secs(7);
        assert!(matches!(Outcome::from(handler(None, Some(pause))), Outcome::Snoozed(asked) if asked == pause));
    }
}
