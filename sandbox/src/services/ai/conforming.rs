//! The least that conforms to a JSON Schema, as far as tasks' schemas go: types, enums, bounds, what is required.

use serde_json::{Map, Value, json};

/// How deep a schema is followed.
const DEEPEST: usize = 20;
/// The most items of a list.
const MOST_ITEMS: u64 = 100;

/// A value that conforms.
pub(super) fn to(schema: &Value) -> Value {
    made(schema, schema, "", DEEPEST)
}

fn made(root: &Value, schema: &Value, name: &str, depth: usize) -> Value {
    if depth == 0 {
        return Value::Null;
    }
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    if let Some(first) = schema.get("enum").and_then(|values| values.get(0)) {
        return first.clone();
    }
    if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|target| root.pointer(target.strip_prefix('#')?)) {
        return made(root, target, name, depth - 1);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(first) = schema.get(key).and_then(|schemas| schemas.get(0)) {
            return made(root, first, name, depth - 1);
        }
    }
    let kind = schema.get("type").map(|kind| kind.get(0).unwrap_or(kind)).and_then(Value::as_str);
    match kind {
        Some("object") | None if schema.get("properties").is_some() || kind.is_some() => object(root, schema, depth),
        Some("array") => {
            let count = schema.get("minItems").and_then(Value::as_u64).unwrap_or(1).min(MOST_ITEMS);
            let items = schema.get("items").cloned().unwrap_or_else(|| json!({"type": "string"}));
            (0..count).map(|_| made(root, &items, name, depth - 1)).collect()
        }
        Some("integer") => whole(number(schema)),
        Some("number") => json!(number(schema)),
        Some("boolean") => json!(true),
        Some("null") => Value::Null,
        _ => json!(text(schema, name)),
    }
}

fn object(root: &Value, schema: &Value, depth: usize) -> Value {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return json!({}) };
    properties.iter().map(|(name, schema)| (name.clone(), made(root, schema, name, depth - 1))).collect::<Map<_, _>>().into()
}

/// A whole number, as JSON has it: without a point.
fn whole(number: f64) -> Value {
    serde_json::from_str(&format!("{:.0}", number.ceil())).unwrap_or_default()
}

/// Near the top of what is allowed: a score passes most gates.
fn number(schema: &Value) -> f64 {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let (least, most) = (
        bound("minimum").or(bound("exclusiveMinimum").map(|least| least + 1.0)),
        bound("maximum").or(bound("exclusiveMaximum").map(|most| most - 1.0)),
    );
    match (least, most) {
        (Some(least), Some(most)) => least + (0.9 * (most - least)).floor(),
        (Some(least), None) => least,
        (None, most) => most.unwrap_or(1.0),
    }
}

fn text(schema: &Value, name: &str) -> String {
    match schema.get("format").and_then(Value::as_str) {
        Some("date") => return "2026-11-20".to_owned(),
        Some("date-time") => return "2026-11-20T12:00:00Z".to_owned(),
        Some("email") => return "somebody@example.com".to_owned(),
        Some("uri") => return "https://example.com/".to_owned(),
        _ => {}
    }
    let length = |key: &str, default: usize| {
        schema.get(key).and_then(Value::as_u64).and_then(|length| usize::try_from(length).ok()).unwrap_or(default)
    };
    let most = length("maxLength", 1_000);
    let mut text: String = format!("A sandbox {}", if name.is_empty() { "text" } else { name }).chars().take(most).collect();
    while text.chars().count() < length("minLength", 0).min(most) {
        text.push('.');
    }
    text
}
