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
    const POLICY: Policy = Policy {
        attempts: 3,
        backoff: Backoff { first: Duration::from_secs(5), ..Backoff::DEFAULT },
        timeout: Duration::from_secs(3_600),
    };
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
        let Some(dataset) = tenant.datasets.get(&self.dataset) else {
            let known: Vec<_> = tenant.datasets.keys().map(String::as_str).collect();
            return vec![Violation::new(
                "/dataset",
                format!("there is no dataset `{}`; this product has: {}", self.dataset, known.join(", ")),
            )];
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
