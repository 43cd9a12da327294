//! The types of a dataset's parameters: which JSON values are of one, and how those are written for Postgres.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// A type that a parameter can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// Text.
    Text,
    /// A whole number of 32 bits.
    Integer,
    /// A whole number of 64 bits; also accepted as a string, since JavaScript's numbers stop at 53 bits.
    Bigint,
    /// A decimal number of any size; as a string where a binary fraction is not exact enough.
    Numeric,
    /// `true` or `false`.
    Boolean,
    /// A day, `2026-02-28`.
    Date,
    /// A moment, RFC 3339 with its offset.
    Timestamptz,
    /// A UUID.
    Uuid,
    /// A list of texts.
    #[serde(rename = "text[]")]
    TextArray,
}

impl ParameterType {
    /// The type's name in Postgres and in a manifest.
    #[must_use]
    pub const fn sql_name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Bigint => "bigint",
            Self::Numeric => "numeric",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Timestamptz => "timestamptz",
            Self::Uuid => "uuid",
            Self::TextArray => "text[]",
        }
    }

    /// What to send, for whoever sent something else.
    const fn expectation(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Integer => "a whole number from -2147483648 to 2147483647",
            Self::Bigint => "a whole number of at most 64 bits, as a number or a string",
            Self::Numeric => "a number, or a string such as \"12.50\"",
            Self::Boolean => "true or false",
            Self::Date => "a day such as \"2026-02-28\"",
            Self::Timestamptz => "a moment with its offset (RFC 3339) such as \"2026-02-28T12:00:00Z\"",
            Self::Uuid => "a UUID such as \"0197c2a4-5b6c-7d8e-9f01-23456789abcd\"",
            Self::TextArray => "a list of strings",
        }
    }

    /// A JSON value as the text that Postgres reads as this type.
    ///
    /// # Errors
    /// What was expected and what came instead.
    pub(in crate::tenant) fn text_of(self, value: &Value) -> Result<String, String> {
        let text = match (self, value) {
            (Self::Text, Value::String(text)) => Some(text.clone()),
            (Self::Integer, Value::Number(number)) => {
                number.as_i64().and_then(|number| i32::try_from(number).ok()).map(|number| number.to_string())
            }
            (Self::Bigint, Value::Number(number)) => number.as_i64().map(|number| number.to_string()),
            (Self::Numeric, Value::Number(number)) => Some(number.to_string()),
            (Self::Boolean, Value::Bool(truth)) => Some(truth.to_string()),
            (Self::Bigint | Self::Numeric | Self::Date | Self::Timestamptz | Self::Uuid, Value::String(text)) => self.text_of_text(text),
            (Self::TextArray, Value::Array(items)) => array(items),
            _ => None,
        };
        match text {
            // Postgres stores no NUL in text; it would refuse the whole statement, hours later.
            Some(text) if text.contains('\0') => Err(format!("must be {} without a NUL character", self.expectation())),
            Some(text) => Ok(text),
            None => Err(format!("must be {}, not {}", self.expectation(), Shown(value))),
        }
    }

    /// A text as the text that Postgres reads as this type: for the job's owner, which is always text.
    pub(super) fn text_of_text(self, text: &str) -> Option<String> {
        match self {
            Self::Text => Some(text.to_owned()),
            Self::Integer => text.parse::<i32>().ok().map(|number| number.to_string()),
            Self::Bigint => text.parse::<i64>().ok().map(|number| number.to_string()),
            Self::Numeric => is_decimal(text).then(|| text.to_owned()),
            Self::Date => {
                let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
                // Written back, so that what Postgres reads has four digits of year, whatever its date style.
                (1..=9_999).contains(&day.year()).then(|| day.format("%Y-%m-%d").to_string())
            }
            Self::Timestamptz => {
                let moment = DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc);
                (1..=9_999).contains(&moment.year()).then(|| moment.to_rfc3339_opts(SecondsFormat::Micros, true))
            }
            Self::Uuid => Uuid::try_parse(text).ok().map(|id| id.hyphenated().to_string()),
            Self::Boolean | Self::TextArray => None,
        }
    }

    /// Whether a job's owner, which is text, can be one.
    #[must_use]
    pub const fn can_be_owner(self) -> bool {
        matches!(self, Self::Text | Self::Integer | Self::Bigint | Self::Uuid)
    }
}

/// A value as part of a message: enough of it to be recognised, never a whole body.
struct Shown<'a>(&'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("null"),
            Value::Bool(truth) => write!(f, "{truth}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::String(text) if text.chars().count() <= 40 => write!(f, "the string {text:?}"),
            Value::String(_) => f.write_str("this string"),
            Value::Array(_) => f.write_str("a list"),
            Value::Object(_) => f.write_str("an object"),
        }
    }
}

