//! `[views.NAME]`: several metrics, shown together over the same span.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MetricDeclaration;
use crate::{
    analytics::{Granularity, SpanWords},
    tenant::manifest::Faults,
};

/// The most views, and the most panels of one.
const MOST_VIEWS: usize = 50;
const MOST_PANELS: usize = 20;

/// The most days of a view.
const MOST_VIEW_DAYS: u32 = 800;

/// The most groups that are shown for themselves.
pub const MOST_TOP: usize = 50;

/// How many groups are shown for themselves where nobody says.
pub const TOP: usize = 10;

/// Several metrics, shown together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// How many days it shows unless the reader says otherwise.
    #[serde(default = "thirty", skip_serializing_if = "is_thirty")]
    pub days: u32,
    /// How long each period is unless the reader says otherwise.
    #[serde(default = "by_day", skip_serializing_if = "is_by_day")]
    pub granularity: Granularity,
    /// Whether the time before is shown beside it unless the reader says otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compare: bool,
    /// What it shows.
    pub panels: Vec<Panel>,
}

/// A metric within a view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panel {
    /// Its name in the manifest.
    pub metric: String,
    /// By which of its dimensions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_by: Vec<String>,
    /// How many groups are shown for themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<usize>,
}

const fn thirty() -> u32 {
    30
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
const fn is_thirty(days: &u32) -> bool {
    *days == 30
}

const fn by_day() -> Granularity {
    Granularity::Day
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_by_day(granularity: &Granularity) -> bool {
    *granularity == Granularity::Day
}

/// Checks that what views say of their span can be read, at any time of any day. Where manifests are applied alone: what was stored before this
/// was asked for goes on.
pub(in crate::tenant) fn check_spans(views: &BTreeMap<String, View>, faults: &mut Faults) {
    // Up to the end of a day of 25 hours: none has more.
    let longest = SpanWords { to: Some("2026-10-26".to_owned()), tz: Some("Europe/Berlin".to_owned()), ..SpanWords::default() };
    for (name, view) in views.iter().filter(|(_, view)| (1..=MOST_VIEW_DAYS).contains(&view.days)) {
        if let Err(fault) = longest.check(view.days, view.granularity) {
            let detail = format!("with {} days, {}; fewer days, or a coarser granularity", view.days, fault.detail);
            faults.add(&["views", name, "granularity"], detail);
        }
    }
}

/// Checks all views of a manifest. `all` are the metrics as they are declared.
pub(in crate::tenant) fn check_views(views: &BTreeMap<String, View>, all: &BTreeMap<String, MetricDeclaration>, faults: &mut Faults) {
    if views.len() > MOST_VIEWS {
        faults.add(&["views"], format!("has {} views; {MOST_VIEWS} are the most", views.len()));
    }
    for (name, view) in views {
        if !(1..=MOST_VIEW_DAYS).contains(&view.days) {
            faults.add(&["views", name, "days"], format!("is {}; 1 to {MOST_VIEW_DAYS} are allowed", view.days));
        }
        if view.title.chars().count() > 200 {
            faults.add(&["views", name, "title"], "has more than 200 characters".to_owned());
        }
        if !(1..=MOST_PANELS).contains(&view.panels.len()) {
            faults.add(&["views", name, "panels"], format!("has {}; 1 to {MOST_PANELS} are allowed", view.panels.len()));
        }
        for panel in &view.panels {
            let Some(metric) = all.get(&panel.metric) else {
                let known: Vec<_> = all.keys().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                faults.add(&["views", name, "panels"], format!("there is no metric `{}`; there are: {known}", panel.metric));
                continue;
            };
            for dimension in panel.group_by.iter().filter(|dimension| !metric.dimensions.contains(dimension)) {
                let known = if metric.dimensions.is_empty() { "none".to_owned() } else { metric.dimensions.join(", ") };
                let detail = format!("the metric `{}` has no dimension `{dimension}`; it has: {known}", panel.metric);
                faults.add(&["views", name, "panels"], detail);
            }
            if panel.top.is_some_and(|top| !(1..=MOST_TOP).contains(&top)) {
                faults.add(&["views", name, "panels"], format!("`top` must be 1 to {MOST_TOP}"));
            }
        }
    }
}
