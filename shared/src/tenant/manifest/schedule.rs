//! The section `[schedules.NAME]`: schedules that are made, changed and removed with the manifest.
//!
//! Checked when the manifest is applied only: from then on they stand in tables of their own, and each tick checks its payload again.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Fault, Manifest};
use crate::{
    kinds::{Registry, Violation, pointer_of_ignored},
    schedule::{Definition, MOST_SCHEDULES, check_name},
};

/// What TOML calls a date or a time when it is read as something else (`toml_datetime`'s private field).
const TOML_TIME: &str = "$__toml_private_datetime";

/// The section as JSON: TOML has dates and times of its own; here they are the strings they are written as.
pub(super) fn section<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Value>, D::Error> {
    let mut section = BTreeMap::<String, Value>::deserialize(deserializer)?;
    section.values_mut().for_each(times_to_text);
    Ok(section)
}

fn times_to_text(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let time = fields.get(TOML_TIME).and_then(Value::as_str).map(str::to_owned);
            match time {
                Some(time) if fields.len() == 1 => *value = Value::String(time),
                _ => fields.values_mut().for_each(times_to_text),
            }
        }
        Value::Array(items) => items.iter_mut().for_each(times_to_text),
        _ => {}
    }
}

/// Reads the section to the letter.
pub(super) fn check(section: &BTreeMap<String, Value>, manifest: &Manifest, faults: &mut Vec<Fault>) -> BTreeMap<String, Definition> {
    let kinds = Registry::new(true);
    if i64::try_from(section.len()).unwrap_or(i64::MAX) > MOST_SCHEDULES {
        faults.push(Fault::new(&["schedules"], format!("has {} of them; {MOST_SCHEDULES} are the most", section.len())));
    }
    let mut definitions = BTreeMap::new();
    for (name, declared) in section {
        if let Err(detail) = check_name(name) {
            faults.push(Fault::new(&["schedules", name], detail));
        }
        let mut wrong = Vec::new();
        match read(declared, &mut wrong) {
            Some(definition) => {
                wrong.extend(definition.violations(&kinds, manifest));
                definitions.insert(name.clone(), definition);
            }
            None if wrong.is_empty() => wrong.push(Violation::new("", "must be a table")),
            None => {}
        }
        faults.extend(wrong.into_iter().map(|violation| {
            let tokens = violation.pointer.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~"));
            let path = ["schedules".to_owned(), name.clone()].into_iter().chain(tokens).collect();
            Fault { path, offset: 0, detail: violation.detail }
        }));
    }
    definitions
}

fn read(declared: &Value, wrong: &mut Vec<Violation>) -> Option<Definition> {
    if !declared.is_object() {
        return None;
    }
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(declared, &mut track);
    let mut unknown = Vec::new();
    let read: Result<Definition, _> = serde_ignored::deserialize(tracked, |path| {
        unknown.push(Violation::new(pointer_of_ignored(&path), "is not part of a schedule; check its spelling or remove it"));
    });
    wrong.append(&mut unknown);
    read.map_err(|error| wrong.push(Violation::unreadable(&track.path(), &error.to_string()))).ok()
}
