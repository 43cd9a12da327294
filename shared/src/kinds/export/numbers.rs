//! Exports of metrics and views (R15): numbers of a span, as the reading doors show them.
//!
//! What must stay true: who may read a metric there may export it here, and nobody else; the same words mean the same span, groups and
//! numbers.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::{
    super::{Violation, pointer_token},
    ExportCreate, Wanted,
};
use crate::{
    analytics::{Granularity, Span, SpanFault, SpanWords},
    tenant::{MOST_TOP, Manifest, Metric, Panel, TOP},
};

/// How many days back a metric is read from where nobody says.
pub const DAYS_OF_METRIC: u32 = 30;

/// What an export of a metric may say in its `params`.
const PARAMS: [&str; 6] = ["from", "granularity", "group_by", "to", "top", "tz"];

/// What an export of a view may: how its metrics are grouped, it says for itself.
const PARAMS_OF_VIEW: [&str; 4] = ["from", "granularity", "to", "tz"];

/// What an export of a metric or a view holds.
#[derive(Debug, Clone)]
pub struct Numbers<'a> {
    /// Its tables, in order.
    pub tables: Vec<NumbersTable<'a>>,
    words: SpanWords,
    days: u32,
    granularity: Granularity,
}

/// A metric in it.
#[derive(Debug, Clone)]
pub struct NumbersTable<'a> {
    /// What it is called in the file: the metric, and by what it is grouped where the file has that metric more than once.
    pub name: String,
    /// The metric.
    pub metric: &'a Metric,
    /// By which of its dimensions.
    pub group_by: Vec<String>,
    /// How many groups are shown for themselves.
    pub top: usize,
}

impl Numbers<'_> {
    /// The span, now.
    ///
    /// # Errors
    /// What is wrong with it, under its pointer.
    pub fn span(&self, now: DateTime<Utc>) -> Result<Span, Violation> {
        Span::of(&self.words, now, self.days, self.granularity).map_err(of_span)
    }
}

impl ExportCreate {
    /// The metrics of an export of a metric or a view, for a user or for the backend; what can be known to be wrong before it is read.
    ///
    /// # Errors
    /// Everything that is wrong, by its pointer.
    pub fn numbers<'a>(&self, manifest: &'a Manifest, owner: Option<&str>) -> Result<Numbers<'a>, Vec<Violation>> {
        let mut violations = Vec::new();
        let numbers = match self.wanted() {
            Some(Wanted::Metric(name)) => self.of_metric(name, manifest, owner, &mut violations),
            Some(Wanted::View(name)) => self.of_view(name, manifest, owner, &mut violations),
            _ => return Err(self.violations_of_form()),
        };
        let Some(numbers) = numbers else { return Err(violations) };
        if violations.is_empty() {
            violations.extend(numbers.words.check(numbers.days, numbers.granularity).err().map(of_span));
        }
        if violations.is_empty() { Ok(numbers) } else { Err(violations) }
    }

    fn of_metric<'a>(
        &self,
        name: &str,
        manifest: &'a Manifest,
        owner: Option<&str>,
        violations: &mut Vec<Violation>,
    ) -> Option<Numbers<'a>> {
        let Some((name, metric)) = manifest.metrics.get_key_value(name).filter(|(_, metric)| metric.is_open_to(owner)) else {
            let known = manifest.metrics.iter().filter(|(_, metric)| metric.is_open_to(owner)).map(|(name, _)| name.as_str());
            violations.push(unknown("metric", name, known, owner));
            return None;
        };
        let group_by = names(self.params.get("group_by"), violations);
        for (place, dimension) in group_by.iter().enumerate() {
            if !metric.dimensions().contains(dimension) {
                let known = if metric.dimensions().is_empty() { "none".to_owned() } else { metric.dimensions().join(", ") };
                let shown: String = dimension.chars().take(100).collect();
                violations.push(violation("group_by", format!("the metric has no dimension `{shown}`; it has: {known}")));
            } else if group_by.iter().take(place).any(|before| before == dimension) {
                violations.push(violation("group_by", format!("names `{dimension}` twice")));
            }
        }
        let top = match sent(&self.params, "top") {
            None => TOP,
            Some(value) => {
                value.as_u64().and_then(|top| usize::try_from(top).ok()).filter(|top| (1..=MOST_TOP).contains(top)).unwrap_or_else(|| {
                    violations.push(violation("top", format!("must be a whole number from 1 to {MOST_TOP}")));
                    TOP
                })
            }
        };
        let words = words(&self.params, &PARAMS, violations);
        let table = NumbersTable { name: name.clone(), metric, group_by, top };
        Some(Numbers { tables: vec![table], words, days: DAYS_OF_METRIC, granularity: Granularity::Day })
    }

    fn of_view<'a>(&self, name: &str, manifest: &'a Manifest, owner: Option<&str>, violations: &mut Vec<Violation>) -> Option<Numbers<'a>> {
        let metric_of = |panel: &Panel| manifest.metrics.get(&panel.metric).filter(|metric| metric.is_open_to(owner));
        let is_open = |name: &str| manifest.views.get(name).is_some_and(|view| view.panels.iter().any(|panel| metric_of(panel).is_some()));
        let Some(view) = manifest.views.get(name).filter(|_| is_open(name)) else {
            violations.push(unknown("view", name, manifest.views.keys().map(String::as_str).filter(|name| is_open(name)), owner));
            return None;
        };
        let mut tables: Vec<NumbersTable<'a>> = Vec::new();
        for panel in &view.panels {
            let Some(metric) = metric_of(panel) else { continue };
            let name = name_beside(&tables, panel);
            tables.push(NumbersTable { name, metric, group_by: panel.group_by.clone(), top: panel.top.unwrap_or(TOP) });
        }
        let words = words(&self.params, &PARAMS_OF_VIEW, violations);
        Some(Numbers { tables, words, days: view.days, granularity: view.granularity })
    }
}

