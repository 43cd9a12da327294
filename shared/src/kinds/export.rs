//! `export.create`: datasets of the tenant's manifest, or its metrics and views, become a file in object storage.

mod numbers;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

pub use numbers::{DAYS_OF_METRIC, Numbers, NumbersTable};

use super::{Kind, Violation, pointer_token};
use crate::{
    job::{Backoff, Policy},
    keys::Scope,
    queue::Queue,
    tenant::{Dataset, Manifest, Origin},
};

/// The payload of `export.create`. Exactly one of `dataset`, `type`, `metric` and `view` is given.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExportCreate {
    /// A dataset that the tenant's manifest declares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// `full`: every dataset that the caller may read, in one file; else another word for `dataset` (R10).
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A metric that the tenant's manifest declares: its numbers over the span that `params` say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// A view that the tenant's manifest declares: all its metrics, in one file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    /// The file's format.
    pub format: ExportFormat,
    /// Values of the datasets' named parameters; of a metric or a view `from`, `to`, `granularity`, `tz`, and of a metric `group_by` and `top`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub params: Map<String, Value>,
    /// The name to save the file under, without its ending; the dataset's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// CSV: whether the file begins with a byte order mark, by which Excel knows UTF-8.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bom: bool,
    /// CSV: whether texts that a spreadsheet would run as formulas get an apostrophe before them; yes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escape_formulas: Option<bool>,
    /// Whether the owner is notified when the file is ready, or there will be none; yes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<bool>,
}

/// The `type` that stands for every dataset.
const FULL: &str = "full";

