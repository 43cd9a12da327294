//! Names of the product's content, as requests have them.

use shared::{content::Content, kinds::Violation, people::is_role};

/// The longest name of a piece of content, in characters.
const LONGEST_ID: usize = 255;

/// What is wrong with the name of a piece of content.
pub fn check(at: &str, content: &Content, wrong: &mut Vec<Violation>) {
    if !is_role(&content.sort) {
        let detail = "must be a lower-case letter, then lower-case letters, digits or `_`, at most 63";
        wrong.push(Violation::new(format!("{at}/type"), detail));
    }
    if !(1..=LONGEST_ID).contains(&content.id.chars().count()) || content.id.chars().any(char::is_control) {
        wrong.push(Violation::new(format!("{at}/id"), format!("must have 1 to {LONGEST_ID} characters on one line")));
    }
}
