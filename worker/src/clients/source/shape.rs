//! What a column's texts are, by its type; and how a text of Postgres becomes one that other programs read.
//!
//! | type | Postgres' text | ours |
//! |---|---|---|
//! | `boolean` | `t` | `true` |
//! | `timestamptz` | `2026-11-20 19:21:05.5+00` | `2026-11-20T19:21:05.5Z` (RFC 3339, UTC) |
//! | `timestamp` | `2026-11-20 19:21:05.5` | `2026-11-20T19:21:05.5` (no zone, so no offset) |
//! | `date` before year 0 or after 9999 | `0044-03-15 BC` | `-000043-03-15` (ISO 8601, expanded years) |
//! | `date`, `timestamp` without end | `infinity`, `-infinity` | the same |
//! | `timetz` | `12:00:00+02` | `12:00:00+02:00` |
//! | `interval` | `P1DT2H3M` | the same (ISO 8601, by a setting) |
//! | `bytea` | `\x00ff` | the same: `\x` and hex |
//! | arrays | `{a,NULL,"b c"}` | `["a",null,"b c"]` (JSON) |
//! | `json`, `jsonb` | as stored | the same |
//! | domains | | as the type they are based on |
//! | all others | | the same: numbers digit by digit (`NaN`, `Infinity`), enums, uuid, inet, ranges, composites … |

use std::collections::HashMap;

use sqlx::{PgConnection, Row, postgres::types::Oid};

use super::{array, time};

/// What a column's texts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// Text, or anything else that Postgres' text form stands for as it is.
    Text,
    /// `t` or `f`.
    Boolean,
    /// Whole numbers.
    Integer,
    /// Decimal numbers of any length.
    Numeric,
    /// Binary fractions, as few digits as read back the same.
    Float,
    /// Days.
    Date,
    /// Moments without a zone.
    Timestamp,
    /// Moments, in UTC.
    TimestampWithZone,
    /// Times of day with an offset.
    TimeWithZone,
    /// JSON.
    Json,
    /// Lists, of lists where there are more dimensions.
    Array {
        /// What the elements are.
        element: Box<Self>,
        /// What stands between them: a comma, for all built-in types but `box`.
        delimiter: char,
    },
}

impl Shape {
    /// The text for other programs: `raw` itself, or what is written to `scratch`.
    pub fn plain<'a>(&self, raw: &'a str, scratch: &'a mut String) -> &'a str {
        scratch.clear();
        let written = match self {
            Self::Text | Self::Integer | Self::Numeric | Self::Float | Self::Json => false,
            Self::Boolean => return truth(raw),
            Self::Date | Self::Timestamp | Self::TimestampWithZone => time::moment(raw, scratch),
            Self::TimeWithZone => time::of_day(raw, scratch),
            Self::Array { element, delimiter } => array::json(raw, *delimiter, element, scratch),
        };
        // What Postgres writes is always understood; a text that is not is better than a gap.
        if written { scratch } else { raw }
    }

    /// Whether a number keeps its value in every reader that holds numbers as doubles, as most do (RFC 8259 §6).
    #[must_use]
    pub fn is_exact_number(&self, raw: &str) -> bool {
        match self {
            Self::Integer => is_safe_integer(raw),
            Self::Numeric => is_exact_as_double(raw),
            // Else it is `NaN` or infinite.
            Self::Float => raw.ends_with(|c: char| c.is_ascii_digit()),
            _ => false,
        }
    }

    /// Appends the value as JSON.
    pub fn json(&self, raw: &str, out: &mut String) {
        let mut scratch = String::new();
        match self {
            Self::Boolean => out.push_str(truth(raw)),
            Self::Json => out.push_str(raw),
            _ if self.is_exact_number(raw) => out.push_str(raw),
            Self::Array { .. } => out.push_str(self.plain(raw, &mut scratch)),
            _ => push_json_string(self.plain(raw, &mut scratch), out),
        }
    }
}

