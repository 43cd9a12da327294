//! JSON Schemas (draft 2020-12), by which what goes into a task and what comes out of it is checked.
//!
//! What must stay true: a schema refers to nothing outside of itself (nothing is fetched: the crate is built without that), and its patterns
//! are matched in linear time, since the text is somebody else's.

use std::sync::Arc;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

use crate::kinds::Violation;

/// The largest schema, in bytes of JSON.
const LONGEST: usize = 64 * 1024;

/// The most faults that are named.
const MOST_NAMED: usize = 20;

/// The longest description of a fault, in characters: some quote the value.
const LONGEST_DETAIL: usize = 300;

/// A schema, compiled. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Schema {
    value: Arc<Value>,
    validator: Arc<Validator>,
}

impl Schema {
    /// Compiles a schema of an object, as tasks have them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_object(value: &Value) -> Result<Self, String> {
        if value.get("type").and_then(Value::as_str) != Some("object") {
            return Err("must be the JSON Schema of an object, with `type = \"object\"`".to_owned());
        }
        let size = value.to_string().len();
        if size > LONGEST {
            return Err(format!("has {size} bytes as JSON; {LONGEST} are the most"));
        }
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .should_validate_formats(true)
            .with_pattern_options(PatternOptions::regex())
            .build(value)
            .map_err(|error| format!("is not a JSON Schema: {}", bounded(&error.to_string())))?;
        Ok(Self { value: Arc::new(value.clone()), validator: Arc::new(validator) })
    }

    /// As it was declared.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// What is wrong with a value, by its place below `at`; at most 20 faults.
    #[must_use]
    pub fn violations(&self, value: &Value, at: &str) -> Vec<Violation> {
        let errors = self.validator.iter_errors(value).take(MOST_NAMED);
        errors.map(|error| Violation::new(format!("{at}{}", error.instance_path()), bounded(&error.masked().to_string()))).collect()
    }

    /// Whether a value is as the schema says.
    #[must_use]
    pub fn holds(&self, value: &Value) -> bool {
        self.validator.is_valid(value)
    }
}

fn bounded(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_DETAIL).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn faults_are_named_by_their_place_and_quote_nobody() {
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["prompt"],
            "properties": {"prompt": {"type": "string", "maxLength": 5}, "goals": {"type": "array", "items": {"type": "integer"}}},
        });
        let schema = Schema::of_object(&schema).unwrap();
        assert!(schema.holds(&json!({"prompt": "abc", "goals": [1]})));
        let wrong = schema.violations(&json!({"prompt": "secrets", "goals": [1, "private"]}), "/input");
        let mut places: Vec<_> = wrong.iter().map(|violation| violation.pointer.as_str()).collect();
        places.sort_unstable();
        assert_eq!(places, ["/input/goals/1", "/input/prompt"]);
        assert!(wrong.iter().all(|violation| !violation.detail.contains("secrets") && !violation.detail.contains("private")), "{wrong:?}");
        assert_eq!(schema.violations(&json!({}), "/input")[0].pointer, "/input");
    }

    #[test]
    fn what_is_no_schema_or_reaches_outside_is_refused() {
        for wrong in [
            json!({"type": "string"}),
            json!([]),
            json!({"type": "object", "properties": {"a": {"type": "text"}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "https://example.com/schema.json"}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}}),
            json!({"type": "object", "properties": {"a": {"pattern": "(?=a)"}}}),
        ] {
            Schema::of_object(&wrong).expect_err(&wrong.to_string());
        }
    }
}