/// A name that no table before has.
fn name_beside(tables: &[NumbersTable<'_>], panel: &Panel) -> String {
    let is_taken = |name: &str| tables.iter().any(|table| table.name == name);
    let grouped = || format!("{}_by_{}", panel.metric, safe(&panel.group_by.join("_")));
    let plain = Some(panel.metric.clone()).into_iter().chain((!panel.group_by.is_empty()).then(grouped));
    let numbered = (2..).map(|number: usize| format!("{}_{number}", panel.metric));
    // Numbers never end, so there is one.
    plain.chain(numbered).find(|name| !is_taken(name)).unwrap_or_default()
}

/// Dimensions are any texts; names of files are not.
fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

fn unknown<'n>(what: &str, name: &str, known: impl Iterator<Item = &'n str>, owner: Option<&str>) -> Violation {
    // A user is not told of what is not for users.
    let known: Vec<_> = known.collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let whose = if owner.is_some() { "for users, this product has" } else { "this product has" };
    let named: String = name.chars().take(100).collect();
    Violation::new(format!("/{what}"), format!("there is no {what} `{named}`; {whose}: {known}"))
}

fn violation(name: &str, detail: impl Into<String>) -> Violation {
    Violation::new(format!("/params{}", pointer_token(name)), detail)
}

fn of_span(fault: SpanFault) -> Violation {
    violation(fault.field, fault.detail)
}

/// A parameter; `null` counts as not sent.
fn sent<'p>(params: &'p Map<String, Value>, name: &str) -> Option<&'p Value> {
    params.get(name).filter(|value| !value.is_null())
}

/// What is said of the span.
fn words(params: &Map<String, Value>, known: &[&str], violations: &mut Vec<Violation>) -> SpanWords {
    for name in params.keys().filter(|name| !known.contains(&name.as_str())) {
        violations.push(violation(name, format!("there is no such parameter; this takes: {}", known.join(", "))));
    }
    let mut text = |name: &str| match sent(params, name) {
        None => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(_) => {
            violations.push(violation(name, "must be a text"));
            None
        }
    };
    let (from, to, tz) = (text("from"), text("to"), text("tz"));
    let granularity = sent(params, "granularity").and_then(|value| {
        serde_json::from_value(value.clone()).map_or_else(
            |_| {
                violations.push(violation("granularity", "must be one of quarter_hour, hour, day, week, month"));
                None
            },
            Some,
        )
    });
    SpanWords { from, to, granularity, tz }
}

