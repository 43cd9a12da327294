//! `[usage]` of a manifest: which plan holds for whom nothing was said of, by which clock periods go, and limits beside those of plans.
//!
//! ```toml
//! [usage]
//! default_plan = "free"
//! time_zone = "Europe/Berlin"                          # UTC when absent
//! product.ai_cost = { month = 500_000_000 }            # all users together
//! each_user.ai_cost = { day = 1_000_000 }              # each of them, whatever their plan
//! ```
//!
//! `ai_cost` is what calls of AI models cost, in millionths of the currency of `[[ai_prices]]`. Limits of it are budgets; there is no other difference.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::plan::{Limit, Period, Plan, limits_faults};
use crate::schedule::Zone;

/// Limits of metrics, by period.
type Limits = BTreeMap<String, BTreeMap<Period, Limit>>;

/// The section as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UsageDeclaration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default_plan: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    product: Limits,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    each_user: Limits,
}

impl UsageDeclaration {
    /// What is wrong with it, by its place within the section.
    pub(super) fn faults(&self, plans: &BTreeMap<String, Plan>) -> Vec<(Vec<String>, String)> {
        let mut faults = Vec::new();
        if let Some(plan) = self.default_plan.as_ref().filter(|plan| !plans.contains_key(*plan)) {
            let known: Vec<_> = plans.keys().map(String::as_str).collect();
            let detail = match known.as_slice() {
                [] => format!("there is no plan `{plan}`; declare it as [plans.{plan}]"),
                known => format!("there is no plan `{plan}`; there are: {}", known.join(", ")),
            };
            faults.push((vec!["default_plan".to_owned()], detail));
        }
        if let Some(zone) = self.time_zone.as_ref().filter(|zone| Zone::find(zone).is_none()) {
            let detail = format!("`{zone}` is not a time zone; write an IANA name such as \"Europe/Berlin\", or \"UTC\"");
            faults.push((vec!["time_zone".to_owned()], detail));
        }
        for (field, limits) in [("product", &self.product), ("each_user", &self.each_user)] {
            for (metric, detail) in limits_faults(limits) {
                faults.push((vec![field.to_owned(), metric], detail));
            }
        }
        faults
    }

    pub(super) fn checked(&self) -> Usage {
        Usage {
            default_plan: self.default_plan.clone(),
            zone: self.time_zone.as_deref().and_then(Zone::find),
            product: self.product.clone(),
            each_user: self.each_user.clone(),
        }
    }
}

/// How a product's usage is metered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    default_plan: Option<String>,
    zone: Option<Zone>,
    product: Limits,
    each_user: Limits,
}

impl Usage {
    /// The zone by whose clocks days and months begin.
    #[must_use]
    pub fn zone(&self) -> Zone {
        self.zone.clone().unwrap_or_else(Zone::utc)
    }

    /// The plan of users of whom nothing else is said.
    #[must_use]
    pub fn default_plan(&self) -> Option<&str> {
        self.default_plan.as_deref()
    }

    /// The periods over which a metric is limited for the product as a whole, and how.
    pub fn of_product(&self, metric: &str) -> impl Iterator<Item = (Period, Option<u64>)> {
        self.product.get(metric).into_iter().flatten().map(|(period, limit)| (*period, limit.most()))
    }

    /// The limit of a metric for each user, whatever their plan.
    #[must_use]
    pub fn of_each_user(&self, metric: &str, period: Period) -> Option<u64> {
        self.each_user.get(metric)?.get(&period)?.most()
    }

    /// Whether a metric has a limit, of the product or of each user.
    pub(super) fn limits(&self, metric: &str) -> bool {
        [&self.product, &self.each_user].iter().filter_map(|limits| limits.get(metric)).flatten().any(|(_, limit)| limit.most().is_some())
    }

    /// The periods over which some user may be limited in a metric.
    pub(super) fn periods_of_users<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = Period> + 'a {
        self.each_user.get(metric).into_iter().flat_map(|periods| periods.keys().copied())
    }

    /// Metrics that are limited beside plans: of the product, or of each user.
    pub(super) fn metrics(&self) -> BTreeSet<&str> {
        self.product.keys().chain(self.each_user.keys()).map(String::as_str).collect()
    }
}
