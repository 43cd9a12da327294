//! What a user wants to be told of, by category and channel.
//!
//! What must stay true: a preference is the user's own word, and says nothing of what they did not speak of; whoever sends asks when
//! sending, not when something is asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::QuietHours;
use crate::kinds::{Violation, pointer_token};

/// The most categories that one user has a word for.
const MOST_CATEGORIES: usize = 200;

/// The longest name of a category, in characters; as names in a manifest.
const LONGEST_CATEGORY: usize = 63;

/// What a user said of one category; nothing of a channel: as the product has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Wishes {
    /// The inbox in the product.
    #[serde(default)]
    pub in_app: Option<bool>,
    /// Web push.
    #[serde(default)]
    pub push: Option<bool>,
    /// Mail.
    #[serde(default)]
    pub email: Option<bool>,
}

/// A user's preferences.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Preferences {
    /// By category, such as `comment`: a lower-case letter, then lower-case letters, digits and `_`, at most 63; at most 200 of them.
    #[schema(example = json!({"comment": {"email": false}, "digest": {"push": false, "email": true}}))]
    pub categories: BTreeMap<String, Wishes>,
    /// When no push and no mail is wanted, on the clocks of the user's zone: what is not critical waits until they are over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub quiet_hours: Option<QuietHours>,
}

impl Preferences {
    /// Checks them; a category of which nothing is said is left out.
    ///
    /// # Errors
    /// The violations.
    pub fn checked(mut self) -> Result<Self, Vec<Violation>> {
        let mut wrong = Vec::new();
        if self.categories.len() > MOST_CATEGORIES {
            let detail = format!("has {} categories; {MOST_CATEGORIES} are the most", self.categories.len());
            wrong.push(Violation::new("/categories", detail));
        }
        for category in self.categories.keys().filter(|category| !super::is_role(category)).take(MOST_CATEGORIES) {
            let pointer = format!("/categories{}", pointer_token(&category.chars().take(LONGEST_CATEGORY).collect::<String>()));
            let detail =
                format!("is not a category: a lower-case letter, then lower-case letters, digits or `_`, at most {LONGEST_CATEGORY}");
            wrong.push(Violation::new(pointer, detail));
        }
        if self.quiet_hours.is_some_and(|hours| hours.from == hours.to) {
            wrong.push(Violation::new("/quiet_hours/to", "is the same as `from`: name hours, or leave `quiet_hours` out"));
        }
        self.categories.retain(|_, wishes| *wishes != Wishes::default());
        if wrong.is_empty() { Ok(self) } else { Err(wrong) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_says_nothing_is_left_out_and_nonsense_is_named() {
        let read = |value| serde_json::from_value::<Preferences>(value).unwrap().checked();
        let said = read(json!({"categories": {"comment": {"email": false}, "like": {}, "alert": {"push": null}}})).unwrap();
        assert_eq!(said.categories.keys().collect::<Vec<_>>(), ["comment"]);
        for wrong in ["", "Comment", "a b", "é", &"a".repeat(64)] {
            let found = read(json!({ "categories": { wrong: {"push": true} } })).unwrap_err();
            assert!(found.len() == 1 && found[0].pointer.starts_with("/categories/"), "{wrong}");
        }
        let none = read(json!({"categories": {}, "quiet_hours": {"from": "22:00", "to": "22:00"}})).unwrap_err();
        assert_eq!(none[0].pointer, "/quiet_hours/to");
        let many: BTreeMap<String, Wishes> = (0..201).map(|number| (format!("c{number}"), Wishes::default())).collect();
        assert_eq!(Preferences { categories: many, quiet_hours: None }.checked().unwrap_err()[0].pointer, "/categories");
    }
}
