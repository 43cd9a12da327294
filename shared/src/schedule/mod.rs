//! Schedules: what makes jobs by the clock, whether a client or a manifest asked for it. What one says ([`Definition`]), when it comes
//! round ([`Timing`]) and which of its ticks run ([`round`]). No I/O here; `crate::ledger::schedule` keeps them.
//!
//! What must stay true: everything here follows from a schedule and a moment of business time, so every replica comes to the same ticks,
//! and a crash changes none: not even the jitter of a tick, which comes from its own due time.

mod cron;
mod definition;
mod round;
#[cfg(test)]
mod tests;
mod timing;
mod zone;

pub use definition::{Definition, check_name};
pub use round::{MISSED_AFTER, MOST_CAUGHT_UP, Round, Skipped, round};
pub use timing::{Timing, jitter};
pub use zone::Zone;
pub(crate) use zone::{moment, timestamp};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most schedules of a tenant.
pub const MOST_SCHEDULES: i64 = 1_000;

/// The most ticks of one schedule that wait for the job before them to end; further ones are skipped.
pub const MOST_QUEUED: i32 = 100;

/// What becomes of ticks that nobody handled in time, because no worker ran: those found more than a minute late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ScheduleMissed)]
pub enum Missed {
    /// They do not run.
    Skip,
    /// The last one runs, unless one came since that is in time.
    #[default]
    Latest,
    /// All run, in their order, but no more than the newest hundred.
    All,
}

/// What becomes of a tick while the job of one before it has not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ScheduleOverlap)]
pub enum Overlap {
    /// Its job is made all the same.
    #[default]
    Allow,
    /// It does not run.
    Skip,
    /// Its job is made when the one before has ended; at most a hundred wait, further ones do not run.
    Queue,
}

/// What became of a tick. The numeric codes stand in Postgres and are permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ScheduleTickOutcome)]
pub enum TickOutcome {
    /// A job was made.
    Job,
    /// It waits for the job of the tick before to end.
    Queued,
    /// It did not run, since the job of the tick before had not ended.
    SkippedOverlap,
    /// It was missed and did not run.
    SkippedMissed,
    /// It was found when it was no longer worth starting.
    TooLate,
    /// No job could be made; `detail` says why.
    Refused,
}

impl TickOutcome {
    /// Every outcome, in the order of its code.
    pub const ALL: [Self; 6] = [Self::Job, Self::Queued, Self::SkippedOverlap, Self::SkippedMissed, Self::TooLate, Self::Refused];

    /// The number that stands for it in Postgres.
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Self::Job => 0,
            Self::Queued => 1,
            Self::SkippedOverlap => 2,
            Self::SkippedMissed => 3,
            Self::TooLate => 4,
            Self::Refused => 5,
        }
    }

    /// The outcome of a code; `None` for one that a newer program wrote.
    #[must_use]
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.code() == code)
    }

    /// Its word in answers and figures.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Queued => "queued",
            Self::SkippedOverlap => "skipped_overlap",
            Self::SkippedMissed => "skipped_missed",
            Self::TooLate => "too_late",
            Self::Refused => "refused",
        }
    }
}
