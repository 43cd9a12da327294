//! `[metrics.NAME]`, `[views.NAME]` and `[events]` of a manifest: what is counted of a product's events, how it is shown together, and how
//! long it is kept.
//!
//! ```toml
//! [events]
//! keep_days = 90                              # raw events; what was counted of them stays
//!
//! [metrics.response_time]
//! event = "prompt_run"
//! filter = { status = ["ok", "slow"] }        # of each property, one of these
//! value = "response_ms"
//! dimensions = ["model", "plan"]
//! aggregate = "percentiles"
//!
//! [views.performance]
//! panels = [{ metric = "response_time", group_by = ["model"] }]
//! ```
//!
//! What must stay true: two declarations that count differently have different series ([`Metric::series`]), so that numbers of one are never
//! added to those of the other.

mod kept;
mod view;

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::{Builder, Uuid};

pub use kept::EventsDeclaration;
pub use view::{MOST_TOP, Panel, TOP, View};
pub(super) use view::{check_spans, check_views};

use super::{Audience, manifest::Faults};
use crate::analytics::{
    Shape,
    bundle::MOST_DIMENSIONS,
    observe::{USER, label_of},
    state::Aggregate,
};

/// The most metrics of a product: each is asked about each event.
pub const MOST_METRICS: usize = 100;

/// The most properties of a filter, and the most values of one.
const MOST_CONDITIONS: usize = 10;
const MOST_VALUES: usize = 50;

/// The longest type of an event, and the longest path of a property, in characters.
pub const LONGEST_NAME: usize = 100;

/// What is wrong, by its place within the section.
type Wrong = Vec<(Vec<String>, String)>;

/// One value of a property, or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum OneOf {
    Several(Vec<Value>),
    One(Value),
}

impl OneOf {
    fn values(&self) -> &[Value] {
        match self {
            Self::Several(values) => values,
            Self::One(value) => std::slice::from_ref(value),
        }
    }
}

type Conditions = BTreeMap<String, OneOf>;

/// A metric as it is declared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MetricDeclaration {
    event: String,
    aggregate: Aggregate,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    filter: Conditions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    success: Conditions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dimensions: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audience: Option<Audience>,
}

/// A metric, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    series: Uuid,
    event: String,
    description: String,
    aggregate: Aggregate,
    filter: Vec<(String, Vec<String>)>,
    success: Vec<(String, Vec<String>)>,
    value: Option<String>,
    of: String,
    dimensions: Vec<String>,
    audience: Audience,
}

impl Metric {
    /// Its numbers' name: another declaration has another one.
    #[must_use]
    pub const fn series(&self) -> Uuid {
        self.series
    }

    /// The type of its events.
    #[must_use]
    pub fn event(&self) -> &str {
        &self.event
    }

    /// For people.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// What it says of them.
    #[must_use]
    pub const fn aggregate(&self) -> Aggregate {
        self.aggregate
    }

    /// What is kept of them.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.aggregate.shape()
    }

    /// The property whose values it is about.
    #[must_use]
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// What events must say to be counted.
    #[must_use]
    pub fn filter(&self) -> &[(String, Vec<String>)] {
        &self.filter
    }

    /// What events must say to be successes.
    #[must_use]
    pub fn success(&self) -> &[(String, Vec<String>)] {
        &self.success
    }

    /// Of what different ones are counted.
    #[must_use]
    pub fn of(&self) -> &str {
        &self.of
    }

    /// The properties that it can be grouped by.
    #[must_use]
    pub fn dimensions(&self) -> &[String] {
        &self.dimensions
    }

    /// Who may read it: the backend alone, or users too, each of themselves.
    #[must_use]
    pub const fn audience(&self) -> Audience {
        self.audience
    }

    /// Whether it may be read for a user, or by the backend where there is none.
    #[must_use]
    pub fn is_open_to(&self, user: Option<&str>) -> bool {
        user.is_none() || self.audience == Audience::Users
    }

    /// With what members of sets are hashed.
    #[must_use]
    pub fn salt(&self) -> &[u8] {
        self.series.as_bytes()
    }

    /// The place of the dimension `user`, where it has that.
    #[must_use]
    pub fn user_place(&self) -> Option<usize> {
        self.dimensions.iter().position(|dimension| dimension == USER)
    }
}

