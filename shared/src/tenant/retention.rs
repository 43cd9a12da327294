//! How long finished jobs are kept: what a manifest says of it, and what holds where it says nothing.
//!
//! ```toml
//! [retention]                             # all kinds
//! keep_days = 30
//! unsuccessful_keep_days = 90             # what failed, was cancelled or expired
//!
//! [retention.kinds."export.create"]       # one kind; what it leaves out is as above
//! keep_count = 1000                       # the newest, and none older than keep_days
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The longest that can be asked for, in days: ten years.
const MOST_DAYS: u32 = 3_650;

/// The most that can be asked for by number. Finding the oldest of them reads them all.
const MOST_COUNT: u32 = 1_000_000;

/// How long finished jobs of a kind are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Those that succeeded.
    pub succeeded: Keep,
    /// Those that failed, were cancelled or expired.
    pub unsuccessful: Keep,
}

impl Retention {
    /// Kept by age alone.
    #[must_use]
    pub const fn days(succeeded: u32, unsuccessful: u32) -> Self {
        Self { succeeded: Keep { days: succeeded, count: None }, unsuccessful: Keep { days: unsuccessful, count: None } }
    }
}

/// How long, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Days since they ended.
    pub days: u32,
    /// Only so many, the newest; all of that age where `None`.
    pub count: Option<u32>,
}

/// What a manifest says of one kind, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeepDeclaration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_days: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_count: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsuccessful_keep_days: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsuccessful_keep_count: Option<u32>,
}

impl KeepDeclaration {
    fn over(self, else_kept: Retention) -> Retention {
        let Retention { succeeded, unsuccessful } = else_kept;
        Retention {
            succeeded: Keep { days: self.keep_days.unwrap_or(succeeded.days), count: self.keep_count.or(succeeded.count) },
            unsuccessful: Keep {
                days: self.unsuccessful_keep_days.unwrap_or(unsuccessful.days),
                count: self.unsuccessful_keep_count.or(unsuccessful.count),
            },
        }
    }

    /// The fields that are out of range, and why.
    fn faults(self) -> impl Iterator<Item = (&'static str, String)> {
        [
            ("keep_days", self.keep_days, MOST_DAYS),
            ("keep_count", self.keep_count, MOST_COUNT),
            ("unsuccessful_keep_days", self.unsuccessful_keep_days, MOST_DAYS),
            ("unsuccessful_keep_count", self.unsuccessful_keep_count, MOST_COUNT),
        ]
        .into_iter()
        .filter_map(|(field, value, most)| {
            let wrong = value.filter(|value| !(1..=most).contains(value))?;
            Some((field, format!("is {wrong}; 1 to {most} are allowed")))
        })
    }
}

/// The section `[retention]`. The fields of [`KeepDeclaration`] once more: flattened, an unknown one would go unnoticed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RetentionDeclaration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_days: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_count: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsuccessful_keep_days: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsuccessful_keep_count: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    kinds: BTreeMap<String, KeepDeclaration>,
}

impl RetentionDeclaration {
    fn of_all(&self) -> KeepDeclaration {
        let Self { keep_days, keep_count, unsuccessful_keep_days, unsuccessful_keep_count, .. } = *self;
        KeepDeclaration { keep_days, keep_count, unsuccessful_keep_days, unsuccessful_keep_count }
    }

    /// What holds for a kind: the kind's own word, the tenant's, the installation's.
    pub(super) fn of(&self, kind: &str, installation: Retention) -> Retention {
        let of_tenant = self.of_all().over(installation);
        self.kinds.get(kind).map_or(of_tenant, |kind| kind.over(of_tenant))
    }

    /// The kinds that it names.
    pub(super) fn kinds(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    /// What is wrong, by its place below `retention`.
    pub(super) fn faults(&self) -> Vec<(Vec<String>, String)> {
        let all = self.of_all().faults().map(|(field, detail)| (vec![field.to_owned()], detail));
        let of_kinds = self.kinds.iter().flat_map(|(kind, keep)| {
            keep.faults().map(move |(field, detail)| (vec!["kinds".to_owned(), kind.clone(), field.to_owned()], detail))
        });
        all.chain(of_kinds).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_s_word_goes_before_its_tenant_s_and_that_before_the_installation_s() {
        let declared: RetentionDeclaration = toml::from_str(
            "keep_days = 30\nunsuccessful_keep_count = 50\n[kinds.\"email.send\"]\nkeep_days = 7\nkeep_count = 100\n[kinds.\"ai.run\"]\nunsuccessful_keep_days = 5\n",
        )
        .unwrap();
        let installation = Retention::days(90, 180);
        let keep = |kind| {
            let Retention { succeeded, unsuccessful } = declared.of(kind, installation);
            ((succeeded.days, succeeded.count), (unsuccessful.days, unsuccessful.count))
        };
        assert_eq!(keep("email.send"), ((7, Some(100)), (180, Some(50))));
        assert_eq!(keep("ai.run"), ((30, None), (5, Some(50))));
        assert_eq!(keep("export.create"), ((30, None), (180, Some(50))));
        assert_eq!(RetentionDeclaration::default().of("ai.run", installation), installation);
    }
}