fn truth(raw: &str) -> &str {
    match raw {
        "t" => "true",
        "f" => "false",
        other => other,
    }
}

/// Whether every JSON reader keeps it: many read numbers as doubles, which hold integers up to 2^53 − 1 (RFC 8259 §6).
fn is_safe_integer(raw: &str) -> bool {
    // Up to 15 characters none can be beyond it, whatever they are.
    if raw.len() <= 15 {
        return true;
    }
    raw.parse::<i64>().is_ok_and(|number| number.unsigned_abs() < 1 << 53)
}

/// Whether a decimal number survives a double and back: up to 15 significant digits do (IEEE 754, `DBL_DIG`).
fn is_exact_as_double(raw: &str) -> bool {
    let digits = raw.strip_prefix('-').unwrap_or(raw);
    // Far from where doubles end, in both directions; `NaN` and `Infinity` fall out here too.
    if digits.len() > 300 || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return false;
    }
    let digits = digits.trim_start_matches(['0', '.']);
    let digits = if raw.contains('.') { digits.trim_end_matches('0') } else { digits };
    digits.bytes().filter(u8::is_ascii_digit).count() <= 15
}

/// Appends a JSON string.
fn push_json_string(text: &str, out: &mut String) {
    // A string can always be written, and so is an empty one rather than a panic.
    out.push_str(&serde_json::to_string(text).unwrap_or_else(|_| "\"\"".into()));
}

/// A type as the catalogue describes it.
#[derive(Debug, Clone)]
pub(super) struct Type {
    /// As Postgres writes it.
    pub name: String,
    /// What a domain is based on.
    base: Option<Oid>,
    /// The elements of an array, and what stands between them.
    element: Option<(Oid, char)>,
}

/// Looks types up, and those they are made of.
pub(super) async fn types(connection: &mut PgConnection, wanted: impl Iterator<Item = Oid>) -> sqlx::Result<HashMap<Oid, Type>> {
    let wanted: Vec<Oid> = wanted.collect();
    // `array_out` tells true arrays from int2vector and the like, which have elements and another text form.
    let rows = sqlx::query(
        "WITH RECURSIVE wanted (oid) AS (
            SELECT unnest($1::oid[])
            UNION
            SELECT CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END
            FROM wanted JOIN pg_catalog.pg_type t USING (oid)
            WHERE t.typtype = 'd' OR t.typoutput = 'pg_catalog.array_out'::regproc
        )
        SELECT t.oid, pg_catalog.format_type(t.oid, NULL) AS name,
               CASE WHEN t.typtype = 'd' THEN t.typbasetype END AS base,
               CASE WHEN t.typtype <> 'd' AND t.typoutput = 'pg_catalog.array_out'::regproc THEN t.typelem END AS element,
               coalesce(e.typdelim, ',')::text AS delimiter
        FROM wanted JOIN pg_catalog.pg_type t USING (oid) LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem",
    )
    .persistent(false)
    .bind(wanted)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let delimiter: String = row.try_get("delimiter")?;
            let delimiter = delimiter.chars().next().unwrap_or(',');
            let element: Option<Oid> = row.try_get("element")?;
            let kind = Type { name: row.try_get("name")?, base: row.try_get("base")?, element: element.map(|oid| (oid, delimiter)) };
            Ok((row.try_get("oid")?, kind))
        })
        .collect()
}

/// The shape of a type. Domains over domains and arrays of domains over arrays are followed down, a bounded way.
pub(super) fn resolve(oid: Oid, types: &HashMap<Oid, Type>) -> Shape {
    resolve_within(oid, types, 16)
}