impl MetricDeclaration {
    /// Checks it, for a product.
    pub(super) fn check(&self, tenant: &str, name: &str) -> Result<Metric, Wrong> {
        let mut wrong = Wrong::new();
        let mut fault = |path: &[&str], detail: String| wrong.push((path.iter().map(|part| (*part).to_owned()).collect(), detail));
        if let Err(detail) = check_text(&self.event) {
            fault(&["event"], detail);
        }
        if self.description.chars().count() > 500 {
            fault(&["description"], "has more than 500 characters".to_owned());
        }
        let needs_value = matches!(self.aggregate.shape(), Shape::Numbers | Shape::Histogram);
        match (&self.value, needs_value) {
            (None, true) => fault(&["value"], "is missing: name the property whose numbers are meant, as in \"response_ms\"".to_owned()),
            (Some(_), false) => fault(&["value"], "means nothing for this aggregate; leave it out".to_owned()),
            (Some(path), true) if path == USER => fault(&["value"], "`user` is no number".to_owned()),
            _ => {}
        }
        match (self.success.is_empty(), self.aggregate) {
            (true, Aggregate::SuccessRate) => {
                fault(&["success"], "is missing: say which events are successes, as in { status = \"ok\" }".to_owned());
            }
            (false, aggregate) if aggregate != Aggregate::SuccessRate => {
                fault(&["success"], "is for `success_rate`; leave it out".to_owned());
            }
            _ => {}
        }
        if self.of.is_some() && self.aggregate != Aggregate::Uniques {
            fault(&["of"], "is for `uniques`; leave it out".to_owned());
        }
        for (field, path) in [("value", &self.value), ("of", &self.of)] {
            if let Some(Err(detail)) = path.as_deref().map(check_text) {
                fault(&[field], detail);
            }
        }
        if self.dimensions.len() > MOST_DIMENSIONS {
            fault(&["dimensions"], format!("has {}; {MOST_DIMENSIONS} are the most", self.dimensions.len()));
        }
        for (place, dimension) in self.dimensions.iter().enumerate() {
            if let Err(detail) = check_text(dimension) {
                fault(&["dimensions"], format!("`{dimension}` {detail}"));
            }
            if dimension.contains(',') {
                fault(&["dimensions"], format!("`{dimension}` has a comma, by which queries part dimensions"));
            }
            if self.dimensions.iter().take(place).any(|before| before == dimension) {
                fault(&["dimensions"], format!("has `{dimension}` twice"));
            }
        }
        let audience = self.audience.unwrap_or(Audience::Backend);
        if audience == Audience::Users && !self.dimensions.iter().any(|dimension| dimension == USER) {
            fault(&["audience"], "users read of themselves only: add \"user\" to `dimensions`, or leave it out".to_owned());
        }
        let filter = compile(&self.filter, "filter", &mut wrong);
        let success = compile(&self.success, "success", &mut wrong);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let of = self.of.clone().unwrap_or_else(|| USER.to_owned());
        // What decides over numbers, and nothing else. Its order and its words stay: they name what is stored.
        let decides = json!([1, tenant, name, self.event, filter, self.value, success, of, self.dimensions, self.aggregate.shape().code()]);
        let mut bytes = [0; 16];
        let hash = digest::digest(&digest::SHA256, decides.to_string().as_bytes());
        bytes.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
        Ok(Metric {
            series: Builder::from_custom_bytes(bytes).into_uuid(),
            event: self.event.clone(),
            description: self.description.clone(),
            aggregate: self.aggregate,
            filter,
            success,
            value: self.value.clone(),
            of,
            dimensions: self.dimensions.clone(),
            audience,
        })
    }
}

/// Checks all metrics of a manifest.
pub(super) fn check_all(tenant: &str, declared: &BTreeMap<String, MetricDeclaration>, faults: &mut Faults) -> BTreeMap<String, Metric> {
    if declared.len() > MOST_METRICS {
        faults.add(&["metrics"], format!("has {} metrics; {MOST_METRICS} are the most", declared.len()));
    }
    let mut checked = BTreeMap::new();
    for (name, metric) in declared {
        match metric.check(tenant, name) {
            Ok(metric) => {
                checked.insert(name.clone(), metric);
            }
            Err(wrong) => wrong.into_iter().for_each(|(path, detail)| faults.add_owned(["metrics".into(), name.clone()], path, detail)),
        }
    }
    checked
}

