//! When a schedule comes round.

use aws_lc_rs::digest;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    cron::Cron,
    zone::{self, Zone},
};

/// When a schedule comes round.
#[derive(Clone, Debug, PartialEq)]
pub enum Timing {
    /// By a cron expression, on the clock of a zone.
    Cron {
        /// The expression.
        cron: Box<Cron>,
        /// Whose clock.
        zone: Zone,
    },
    /// Evenly, whatever any clock shows.
    Interval {
        /// From one tick to the next; more than nothing.
        every: TimeDelta,
        /// The first tick.
        anchor: DateTime<Utc>,
    },
}

impl Timing {
    /// The first due time after a moment; `None` where none comes any more.
    #[must_use]
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Cron { cron, zone } => cron.next(zone, zone::timestamp(after)?).and_then(zone::moment),
            Self::Interval { anchor, .. } if after < *anchor => Some(*anchor),
            Self::Interval { every, anchor } => {
                let (every, since) = (every.num_microseconds()?, (after - anchor).num_microseconds()?);
                let passed = since.checked_div(every)?;
                anchor.checked_add_signed(TimeDelta::microseconds(passed.checked_add(1)?.checked_mul(every)?))
            }
        }
    }

    /// A moment as a person reads it: on the clock of the schedule's zone.
    #[must_use]
    pub fn local(&self, at: DateTime<Utc>) -> DateTime<chrono::FixedOffset> {
        match self {
            Self::Cron { zone, .. } => zone.local(at),
            Self::Interval { .. } => at.fixed_offset(),
        }
    }
}

/// How long after its due time a tick's job is due, from nothing to `most`: so that what is planned for the same minute does not fall on
/// one moment. It follows from the tick alone.
#[must_use]
pub fn jitter(schedule: Uuid, due: DateTime<Utc>, most: TimeDelta) -> TimeDelta {
    let mut of = schedule.as_bytes().to_vec();
    of.extend(due.timestamp_micros().to_be_bytes());
    let hash = digest::digest(&digest::SHA256, &of);
    let number = hash.as_ref().iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let most = u64::try_from(most.num_milliseconds()).unwrap_or(0);
    // The remainder favours small numbers by less than one in ten million million.
    TimeDelta::milliseconds(i64::try_from(number % (most + 1)).unwrap_or(0))
}
