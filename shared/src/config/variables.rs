//! Reading variables: collects every problem instead of stopping at the first, and warns of names nobody knows.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

use secrecy::SecretString;

use crate::{
    mail::{DKIM_VARIABLE, HOOK_VARIABLE, SERVER_VARIABLE},
    tenant::{AI_VARIABLE, CREDENTIAL_VARIABLE, KEY_VARIABLE},
};

/// All that some program of Offstage reads. A program is started with the others' variables too, so these are never
/// reported as unknown.
const KNOWN: &[&str] = &[
    "OFFSTAGE_API_DATABASE_URL",
    "OFFSTAGE_API_POOL",
    "OFFSTAGE_BACKLOG",
    "OFFSTAGE_CLOCK_FILE",
    "OFFSTAGE_CONCURRENCY",
    "OFFSTAGE_DATABASE_URL",
    "OFFSTAGE_DRILL",
    "OFFSTAGE_ENGINE_DATABASE_URL",
    "OFFSTAGE_ENGINE_POOL",
    "OFFSTAGE_IDEMPOTENCY_HOURS",
    // `OFFSTAGE_KEY` and `OFFSTAGE_URL` are for callers of the API; `make run` writes them beside our settings.
    "OFFSTAGE_KEY",
    "OFFSTAGE_LISTEN",
    "OFFSTAGE_LOG",
    "OFFSTAGE_LOG_FORMAT",
    "OFFSTAGE_MAIL_CA_FILE",
    "OFFSTAGE_MAIL_HELLO",
    "OFFSTAGE_MAIL_REDIRECT",
    "OFFSTAGE_OUTBOUND_ALLOW",
    "OFFSTAGE_PROBE",
    "OFFSTAGE_PROBE_CALLBACKS",
    "OFFSTAGE_PUBLIC_URL",
    "OFFSTAGE_PUSH_CONTACT",
    "OFFSTAGE_PUSH_KEYS",
    "OFFSTAGE_QUEUES",
    "OFFSTAGE_RECIPIENT_KEY",
    "OFFSTAGE_REDIS_PREFIX",
    "OFFSTAGE_REDIS_URL",
    "OFFSTAGE_RETENTION_DAYS",
    "OFFSTAGE_RETENTION_UNSUCCESSFUL_DAYS",
    "OFFSTAGE_S3_ACCESS_KEY_ID",
    "OFFSTAGE_S3_BUCKET",
    "OFFSTAGE_S3_CALL_SECONDS",
    "OFFSTAGE_S3_ENDPOINT",
    "OFFSTAGE_S3_PATH_STYLE",
    "OFFSTAGE_S3_PUBLIC_ENDPOINT",
    "OFFSTAGE_S3_REGION",
    "OFFSTAGE_S3_SECRET_ACCESS_KEY",
    "OFFSTAGE_S3_SESSION_TOKEN",
    "OFFSTAGE_SHUTDOWN_GRACE_SECONDS",
    "OFFSTAGE_STREAMS",
    "OFFSTAGE_STREAMS_OF_TENANT",
    "OFFSTAGE_TOKEN_KEYS",
    "OFFSTAGE_URL",
    "OFFSTAGE_VENDORS_URL",
    "OFFSTAGE_VAULT_KEYS",
    "OFFSTAGE_WINDOW",
    "OFFSTAGE_WORKER_LISTEN",
];

/// What the variables of export sources begin with; the manifest names the rest.
pub(super) const SOURCE_PREFIX: &str = "OFFSTAGE_SOURCE_";

/// The `OFFSTAGE_*` variables of a process. `Debug` shows their names only: the values hold secrets.
#[derive(Clone, Default)]
pub struct Variables {
    values: BTreeMap<String, String>,
    /// Names whose values are not UTF-8.
    unreadable: Vec<String>,
}

impl Variables {
    /// The variables this process was started with.
    #[must_use]
    pub fn of_process() -> Self {
        let mut variables = Self::default();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with("OFFSTAGE_")) else { continue };
            match value.into_string() {
                Ok(value) => _ = variables.values.insert(name.to_owned(), value),
                Err(_) => variables.unreadable.push(name.to_owned()),
            }
        }
        variables
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let values = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { values, unreadable: Vec::new() }
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

/// One setting that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingProblem {
    /// The variable.
    pub variable: String,
    /// What is wrong with it and what to write instead.
    pub detail: String,
}

/// All that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Each problem, in the order in which the settings are read.
    pub problems: Vec<SettingProblem>,
}

