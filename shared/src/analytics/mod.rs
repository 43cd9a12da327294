//! Numbers from events: what one event adds to a metric, how such additions are put together, and how they are shown by days of any zone.
//! Without I/O; what is stored of it is in [`crate::ledger::rollups`].
//!
//! ```text
//!  event ── Metric::observe ──▶ State ── merge ──▶ Bundle (a commit's)  ── merge ──▶ DayBody (96 buckets of a UTC day) ── merge ──▶ a local day, a week …
//! ```
//!
//! What must stay true: **merging is exact, and the order does not matter**. Whatever way events came (late, twice, in another order,
//! by another process), the same set of them makes the same bytes; so recomputing from raw events can be compared with what was added up,
//! and is. That is why sums are integers ([`decimal`]), histograms count in fixed bins ([`histogram`]) and uniques keep maxima
//! ([`uniques`]); see ADR 0012.

pub mod bundle;
pub mod calendar;
pub mod decimal;
mod encoding;
pub mod histogram;
pub mod observe;
pub mod range;
pub mod span;
pub mod state;
pub mod uniques;

use chrono::{DateTime, Utc};

pub use bundle::{Bundle, DayBody, Labels};
pub use calendar::{Granularity, Period};
pub use observe::{EventFacts, observe};
pub use span::{Span, SpanFault, SpanWords};
pub use state::{Shape, State};

/// The seconds of a base bucket: every zone's offset is a multiple of it (those of Kathmandu, +5:45, and Lord Howe, +10:30 and +11,
/// too), so every local hour and day is a whole number of buckets.
pub const BUCKET_SECONDS: i64 = 900;

/// The base buckets of a UTC day, which are kept in one row.
pub const BUCKETS_OF_DAY: i64 = 96;

/// Buckets of an hour.
pub(crate) const BUCKETS_OF_HOUR: u8 = 4;

/// The base bucket of a moment, counted from 1970.
#[must_use]
pub fn bucket_of(time: DateTime<Utc>) -> i64 {
    time.timestamp().div_euclid(BUCKET_SECONDS)
}

/// The UTC day of a bucket, counted from 1970.
#[must_use]
pub const fn day_of(bucket: i64) -> i64 {
    bucket.div_euclid(BUCKETS_OF_DAY)
}

/// When a bucket begins.
#[must_use]
pub fn bucket_start(bucket: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(bucket.saturating_mul(BUCKET_SECONDS), 0).unwrap_or_default()
}

/// Something stored can't be read: a newer program wrote it, or it is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored rollup can't be read by this version ({0}); upgrade it, or rebuild the metric")]
pub struct Unreadable(pub &'static str);
