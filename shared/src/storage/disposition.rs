//! How a download says under which name it is to be saved: RFC 6266, with RFC 8187 for names beyond ASCII.

use std::fmt::Write;

/// The value of `Content-Disposition` that saves a file under `name`, whatever characters it has.
///
/// `filename` is for readers that know no better: what can't stand in it, or is read differently by different browsers
/// (`%`, quotes, backslashes, slashes, anything beyond ASCII; RFC 6266 appendix D), is an underscore there. `filename*` has the name as it is, and
/// goes before the other where it is understood (RFC 6266 §4.3). Control characters are underscores in both.
#[must_use]
pub fn content_disposition(name: &str) -> String {
    let name: String = name.chars().map(|character| if character.is_control() { '_' } else { character }).collect();
    let plain: String = name
        .chars()
        .map(|character| match character {
            '"' | '\\' | '/' | '%' => '_',
            ' '..='~' => character,
            _ => '_',
        })
        .collect();
    let mut header = format!("attachment; filename=\"{plain}\"");
    if plain != name {
        header.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            // `attr-char` of RFC 8187 §3.2.1.
            if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
                header.push(char::from(byte));
            } else {
                // Writing to a string can't fail.
                let _ = write!(header, "%{byte:02X}");
            }
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::content_disposition;

    #[test]
    fn names() {
        for (name, header) in [
            ("prompts.csv", "attachment; filename=\"prompts.csv\""),
            ("my prompts; v=1, 'x'.csv", "attachment; filename=\"my prompts; v=1, 'x'.csv\""),
            ("a\"b\\c/d.csv", "attachment; filename=\"a_b_c_d.csv\"; filename*=UTF-8''a%22b%5Cc%2Fd.csv"),
            ("100%.csv", "attachment; filename=\"100_.csv\"; filename*=UTF-8''100%25.csv"),
            ("é🚀.csv", "attachment; filename=\"__.csv\"; filename*=UTF-8''%C3%A9%F0%9F%9A%80.csv"),
            ("e\u{301}.csv", "attachment; filename=\"e_.csv\"; filename*=UTF-8''e%CC%81.csv"),
            ("שלום.csv", "attachment; filename=\"____.csv\"; filename*=UTF-8''%D7%A9%D7%9C%D7%95%D7%9D.csv"),
            ("a\r\nSet-Cookie: x\u{0}\u{85}.csv", "attachment; filename=\"a__Set-Cookie: x__.csv\""),
            ("!#$&+-.^_`|~ *'()<>@", "attachment; filename=\"!#$&+-.^_`|~ *'()<>@\""),
            ("*'() é", "attachment; filename=\"*'() _\"; filename*=UTF-8''%2A%27%28%29%20%C3%A9"),
            ("", "attachment; filename=\"\""),
        ] {
            assert_eq!(content_disposition(name), header, "{name:?}");
        }
    }
}
