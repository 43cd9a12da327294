//! Values of events as whole millionths. Sums of them are exact, so they are the same in whatever order they were added; sums of floats
//! are not.
//!
//! What must stay true: a value is read as `round(value, 6)` of Postgres' `numeric` would have it, half away from zero, from the digits that
//! are stored with the event.

use serde_json::Number;

/// Millionths in one.
pub const MILLION: i64 = 1_000_000;

/// The largest value, of either sign: nine million millions, so that millionths of it fit 64 bits.
pub const LARGEST: f64 = 9.0e12;

/// A JSON number in millionths; `None` for what is beyond [`LARGEST`].
#[must_use]
pub fn millionths(number: &Number) -> Option<i64> {
    if let Some(whole) = number.as_i64() {
        return whole.checked_mul(MILLION).filter(|value| value.unsigned_abs() <= 9_000_000_000_000_000_000);
    }
    let value = number.as_f64().filter(|value| value.abs() <= LARGEST)?;
    // The shortest digits that lead back to it: the ones that are stored. Rust writes them without an exponent.
    from_digits(&value.to_string())
}

fn from_digits(text: &str) -> Option<i64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut value: i64 = whole.parse().ok()?;
    let mut places = fraction.bytes().map(|digit| i64::from(digit - b'0'));
    for _ in 0..6 {
        value = value.checked_mul(10)?.checked_add(places.next().unwrap_or(0))?;
    }
    if places.next().is_some_and(|next| next >= 5) {
        value = value.checked_add(1)?;
    }
    Some(if negative { -value } else { value })
}

/// Millionths as a number for answers, the nearest there is.
#[must_use]
pub fn as_number(value: i128) -> f64 {
    // Parsed rather than divided: it is then the float nearest to the decimal digits.
    as_text(value).parse().unwrap_or_default()
}

/// Millionths in decimal digits, none more than needed.
#[must_use]
pub fn as_text(value: i128) -> String {
    let (whole, rest) = (value.unsigned_abs() / MILLION as u128, value.unsigned_abs() % MILLION as u128);
    let sign = if value < 0 { "-" } else { "" };
    if rest == 0 {
        return format!("{sign}{whole}");
    }
    let fraction = format!("{rest:06}");
    format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<i64> {
        millionths(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn values_are_rounded_as_numeric_is() {
        for (text, value) in [
            ("0", 0),
            ("1", 1_000_000),
            ("-2.5", -2_500_000),
            ("0.1", 100_000),
            ("0.0000005", 1),
            ("-0.0000005", -1),
            ("0.00000049", 0),
            ("1e2", 100_000_000),
            ("1e-6", 1),
            ("123456.7890125", 123_456_789_013),
            ("9000000000000", 9_000_000_000_000_000_000),
        ] {
            assert_eq!(of(text), Some(value), "{text}");
        }
        for beyond in ["9000000000001", "-9000000000001", "1e13", "1e300", "18446744073709551615"] {
            assert_eq!(of(beyond), None, "{beyond}");
        }
    }

    #[test]
    fn and_shown_as_they_are() {
        for (value, text) in [(0, "0"), (1, "0.000001"), (-1_500_000, "-1.5"), (100_000_000, "100"), (10, "0.00001")] {
            assert_eq!(as_text(value), text);
            assert_eq!(as_number(value).to_string(), text);
        }
    }
}
