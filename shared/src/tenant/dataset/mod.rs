//! A dataset: SQL of the tenant's manifest that exports read, with named parameters.
//!
//! Who calls can choose values and never text: each value is checked against its declared type and bound. A parameter
//! that comes `from = "owner"` is the job's owner and nothing a caller can send, which is what keeps one user's export
//! from reading another's rows. A dataset without one shows everybody's rows, so it is the backend's alone
//! ([`Audience`]) unless the manifest says otherwise.

mod built_in;
mod sql;
mod value;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use built_in::{OWN_SOURCE, built_in};
pub(super) use sql::SqlFault;
pub use value::ParameterType;

use crate::kinds::{Violation, pointer_token};

/// The most parameters a dataset has.
pub(super) const MOST_PARAMETERS: usize = 100;

/// A dataset, checked and ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The source it is read from: a key of [`Manifest::sources`](super::Manifest::sources).
    pub source: String,
    /// What it is, for people.
    pub description: String,
    /// Whose jobs may read it.
    pub audience: Audience,
    /// Columns whose values order the rows and tell each from every other; none where the manifest names none. See [`Dataset::sql_after`].
    pub keyset: Vec<String>,
    parameters: BTreeMap<String, Parameter>,
    sql: String,
    /// The parameter of each of `$1` … `$n`.
    order: Vec<String>,
}

/// Whose jobs may read a dataset. A job with an owner counts as that user's, whoever asked for it, so the API and the
/// worker come to the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// Everybody's: jobs of users and of the backend. The default of a dataset with a parameter `from = "owner"`.
    Users,
    /// Jobs without an owner only. The default of all others.
    Backend,
}

/// A named parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its type.
    pub kind: ParameterType,
    /// Where its value comes from.
    pub origin: Origin,
}

/// Where a parameter's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The job's owner; callers can't set it.
    Owner,
    /// The caller, who must send it.
    Required,
    /// The caller, or this where the caller sends none; as Postgres reads it.
    Default(String),
}

impl Dataset {
    /// Puts a dataset together; faults are in its SQL.
    pub(super) fn new(
        source: String,
        description: String,
        audience: Audience,
        parameters: BTreeMap<String, Parameter>,
        text: &str,
    ) -> Result<Self, Vec<SqlFault>> {
        let prepared = sql::prepare(text, |name| parameters.get(name).map(|parameter| parameter.kind))?;
        Ok(Self { source, description, audience, keyset: Vec::new(), parameters, sql: prepared.sql, order: prepared.names })
    }

    /// The SQL, one reading statement with `$1` … `$n`. Every parameter is declared text and cast to its type inside, so
    /// all of them are bound as text, in the order of [`Dataset::bind`]. Safe to wrap in `DECLARE … CURSOR FOR`. The session
    /// must have `standard_conforming_strings` on (Postgres' default since 9.1): with it off, strings end elsewhere.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// The SQL in the order of its [keyset](Dataset::keyset), from behind a row on whose keys have these types (as Postgres writes them); from the
    /// beginning without one. The keys are bound as text after the values of [`Dataset::bind`]. The rows are ordered here
    /// again: the order must be the one in which "behind" is meant, whatever the dataset says itself.
    #[must_use]
    pub fn sql_after(&self, types: Option<&[String]>) -> String {
        let keys = self.keys();
        let behind = types.map_or_else(String::new, |types| format!("\nWHERE ({keys}) > ({})", self.bound_keys(types)));
        // The line's end closes a comment that the dataset may end with.
        format!("SELECT * FROM (\n{}\n) AS dataset{behind}\nORDER BY {keys}", self.sql)
    }

    /// SQL that counts the rows with such keys, up to two; bound like [`Dataset::sql_after`].
    #[must_use]
    pub fn sql_at(&self, types: &[String]) -> String {
        format!(
            "SELECT count(*) FROM (SELECT FROM (\n{}\n) AS dataset WHERE ({}) = ({}) LIMIT 2) AS twins",
            self.sql,
            self.keys(),
            self.bound_keys(types)
        )
    }

    fn keys(&self) -> String {
        let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
        self.keyset.iter().map(quoted).collect::<Vec<_>>().join(", ")
    }

    fn bound_keys(&self, types: &[String]) -> String {
        let first = self.order.len() + 1;
        let bound = types.iter().enumerate().map(|(place, kind)| format!("((${}::text)::{kind})", first + place));
        bound.collect::<Vec<_>>().join(", ")
    }

    /// Whether a job of `owner`, or of the backend where there is none, may read it.
    #[must_use]
    pub fn is_open_to(&self, owner: Option<&str>) -> bool {
        owner.is_none() || self.audience == Audience::Users
    }

    /// The parameters by name.
    #[must_use]
    pub const fn parameters(&self) -> &BTreeMap<String, Parameter> {
        &self.parameters
    }

    /// The declared parameters that the SQL does not use.
    pub(super) fn unused_parameters(&self) -> impl Iterator<Item = &str> {
        self.parameters.keys().map(String::as_str).filter(|name| !self.order.iter().any(|used| used == name))
    }