impl ConfigError {
    /// A section is missing although nothing was reported: our mistake, never the operator's, but still not a panic.
    pub(super) fn incomplete() -> Self {
        let detail = "a setting was refused without a reason; please report this".to_owned();
        Self { problems: vec![SettingProblem { variable: "OFFSTAGE_*".into(), detail }] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings can't be used:")?;
        for SettingProblem { variable, detail } in &self.problems {
            write!(f, "\n  {variable}: {detail}")?;
        }
        Ok(())
    }
}

/// Takes settings out of variables and remembers what is wrong.
pub(super) struct Reader<'a> {
    variables: &'a Variables,
    problems: Vec<SettingProblem>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(variables: &'a Variables) -> Self {
        let problems =
            variables.unreadable.iter().map(|name| SettingProblem { variable: name.clone(), detail: "is not UTF-8 text".into() }).collect();
        Self { variables, problems, warnings: unknown_names(variables) }
    }

    /// The warnings, if nothing was wrong.
    pub(super) fn finish(self) -> Result<Vec<String>, ConfigError> {
        if self.problems.is_empty() { Ok(self.warnings) } else { Err(ConfigError { problems: self.problems }) }
    }

    pub(super) fn problem(&mut self, variable: &str, detail: impl Into<String>) {
        self.problems.push(SettingProblem { variable: variable.to_owned(), detail: detail.into() });
    }

    pub(super) fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// The value, unless it is absent or empty. Spaces around it are a copying accident.
    pub(super) fn optional(&self, variable: &str) -> Option<&'a str> {
        self.variables.values.get(variable).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The value, which must be there; `example` shows what one looks like.
    pub(super) fn required(&mut self, variable: &str, example: &str) -> Option<&'a str> {
        let value = self.optional(variable);
        if value.is_none() && !self.variables.unreadable.iter().any(|name| name == variable) {
            let state = if self.variables.values.contains_key(variable) { "is empty" } else { "is not set" };
            self.problem(variable, format!("{state}; write for example {example}"));
        }
        value
    }

    pub(super) fn required_secret(&mut self, variable: &str, example: &str) -> Option<SecretString> {
        self.required(variable, example).map(SecretString::from)
    }

    /// A whole number within bounds. A wrong one is reported and stands as the default, so that reading can go on.
    pub(super) fn number(&mut self, variable: &str, default: u32, least: u32, most: u32) -> u64 {
        self.number_in(variable, default, least..=most).into()
    }

    pub(super) fn number_in(&mut self, variable: &str, default: u32, range: RangeInclusive<u32>) -> u32 {
        let Some(value) = self.optional(variable) else { return default };
        if let Some(number) = value.parse().ok().filter(|number| range.contains(number)) {
            return number;
        }
        let (least, most) = range.into_inner();
        self.problem(variable, format!("`{value}` is not a whole number from {least} to {most}"));
        default
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(&mut self, variable: &str, default: T, words: &[(&str, T)]) -> T {
        let Some(value) = self.optional(variable) else { return default };
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == value) {
            return *meaning;
        }
        let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        self.problem(variable, format!("`{value}` is not one of {}", words.join(", ")));
        default
    }

    /// Every variable that begins with `prefix`, empty ones left out.
    pub(super) fn beginning_with(&self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let values = self.variables.values.iter();
        values
            .filter(move |(name, value)| name.starts_with(prefix) && !value.trim().is_empty())
            .map(|(name, value)| (name.as_str(), value.trim()))
    }
}

/// Names that look like ours and are nobody's: mostly typing mistakes, which would otherwise act as defaults, silently.
fn unknown_names(variables: &Variables) -> Vec<String> {
    let families = [AI_VARIABLE, SOURCE_PREFIX, KEY_VARIABLE, SERVER_VARIABLE, DKIM_VARIABLE, HOOK_VARIABLE, CREDENTIAL_VARIABLE];
    let names = variables.values.keys();
    let names = names.filter(|name| name.starts_with("OFFSTAGE_") && !families.iter().any(|family| name.starts_with(family)));
    names
        .filter(|name| !KNOWN.contains(&name.as_str()))
        .map(|name| {
            let nearest = KNOWN.iter().map(|known| (distance(name, known), known)).min();
            match nearest {
                Some((steps, known)) if steps <= 3 => {
                    format!("{name} is not a setting and has no effect; did you mean {known}?")
                }
                _ => format!("{name} is not a setting and has no effect"),
            }
        })
        .collect()
}

/// Levenshtein distance: how many characters to insert, delete or replace.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, a) in left.bytes().enumerate() {
        let mut diagonal = line;
        let mut before = line + 1;
        for (b, cell) in right.bytes().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *cell;
            before = replaced.min(before + 1).min(*cell + 1);
            *cell = before;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn distance_counts_edits() {
        for (left, right, steps) in
            [("", "", 0), ("abc", "abc", 0), ("kitten", "sitting", 3), ("", "ab", 2), ("ab", "", 2), ("ab", "ba", 2)]
        {
            assert_eq!(super::distance(left, right), steps, "{left} {right}");
        }
    }
}
