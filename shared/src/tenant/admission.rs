//! What a tenant lets in: kinds that are switched on step by step, how much may wait, batches.
//!
//! ```toml
//! [limits]
//! backlog = 200000                # jobs that may wait; else OFFSTAGE_BACKLOG
//! batches = false                 # no batch calls
//!
//! [kinds."ai.run"]
//! enabled = true
//! share = 10                      # for 10 of 100 users, always the same ones
//! idempotency_hours = 72          # how long a key is remembered; else the kind's word, else OFFSTAGE_IDEMPOTENCY_HOURS
//! ```

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

/// The largest backlog that can be allowed.
const MOST_BACKLOG: u64 = 100_000_000;

/// The longest window of idempotency keys, in hours: that of the installation's setting.
const MOST_HOURS: u64 = 24 * 30;

/// The section `[limits]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LimitsDeclaration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) backlog: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) batches: Option<bool>,
}

impl LimitsDeclaration {
    /// What is wrong, by its field.
    pub(super) fn faults(self) -> Vec<(&'static str, String)> {
        let wrong = self.backlog.filter(|backlog| !(1..=MOST_BACKLOG).contains(backlog));
        wrong.map(|backlog| ("backlog", format!("is {backlog}; 1 to {MOST_BACKLOG} are allowed"))).into_iter().collect()
    }
}

/// What the manifest says of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KindDeclaration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) idempotency_hours: Option<u64>,
    /// Not yet: said clearly rather than as an unknown field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plans: Option<Vec<String>>,
}

impl KindDeclaration {
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if let Some(share) = self.share.filter(|share| *share > 100) {
            faults.push(("share", format!("is {share}; 0 to 100 are allowed, of 100 users")));
        }
        if let Some(hours) = self.idempotency_hours.filter(|hours| !(1..=MOST_HOURS).contains(hours)) {
            faults.push(("idempotency_hours", format!("is {hours}; 1 to {MOST_HOURS} are allowed")));
        }
        if self.plans.is_some() {
            let detail = "can't be asked yet: users are not assigned to plans in this version; use `enabled` and `share`";
            faults.push(("plans", detail.to_owned()));
        }
        faults
    }

    /// Whether it is on for an owner's jobs. A job without an owner is the backend's own: no share concerns it.
    fn is_on(&self, kind: &str, owner: Option<&str>) -> Result<(), NotEnabled> {
        if self.enabled == Some(false) {
            return Err(NotEnabled::ForTenant);
        }
        match (self.share, owner) {
            (Some(share), Some(owner)) if percentile(kind, owner) >= share => Err(NotEnabled::ForUser),
            _ => Ok(()),
        }
    }
}

/// Why a kind may not be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotEnabled {
    /// It is switched off for the product.
    ForTenant,
    /// It is on for a share of its users, and not for this one.
    ForUser,
}

/// Whether a kind is on, by what the manifest says of kinds.
pub(super) fn is_on(kinds: &BTreeMap<String, KindDeclaration>, kind: &str, owner: Option<&str>) -> Result<(), NotEnabled> {
    kinds.get(kind).map_or(Ok(()), |declared| declared.is_on(kind, owner))
}

/// Where a user stands among a hundred, for a kind: always the same place, so that raising a share only adds users, and another
/// place for another kind, so that it is not always the same users who come first.
fn percentile(kind: &str, owner: &str) -> u64 {
    let hash = digest::digest(&digest::SHA256, format!("{kind}\n{owner}").as_bytes());
    let mut first = [0; 8];
    first.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    // The remainder favours the lower places by less than 1 in 10^17.
    u64::from_be_bytes(first) % 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_same_users_each_time_and_grows_by_adding() {
        let on = |share| {
            let declared = KindDeclaration { share: Some(share), ..KindDeclaration::default() };
            (0..10_000).filter(|user| declared.is_on("ai.run", Some(&format!("user-{user}"))).is_ok()).collect::<Vec<_>>()
        };
        let (none, tenth, fifth, all) = (on(0), on(10), on(20), on(100));
        assert!(none.is_empty() && all.len() == 10_000);
        assert!((900..1_100).contains(&tenth.len()) && (1_850..2_150).contains(&fifth.len()), "{} {}", tenth.len(), fifth.len());
        assert!(tenth.iter().all(|user| fifth.contains(user)));
        assert_eq!(on(10), tenth);
        let other = (0..10_000).filter(|user| percentile("email.send", &format!("user-{user}")) < 10).collect::<Vec<_>>();
        assert_ne!(other, tenth);
        assert_eq!(percentile("ai.run", "ada"), percentile("ai.run", "ada"));
    }

    #[test]
    fn off_is_off_for_all_and_a_share_is_nothing_to_the_backend() {
        let off = KindDeclaration { enabled: Some(false), share: Some(100), ..KindDeclaration::default() };
        assert_eq!(off.is_on("ai.run", None), Err(NotEnabled::ForTenant));
        let none = KindDeclaration { share: Some(0), ..KindDeclaration::default() };
        assert_eq!((none.is_on("ai.run", None), none.is_on("ai.run", Some("ada"))), (Ok(()), Err(NotEnabled::ForUser)));
    }
}
