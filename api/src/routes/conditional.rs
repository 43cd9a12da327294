//! Conditional reads (RFC 9110, section 13): whoever holds what would be answered is told so, and nothing more.

use axum::http::{HeaderMap, header};

/// Whether `If-None-Match` names this tag, or whatever there is (`*`), compared weakly (RFC 9110 §13.1.2). A comma within another's tag tears
/// that one apart: none of ours has one, so none of its parts can be ours.
pub fn holds(headers: &HeaderMap, tag: &str) -> bool {
    let tag = tag.trim_start_matches("W/");
    let held = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    held.map(str::trim).any(|held| held == "*" || held.strip_prefix("W/").unwrap_or(held) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_weakly_in_lists() {
        let mut headers = HeaderMap::new();
        for value in [r#""a", W/"b""#, r#"W/"c""#] {
            headers.append(header::IF_NONE_MATCH, value.parse().unwrap());
        }
        for (tag, held) in [(r#"W/"a""#, true), (r#""b""#, true), (r#"W/"c""#, true), (r#"W/"d""#, false), ("a", false)] {
            assert_eq!(holds(&headers, tag), held, "{tag}");
        }
        assert!(!holds(&HeaderMap::new(), "W/\"a\""));
        // Whatever there is; but no tag that looks like it.
        for (value, held) in
            [("*", true), (" * ", true), ("\"*\"", false), ("W/*", false), ("w/\"a\"", false), ("\"b,a\"", false), ("", false)]
        {
            assert_eq!(holds(&HeaderMap::from_iter([(header::IF_NONE_MATCH, value.parse().unwrap())]), "W/\"a\""), held, "{value}");
        }
    }
}
