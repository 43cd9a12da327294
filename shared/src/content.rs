//! What products' users make, by the product's own names: here are the names, and nothing of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A piece of content, by the product's own names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Content {
    /// What it is: lower-case letters, digits or `_`, at most 63, beginning with a letter.
    #[serde(rename = "type")]
    #[schema(example = "prompt", pattern = "^[a-z][a-z0-9_]{0,62}$")]
    pub sort: String,
    /// Which one, at most 255 characters.
    #[schema(min_length = 1, max_length = 255, example = "42")]
    pub id: String,
}

impl Content {
    pub(crate) fn of(sort: Option<String>, id: Option<String>) -> Option<Self> {
        Some(Self { sort: sort?, id: id? })
    }
}