fn resolve_within(oid: Oid, types: &HashMap<Oid, Type>, depth: u8) -> Shape {
    // The numbers of built-in types never change (src/include/catalog/pg_type.dat).
    match oid.0 {
        16 => return Shape::Boolean,
        20 | 21 | 23 | 26 => return Shape::Integer,
        114 | 3802 => return Shape::Json,
        700 | 701 => return Shape::Float,
        1082 => return Shape::Date,
        1114 => return Shape::Timestamp,
        1184 => return Shape::TimestampWithZone,
        1266 => return Shape::TimeWithZone,
        1700 => return Shape::Numeric,
        _ => {}
    }
    let Some(depth) = depth.checked_sub(1) else { return Shape::Text };
    match types.get(&oid) {
        Some(&Type { base: Some(base), .. }) => resolve_within(base, types, depth),
        Some(&Type { element: Some((element, delimiter)), .. }) => {
            Shape::Array { element: Box::new(resolve_within(element, types, depth)), delimiter }
        }
        _ => Shape::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(shape: &Shape, raw: &str) -> String {
        let mut out = String::new();
        shape.json(raw, &mut out);
        out
    }

    #[test]
    fn plain_texts() {
        let mut scratch = String::from("left over");
        assert_eq!(Shape::Boolean.plain("t", &mut scratch), "true");
        assert_eq!(Shape::Boolean.plain("f", &mut scratch), "false");
        assert_eq!(Shape::Text.plain("t", &mut scratch), "t");
        assert_eq!(Shape::Numeric.plain("-0.10", &mut scratch), "-0.10");
        assert_eq!(Shape::TimestampWithZone.plain("2026-11-20 19:21:05.5+00", &mut scratch), "2026-11-20T19:21:05.5Z");
        let array = Shape::Array { element: Box::new(Shape::Boolean), delimiter: ',' };
        assert_eq!(array.plain("{t,NULL,f}", &mut scratch), "[true,null,false]");
        assert_eq!(array.plain("no array", &mut scratch), "no array");
    }

    #[test]
    fn numbers_stay_numbers_where_a_double_holds_them() {
        for (shape, raw, expected) in [
            (Shape::Integer, "9007199254740991", "9007199254740991"),
            (Shape::Integer, "9007199254740992", "\"9007199254740992\""),
            (Shape::Integer, "-9007199254740993", "\"-9007199254740993\""),
            (Shape::Integer, "-9223372036854775808", "\"-9223372036854775808\""),
            (Shape::Integer, "0", "0"),
            (Shape::Numeric, "0.1", "0.1"),
            (Shape::Numeric, "-12.50", "-12.50"),
            (Shape::Numeric, "123456789012345", "123456789012345"),
            (Shape::Numeric, "1234567890123456", "\"1234567890123456\""),
            (Shape::Numeric, "0.000000000000123456789012345", "0.000000000000123456789012345"),
            (Shape::Numeric, "12345678.901234560000", "\"12345678.901234560000\""),
            (Shape::Numeric, "1000000000000000000000", "\"1000000000000000000000\""),
            (Shape::Numeric, "100.000000000000000000", "100.000000000000000000"),
            (Shape::Numeric, "NaN", "\"NaN\""),
            (Shape::Numeric, "-Infinity", "\"-Infinity\""),
            (Shape::Float, "5e-324", "5e-324"),
            (Shape::Float, "1e+21", "1e+21"),
            (Shape::Float, "-0", "-0"),
            (Shape::Float, "NaN", "\"NaN\""),
            (Shape::Float, "Infinity", "\"Infinity\""),
            (Shape::Json, "{\"a\": 1}", "{\"a\": 1}"),
            (Shape::Text, "a\"\\\u{1}é", "\"a\\\"\\\\\\u0001é\""),
            (Shape::Date, "0044-03-15 BC", "\"-000043-03-15\""),
        ] {
            assert_eq!(json(&shape, raw), expected, "{shape:?}");
        }
    }

    #[test]
    fn a_type_that_leads_to_itself_ends() {
        let kind = Type { name: "loop".into(), base: Some(Oid(99_999)), element: None };
        assert_eq!(resolve(Oid(99_999), &HashMap::from([(Oid(99_999), kind)])), Shape::Text);
    }
}