    /// The values of `$1` … `$n` as text, for a caller's `params` and the job's owner. A `null` counts as not sent.
    ///
    /// # Errors
    /// Everything that is wrong, each under its pointer `/params/<name>`.
    pub fn bind(&self, params: &Map<String, Value>, owner: Option<&str>) -> Result<Vec<Option<String>>, Vec<Violation>> {
        let mut violations = Vec::new();
        for name in params.keys() {
            match self.parameters.get(name) {
                Some(Parameter { origin: Origin::Owner, .. }) => {
                    violations.push(violation(name, "is always the job's owner; leave it out"));
                }
                Some(_) => {}
                None => violations.push(violation(name, self.unknown(name))),
            }
        }
        let mut values = BTreeMap::new();
        for (name, parameter) in &self.parameters {
            let sent = params.get(name).filter(|value| !value.is_null());
            let text = match (&parameter.origin, sent) {
                (Origin::Owner, _) => match owner {
                    None => Err("needs the job's owner; name the user the job is for".to_owned()),
                    Some(owner) => parameter
                        .kind
                        .text_of_text(owner)
                        .ok_or_else(|| format!("is the job's owner, which here must be of type {}", parameter.kind.sql_name())),
                },
                (_, Some(value)) => parameter.kind.text_of(value),
                (Origin::Default(text), None) => Ok(text.clone()),
                (Origin::Required, None) => Err(format!("is missing; it is of type {}", parameter.kind.sql_name())),
            };
            match text {
                Ok(text) => _ = values.insert(name.as_str(), text),
                Err(detail) => violations.push(violation(name, detail)),
            }
        }
        if violations.is_empty() { Ok(self.order.iter().map(|name| values.get(name.as_str()).cloned()).collect()) } else { Err(violations) }
    }

    fn unknown(&self, name: &str) -> String {
        let settable = self.parameters.iter().filter(|(_, parameter)| parameter.origin != Origin::Owner);
        let known: Vec<_> = settable.map(|(name, _)| name.as_str()).collect();
        match known.as_slice() {
            [] => format!("there is no parameter `{name}`; this dataset takes none"),
            known => format!("there is no parameter `{name}`; this dataset takes: {}", known.join(", ")),
        }
    }
}

fn violation(name: &str, detail: impl Into<String>) -> Violation {
    Violation::new(format!("/params{}", pointer_token(name)), detail)
}

/// A source of datasets: a database, read as a role that can't write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The variable that holds its URL, among [`Sources`](crate::config::Sources).
    pub url_env: String,
    /// The longest one statement may run there.
    pub statement_timeout: Duration,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dataset() -> Dataset {
        let parameters = [
            ("owner", ParameterType::Text, Origin::Owner),
            ("since", ParameterType::Timestamptz, Origin::Default("1970-01-01T00:00:00.000000Z".into())),
            ("most", ParameterType::Integer, Origin::Required),
        ];
        let parameters = parameters.into_iter().map(|(name, kind, origin)| (name.to_owned(), Parameter { kind, origin })).collect();
        let sql = "SELECT id FROM prompt WHERE created_at >= :since AND owner_id = :owner AND created_at < :since LIMIT :most";
        Dataset::new("main".into(), String::new(), Audience::Users, parameters, sql).unwrap()
    }

    fn bind(params: Value, owner: Option<&str>) -> Result<Vec<Option<String>>, Vec<(String, String)>> {
        let Value::Object(params) = params else { panic!("{params}") };
        dataset().bind(&params, owner).map_err(|violations| violations.into_iter().map(|v| (v.pointer, v.detail)).collect())
    }

    #[test]
    fn values_stand_in_the_order_of_the_sql() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(bind(json!({"most": 5}), Some("ada")), Ok(vec![some("1970-01-01T00:00:00.000000Z"), some("ada"), some("5")]));
        assert_eq!(
            bind(json!({"most": 5, "since": "2026-01-01T00:00:00Z"}), Some("' OR 1=1 --")),
            Ok(vec![some("2026-01-01T00:00:00.000000Z"), some("' OR 1=1 --"), some("5")])
        );
        assert_eq!(bind(json!({"most": 5, "since": null}), Some("ada")), bind(json!({"most": 5}), Some("ada")));
    }

    #[test]
    fn all_violations_come_at_once() {
        let violations = bind(json!({"owner": "eve", "since": "now", "a/b~": 1}), None).unwrap_err();
        let pointers: Vec<_> = violations.iter().map(|(pointer, _)| pointer.as_str()).collect();
        assert_eq!(pointers, ["/params/a~1b~0", "/params/owner", "/params/most", "/params/owner", "/params/since"]);
        assert_eq!(violations[0].1, "there is no parameter `a/b~`; this dataset takes: most, since");
        assert_eq!(violations[1].1, "is always the job's owner; leave it out");
        assert_eq!(violations[2].1, "is missing; it is of type integer");
        assert_eq!(violations[3].1, "needs the job's owner; name the user the job is for");
    }
}
