//! What is wrong with an input, and where: RFC 6901 pointers from the paths that serde walked.

use serde::{Deserialize, Serialize};
use serde_path_to_error::Segment;
use utoipa::ToSchema;

/// One thing that is wrong with an input, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Violation {
    /// RFC 6901 pointer into the body, such as `/payload/dataset`.
    pub pointer: String,
    /// What is wrong and what to send instead.
    pub detail: String,
}

impl Violation {
    /// What is wrong at a place.
    #[must_use]
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }

    /// What serde could not read, at the place where it stopped. A missing field, which serde reports at its parent, is
    /// pointed at itself.
    #[must_use]
    pub fn unreadable(path: &serde_path_to_error::Path, error: &str) -> Self {
        let pointer = pointer_of(path);
        // serde_json ends its messages with the place in the text, which the pointer says better.
        let detail = error.rfind(" at line ").and_then(|end| error.get(..end)).unwrap_or(error);
        match detail.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            Some(field) => Self::new(pointer + &pointer_token(field), "is missing"),
            None => Self::new(pointer, detail),
        }
    }
}

/// A field's name as a token of a pointer: RFC 6901 escapes `~` and `/`.
#[must_use]
pub fn pointer_token(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// Where serde stopped.
#[must_use]
pub fn pointer_of(path: &serde_path_to_error::Path) -> String {
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => pointer_token(key),
            Segment::Enum { .. } | Segment::Unknown => String::new(),
        })
        .collect()
}

/// Where a field stood that nobody knows.
#[must_use]
pub fn pointer_of_ignored(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}/{index}", pointer_of_ignored(parent)),
        Path::Map { parent, key } => pointer_of_ignored(parent) + &pointer_token(key),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => pointer_of_ignored(parent),
    }
}
