//! `[summaries.NAME]` of a manifest: materialised views and summary tables of the product's own database that are brought up to date by
//! the clock.
//!
//! What must stay true: what is run there is a `REFRESH` of a named view or a call of a named function without arguments, never SQL of a
//! manifest's own.

use serde::{Deserialize, Serialize};

use crate::schedule::{Definition, Missed, Overlap};

/// The most summaries of a product.
pub const MOST_SUMMARIES: usize = 100;

/// The longest that a refresh may take unless the manifest says otherwise, in seconds.
const TIMEOUT: u32 = 600;

/// The longest that it may be allowed to take, in seconds. A job that runs it has a little more.
pub const LONGEST_TIMEOUT: u32 = 3_600;

/// A summary, as the manifest declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The database, one of `[sources]`; its role must be allowed to refresh.
    pub source: String,
    /// The materialised view, with its schema where it is not on the role's path. Either this or `function`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    /// The function without arguments that brings a summary table up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// When, as a schedule has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    /// The zone of `cron`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    /// How often, in the place of `cron`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    every_seconds: Option<u32>,
    /// Over how long the refreshes of one moment are spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jitter_seconds: Option<u32>,
    /// The longest that a refresh may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u32>,
}

/// What is brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed<'a> {
    /// A materialised view: `REFRESH MATERIALIZED VIEW CONCURRENTLY`.
    View(&'a str),
    /// A function is called that writes a table.
    Function(&'a str),
}

impl Summary {
    /// What is brought up to date.
    #[must_use]
    pub fn refreshed(&self) -> Option<Refreshed<'_>> {
        match (&self.view, &self.function) {
            (Some(view), None) => Some(Refreshed::View(view)),
            (None, Some(function)) => Some(Refreshed::Function(function)),
            _ => None,
        }
    }

    /// The longest that a refresh may take, in seconds.
    #[must_use]
    pub fn timeout_seconds(&self) -> u32 {
        self.timeout_seconds.unwrap_or(TIMEOUT)
    }

    /// The schedule that refreshes it. What is wrong with its times shows when that is checked.
    pub(super) fn schedule(&self, name: &str) -> Definition {
        Definition {
            cron: self.cron.clone(),
            time_zone: self.time_zone.clone(),
            every_seconds: self.every_seconds,
            jitter_seconds: self.jitter_seconds.unwrap_or(0),
            missed: Missed::Latest,
            overlap: Overlap::Skip,
            ..Definition::of("summary.refresh", serde_json::json!({ "summary": name }))
        }
    }

    /// What is wrong with it by itself, by its field.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        match (&self.view, &self.function) {
            (Some(_), Some(_)) => faults.push(("function", "stands beside view; name one of the two".to_owned())),
            (None, None) => faults.push(("view", "is missing; name a materialised view, or a `function` without arguments".to_owned())),
            (Some(name), None) if !is_relation(name) => faults.push(("view", relation_rule(name))),
            (None, Some(name)) if !is_relation(name) => faults.push(("function", relation_rule(name))),
            _ => {}
        }
        let timeout = self.timeout_seconds();
        if !(1..=LONGEST_TIMEOUT).contains(&timeout) {
            faults.push(("timeout_seconds", format!("is {timeout}; 1 to {LONGEST_TIMEOUT} are allowed")));
        }
        faults
    }
}

/// A name, or a schema and a name, as Postgres takes them unquoted in small letters.
fn is_relation(name: &str) -> bool {
    let is_part = |part: &str| {
        let begins = part.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        begins && part.len() <= 63 && part.bytes().all(legal)
    };
    match name.split_once('.') {
        Some((schema, name)) => is_part(schema) && is_part(name),
        None => is_part(name),
    }
}

fn relation_rule(name: &str) -> String {
    format!("`{name}` must be a name, or a schema, a dot and a name, of small letters, digits and `_`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<&'static str> {
        let summary: Summary = toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        summary.faults().into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn only_names_come_into_a_statement() {
        assert_eq!(faults("source = 'main'\nview = 'reporting.trainer_summary'\nevery_seconds = 60"), Vec::<&str>::new());
        assert_eq!(faults("source = 'main'\nfunction = 'refresh_all'\ncron = '0 * * * *'"), Vec::<&str>::new());
        for wrong in ["a.b.c", "a b", "a;drop", "\"a\"", "A", "", "a.", ".a", "1a", "a()"] {
            assert_eq!(faults(&format!("source = 'main'\nview = '{wrong}'")), ["view"], "{wrong}");
            assert_eq!(faults(&format!("source = 'main'\nfunction = '{wrong}'")), ["function"], "{wrong}");
        }
        assert_eq!(faults("source = 'main'"), ["view"]);
        assert_eq!(faults("source = 'main'\nview = 'a'\nfunction = 'b'\ntimeout_seconds = 0"), ["function", "timeout_seconds"]);
    }
}
