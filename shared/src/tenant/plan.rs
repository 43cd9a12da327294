//! Plans: what a product's users may use, as data. Here they are declared and checked; [`crate::usage`] meters it.
//!
//! ```toml
//! [plans.free]
//! title = "Free"
//! price = { currency = "USD", month = 0, year = 0 }    # in cents
//! limits.ai_enhancements = { month = 10 }              # a metric, a period, how many
//! limits.prompts = { total = 100 }
//! [plans.team]
//! features = ["api_keys"]
//! limits.prompts = { total = "unlimited" }
//! ```
//!
//! What a plan does not limit is not limited by it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The longest name of a metric or a feature, and the longest title.
const LONGEST: usize = 63;

/// The largest number: what every JSON reader holds exactly (RFC 8259 §6).
const LARGEST: u64 = (1 << 53) - 1;

/// A plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its name for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// What it costs; nothing is said of a plan by contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// What comes with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// How much of each metric, by period.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, BTreeMap<Period, Limit>>,
}

/// What a plan costs, in the hundredth part of its currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// ISO 4217, three capital letters.
    pub currency: String,
    /// A month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub month: Option<u64>,
    /// A year.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub year: Option<u64>,
    /// Once and for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<u64>,
}

/// What a limit counts over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// An hour.
    Hour,
    /// A calendar day.
    Day,
    /// A calendar month, or the billing period.
    Month,
    /// What there is at a time.
    Total,
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Limit {
    /// So many.
    Most(u64),
    /// As many as one likes; said to be clear, or to lift another plan's limit.
    Unlimited(Unlimited),
}

/// The word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlimited {
    /// `"unlimited"`.
    Unlimited,
}

impl Period {
    /// All, from the shortest on.
    pub const ALL: [Self; 4] = [Self::Hour, Self::Day, Self::Month, Self::Total];

    /// The word in manifests and answers.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
        }
    }
}

impl Limit {
    /// The number; `None`: there is none.
    #[must_use]
    pub const fn most(self) -> Option<u64> {
        match self {
            Self::Most(most) => Some(most),
            Self::Unlimited(_) => None,
        }
    }
}

/// Whether a text can name a metric or a feature.
pub(super) fn is_metric(name: &str) -> bool {
    !name.is_empty() && name.len() <= LONGEST && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// What is wrong with limits, by metric.
pub(super) fn limits_faults(limits: &BTreeMap<String, BTreeMap<Period, Limit>>) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    for (metric, limits) in limits {
        if !is_metric(metric) {
            faults.push((metric.clone(), format!("`{metric}` must have lower-case letters, digits and `_` only, at most {LONGEST}")));
        }
        if limits.is_empty() {
            faults.push((metric.clone(), "says nothing; write for example { month = 10 }".to_owned()));
        }
        for (_, limit) in limits.iter().filter(|(_, limit)| matches!(limit, Limit::Most(most) if *most > LARGEST)) {
            faults.push((metric.clone(), format!("{limit:?} is more than {LARGEST}; write \"unlimited\"")));
        }
    }
    faults
}

impl Plan {
    /// The limit of a metric over a period; `None` where there is none.
    #[must_use]
    pub fn limit(&self, metric: &str, period: Period) -> Option<u64> {
        self.limits.get(metric)?.get(&period)?.most()
    }

    /// What is wrong with it, by its place within the plan.
    pub(super) fn faults(&self) -> Vec<(Vec<String>, String)> {
        let mut faults = Vec::new();
        let mut wrong = |path: &[&str], detail: String| faults.push((path.iter().map(|part| (*part).to_owned()).collect(), detail));
        if self.title.chars().count() > LONGEST {
            wrong(&["title"], format!("has more than {LONGEST} characters"));
        }
        for name in self.features.iter().filter(|name| !is_metric(name)) {
            wrong(&["features"], format!("`{name}` must have lower-case letters, digits and `_` only, at most {LONGEST}"));
        }
        if let Some(price) = &self.price {
            if price.currency.len() != 3 || !price.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
                wrong(&["price", "currency"], format!("`{}` must be a currency's three letters, as in \"USD\"", price.currency));
            }
            for (field, cents) in [("month", price.month), ("year", price.year), ("once", price.once)] {
                if cents.is_some_and(|cents| cents > LARGEST) {
                    wrong(&["price", field], format!("is more than {LARGEST}"));
                }
            }
        }
        for (metric, detail) in limits_faults(&self.limits) {
            wrong(&["limits", &metric], detail);
        }
        faults
    }
}