/// `-12.5e3` and the like, within what every `numeric` holds (131,072 digits before the point, 16,383 after).
fn is_decimal(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_fits = exponent.parse::<i32>().is_ok_and(|exponent| exponent.unsigned_abs() <= 1_000);
    text.len() <= 1_000 && digits(whole) && digits(fraction) && exponent_fits
}

/// A list as Postgres writes arrays (`array_in`): every element quoted, so none can be taken for NULL or for syntax.
fn array(items: &[Value]) -> Option<String> {
    let mut text = String::from("{");
    for (index, item) in items.iter().enumerate() {
        let Value::String(item) = item else { return None };
        text.push_str(if index == 0 { "\"" } else { ",\"" });
        for character in item.chars() {
            if matches!(character, '"' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
        text.push('"');
    }
    text.push('}');
    Some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_their_type() {
        for (kind, value, text) in [
            (ParameterType::Text, json!("it's"), "it's"),
            (ParameterType::Text, json!(""), ""),
            (ParameterType::Integer, json!(-2_147_483_648_i64), "-2147483648"),
            (ParameterType::Bigint, json!(9_007_199_254_740_993_i64), "9007199254740993"),
            (ParameterType::Bigint, json!("-9223372036854775808"), "-9223372036854775808"),
            (ParameterType::Numeric, json!(0.1), "0.1"),
            (ParameterType::Numeric, json!("-12.50"), "-12.50"),
            (ParameterType::Numeric, json!("1e-7"), "1e-7"),
            (ParameterType::Boolean, json!(true), "true"),
            (ParameterType::Date, json!("2024-02-29"), "2024-02-29"),
            (ParameterType::Timestamptz, json!("2026-02-28T13:00:00.123456789+01:00"), "2026-02-28T12:00:00.123456Z"),
            (ParameterType::Uuid, json!("0197C2A45B6C7D8E9F0123456789ABCD"), "0197c2a4-5b6c-7d8e-9f01-23456789abcd"),
            (ParameterType::TextArray, json!([]), "{}"),
            (
                ParameterType::TextArray,
                json!(["a,b", "q\"\\", "", "NULL", "{x}", "é\n"]),
                "{\"a,b\",\"q\\\"\\\\\",\"\",\"NULL\",\"{x}\",\"é\n\"}",
            ),
        ] {
            assert_eq!(kind.text_of(&value).as_deref(), Ok(text), "{kind:?}");
        }
    }

    #[test]
    fn values_of_another_type_are_named() {
        for (kind, value) in [
            (ParameterType::Text, json!(1)),
            (ParameterType::Text, json!("a\u{0}b")),
            (ParameterType::Integer, json!(2_147_483_648_i64)),
            (ParameterType::Integer, json!(1.5)),
            (ParameterType::Integer, json!("1")),
            (ParameterType::Bigint, json!(9_223_372_036_854_775_808_u64)),
            (ParameterType::Bigint, json!("1.0")),
            (ParameterType::Numeric, json!("NaN")),
            (ParameterType::Numeric, json!("1e999999")),
            (ParameterType::Numeric, json!("1.")),
            (ParameterType::Numeric, json!(".5")),
            (ParameterType::Numeric, json!("1 ")),
            (ParameterType::Boolean, json!("true")),
            (ParameterType::Date, json!("2026-02-29")),
            (ParameterType::Date, json!("0000-01-01")),
            (ParameterType::Date, json!("2026-02-28T00:00:00Z")),
            (ParameterType::Timestamptz, json!("2026-02-28")),
            (ParameterType::Timestamptz, json!("2026-02-28T12:00:00")),
            (ParameterType::Timestamptz, json!("0000-02-28T12:00:00Z")),
            (ParameterType::Timestamptz, json!("infinity")),
            (ParameterType::Uuid, json!("0197c2a4")),
            (ParameterType::TextArray, json!("a")),
            (ParameterType::TextArray, json!(["a", null])),
            (ParameterType::TextArray, json!([["a"]])),
            (ParameterType::TextArray, json!(["\u{0}"])),
        ] {
            let detail = kind.text_of(&value).expect_err(&format!("{kind:?} {value}"));
            assert!(detail.starts_with("must be "), "{detail}");
        }
        assert_eq!(
            ParameterType::Date.text_of(&json!("tomorrow")).unwrap_err(),
            "must be a day such as \"2026-02-28\", not the string \"tomorrow\""
        );
    }
}
