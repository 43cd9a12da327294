//! A dataset as a manifest declares it, and what can be wrong with that.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{
    super::dataset::{Audience, Dataset, MOST_PARAMETERS, Origin, Parameter, ParameterType},
    Fault, LONGEST_NAME, check_name,
};

/// The most columns of a keyset.
const MOST_KEYS: usize = 8;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DatasetDeclaration {
    pub(super) source: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audience: Option<Audience>,
    /// Columns that order the rows and tell each from every other, for exports that go on where they stopped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keyset: Vec<String>,
    sql: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<String, ParameterDeclaration>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ParameterDeclaration {
    #[serde(rename = "type")]
    kind: ParameterType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<From>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "default_value")]
    default: Option<Value>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum From {
    Owner,
}

/// TOML has dates and times of its own; here they are the strings they are written as.
fn default_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Time(toml::value::Datetime),
        Other(Value),
    }
    Ok(Some(match Written::deserialize(deserializer)? {
        Written::Time(time) => Value::from(time.to_string()),
        Written::Other(value) => value,
    }))
}

impl DatasetDeclaration {
    pub(super) fn check(&self, key: &str, faults: &mut Vec<Fault>) -> Option<Dataset> {
        let before = faults.len();
        if self.parameters.len() > MOST_PARAMETERS {
            let detail = format!("has {} parameters; {MOST_PARAMETERS} are the most", self.parameters.len());
            faults.push(Fault::new(&["datasets", key, "parameters"], detail));
        }
        let mut parameters = BTreeMap::new();
        for (name, declaration) in &self.parameters {
            let path = ["datasets", key, "parameters", name];
            check_name(name, &path, faults);
            match declaration.check() {
                Ok(parameter) => _ = parameters.insert(name.clone(), parameter),
                Err((field, detail)) => {
                    let path: Vec<_> = path.into_iter().chain([field]).collect();
                    faults.push(Fault::new(&path, detail));
                    // Stands in, so that its uses in the SQL are not reported as undeclared.
                    parameters.insert(name.clone(), Parameter { kind: declaration.kind, origin: Origin::Required });
                }
            }
        }
        // What is bound to its owner shows a user their own rows only; anything else is opened to users on purpose or not at all.
        let bound = parameters.values().any(|parameter| parameter.origin == Origin::Owner);
        let audience = match (self.audience, bound) {
            (Some(Audience::Backend), true) => {
                let detail = "`backend` contradicts the parameter that comes `from = \"owner\"`: no job with an owner could read it; remove one of the two";
                faults.push(Fault::new(&["datasets", key, "audience"], detail));
                Audience::Backend
            }
            (Some(audience), _) => audience,
            (None, true) => Audience::Users,
            (None, false) => Audience::Backend,
        };
        for (place, column) in self.keyset.iter().enumerate() {
            let twice = self.keyset.iter().take(place).any(|other| other == column);
            if twice || column.is_empty() || column.len() > LONGEST_NAME || column.contains('\0') || place >= MOST_KEYS {
                let detail = format!("must be at most {MOST_KEYS} different columns of the dataset, by their names; `{column}` is not");
                faults.push(Fault::new(&["datasets", key, "keyset"], detail));
                break;
            }
        }
        match Dataset::new(self.source.clone(), self.description.clone(), audience, parameters, &self.sql) {
            Ok(mut dataset) => {
                dataset.keyset.clone_from(&self.keyset);
                for name in dataset.unused_parameters() {
                    faults.push(Fault::new(&["datasets", key, "parameters", name], "is declared, but `sql` doesn't use it; remove it"));
                }
                (faults.len() == before).then_some(dataset)
            }
            Err(sql) => {
                let path: Vec<String> = ["datasets", key, "sql"].map(str::to_owned).into();
                faults.extend(sql.into_iter().map(|fault| Fault { path: path.clone(), offset: fault.offset, detail: fault.detail }));
                None
            }
        }
    }
}

impl ParameterDeclaration {
    /// The parameter, or the field that is wrong and why.
    fn check(&self) -> Result<Parameter, (&'static str, String)> {
        let origin = match (self.from, &self.default) {
            (Some(From::Owner), Some(_)) => {
                return Err(("default", "has no effect beside `from = \"owner\"`; remove it".into()));
            }
            (Some(From::Owner), None) if !self.kind.can_be_owner() => {
                let detail = format!("an owner can be text, integer, bigint or uuid, not {}", self.kind.sql_name());
                return Err(("from", detail));
            }
            (Some(From::Owner), None) => Origin::Owner,
            (None, Some(value)) => Origin::Default(self.kind.text_of(value).map_err(|detail| ("default", detail))?),
            (None, None) => Origin::Required,
        };
        Ok(Parameter { kind: self.kind, origin })
    }
}
