//! What text that is put into a question must be like, beside its schema (R43): any task asks for them by field.
//!
//! What must stay true: a rule says what is wrong and never quotes the text; it looks at each character a bounded number of times.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kinds::Violation;

/// The same character so often in a row is no text.
const LONGEST_RUN: usize = 30;

/// The same word so often in a row is no text.
const MOST_IN_A_ROW: usize = 8;

/// From so many words on it is asked how many of them are the same.
const WORDS_TO_JUDGE: usize = 40;

/// In a text of so many words one of them may be at most this part, in percent.
const MOST_OF_ONE: usize = 40;

/// Attributes by which a page runs what they hold (HTML Standard, 8.1.8.2: event handler content attributes, the commonest of them). Others are
/// found within a tag.
const HANDLERS: [&str; 30] = [
    "abort",
    "animationend",
    "animationstart",
    "auxclick",
    "beforeunload",
    "blur",
    "change",
    "click",
    "contextmenu",
    "dblclick",
    "drag",
    "drop",
    "error",
    "focus",
    "focusin",
    "hashchange",
    "input",
    "keydown",
    "keypress",
    "keyup",
    "load",
    "mousedown",
    "mouseenter",
    "mouseover",
    "pointerdown",
    "scroll",
    "submit",
    "toggle",
    "unload",
    "wheel",
];

/// Schemes of addresses that run what they hold.
const SCHEMES: [&str; 4] = ["javascript:", "vbscript:", "livescript:", "data:text/html"];

/// What the text of a field must be like. A field that is absent is the schema's affair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The field, as a pointer into the input (RFC 6901): `/prompt`.
    pub field: String,
    /// The fewest characters, without the spaces around.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_chars: Option<usize>,
    /// The most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<usize>,
    /// Refuses script tags, event handlers and `javascript:`-like addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refuse_markup: bool,
    /// Refuses text that is mostly the same again and again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refuse_repetition: bool,
}

impl Rule {
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !self.field.starts_with('/') || self.field.len() > 200 {
            faults.push("`field` must be a pointer into the input; write for example \"/prompt\"".to_owned());
        }
        if self.min_chars.zip(self.max_chars).is_some_and(|(least, most)| least > most) {
            faults.push("`min_chars` is more than `max_chars`".to_owned());
        }
        if self.min_chars.is_none() && self.max_chars.is_none() && !self.refuse_markup && !self.refuse_repetition {
            faults.push("asks for nothing; say `min_chars`, `max_chars`, `refuse_markup` or `refuse_repetition`".to_owned());
        }
        faults
    }
}

/// What is wrong with an input by these rules, below `at`.
pub(super) fn violations(rules: &[Rule], input: &Value, at: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for rule in rules {
        let Some(text) = input.pointer(&rule.field).and_then(Value::as_str) else { continue };
        let mut wrong = |detail: String| violations.push(Violation::new(format!("{at}{}", rule.field), detail));
        let count = text.trim().chars().count();
        if let Some(least) = rule.min_chars.filter(|least| count < *least) {
            wrong(format!("has {count} characters; {least} are the fewest"));
        }
        if let Some(most) = rule.max_chars.filter(|most| count > *most) {
            wrong(format!("has {count} characters; {most} are the most"));
        }
        if rule.refuse_markup
            && let Some(what) = markup(text)
        {
            wrong(format!("holds {what}; remove it"));
        }
        if rule.refuse_repetition && repeats(text) {
            wrong("says the same again and again; shorten it to what is meant".to_owned());
        }
    }
    violations
}

/// What in a text would run in a page.
fn markup(text: &str) -> Option<&'static str> {
    let lower = decoded(&text.to_lowercase());
    // Browsers pass over white space and control characters in a scheme, and NULs in a tag's name.
    let dense: String = lower.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
    if dense.contains("<script") || dense.contains("</script") {
        return Some("a script tag");
    }
    if SCHEMES.iter().any(|scheme| dense.contains(scheme)) {
        return Some("an address that runs a script");
    }
    has_handler(&lower).then_some("an event handler")
}

/// References to characters in their place: `&#106;`, `&#x6a;`, `&colon;`, `&lt;` and the like, with or without a semicolon.
fn decoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        let (before, reference) = rest.split_at(at);
        out.push_str(before);
        let (character, length) = reference_of(reference).unwrap_or(('&', 1));
        out.push(character);
        rest = reference.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// The character that a reference stands for, and how long the reference is.
