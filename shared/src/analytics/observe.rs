//! What one event is to one metric.
//!
//! What must stay true: it depends on what is stored of the event and on the metric's declaration alone, so that whoever reads the event
//! again comes to the same.

use aws_lc_rs::digest;
use serde_json::{Map, Number, Value};

use super::{Labels, Shape, decimal};
use crate::tenant::Metric;

/// The longest label, in characters; longer ones are cut.
pub const LONGEST_LABEL: usize = 100;

/// The name by which declarations mean an event's user.
pub const USER: &str = "user";

/// What is asked of an event.
#[derive(Debug, Clone, Copy)]
pub struct EventFacts<'a> {
    /// Its type.
    pub sort: &'a str,
    /// Whose it is.
    pub user: Option<&'a str>,
    /// What it says.
    pub properties: &'a Map<String, Value>,
}

/// What an event adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// Itself.
    Event,
    /// A value, in millionths.
    Value(i64),
    /// Whether it succeeded.
    Success(bool),
    /// A member of a set, by its hash.
    Member(u64),
}

/// What an event adds to a metric, and under which labels; `None` where it is none of its events, or has not the value.
#[must_use]
pub fn observe(metric: &Metric, event: &EventFacts<'_>) -> Option<(Labels, Observation)> {
    if metric.event() != event.sort || !event.is_among(metric.filter()) {
        return None;
    }
    let observation = match metric.shape() {
        Shape::Count => Observation::Event,
        Shape::Rate => Observation::Success(event.is_among(metric.success())),
        Shape::Uniques => Observation::Member(hash(metric.salt(), &event.label(metric.of())?)),
        Shape::Numbers | Shape::Histogram => match event.property(metric.value()?)? {
            Value::Number(number) => Observation::Value(decimal::millionths(number)?),
            _ => return None,
        },
    };
    // A user's name is kept whole: what is theirs is found by it.
    let label = |dimension: &String| event.label(dimension).map(|label| if dimension == USER { label } else { cut(label) });
    let labels = metric.dimensions().iter().map(label).collect();
    Some((Labels(labels), observation))
}

impl EventFacts<'_> {
    /// Whether all conditions hold: of each property, that it is one of some values.
    fn is_among(&self, conditions: &[(String, Vec<String>)]) -> bool {
        conditions.iter().all(|(path, values)| self.label(path).is_some_and(|label| values.contains(&label)))
    }

    /// A property; `a.b` is `b` of `a`, unless there is one of the whole name.
    fn property(&self, path: &str) -> Option<&Value> {
        if let Some(found) = self.properties.get(path) {
            return Some(found);
        }
        let (first, rest) = path.split_once('.')?;
        let first = self.properties.get(first)?;
        rest.split('.').try_fold(first, |value, key| value.get(key))
    }

    fn label(&self, path: &str) -> Option<String> {
        if path == USER { self.user.map(str::to_owned) } else { label_of(self.property(path)?) }
    }
}

/// A value as it is compared and shown: texts as they are, numbers in one form each; `None` for what is neither of these nor true or false.
#[must_use]
pub fn label_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Number(number) => Some(number_label(number)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Numbers from here on are written with an exponent, and so are those below [`SMALL`]: whole ones up to 64 bits are not among them.
const LARGE: f64 = 1e21;
const SMALL: f64 = 1e-9;

/// A number in digits, whatever way the sender wrote it: whole ones up to 64 bits exactly, others in the fewest digits that lead back to the
/// float they were read as. Postgres keeps those, so whoever reads the event again comes to the same.
fn number_label(number: &Number) -> String {
    if let Some(whole) = number.as_i64() {
        return whole.to_string();
    }
    if let Some(whole) = number.as_u64() {
        return whole.to_string();
    }
    let value = number.as_f64().unwrap_or_default();
    match value.abs() {
        // Below zero or not: Postgres knows one of them.
        0.0 => "0".to_owned(),
        size if (SMALL..LARGE).contains(&size) => value.to_string(),
        _ => format!("{value:e}"),
    }
}

fn cut(label: String) -> String {
    match label.char_indices().nth(LONGEST_LABEL) {
        Some((end, _)) => label.get(..end).unwrap_or_default().to_owned(),
        None => label,
    }
}

/// A member's hash: by the series, so that sets of two metrics can't be compared member by member.
fn hash(salt: &[u8], member: &str) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(salt);
    context.update(member.as_bytes());
    let mut first = [0; 8];
    first.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_label_however_it_is_written() {
        for (written, label) in [
            ("1", "1"),
            ("1.0", "1"),
            ("1e2", "100"),
            ("-0.0", "0"),
            ("-2.50", "-2.5"),
            ("0.1", "0.1"),
            ("0.000001", "0.000001"),
            ("0.1234567", "0.1234567"),
            ("9000000000001", "9000000000001"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("1184467440737095516", "1184467440737095516"),
            ("1184467440737095517", "1184467440737095517"),
            ("18446744073709551615", "18446744073709551615"),
            ("1e19", "10000000000000000000"),
            ("1e300", "1e300"),
            ("1e-300", "1e-300"),
        ] {
            let label_of = |text: &str| label_of(&serde_json::from_str(text).unwrap());
            assert_eq!(label_of(written).as_deref(), Some(label), "{written}");
            assert_eq!(label_of(label).as_deref(), Some(label), "{written}, again");
        }
    }
}
