//! Which of a schedule's due ticks run, when somebody looks.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Missed, Timing};

/// A tick that is found later than this after its due time was missed. Replicas look every second, so it takes an outage; a busy
/// minute makes a tick late and no more.
pub const MISSED_AFTER: TimeDelta = TimeDelta::seconds(60);

/// The most missed ticks that [`Missed::All`] lets run, the newest.
pub const MOST_CAUGHT_UP: usize = 100;

/// Due times that one round looks at. A long absence takes several rounds.
const LOOKED_AT: usize = 400;

/// What one look at a due schedule brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Due times that do not run, all before those that do.
    pub skipped: Option<Skipped>,
    /// Due times that run, in their order.
    pub run: Vec<DateTime<Utc>>,
    /// Whether any was missed, whatever became of it.
    pub missed: bool,
    /// When to look again; `None` where nothing comes any more.
    pub next: Option<DateTime<Utc>>,
}

/// Missed in a row, and not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skipped {
    /// The first due time.
    pub first: DateTime<Utc>,
    /// The last.
    pub last: DateTime<Utc>,
    /// How many there were.
    pub count: usize,
}

/// Looks at a schedule whose next tick is due at `next`.
#[must_use]
pub fn round(timing: &Timing, policy: Missed, next: DateTime<Utc>, now: DateTime<Utc>) -> Round {
    let mut due = Vec::new();
    let mut coming = Some(next);
    while let Some(at) = coming.filter(|at| *at <= now && due.len() < LOOKED_AT) {
        due.push(at);
        coming = timing.next(at);
    }
    let missed = due.first().is_some_and(|first| now - *first > MISSED_AFTER);
    let has_more = coming.is_some_and(|coming| coming <= now);
    let kept = if has_more {
        // So many follow that all these are missed; which of the newest run is for the round that sees the last of them.
        MOST_CAUGHT_UP
    } else {
        let in_time = due.iter().filter(|at| now - **at <= MISSED_AFTER).count();
        match policy {
            Missed::Skip => in_time,
            Missed::Latest => in_time.max(1),
            Missed::All => in_time.max(MOST_CAUGHT_UP),
        }
    };
    let run = due.split_off(due.len().saturating_sub(kept));
    let skipped = match (due.first(), due.last()) {
        (Some(first), Some(last)) => Some(Skipped { first: *first, last: *last, count: due.len() }),
        _ => None,
    };
    if has_more {
        let next = run.first().copied();
        return Round { skipped, run: Vec::new(), missed, next };
    }
    Round { skipped, run, missed, next: coming }
}
