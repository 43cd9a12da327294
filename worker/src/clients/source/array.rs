//! Postgres' text of an array (`array_out`), as JSON.
//!
//! <https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO>: braces nest a dimension each; an element that is empty, reads as
//! `NULL`, or has white space, braces, quotes, backslashes or the delimiter stands in quotes with `\` before quotes and
//! backslashes; an unquoted `NULL` is none. Bounds that don't begin at 1 go before, as `[0:1]={a,b}`; JSON has no place for
//! them.

use super::shape::Shape;

/// Appends the array as JSON. Answers whether `raw` was one; else nothing useful was written.
pub(super) fn json(raw: &str, delimiter: char, element: &Shape, out: &mut String) -> bool {
    let mut rest = match raw.strip_prefix('[') {
        Some(bounds) => match bounds.split_once("]={") {
            Some((_, body)) => body,
            None => return false,
        },
        None => match raw.strip_prefix('{') {
            Some(body) => body,
            None => return false,
        },
    };
    out.push('[');
    let mut depth = 1_usize;
    let mut unquoted = String::new();
    while depth > 0 {
        let Some(first) = rest.chars().next() else { return false };
        let after = rest.get(first.len_utf8()..).unwrap_or_default();
        rest = match first {
            '{' => {
                out.push('[');
                depth += 1;
                after
            }
            '}' => {
                out.push(']');
                depth -= 1;
                after
            }
            '"' => {
                unquoted.clear();
                let Some(after) = quoted(after, &mut unquoted) else { return false };
                element.json(&unquoted, out);
                after
            }
            between if between == delimiter => {
                out.push(',');
                after
            }
            _ => {
                let end = rest.find([delimiter, '}']).unwrap_or(rest.len());
                let (value, after) = rest.split_at(end);
                if value == "NULL" {
                    out.push_str("null");
                } else {
                    element.json(value, out);
                }
                after
            }
        };
    }
    rest.is_empty()
}

/// Unquotes up to the closing quote; answers what follows it.
fn quoted<'a>(text: &'a str, out: &mut String) -> Option<&'a str> {
    let mut rest = text;
    loop {
        let end = rest.find(['"', '\\'])?;
        let (plain, special) = rest.split_at(end);
        out.push_str(plain);
        let after = special.get(1..)?;
        if special.starts_with('"') {
            return Some(after);
        }
        let escaped = after.chars().next()?;
        out.push(escaped);
        rest = after.get(escaped.len_utf8()..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(raw: &str) -> Option<String> {
        let mut out = String::new();
        json(raw, ',', &Shape::Text, &mut out).then_some(out)
    }

    #[test]
    fn texts() {
        for (raw, expected) in [
            ("{}", "[]"),
            ("{a}", r#"["a"]"#),
            ("{a,NULL,\"NULL\",\"\",null}", r#"["a",null,"NULL","","null"]"#),
            (r#"{"a,b","{c}","q\"u","b\\s"," d "}"#, r#"["a,b","{c}","q\"u","b\\s"," d "]"#),
            ("{\"line\r\nend\",é🚀,\"\\\\é\"}", r#"["line\r\nend","é🚀","\\é"]"#),
            ("{{a,b},{c,NULL}}", r#"[["a","b"],["c",null]]"#),
            ("[0:1]={a,b}", r#"["a","b"]"#),
            ("[0:0][2:3]={{a,b}}", r#"[["a","b"]]"#),
        ] {
            assert_eq!(text(raw).as_deref(), Some(expected), "{raw}");
            assert!(serde_json::from_str::<serde_json::Value>(expected).is_ok(), "{expected}");
        }
    }

    #[test]
    fn elements_of_other_types() {
        let mut out = String::new();
        assert!(json("{(1,2),(0,0);(3,4),(1,1)}", ';', &Shape::Text, &mut out));
        assert_eq!(out, r#"["(1,2),(0,0)","(3,4),(1,1)"]"#);
        out.clear();
        assert!(json("{1,9007199254740993,NULL}", ',', &Shape::Integer, &mut out));
        assert_eq!(out, r#"[1,"9007199254740993",null]"#);
        out.clear();
        assert!(json("{NaN,-0,0.1}", ',', &Shape::Float, &mut out));
        assert_eq!(out, r#"["NaN",-0,0.1]"#);
        out.clear();
        assert!(json(r#"{"{\"a\": [1, \"x\\\\\"]}","null"}"#, ',', &Shape::Json, &mut out));
        assert_eq!(out, r#"[{"a": [1, "x\\"]},null]"#);
        out.clear();
        assert!(json("{\"2026-11-20 00:00:00+00\",infinity}", ',', &Shape::TimestampWithZone, &mut out));
        assert_eq!(out, r#"["2026-11-20T00:00:00Z","infinity"]"#);
    }

    #[test]
    fn what_is_no_array_is_said_to_be_none() {
        for raw in ["", "a", "{", "{a", "{\"a}", "{a}b", "[0:1]", "{\"a\\", "{{a}"] {
            assert_eq!(text(raw), None, "{raw}");
        }
    }
}