fn reference_of(text: &str) -> Option<(char, usize)> {
    for (name, character) in [("colon", ':'), ("lt", '<'), ("gt", '>'), ("tab", '\t'), ("newline", '\n'), ("lpar", '('), ("quot", '"')] {
        if text.get(1..).is_some_and(|rest| rest.starts_with(name)) {
            let length = 1 + name.len();
            return Some((character, length + usize::from(text.get(length..).is_some_and(|rest| rest.starts_with(';')))));
        }
    }
    let digits = text.strip_prefix("&#")?;
    let (digits, radix, start) = digits.strip_prefix('x').map_or((digits, 10, 2), |digits| (digits, 16, 3));
    let count = digits.chars().take(8).take_while(|c| c.is_digit(radix)).count();
    let character = char::from_u32(u32::from_str_radix(digits.get(..count)?, radix).ok()?)?;
    let length = start + count;
    Some((character.to_ascii_lowercase(), length + usize::from(text.get(length..).is_some_and(|rest| rest.starts_with(';')))))
}

/// Whether something like `onclick=` is in a text: one of the known names anywhere, any name within a tag.
fn has_handler(text: &str) -> bool {
    let mut in_tag = false;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '<' => in_tag = true,
            '>' => in_tag = false,
            'o' if !before.is_alphanumeric() && before != '_' && before != '.' => {
                let rest = text.get(at..).unwrap_or_default().strip_prefix("on").unwrap_or_default();
                // No handler's name is as long as this.
                let length = rest.bytes().take(32).take_while(u8::is_ascii_lowercase).count();
                let (name, after) = rest.split_at(length);
                let after = after.trim_start();
                let assigns = after.starts_with('=') && !after.starts_with("==");
                if assigns && !name.is_empty() && (in_tag || HANDLERS.contains(&name)) {
                    return true;
                }
            }
            _ => {}
        }
        before = c;
    }
    false
}

/// Whether a text is mostly the same again and again.
fn repeats(text: &str) -> bool {
    let (mut run, mut last) = (0, None);
    for c in text.chars() {
        run = if last == Some(c) { run + 1 } else { 1 };
        if run > LONGEST_RUN && !c.is_whitespace() {
            return true;
        }
        last = Some(c);
    }
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let (mut counts, mut total, mut row, mut before) = (HashMap::new(), 0_usize, 0, "");
    for word in words {
        total += 1;
        *counts.entry(word).or_insert(0_usize) += 1;
        row = if word == before { row + 1 } else { 1 };
        if row > MOST_IN_A_ROW {
            return true;
        }
        before = word;
    }
    let most = counts.values().copied().max().unwrap_or_default();
    total >= WORDS_TO_JUDGE && most * 100 > total * MOST_OF_ONE
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_run_in_a_page_is_found_however_it_is_written() {
        for wrong in [
            "<script>alert(1)</script>",
            "a < SCRIPT src=x>",
            "<scr\u{0}ipt>",
            "</script >",
            "&lt;script&gt;",
            "[a](javascript:alert(1))",
            "java\nscript:alert(1)",
            "JaVaScRiPt&colon;alert(1)",
            "&#106;avascript:x",
            "&#x6A;avascript:x",
            "vbscript:msgbox",
            "data:text/html;base64,PHN",
            "<img src=x onerror=alert(1)>",
            "<svg/onload = 'x'>",
            "<a onwhatever=1>",
            "x\" onmouseover=\"alert(1)",
        ] {
            assert!(markup(wrong).is_some(), "{wrong}");
        }
        for fine in [
            "Write a script about a tag team, 1 < 2 and 3 > 2",
            "The effect depends on = and !=; online = true; on input: a, b",
            "if onclick == handler or button.onclick = f",
            "Explain Java scripts & pages, AT&T, &#; &#xZ;",
            "<b>bold</b>",
        ] {
            assert_eq!(markup(fine), None, "{fine}");
        }
    }

    #[test]
    fn repetition_is_found_and_prose_is_not() {
        for wrong in ["a".repeat(40), "buy ".repeat(12), "free money now ".repeat(20).replace("now", "free")] {
            assert!(repeats(&wrong), "{wrong}");
        }
        for fine in [
            "no no no, that is not it at all".to_owned(),
            " ".repeat(200),
            "----------------------------".to_owned(),
            "the cat and the dog and the bird went to the house by the sea where the wind and the rain met the old man ".repeat(3),
        ] {
            assert!(!repeats(&fine), "{fine}");
        }
    }

    #[test]
    fn rules_name_the_field_and_not_its_text() {
        let rule = Rule { field: "/prompt".into(), min_chars: Some(10), max_chars: Some(20), refuse_markup: true, refuse_repetition: true };
        let of = |text: &str| violations(std::slice::from_ref(&rule), &json!({"prompt": text}), "/input");
        assert!(of("ten letters").is_empty() && violations(std::slice::from_ref(&rule), &json!({}), "/input").is_empty());
        let wrong = of("<script>secret</script>");
        assert_eq!(wrong.iter().map(|violation| violation.pointer.as_str()).collect::<Vec<_>>(), ["/input/prompt", "/input/prompt"]);
        assert!(wrong.iter().all(|violation| !violation.detail.contains("secret")));
        assert_eq!(of("  short   ").len(), 1);
    }
}
