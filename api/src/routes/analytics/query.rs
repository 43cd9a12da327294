//! What is asked of a metric or a view.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use shared::{
    analytics::{Granularity, Span, SpanWords},
    tenant::{MOST_TOP, Metric, Panel, TOP},
};

use crate::problem::{Code, Problem};

/// What is asked.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AnalyticsQuery {
    /// From when: a date of the zone, or a moment (RFC 3339). The period that it is in is shown whole. 30 days back when absent.
    from: Option<String>,
    /// Up to when, that not included: a date or a moment. Up to the end of the present period when absent.
    to: Option<String>,
    /// How long each period is; `day` when absent.
    #[param(inline)]
    granularity: Option<Granularity>,
    /// The zone of periods and dates, by its IANA name; UTC when absent.
    #[param(example = "Asia/Kathmandu")]
    tz: Option<String>,
    /// Dimensions, parted by commas.
    group_by: Option<String>,
    /// How many groups are shown for themselves, 1 to 50; 10 when absent.
    #[param(minimum = 1, maximum = 50)]
    top: Option<usize>,
    /// `previous`: beside it the same number of periods before.
    #[param(inline)]
    compare: Option<Compare>,
}

/// With what it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// The periods before.
    Previous,
    /// Nothing.
    None,
}

fn invalid(detail: impl std::fmt::Display) -> Problem {
    Problem::new(Code::QueryInvalid, format!("{detail}."))
}

impl AnalyticsQuery {
    /// Over which time, where `days` and `granularity` hold for what is not said; beside the time before where that is asked for.
    pub fn span(&self, now: DateTime<Utc>, days: u32, granularity: Granularity, compare: bool) -> Result<Span, Problem> {
        let words = SpanWords { from: self.from.clone(), to: self.to.clone(), granularity: self.granularity, tz: self.tz.clone() };
        let mut span = Span::of(&words, now, days, granularity).map_err(invalid)?;
        if self.compare.map_or(compare, |compare| compare == Compare::Previous) {
            span.compare().map_err(invalid)?;
        }
        Ok(span)
    }

    /// How it is grouped.
    pub fn panel(&self, metric: &Metric) -> Result<Panel, Problem> {
        let group_by: Vec<String> = match self.group_by.as_deref().map(str::trim) {
            None | Some("") => Vec::new(),
            Some(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        };
        for (place, name) in group_by.iter().enumerate() {
            if !metric.dimensions().contains(name) {
                let known = if metric.dimensions().is_empty() { "none".to_owned() } else { metric.dimensions().join(", ") };
                let shown: String = name.chars().take(100).collect();
                return Err(invalid(format!("group_by: the metric has no dimension `{shown}`; it has: {known}")));
            }
            if group_by.iter().take(place).any(|before| before == name) {
                return Err(invalid(format!("group_by: names `{name}` twice")));
            }
        }
        let top = self.top.unwrap_or(TOP);
        if !(1..=MOST_TOP).contains(&top) {
            return Err(invalid(format!("top: is {top}; 1 to {MOST_TOP} are allowed")));
        }
        Ok(Panel { metric: String::new(), group_by, top: Some(top) })
    }

    /// Whether it says how things are grouped, which a view says for itself.
    pub fn is_grouped(&self) -> bool {
        self.group_by.is_some() || self.top.is_some()
    }
}
