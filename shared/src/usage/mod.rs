//! Metering: how much of a metric users and the product as a whole have used, and may yet use. The one part of the house that does so,
//! whatever the metric.
//!
//! ```text
//!  accept    the worst case is reserved with the job, or the request is refused      counter += most     usage_reservation
//!  run       what was really used is noted beside the reservation                                        actual
//!  end       in the transaction that ends the job: charged what was used             counter -= rest     usage_charge
//!  sweep     a reservation whose job has ended without it, or is gone, lapses        the same
//! ```
//!
//! What must stay true, whatever crashes or races: a counter is the sum of the reservations and charges that name it (the view
//! `usage_drift` shows any that is not); it does not pass its limit by a reservation; counters are locked in the order of their keys, and
//! before a job's other keys (its idempotency key, its unique key, its limiting key); jobs without a meter come by none of it.
//!
//! Which limits there are is the manifest's word ([`crate::tenant::Plan`], [`crate::tenant::UsageDeclaration`]); a period is a stretch of
//! the calendar in the product's time zone ([`span`]), and an amount counts in the periods of the moment in which it was reserved.

pub mod accept;
pub mod calls;
mod line;
mod own_keys;
pub mod read;
pub mod reserve;
pub mod settle;
mod span;

use serde::{Deserialize, Serialize};

pub use line::{Line, Standing, lines};
pub use reserve::Refused;
pub use span::Span;

use crate::{byok::Vendor, tenant::Period};

/// The scope of a product as a whole; every other one is a user's name.
pub const PRODUCT: &str = "";

/// What calls of AI models cost, in millionths of the currency of the product's prices: a metric like any other.
pub const AI_COST: &str = "ai_cost";

/// What a job may use of a metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// The metric.
    pub metric: String,
    /// The most that it may come to.
    pub amount: u64,
    /// Whether it is charged as it was used, however the job ends, as money is; otherwise it is charged as it stands here, and only where
    /// the job succeeds.
    pub incurred: bool,
    /// Not charged where the job's owner has a key of their own for this provider: they pay themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unless_own_key: Option<Vendor>,
}

impl Charge {
    /// For a success.
    #[must_use]
    pub fn of(metric: impl Into<String>, amount: u64) -> Self {
        Self { metric: metric.into(), amount, incurred: false, unless_own_key: None }
    }

    /// As it is used, at most so much.
    #[must_use]
    pub fn incurred(metric: impl Into<String>, most: u64) -> Self {
        Self { metric: metric.into(), amount: most, incurred: true, unless_own_key: None }
    }
}

/// The number that stands for a period in Postgres. Permanent.
#[must_use]
pub const fn code_of(period: Period) -> i16 {
    match period {
        Period::Hour => 0,
        Period::Day => 1,
        Period::Month => 2,
        Period::Total => 3,
    }
}

/// The period of a number.
#[must_use]
pub const fn period_of(code: i16) -> Option<Period> {
    match code {
        0 => Some(Period::Hour),
        1 => Some(Period::Day),
        2 => Some(Period::Month),
        3 => Some(Period::Total),
        _ => None,
    }
}

/// The most that is counted of anything: what is larger counts as this. The statements that add up keep to it as well
/// (`migrations/20261122310000_sums_have_a_bound.sql`), so that one more never passes what a `bigint` holds.
pub const MOST: u64 = 4_000_000_000_000_000_000;

/// Amounts are kept as Postgres' `bigint`; what is larger than [`MOST`] counts as that.
fn amount_of(amount: u64) -> i64 {
    i64::try_from(amount.min(MOST)).unwrap_or(i64::MAX)
}