/// Dimensions: a list, or a text with commas, as the reading door takes them.
fn names(value: Option<&Value>, violations: &mut Vec<Violation>) -> Vec<String> {
    let list = match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(text)) if text.trim().is_empty() => Some(Vec::new()),
        Some(Value::String(text)) => Some(text.split(',').map(|name| name.trim().to_owned()).collect()),
        Some(Value::Array(names)) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    list.unwrap_or_else(|| {
        violations.push(violation("group_by", "must be a list of dimensions"));
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{ExportFormat, Kind};

    const MANIFEST: &str = r#"
[tenant]
name = "a"
[metrics.runs]
event = "run"
aggregate = "count"
dimensions = ["model", "user"]
audience = "users"
[metrics.costs]
event = "run"
aggregate = "sum"
value = "cost"
[views.all]
days = 7
granularity = "hour"
panels = [{ metric = "costs" }, { metric = "runs" }, { metric = "runs", group_by = ["model"] }, { metric = "runs" }]
[views.secret]
panels = [{ metric = "costs" }]
"#;

    fn wrong(payload: Value, owner: Option<&str>) -> Vec<String> {
        let export: ExportCreate = serde_json::from_value(payload).unwrap();
        let own = export.violations();
        let all = if own.is_empty() { export.violations_for(&Manifest::from_toml(MANIFEST).unwrap(), owner) } else { own };
        all.into_iter().map(|violation| violation.pointer).collect()
    }

    #[test]
    fn who_may_read_a_metric_may_export_it() {
        let of = |what: &str, name: &str, owner| wrong(json!({what: name, "format": "csv"}), owner);
        for (what, name, owner, expected) in [
            ("metric", "runs", None, None),
            ("metric", "costs", None, None),
            ("metric", "runs", Some("ada"), None),
            ("metric", "costs", Some("ada"), Some("/metric")),
            ("metric", "nothing", None, Some("/metric")),
            ("view", "all", Some("ada"), None),
            ("view", "secret", None, None),
            ("view", "secret", Some("ada"), Some("/view")),
        ] {
            assert_eq!(of(what, name, owner).first().map(String::as_str), expected, "{what} {name} {owner:?}");
        }
        let manifest = Manifest::from_toml(MANIFEST).unwrap();
        let view = json!({"view": "all", "format": "csv"});
        let export: ExportCreate = serde_json::from_value(view).unwrap();
        let names = |owner| export.numbers(&manifest, owner).unwrap().tables.into_iter().map(|table| table.name).collect::<Vec<_>>();
        assert_eq!(names(None), ["costs", "runs", "runs_by_model", "runs_2"]);
        assert_eq!(names(Some("ada")), ["runs", "runs_by_model", "runs_2"]);
        assert_eq!((export.is_archive(), export.subject(), export.extension()), (true, "all", "zip"));
        let span = export.numbers(&manifest, None).unwrap().span("2026-11-21T12:00:00Z".parse().unwrap()).unwrap();
        assert_eq!((span.periods.len(), span.granularity), (7 * 24 - 11, Granularity::Hour));
    }

    #[test]
    fn what_is_wrong_with_the_words_is_named() {
        let of = |params: Value| wrong(json!({"metric": "runs", "format": "csv", "params": params}), None);
        let fine = json!({"from": "2026-01-01", "to": "2026-02-01T00:00:00Z", "granularity": "week", "tz": "Asia/Kathmandu", "group_by": ["model", "user"], "top": 50});
        assert_eq!(of(fine), Vec::<String>::new());
        assert_eq!(of(json!({"group_by": "model, user", "to": null})), Vec::<String>::new());
        for (params, pointer) in [
            (json!({"from": 5}), "/params/from"),
            (json!({"from": "2026-02-01", "to": "2026-01-01"}), "/params/from"),
            (json!({"tz": "Mars"}), "/params/tz"),
            (json!({"granularity": "year"}), "/params/granularity"),
            (json!({"from": "2026-01-01", "to": "2026-11-01", "granularity": "quarter_hour"}), "/params/granularity"),
            (json!({"group_by": ["colour"]}), "/params/group_by"),
            (json!({"group_by": ["model", "model"]}), "/params/group_by"),
            (json!({"group_by": [1]}), "/params/group_by"),
            (json!({"top": 51}), "/params/top"),
            (json!({"top": "many"}), "/params/top"),
            (json!({"compare": "previous"}), "/params/compare"),
        ] {
            assert_eq!(of(params.clone()), [pointer], "{params}");
        }
        assert_eq!(wrong(json!({"view": "all", "format": "csv", "params": {"group_by": ["model"]}}), None), ["/params/group_by"]);
        assert_eq!(wrong(json!({"metric": "runs", "dataset": "x", "format": "csv"}), None), ["/metric"]);
        let one: ExportCreate = serde_json::from_value(json!({"metric": "runs", "format": "csv"})).unwrap();
        assert_eq!((one.is_archive(), one.subject(), one.format), (false, "runs", ExportFormat::Csv));
    }
}
