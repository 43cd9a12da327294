//! The vocabulary of a job's life: states, reasons to wait, priorities, policy, outcomes. No I/O here.
//!
//! The numeric codes are what stands in Postgres (`migrations/`); they are permanent.

mod next;
mod options;
mod outcome;
mod policy;

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub use next::{DEEPEST, MOST_NEXT, MOST_NEXT_IN_ALL, Next, Parent, Unique};
pub use options::{Limit, Options, Rate, ScheduledBy};
pub use outcome::{Failure, FailureClass, Interrupt, Outcome, PublishedFile, Success};
pub use policy::{Backoff, Policy, SnoozeBounds};

/// A job's id: a `UUIDv7`, so ids sort by time of creation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Declares an enum whose members stand in Postgres as a small number and in JSON as a word.
macro_rules! coded {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $member:ident = $code:literal, $word:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$doc])* $member,)+ }

        impl $name {
            /// Every member, in the order of its code.
            pub const ALL: &'static [Self] = &[$(Self::$member,)+];

            /// The number that stands for this in Postgres.
            #[must_use]
            pub const fn code(self) -> i16 {
                match self { $(Self::$member => $code,)+ }
            }

            /// The member of a code; `None` for a code that this program does not know (a newer program wrote it).
            #[must_use]
            pub const fn from_code(code: i16) -> Option<Self> {
                match code { $($code => Some(Self::$member),)+ _ => None }
            }

            /// The word that clients see.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$member => $word,)+ }
            }

            /// The member of a client's word.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$member),)+ _ => None }
            }
        }
    };
}

coded! {
    /// Where a job is in its life.
    State {
        /// Accepted, not yet in its queue's stream: see the [`Reason`].
        Waiting = 0, "waiting";
        /// Handed to its queue's stream.
        Queued = 1, "queued";
        /// Claimed by a worker.
        Running = 2, "running";
        /// Finished as it should.
        Succeeded = 3, "succeeded";
        /// Out of attempts, or failed for good: the dead letter.
        Failed = 4, "failed";
        /// Cancelled before it succeeded.
        Cancelled = 5, "cancelled";
        /// Not started by its `start_by`.
        Expired = 6, "expired";
    }
}

impl State {
    /// Whether nothing more happens to the job by itself.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired)
    }
}

coded! {
    /// Why a job is waiting.
    Reason {
        /// It is not waiting.
        None = 0, "none";
        /// Its `run_at` has not come.
        NotDue = 1, "not_due";
        /// It failed in passing and runs again at `run_at`.
        BackingOff = 2, "backing_off";
        /// Its queue's stream is full for now; it stands in the backlog.
        Window = 3, "window";
        /// Its handler, or the worker, asked to be called again later; that used no attempt.
        Snoozed = 4, "snoozed";
        /// An operator has switched outward effects off that it would have; it goes on once they are on again.
        SwitchedOff = 5, "switched_off";
        /// Its key allows no more to run, or to start, at the moment.
        Limited = 6, "limited";
        /// Somebody paused its queue, its tenant or its kind; it goes on once that is over.
        Paused = 7, "paused";
        /// The provider that it calls is left alone for now: its circuit breaker is open. It goes on once that lets it through.
        BreakerOpen = 8, "breaker_open";
    }
}

coded! {
    /// Which of a queue's streams carries the job.
    Priority {
        /// Before the others.
        High = 0, "high";
        /// The default.
        Normal = 1, "normal";
        /// After the others, but never starved.
        Low = 2, "low";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_words_lead_back() {
        for state in State::ALL {
            assert_eq!(State::from_code(state.code()), Some(*state));
            assert_eq!(State::from_word(state.word()), Some(*state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.word());
        }
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.word());
        }
        for priority in Priority::ALL {
            assert_eq!(Priority::from_code(priority.code()), Some(*priority));
            assert_eq!(serde_json::to_value(priority).unwrap(), priority.word());
        }
        assert_eq!(State::from_code(99), None);
    }
}