/// What a payload asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// One dataset, by name.
    Dataset(&'a str),
    /// Every dataset that the caller may read.
    Full,
    /// A metric, by name.
    Metric(&'a str),
    /// A view, by name.
    View(&'a str),
}

/// A dataset that an export reads, its parameters bound.
#[derive(Debug, Clone)]
pub struct Selected<'a> {
    /// Its name in the manifest.
    pub name: &'a str,
    /// The dataset.
    pub dataset: &'a Dataset,
    /// The values of `$1` … `$n`.
    pub values: Vec<Option<String>>,
}

impl ExportCreate {
    /// What is asked for; `None` where not exactly one of the fields that say so is given, which is a violation.
    #[must_use]
    pub fn wanted(&self) -> Option<Wanted<'_>> {
        let mut given = [
            self.dataset.as_deref().map(Wanted::Dataset),
            self.kind.as_deref().map(|name| if name == FULL { Wanted::Full } else { Wanted::Dataset(name) }),
            self.metric.as_deref().map(Wanted::Metric),
            self.view.as_deref().map(Wanted::View),
        ]
        .into_iter()
        .flatten();
        given.next().filter(|_| given.next().is_none())
    }

    /// What the export is called where nobody chose a name: its dataset, `full`, its metric or its view.
    #[must_use]
    pub fn subject(&self) -> &str {
        [&self.dataset, &self.kind, &self.metric, &self.view].into_iter().find_map(Option::as_deref).unwrap_or_default()
    }

    /// Whether it is of metrics, which have a scope of their own.
    #[must_use]
    pub const fn is_of_metrics(&self) -> bool {
        self.metric.is_some() || self.view.is_some()
    }

    /// What is wrong with how it says what is wanted.
    fn violations_of_form(&self) -> Vec<Violation> {
        let fields = [("dataset", &self.dataset), ("type", &self.kind), ("metric", &self.metric), ("view", &self.view)].into_iter();
        let given: Vec<_> = fields.filter(|(_, value)| value.is_some()).map(|(name, _)| name).collect();
        match given.as_slice() {
            [] => {
                vec![Violation::new("/dataset", "is missing; name a dataset, or send `\"type\": \"full\"` for all of them")]
            }
            [first, second, ..] => vec![Violation::new(format!("/{second}"), format!("stands beside `{first}`; send one of the two"))],
            [_] => Vec::new(),
        }
    }

    /// The field that says what is wanted.
    const fn field(&self) -> &'static str {
        if self.dataset.is_none() && self.kind.is_some() { "/type" } else { "/dataset" }
    }

    /// The datasets to read, in the order of their names, with bound parameters.
    ///
    /// A job with an owner reads what is for users, one without reads what needs no owner. In a full export each dataset
    /// takes the parameters that it declares, and a parameter that none declares is a mistake.
    ///
    /// # Errors
    /// Everything that is wrong, by its pointer.
    pub fn select<'a>(&self, manifest: &'a Manifest, owner: Option<&str>) -> Result<Vec<Selected<'a>>, Vec<Violation>> {
        let open = |dataset: &Dataset| dataset.is_open_to(owner);
        let needs_owner = |dataset: &Dataset| dataset.parameters().values().any(|parameter| parameter.origin == Origin::Owner);
        let name = match self.wanted() {
            Some(Wanted::Dataset(name)) => name,
            Some(Wanted::Full) => {
                let readable = |dataset: &Dataset| open(dataset) && (owner.is_some() || !needs_owner(dataset));
                return self.select_all(manifest.datasets.iter().filter(|(_, dataset)| readable(dataset)), owner);
            }
            _ => return Err(self.violations_of_form()),
        };
        let Some((name, dataset)) = manifest.dataset(name).filter(|(_, dataset)| open(dataset)) else {
            // A user is not told of datasets that are not for users.
            let known: Vec<_> = manifest.datasets.iter().filter(|(_, dataset)| open(dataset)).map(|(name, _)| name.as_str()).collect();
            let whose = if owner.is_some() { "for users, this product has" } else { "this product has" };
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let named: String = name.chars().take(100).collect();
            let or_full = if self.field() == "/type" { "; `full` stands for all of them" } else { "" };
            return Err(vec![Violation::new(self.field(), format!("there is no dataset `{named}`; {whose}: {known}{or_full}"))]);
        };
        Ok(vec![Selected { name, dataset, values: dataset.bind(&self.params, owner)? }])
    }

    fn select_all<'a>(
        &self,
        datasets: impl Iterator<Item = (&'a String, &'a Dataset)>,
        owner: Option<&str>,
    ) -> Result<Vec<Selected<'a>>, Vec<Violation>> {
        let (mut selected, mut violations) = (Vec::new(), Vec::<Violation>::new());
        let mut unknown: Vec<_> = self.params.keys().collect();
        for (name, dataset) in datasets {
            unknown.retain(|parameter| !dataset.parameters().contains_key(*parameter));
            let declared = self.params.iter().filter(|(parameter, _)| dataset.parameters().contains_key(*parameter));
            match dataset.bind(&declared.map(|(parameter, value)| (parameter.clone(), value.clone())).collect(), owner) {
                Ok(values) => selected.push(Selected { name, dataset, values }),
                Err(wrong) => {
                    violations
                        .extend(wrong.into_iter().map(|one| Violation::new(one.pointer, format!("{} (dataset `{name}`)", one.detail))));
                }
            }
        }
        for parameter in unknown {
            violations.push(Violation::new(format!("/params{}", pointer_token(parameter)), "none of the datasets has this parameter"));
        }
        if selected.is_empty() && violations.is_empty() {
            let whose = if owner.is_some() { "for users" } else { "that need no owner" };
            violations.push(Violation::new("/type", format!("this product has no datasets {whose}, so there is nothing to export")));
        }
        if violations.is_empty() { Ok(selected) } else { Err(violations) }
    }

    /// The ending of the file's name.
    #[must_use]
    pub fn extension(&self) -> &'static str {
        if self.is_archive() { "zip" } else { self.format.extension() }
    }

    /// The file's media type.
    #[must_use]
    pub fn content_type(&self) -> &'static str {
        if self.is_archive() { "application/zip" } else { self.format.content_type() }
    }

    /// Whether the file is a zip archive with one file a dataset, or a metric.
    #[must_use]
    pub fn is_archive(&self) -> bool {
        matches!(self.wanted(), Some(Wanted::Full | Wanted::View(_))) && !matches!(self.format, ExportFormat::Json | ExportFormat::Markdown)
    }
}

/// A format that exports can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// RFC 4180, with a header line.
    Csv,
    /// One array of objects (RFC 8259).
    Json,
    /// An object a line (<https://jsonlines.org>).
    Jsonl,
    /// A table (GitHub Flavored Markdown §4.10).
    Markdown,
    /// A workbook (ECMA-376).
    Xlsx,
}

