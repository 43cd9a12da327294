//! `[events]`: how long what products tell of themselves is kept.

use serde::{Deserialize, Serialize};

/// The longest that raw events are kept, in days.
pub const MOST_DAYS: u32 = 800;

/// How long raw events are kept where the manifest says nothing.
const KEEP_DAYS: u32 = 90;

/// The section `[events]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsDeclaration {
    /// For how many days events are kept, by their time. One that is older is not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_days: Option<u32>,
    /// For how many days what was counted of them is kept; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_rollups_days: Option<u32>,
}

impl EventsDeclaration {
    /// For how many days events are kept.
    #[must_use]
    pub fn keep_days(self) -> u32 {
        self.keep_days.unwrap_or(KEEP_DAYS)
    }

    /// For how many days what was counted of them is kept; `None`: for ever.
    #[must_use]
    pub const fn keep_rollups_days(self) -> Option<u32> {
        self.keep_rollups_days
    }

    pub(in crate::tenant) fn faults(self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let days = self.keep_days();
        if !(1..=MOST_DAYS).contains(&days) {
            faults.push(("keep_days", format!("is {days}; 1 to {MOST_DAYS} are allowed")));
        }
        if let Some(rollups) = self.keep_rollups_days.filter(|rollups| *rollups < days || *rollups > 36_500) {
            faults
                .push(("keep_rollups_days", format!("is {rollups}; {days} (`keep_days`) to 36500 are allowed, or leave it out: for ever")));
        }
        faults
    }
}
