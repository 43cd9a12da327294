//! What was asked, in 32 bytes: by it a repeated request is told from another one under the same idempotency key.

use std::fmt::Write;

use aws_lc_rs::digest;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use shared::job::Priority;

/// What a job is, apart from when it was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The kind, under its permanent name.
    pub kind: &'a str,
    /// The payload.
    pub payload: &'a Value,
    /// When it is to run.
    pub run_at: Option<DateTime<Utc>>,
    /// When it is no longer worth starting.
    pub start_by: Option<DateTime<Utc>>,
    /// Its priority.
    pub priority: Priority,
    /// Whose it is.
    pub owner: Option<&'a str>,
    /// What else is asked for, where anything is.
    pub extras: Option<&'a Value>,
}

/// SHA-256 over a form in which the order of fields, white space and escapes do not count. Kept for as long as a key is, by
/// whatever version accepted the job: so it must not change between releases.
#[must_use]
pub fn fingerprint(asked: Asked<'_>) -> [u8; 32] {
    let Asked { kind, payload, run_at, start_by, priority, owner, extras } = asked;
    let moment = |moment: Option<DateTime<Utc>>| moment.map(|moment| moment.to_rfc3339_opts(SecondsFormat::Micros, true));
    let mut text = String::from("1\n");
    for part in [json!(kind), json!(moment(run_at)), json!(moment(start_by)), json!(priority.word()), json!(owner)] {
        write_canonical(&part, &mut text);
        text.push('\n');
    }
    write_canonical(payload, &mut text);
    if let Some(extras) = extras {
        text.push('\n');
        write_canonical(extras, &mut text);
    }
    sha256(&text)
}

/// SHA-256 over JSON in that form.
#[must_use]
pub fn hash_of(value: &Value) -> [u8; 32] {
    let mut text = String::new();
    write_canonical(value, &mut text);
    sha256(&text)
}

fn sha256(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    bytes
}

/// Writes JSON with fields in the order of their names' bytes. The parser bounds the depth.
fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| name.as_bytes());
            text.push('{');
            for (index, (name, value)) in fields.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_plain(&Value::from(name.as_str()), text);
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(item, text);
            }
            text.push(']');
        }
        plain => write_plain(plain, text),
    }
}

fn write_plain(value: &Value, text: &mut String) {
    // Writing to a string can't fail.
    _ = write!(text, "{value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(payload: &str) -> String {
        let payload: Value = serde_json::from_str(payload).unwrap();
        let asked =
            Asked { kind: "a.b", payload: &payload, run_at: None, start_by: None, priority: Priority::Normal, owner: None, extras: None };
        hex::encode(fingerprint(asked))
    }

    #[test]
    fn order_space_and_escapes_do_not_count() {
        let one = of(r#"{"b": [1, {"y": null, "x": "\u00e9\/"}], "a": true}"#);
        assert_eq!(one, of("{\"a\":true,\n\"b\":[1,{\"x\":\"é/\",\"y\":null}]}"));
        for other in [
            r#"{"b": [{"y": null, "x": "é/"}, 1], "a": true}"#,
            r#"{"b": [1, {"y": null, "x": "é/"}], "a": "true"}"#,
            r#"{"b": [1, {"x": "é/"}], "a": true}"#,
            r#"{"b": ["1", {"y": null, "x": "é/"}], "a": true}"#,
            r#"{"b": [1.0, {"y": null, "x": "é/"}], "a": true}"#,
        ] {
            assert_ne!(one, of(other), "{other}");
        }
    }

    #[test]
    fn every_part_counts() {
        let payload = json!({});
        let plain =
            Asked { kind: "a.b", payload: &payload, run_at: None, start_by: None, priority: Priority::Normal, owner: None, extras: None };
        let extras = json!({"then": []});
        let time = DateTime::from_timestamp(1_767_225_600, 0);
        let all = [
            plain,
            Asked { kind: "a.c", ..plain },
            Asked { run_at: time, ..plain },
            Asked { start_by: time, ..plain },
            Asked { priority: Priority::High, ..plain },
            Asked { owner: Some("null"), ..plain },
            Asked { owner: Some(""), ..plain },
            Asked { extras: Some(&extras), ..plain },
        ];
        let distinct: std::collections::HashSet<_> = all.into_iter().map(fingerprint).collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn it_stays_what_it_is() {
        // printf '1\n"a.b"\nnull\nnull\n"normal"\nnull\n{"a":[1.5,"x"],"b":9007199254740993}' | sha256sum
        assert_eq!(of(r#"{"b": 9007199254740993, "a": [1.5, "x"]}"#), GOLDEN);
    }

    const GOLDEN: &str = "8365dd41a31eab8c218b8ccf14ce280ed2c8b6d9dc1621a0eabbca34c313266e";
}
