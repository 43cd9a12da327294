//! Postgres' ISO texts of dates and times, as RFC 3339 and ISO 8601 write them.
//!
//! RFC 3339 has the years 0000 to 9999, 0000 being 1 BC. Years beyond are written as ISO 8601 expands them, with a sign
//! and at least six digits, which is what JavaScript and Java read: `+010000-01-01`, and `-000043-03-15` for the Ides of March
//! of 44 BC. The fraction of a second keeps the digits that Postgres writes, which are as many as it takes.

use std::fmt::Write;

/// A `date`, `timestamp` or (in UTC) `timestamptz`. Answers whether it was one; else nothing useful was written.
pub(super) fn moment(raw: &str, out: &mut String) -> bool {
    if matches!(raw, "infinity" | "-infinity") {
        out.push_str(raw);
        return true;
    }
    let (text, before_christ) = match raw.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (raw, false),
    };
    let Some((year, rest)) = text.split_once('-') else { return false };
    if year.len() == 4 && !before_christ {
        out.push_str(year);
    } else {
        let Ok(number) = year.parse::<i64>() else { return false };
        // There is no year 0 before Christ; astronomers count 1 BC as 0.
        let number = if before_christ { 1 - number } else { number };
        // Writing to a string can't fail.
        let _ = if (0..=9_999).contains(&number) { write!(out, "{number:04}") } else { write!(out, "{number:+07}") };
    }
    out.push('-');
    match rest.split_once(' ') {
        None => out.push_str(rest),
        Some((day, time)) => {
            out.push_str(day);
            out.push('T');
            of_day(time, out);
        }
    }
    true
}

/// A time of day, with an offset or without.
pub(super) fn of_day(raw: &str, out: &mut String) -> bool {
    let Some(sign) = raw.find(['+', '-']) else {
        out.push_str(raw);
        return true;
    };
    let (time, offset) = raw.split_at(sign);
    out.push_str(time);
    match offset {
        "+00" => out.push('Z'),
        // Postgres leaves minutes out that are zero.
        hours if hours.len() == 3 => {
            out.push_str(hours);
            out.push_str(":00");
        }
        other => out.push_str(other),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        for (raw, expected) in [
            ("2026-11-20", "2026-11-20"),
            ("2026-11-20 19:21:05", "2026-11-20T19:21:05"),
            ("2026-11-20 19:21:05.123456", "2026-11-20T19:21:05.123456"),
            ("2026-11-20 19:21:05.123456+00", "2026-11-20T19:21:05.123456Z"),
            ("2026-11-20 19:21:05+00", "2026-11-20T19:21:05Z"),
            ("2026-11-20 19:21:05+05:45", "2026-11-20T19:21:05+05:45"),
            ("2026-11-20 19:21:05-03", "2026-11-20T19:21:05-03:00"),
            ("0001-01-01 00:00:00+00", "0001-01-01T00:00:00Z"),
            ("0001-12-31 BC", "0000-12-31"),
            ("0044-03-15 BC", "-000043-03-15"),
            ("0044-03-15 12:00:00+00 BC", "-000043-03-15T12:00:00Z"),
            ("4713-01-01 00:00:00 BC", "-004712-01-01T00:00:00"),
            ("9999-12-31 23:59:59.999999+00", "9999-12-31T23:59:59.999999Z"),
            ("10000-01-01", "+010000-01-01"),
            ("294276-12-31 23:59:59.999999+00", "+294276-12-31T23:59:59.999999Z"),
            ("5874897-12-31", "+5874897-12-31"),
            ("infinity", "infinity"),
            ("-infinity", "-infinity"),
        ] {
            let mut out = String::new();
            assert!(moment(raw, &mut out), "{raw}");
            assert_eq!(out, expected);
        }
        assert!(!moment("now", &mut String::new()));
    }

    #[test]
    fn times_of_day() {
        for (raw, expected) in [
            ("24:00:00", "24:00:00"),
            ("12:00:00.5+00", "12:00:00.5Z"),
            ("12:00:00+02", "12:00:00+02:00"),
            ("12:00:00-03:30", "12:00:00-03:30"),
            ("12:00:00+15:59:59", "12:00:00+15:59:59"),
        ] {
            let mut out = String::new();
            assert!(of_day(raw, &mut out));
            assert_eq!(out, expected);
        }
    }
}