/// Conditions as they are compared.
fn compile(conditions: &Conditions, field: &str, wrong: &mut Wrong) -> Vec<(String, Vec<String>)> {
    if conditions.len() > MOST_CONDITIONS {
        wrong.push((vec![field.to_owned()], format!("asks for {} properties; {MOST_CONDITIONS} are the most", conditions.len())));
    }
    let mut compiled = Vec::new();
    for (path, one_of) in conditions {
        let at = || vec![field.to_owned(), path.clone()];
        if let Err(detail) = check_text(path) {
            wrong.push((at(), detail));
        }
        let labels: Vec<_> = one_of.values().iter().filter_map(label_of).collect();
        if labels.is_empty() || labels.len() != one_of.values().len() || labels.len() > MOST_VALUES {
            wrong.push((at(), format!("must be a text, a number, true or false, or a list of 1 to {MOST_VALUES} of them")));
        }
        compiled.push((path.clone(), labels));
    }
    compiled
}

fn check_text(text: &str) -> Result<(), String> {
    if !(1..=LONGEST_NAME).contains(&text.chars().count()) || text.chars().any(char::is_control) || text.trim() != text {
        return Err(format!("must have 1 to {LONGEST_NAME} characters on one line, without white space at its ends"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::{
        analytics::{EventFacts, observe, observe::Observation},
        tenant::Manifest,
    };

    fn faults(text: &str) -> Vec<(Option<usize>, String)> {
        let text = format!("[tenant]\nname = \"a\"\n{text}");
        match Manifest::from_toml(&text) {
            Ok(_) => Vec::new(),
            Err(error) => error.problems.into_iter().map(|problem| (problem.line, problem.path)).collect(),
        }
    }

    fn metric(fields: &str) -> Metric {
        let text = format!("[tenant]\nname = \"a\"\n[metrics.m]\nevent = \"run\"\n{fields}");
        Manifest::from_toml(&text).unwrap_or_else(|error| panic!("{error}")).metrics["m"].clone()
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        for (fields, path) in [
            ("aggregate = \"sum\"", "metrics.m.value"),
            ("aggregate = \"count\"\nvalue = \"ms\"", "metrics.m.value"),
            ("aggregate = \"success_rate\"", "metrics.m.success"),
            ("aggregate = \"count\"\nsuccess = { ok = true }", "metrics.m.success"),
            ("aggregate = \"count\"\nof = \"user\"", "metrics.m.of"),
            ("aggregate = \"count\"\ndimensions = [\"a\", \"b\", \"c\", \"d\"]", "metrics.m.dimensions"),
            ("aggregate = \"count\"\ndimensions = [\"a\", \"a\"]", "metrics.m.dimensions"),
            ("aggregate = \"count\"\naudience = \"users\"", "metrics.m.audience"),
            ("aggregate = \"count\"\nfilter = { a = [] }", "metrics.m.filter.a"),
            ("aggregate = \"count\"\nfilter = { a = { b = 1 } }", "metrics.m.filter.a"),
            ("aggregate = \"count\"\ncolour = 1", "metrics.m.colour"),
        ] {
            let found = faults(&format!("[metrics.m]\nevent = \"run\"\n{fields}\n"));
            assert!(found.len() == 1 && found[0].1 == path && found[0].0.is_some(), "{fields}: {found:?}");
        }
        for (text, path) in [
            ("[events]\nkeep_days = 0\n", "events.keep_days"),
            ("[events]\nkeep_days = 10\nkeep_rollups_days = 9\n", "events.keep_rollups_days"),
            ("[views.v]\npanels = []\n", "views.v.panels"),
            ("[views.v]\npanels = [{ metric = \"x\" }]\n", "views.v.panels"),
            (
                "[metrics.m]\nevent = \"run\"\naggregate = \"count\"\n[views.v]\npanels = [{ metric = \"m\", group_by = [\"x\"] }]\n",
                "views.v.panels",
            ),
            (
                "[metrics.m]\nevent = \"run\"\naggregate = \"count\"\n[views.v]\ngranularity = \"quarter_hour\"\ndays = 30\npanels = [{ metric = \"m\" }]\n",
                "views.v.granularity",
            ),
            (
                "[metrics.m]\nevent = \"run\"\naggregate = \"count\"\n[views.v]\ngranularity = \"hour\"\ndays = 84\npanels = [{ metric = \"m\" }]\n",
                "views.v.granularity",
            ),
            ("[metrics.M]\nevent = \"run\"\naggregate = \"count\"\n", "metrics.M"),
        ] {
            let found = faults(text);
            assert!(found.len() == 1 && found[0].1 == path && found[0].0.is_some(), "{text}: {found:?}");
        }
        assert_eq!(faults("[metrics.m]\nevent = \"run\"\naggregate = \"median\"\n").len(), 1);
        for (granularity, days) in [("quarter_hour", 20), ("hour", 83), ("day", 800), ("month", 800)] {
            let view = format!("[views.v]\ngranularity = \"{granularity}\"\ndays = {days}\npanels = [{{ metric = \"m\" }}]\n");
            assert_eq!(faults(&format!("[metrics.m]\nevent = \"run\"\naggregate = \"count\"\n{view}")), [], "{granularity} {days}");
        }
        // What was stored before that was asked for goes on.
        let stored = json!({"tenant": {"name": "a"}, "metrics": {"m": {"event": "run", "aggregate": "count"}},
            "views": {"v": {"granularity": "quarter_hour", "days": 30, "panels": [{"metric": "m"}]}}});
        assert!(Manifest::from_stored(stored).is_ok());
    }

    #[test]
    fn what_counts_otherwise_has_another_series() {
        let one = metric("aggregate = \"sum\"\nvalue = \"ms\"");
        // The same is kept for both, so one may become the other.
        assert_eq!(one.series(), metric("aggregate = \"average\"\nvalue = \"ms\"\ndescription = \"x\"").series());
        for other in [
            "aggregate = \"sum\"\nvalue = \"s\"",
            "aggregate = \"percentiles\"\nvalue = \"ms\"",
            "aggregate = \"sum\"\nvalue = \"ms\"\ndimensions = [\"a\"]",
            "aggregate = \"sum\"\nvalue = \"ms\"\nfilter = { a = 1 }",
        ] {
            assert_ne!(one.series(), metric(other).series(), "{other}");
        }
        // Names what is stored: a program that makes another one of it has lost all numbers.
        assert_eq!(one.series().to_string(), "444a4d47-3135-8f56-becd-afcae14cda7f");
    }

    #[test]
    fn an_event_is_what_the_declaration_says() {
        let see = |fields: &str, properties: Value| {
            let properties: Map<String, Value> = properties.as_object().unwrap().clone();
            let facts = EventFacts { sort: "run", user: Some("ada"), properties: &properties };
            observe(&metric(fields), &facts).map(|(labels, observation)| (labels.to_text(), observation))
        };
        let count = "aggregate = \"count\"\nfilter = { \"a.b\" = [1, \"x\"], c = true }\ndimensions = [\"user\", \"a.b\", \"d\"]";
        let expected = |labels: &str| Some((labels.to_owned(), Observation::Event));
        assert_eq!(
            see(count, json!({"a": {"b": 1.0}, "c": true, "d": "é".repeat(101)})),
            expected(&format!(r#"["ada","1","{}"]"#, "é".repeat(100)))
        );
        assert_eq!(see(count, json!({"a.b": "x", "c": true, "d": []})), expected(r#"["ada","x",null]"#));
        assert_eq!(see(count, json!({"a": {"b": 2}, "c": true})), None);
        assert_eq!(see(count, json!({"a": {"b": 1}})), None);
        let sum = "aggregate = \"sum\"\nvalue = \"ms\"";
        assert_eq!(see(sum, json!({"ms": 1.5})), Some(("[]".into(), Observation::Value(1_500_000))));
        for no_value in [json!({}), json!({"ms": "1"}), json!({"ms": null}), json!({"ms": 1e13})] {
            assert_eq!(see(sum, no_value), None);
        }
        let rate = "aggregate = \"success_rate\"\nsuccess = { ok = true }";
        assert_eq!(see(rate, json!({"ok": true})).unwrap().1, Observation::Success(true));
        assert_eq!(see(rate, json!({})).unwrap().1, Observation::Success(false));
        let uniques = see("aggregate = \"uniques\"", json!({})).unwrap().1;
        assert_eq!(see("aggregate = \"uniques\"", json!({"a": 1})).unwrap().1, uniques);
        assert_ne!(see("aggregate = \"uniques\"\nof = \"a\"", json!({"a": "ada"})).unwrap().1, uniques, "another series hashes otherwise");
        assert_eq!(see("aggregate = \"uniques\"\nof = \"a\"", json!({})), None);
    }
}
