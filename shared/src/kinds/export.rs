//! `export.create`: a dataset of the tenant's manifest becomes a file in object storage.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{Kind, Violation};
use crate::{
    job::{Backoff, Policy},
    queue::Queue,
    tenant::Manifest,
};

/// The payload of `export.create`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExportCreate {
    /// A dataset that the tenant's manifest declares.
    pub dataset: String,
    /// The file's format.
    pub format: ExportFormat,
    /// Values of the dataset's named parameters.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub params: Map<String, Value>,
    /// The name to save the file under, without its ending; the dataset's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
}

/// A format that exports can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// RFC 4180, with a header line.
    Csv,
}

impl ExportFormat {
    /// The ending of the file's name.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
        }
    }

    /// The media type. RFC 4180 §3 registers `header` for CSV.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
        }
    }
}

/// The longest name a client may choose, in characters; with its ending it stays under the 255 bytes of common file systems.
const LONGEST_FILENAME: usize = 60;

impl Kind for ExportCreate {
    const NAME: &'static str = "export.create";
    const QUEUE: Queue = Queue::Exports;
    const POLICY: Policy =
        Policy { attempts: 3, backoff: Backoff { first: Duration::from_secs(5), ..Backoff::DEFAULT }, timeout: Duration::from_secs(3_600) };
    const ESTIMATE: Duration = Duration::from_secs(5);

    fn violations(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        if let Some(name) = &self.filename {
            let length = name.chars().count();
            if length == 0 || length > LONGEST_FILENAME {
                violations.push(Violation::new("/filename", format!("has {length} characters; 1 to {LONGEST_FILENAME} are allowed")));
            }
            if name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\')) {
                violations.push(Violation::new("/filename", "must have no slash, backslash or control character"));
            }
        }
        violations
    }

    fn violations_for(&self, tenant: &Manifest, owner: Option<&str>) -> Vec<Violation> {
        let open = |name: &str| tenant.datasets.get(name).filter(|dataset| dataset.is_open_to(owner));
        let Some(dataset) = open(&self.dataset) else {
            // A user is not told of datasets that are not for users.
            let known: Vec<_> = tenant.datasets.keys().map(String::as_str).filter(|name| open(name).is_some()).collect();
            let whose = if owner.is_some() { "for users, this product has" } else { "this product has" };
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let named: String = self.dataset.chars().take(100).collect();
            return vec![Violation::new("/dataset", format!("there is no dataset `{named}`; {whose}: {known}"))];
        };
        match dataset.bind(&self.params, owner) {
            Ok(_) => Vec::new(),
            Err(violations) => violations,
        }
    }

    fn sample() -> Self {
        let mut params = Map::new();
        params.insert("since".into(), Value::from("2026-01-01T00:00:00Z"));
        Self { dataset: "prompts".into(), format: ExportFormat::Csv, params, filename: Some("my prompts".into()) }
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
        let export = ExportCreate { dataset: dataset.into(), format: ExportFormat::Csv, params: Map::new(), filename: None };
        let manifest = Manifest::from_toml(MANIFEST).unwrap();
        export.violations_for(&manifest, owner).into_iter().map(|violation| (violation.pointer, violation.detail)).collect()
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
}
