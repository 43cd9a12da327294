//! Text as it is once its disguises are undone: other forms of its characters, characters that nobody sees, characters that are written by
//! their numbers. For looking at it, never for use.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use unicode_normalization::UnicodeNormalization;

/// How often what is written by numbers is read: once, where that was done to it twice, and where the second was done in another way.
const ROUNDS: usize = 3;

/// Without what nobody sees.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_unseen) { text.chars().filter(|c| !is_unseen(*c)).collect::<String>().into() } else { text.into() }
}

/// In small letters of their plainest form, without what nobody sees, with what is written by numbers in its place.
pub(super) fn plain(text: &str) -> String {
    let mut plain = folded(text);
    for _ in 0..ROUNDS {
        let Some(decoded) = decoded(&plain) else { break };
        plain = folded(&decoded);
    }
    plain
}

/// Compatibility decomposition (UAX #15), which makes `＜` a `<` and `ſ` an `s`. Not composition: it would make one character of a `>` and
/// the stroke through it behind it, which a browser reads as two.
fn folded(text: &str) -> String {
    if text.is_ascii() {
        return text.chars().filter(|c| !is_unseen(*c)).map(|c| c.to_ascii_lowercase()).collect();
    }
    text.nfkd().filter(|c| !is_unseen(*c)).flat_map(char::to_lowercase).collect()
}

/// Control characters, and those that are shown as nothing (`Default_Ignorable_Code_Point`, UAX #44): of zero width, soft hyphens, marks of
/// direction, selectors of a variant, tags.
fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
        || c.is_control() && !c.is_whitespace()
}

/// With what is written by numbers in its place; `None` where nothing is. Expects small letters.
fn decoded(text: &str) -> Option<String> {
    let characters = references(text);
    let text = characters.as_deref().unwrap_or(text);
    let escapes = escapes(text);
    let text = escapes.as_deref().unwrap_or(text);
    // Bytes that are no UTF-8 become something that is nothing's name.
    let bytes: Option<String> = match percent_decode_str(text).decode_utf8_lossy() {
        Cow::Owned(decoded) => Some(decoded),
        Cow::Borrowed(_) => None,
    };
    bytes.or(escapes).or(characters)
}

/// Each place that begins with the mark is what `read` finds there, with its length in bytes; `None` where it finds nothing anywhere.
fn replaced(text: &str, mark: char, read: impl Fn(&str) -> Option<(char, usize)>) -> Option<String> {
    let mut out: Option<String> = None;
    // Up to where it was copied.
    let mut copied = 0;
    for (at, _) in text.match_indices(mark) {
        // Within what was read already.
        let Some(before) = text.get(copied..at) else { continue };
        let Some((character, length)) = text.get(at..).and_then(&read) else { continue };
        let out = out.get_or_insert_with(|| String::with_capacity(text.len()));
        out.push_str(before);
        out.push(character);
        copied = at + length;
    }
    let mut out = out?;
    out.push_str(text.get(copied..).unwrap_or_default());
    Some(out)
}

/// References to characters (HTML Standard, 13.5): `&#106;`, `&#x6a;`, `&colon;`, `&lt;` and the like, with or without a semicolon.
fn references(text: &str) -> Option<String> {
    replaced(text, '&', |reference| {
        let (character, length) = named(reference).or_else(|| {
            let digits = reference.strip_prefix("&#")?;
            match digits.strip_prefix('x') {
                Some(digits) => number(digits, 16, 8).map(|(character, count)| (character, 3 + count)),
                None => number(digits, 10, 8).map(|(character, count)| (character, 2 + count)),
            }
        })?;
        Some((character, length + usize::from(reference.get(length..).is_some_and(|rest| rest.starts_with(';')))))
    })
}

/// The names of those that a script would need.
fn named(reference: &str) -> Option<(char, usize)> {
    const NAMES: [(&str, char); 14] = [
        ("colon", ':'),
        ("lt", '<'),
        ("gt", '>'),
        ("tab", '\t'),
        ("newline", '\n'),
        ("lpar", '('),
        ("rpar", ')'),
        ("quot", '"'),
        ("apos", '\''),
        ("grave", '`'),
        ("equals", '='),
        ("sol", '/'),
        ("bsol", '\\'),
        ("amp", '&'),
    ];
    let name = reference.get(1..)?;
    NAMES.iter().find(|(known, _)| name.starts_with(known)).map(|(known, character)| (*character, 1 + known.len()))
}

/// What JavaScript, JSON and CSS write: `\u003c`, `\u{3c}`, `\x3c`; and `%u003c`, which some servers read.
fn escapes(text: &str) -> Option<String> {
    let backslashes = replaced(text, '\\', |escape| {
        if let Some(digits) = escape.strip_prefix("\\u{") {
            let (character, count) = number(digits, 16, 6)?;
            return digits.get(count..)?.starts_with('}').then_some((character, 4 + count));
        }
        exactly(escape, "\\u", 4).or_else(|| exactly(escape, "\\x", 2))
    });
    let percents = replaced(backslashes.as_deref().unwrap_or(text), '%', |escape| exactly(escape, "%u", 4));
    percents.or(backslashes)
}

/// A character by so many hexadecimal digits behind a prefix.
fn exactly(escape: &str, prefix: &str, digits: usize) -> Option<(char, usize)> {
    let (character, count) = number(escape.strip_prefix(prefix)?, 16, digits)?;
    (count == digits).then_some((character, prefix.len() + count))
}

/// The character whose number a text begins with, of at most so many digits; and how many there are.
fn number(text: &str, radix: u32, most: usize) -> Option<(char, usize)> {
    let count = text.bytes().take(most).take_while(|byte| char::from(*byte).is_digit(radix)).count();
    Some((char::from_u32(u32::from_str_radix(text.get(..count)?, radix).ok()?)?, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disguises_are_undone_and_what_is_none_stays() {
        for (text, expected) in [
            ("&#x3C;&#60;&lt;&LT;x&#60", "<<<<x<"),
            ("%3Cb%3e %253c %25253C", "<b> < <"),
            ("\\u003cb\\u{3e} \\x3C \\\\u003c %u003c", "<b> < \\< <"),
            ("&amp;lt; %26lt%3B \\u0025\\u0033c", "< < <"),
            ("＜ＳＣ\u{ad}R\u{200b}I\u{feff}P\u{0}T＞", "<script>"),
            (">\u{338}", ">\u{338}"),
            (
                "50% of C:\\users\\new, AT&T, 100%; %zz \\u12 \\u{} &# &#xz; \\",
                "50% of c:\\users\\new, at&t, 100%; %zz \\u12 \\u{} &# &#xz; \\",
            ),
            ("\\ud83d", "\\ud83d"),
        ] {
            assert_eq!(plain(text), expected, "{text}");
        }
        assert!(matches!(visible("as it is\n"), Cow::Borrowed("as it is\n")));
    }
}
