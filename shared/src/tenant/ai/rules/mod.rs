//! What text that is put into a question must be like, beside its schema (R43): any task asks for them by field.
//!
//! What must stay true: a rule says what is wrong and never quotes the text; it looks at each character a bounded number of times; what it
//! undoes to see through a disguise ([`plain`]) is for looking only, and the model is asked what was sent.

mod markup;
mod plain;

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

/// What the text of a field must be like. A field that is absent is the schema's affair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The field, as a pointer into the input (RFC 6901): `/prompt`.
    pub field: String,
    /// The fewest characters that can be seen, without the spaces around.
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
        let seen = plain::visible(text);
        let count = seen.trim().chars().count();
        if let Some(least) = rule.min_chars.filter(|least| count < *least) {
            wrong(format!("has {count} characters; {least} are the fewest"));
        }
        let count = text.trim().chars().count();
        if let Some(most) = rule.max_chars.filter(|most| count > *most) {
            wrong(format!("has {count} characters; {most} are the most"));
        }
        if rule.refuse_markup
            && let Some(what) = markup::found(text)
        {
            wrong(format!("holds {what}; remove it"));
        }
        if rule.refuse_repetition && repeats(&seen) {
            wrong("says the same again and again; shorten it to what is meant".to_owned());
        }
    }
    violations
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
        // What nobody sees is no text, and hides no repetition.
        assert_eq!(of(&"\u{200b}".repeat(10)).len(), 1);
        assert_eq!(of(&format!("short{}", "\u{200b}\u{ad}\u{1}".repeat(4))).len(), 1);
        let rule = Rule { field: "/prompt".into(), min_chars: None, max_chars: None, refuse_markup: false, refuse_repetition: true };
        assert_eq!(violations(&[rule], &json!({"prompt": "a\u{200d}".repeat(40)}), "").len(), 1);
    }
}