impl ExportFormat {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Csv, Self::Json, Self::Jsonl, Self::Markdown, Self::Xlsx];

    /// The name in payloads.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Markdown => "markdown",
            Self::Xlsx => "xlsx",
        }
    }

    /// The ending of the file's name.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Markdown => "md",
            other => other.name(),
        }
    }

    /// The media type. RFC 4180 §3 registers `header` for CSV, RFC 7763 and 7764 Markdown and its variants.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Json => "application/json",
            Self::Jsonl => "application/jsonl",
            Self::Markdown => "text/markdown; charset=utf-8; variant=GFM",
            Self::Xlsx => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        }
    }
}

/// The longest name a client may choose, in characters; with its ending it stays under the 255 bytes of common file systems.
const LONGEST_FILENAME: usize = 60;

/// Whether a character is invisible and changes how others are shown: what hides `exe` in `a\u{202e}gpj.exe`.
/// <https://www.unicode.org/reports/tr36/#Bidirectional_Text_Spoofing>
const fn is_formatting(character: char) -> bool {
    // The joiners U+200C and U+200D are part of words and of emoji.
    matches!(character, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

impl Kind for ExportCreate {
    const NAME: &'static str = "export.create";
    const QUEUE: Queue = Queue::Exports;
    // It reads a product's database, which it can't change, and writes a file to the installation's own store, where nobody but
    // its owner comes by it and where it can be deleted again. Nothing has left the house by that, so no switch stops it.
    const OUTWARD: bool = false;
    const POLICY: Policy = Policy {
        backoff: Backoff { first: Duration::from_secs(5), ..Backoff::DEFAULT },
        timeout: Duration::from_secs(3_600),
        // Whoever asked for a file yesterday has asked again, or does not want it any more.
        deadline: Duration::from_secs(24 * 3_600),
        ..Policy::DEFAULT
    };
    const ESTIMATE: Duration = Duration::from_secs(5);
    const READS: fn(&Value) -> Option<Scope> =
        |payload| ["metric", "view"].iter().any(|field| payload.get(field).is_some_and(Value::is_string)).then_some(Scope::AnalyticsRead);

    fn violations(&self) -> Vec<Violation> {
        let mut violations = self.violations_of_form();
        if self.format != ExportFormat::Csv {
            let only_csv = |field| Violation::new(field, format!("is for csv; leave it out with {}", self.format.name()));
            violations.extend(self.bom.then(|| only_csv("/bom")));
            violations.extend((self.escape_formulas == Some(true)).then(|| only_csv("/escape_formulas")));
        }
        if let Some(name) = &self.filename {
            let length = name.chars().count();
            if length == 0 || length > LONGEST_FILENAME {
                violations.push(Violation::new("/filename", format!("has {length} characters; 1 to {LONGEST_FILENAME} are allowed")));
            }
            if name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\')) {
                violations.push(Violation::new("/filename", "must have no slash, backslash or control character"));
            }
            if name.chars().any(is_formatting) {
                violations
                    .push(Violation::new("/filename", "must have no invisible characters that change how it is read (as U+202E does)"));
            }
            let nothing = length > 0 && name.chars().all(|c| c == '.' || c.is_whitespace());
            if nothing || name.starts_with(char::is_whitespace) || name.ends_with(char::is_whitespace) {
                violations.push(Violation::new("/filename", "must be more than dots, and neither begin nor end with white space"));
            }
        }
        violations
    }

    fn violations_for(&self, tenant: &Manifest, owner: Option<&str>) -> Vec<Violation> {
        if self.is_of_metrics() {
            return self.numbers(tenant, owner).err().unwrap_or_default();
        }
        self.select(tenant, owner).err().unwrap_or_default()
    }

    fn sample() -> Self {
        let mut params = Map::new();
        params.insert("since".into(), Value::from("2026-01-01T00:00:00Z"));
        Self {
            dataset: Some("prompts".into()),
            kind: None,
            metric: None,
            view: None,
            format: ExportFormat::Csv,
            params,
            filename: Some("my prompts".into()),
            bom: true,
            escape_formulas: Some(false),
            notify: Some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
[tenant]
name = "a"
[sources.main]
url_env = "OFFSTAGE_SOURCE_A"
[datasets.own]
source = "main"
sql = "SELECT 1 WHERE '' <> :owner"
parameters = { owner = { type = "text", from = "owner" } }
[datasets.everything]
source = "main"
sql = "SELECT 1"
[datasets.catalogue]
source = "main"
audience = "users"
sql = "SELECT 1"
"#;

    fn violations(dataset: &str, owner: Option<&str>) -> Vec<(String, String)> {
        let asked = serde_json::json!({"dataset": dataset, "format": "csv"});
        asked_for(asked, owner)
    }

    fn asked_for(payload: Value, owner: Option<&str>) -> Vec<(String, String)> {
        let export: ExportCreate = serde_json::from_value(payload).unwrap();
        let manifest = Manifest::from_toml(MANIFEST).unwrap();
        let own = export.violations();
        let all = if own.is_empty() { export.violations_for(&manifest, owner) } else { own };
        all.into_iter().map(|violation| (violation.pointer, violation.detail)).collect()
    }

    #[test]
    fn a_user_reads_only_what_is_for_users_and_hears_of_nothing_else() {
        assert_eq!(violations("own", Some("ada")), []);
        assert_eq!(violations("catalogue", Some("ada")), []);
        let unknown = |name: &str| {
            vec![("/dataset".to_owned(), format!("there is no dataset `{name}`; for users, this product has: catalogue, own"))]
        };
        assert_eq!(violations("everything", Some("ada")), unknown("everything"));
        assert_eq!(violations("nothing", Some("ada")), unknown("nothing"));
    }

    #[test]
    fn the_backend_reads_everything_that_needs_no_owner() {
        assert_eq!(violations("everything", None), []);
        assert_eq!(violations("catalogue", None), []);
        assert_eq!(violations("own", None)[0].0, "/params/owner");
        assert_eq!(violations("nothing", None)[0].1, "there is no dataset `nothing`; this product has: catalogue, everything, own");
    }

    #[test]
    fn one_of_dataset_and_type_says_what_is_wanted() {
        use serde_json::json;
        assert_eq!(asked_for(json!({"type": "catalogue", "format": "json"}), None), []);
        assert_eq!(asked_for(json!({"type": "nothing", "format": "json"}), None)[0].0, "/type");
        assert_eq!(asked_for(json!({"format": "json"}), None)[0].0, "/dataset");
        assert_eq!(asked_for(json!({"dataset": "catalogue", "type": "full", "format": "json"}), None)[0].0, "/type");
        let fields = |payload| asked_for(payload, None).into_iter().map(|(pointer, _)| pointer).collect::<Vec<_>>();
        assert_eq!(
            fields(json!({"type": "catalogue", "format": "xlsx", "bom": true, "escape_formulas": true})),
            ["/bom", "/escape_formulas"]
        );
        assert_eq!(fields(json!({"type": "catalogue", "format": "csv", "bom": true, "escape_formulas": true})), Vec::<String>::new());
        for format in ExportFormat::ALL {
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
        }
    }

    #[test]
    fn file_names_are_what_they_look_like() {
        let of = |name: &str| asked_for(serde_json::json!({"dataset": "catalogue", "format": "csv", "filename": name}), None).len();
        for good in [
            "prompts",
            "R\u{e9}sum\u{e9} <1>",
            "a.b",
            ".hidden",
            "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
            "\u{645}\u{6cc}\u{200c}\u{62e}",
        ] {
            assert_eq!(of(good), 0, "{good:?}");
        }
        for bad in ["", "..", " . ", " a", "a ", "a/b", "a\\b", "a\u{7}", "a\u{202e}gpj.exe", "\u{feff}a"] {
            assert_eq!(of(bad), 1, "{bad:?}");
        }
    }

    #[test]
    fn full_is_what_the_caller_may_read() {
        let manifest = Manifest::from_toml(MANIFEST).unwrap();
        let full: ExportCreate = serde_json::from_value(serde_json::json!({"type": "full", "format": "csv"})).unwrap();
        let names = |owner| full.select(&manifest, owner).unwrap().into_iter().map(|one| one.name).collect::<Vec<_>>();
        assert_eq!(names(Some("ada")), ["catalogue", "own"]);
        assert_eq!(names(None), ["catalogue", "everything"]);
        assert_eq!((full.extension(), full.subject()), ("zip", "full"));
        let unknown = serde_json::json!({"type": "full", "format": "csv", "params": {"since": 1, "owner": "eve"}});
        let pointers: Vec<_> = asked_for(unknown, Some("ada")).into_iter().map(|(pointer, _)| pointer).collect();
        assert_eq!(pointers, ["/params/owner", "/params/since"]);
    }
}
