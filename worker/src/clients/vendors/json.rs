//! Whoever answers with JSON.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Read, figures};

/// Figures by the pointers (RFC 6901) of the manifest.
pub(super) fn document(document: &Value, places: &BTreeMap<String, String>) -> Read {
    Ok((figures(document, places.iter().map(|(name, pointer)| (name.as_str(), pointer.as_str())))?, None))
}
