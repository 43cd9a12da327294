//! End users as recipients: what a product tells of them, and what of that can be. No I/O here; the rows are
//! [`crate::ledger::people`]'s.
//!
//! What must stay true: a user's id is what `owner` and `X-Acting-User` name; everything else about a user may be absent, and then the
//! product's defaults hold.

mod locale;
mod preferences;
mod quiet;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use locale::canonical as canonical_locale;
pub use preferences::{Preferences, Wishes};
pub use quiet::{Minute, QuietHours};

use crate::{kinds::Violation, mail, schedule::Zone, tenant::Plan};

/// The longest address, in bytes: what fits between the brackets of SMTP's longest path (RFC 5321, section 4.5.3.1.3; RFC 3696's
/// erratum 1690 spells it out).
const LONGEST_EMAIL: usize = 254;

/// The longest name for people, in characters.
const LONGEST_NAME: usize = 255;

/// The most roles of one user.
const MOST_ROLES: usize = 20;

/// The most plans that are added to a user's own.
const MOST_ADD_ONS: usize = 10;

/// The longest role, in characters; as names in a manifest.
const LONGEST_ROLE: usize = 63;

/// A user, as a product describes one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Profile {
    /// Where mail reaches them: one plain address. Without it they get none.
    #[serde(default)]
    #[schema(max_length = 254, example = "ada@example.com")]
    pub email: Option<String>,
    /// What they are called in mail.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255, example = "Ada Lovelace")]
    pub name: Option<String>,
    /// Where their clock is: an IANA name. UTC when absent.
    #[serde(default)]
    #[schema(example = "Europe/London")]
    pub time_zone: Option<String>,
    /// Their language: a BCP 47 tag. The product's own when absent.
    #[serde(default)]
    #[schema(max_length = 35, example = "en-GB")]
    pub locale: Option<String>,
    /// What they are to the product, such as `moderator`: lower-case letters, digits and `_`, at most 20.
    #[serde(default)]
    #[schema(required = false, max_items = 20, example = json!(["moderator"]))]
    pub roles: BTreeSet<String>,
    /// Their own switches for everything by a channel.
    #[serde(default)]
    #[schema(required = false)]
    pub channels: Channels,
    /// The plan that they are on: one of the product's manifest. Its `[usage] default_plan` when absent.
    #[serde(default)]
    #[schema(max_length = 63, example = "pro")]
    pub plan: Option<String>,
    /// Plans that were added to it, at most 10: what they say of a metric takes the place of what the plan says.
    #[serde(default)]
    #[schema(required = false, max_items = 10, example = json!([]))]
    pub add_ons: Vec<String>,
}

/// Which channels a user has on at all. The inbox in the product is always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Channels {
    /// Web push; on when absent.
    #[serde(default = "on")]
    #[schema(required = false, default = true)]
    pub push: bool,
    /// Mail; on when absent.
    #[serde(default = "on")]
    #[schema(required = false, default = true)]
    pub email: bool,
}

const fn on() -> bool {
    true
}

impl Default for Channels {
    fn default() -> Self {
        Self { push: true, email: true }
    }
}

impl Profile {
    /// What is wrong with it, by field, for a product with these plans. What is right is brought into its one spelling: zones and locales are
    /// found by any case.
    ///
    /// # Errors
    /// The violations.
    pub fn checked(mut self, plans: &BTreeMap<String, Plan>) -> Result<Self, Vec<Violation>> {
        let mut wrong = Vec::new();
        let mut add = |pointer: &str, detail: String| wrong.push(Violation::new(pointer, detail));
        if let Some(email) = &self.email
            && (email.len() > LONGEST_EMAIL || mail::address(email).is_none())
        {
            add("/email", format!("must be one plain address of at most {LONGEST_EMAIL} bytes, without a name beside it"));
        }
        if let Some(name) = &self.name
            && (!(1..=LONGEST_NAME).contains(&name.chars().count()) || name.chars().any(char::is_control))
        {
            add("/name", format!("must have 1 to {LONGEST_NAME} characters, none of them a control character"));
        }
        if let Some(name) = &self.time_zone {
            match Zone::find(name) {
                Some(zone) => self.time_zone = Some(zone.name().to_owned()),
                None => add("/time_zone", "is not a time zone; send an IANA name such as `Europe/London`, or `UTC`".to_owned()),
            }
        }
        if let Some(tag) = &self.locale {
            match canonical_locale(tag) {
                Some(tag) => self.locale = Some(tag),
                None => add("/locale", "is not a language tag (BCP 47); send for example `en`, `en-GB` or `zh-Hant-TW`".to_owned()),
            }
        }
        if self.roles.len() > MOST_ROLES {
            add("/roles", format!("has {} roles; {MOST_ROLES} are the most", self.roles.len()));
        }
        for role in self.roles.iter().filter(|role| !is_role(role)).take(MOST_ROLES) {
            let shown: String = role.chars().take(LONGEST_ROLE).collect();
            add(
                "/roles",
                format!("`{shown}` is not a role: a lower-case letter, then lower-case letters, digits or `_`, at most {LONGEST_ROLE}"),
            );
        }
        if self.add_ons.len() > MOST_ADD_ONS {
            add("/add_ons", format!("has {} plans; {MOST_ADD_ONS} are the most", self.add_ons.len()));
        }
        let named = self.plan.iter().map(|plan| ("/plan".to_owned(), plan));
        let added = self.add_ons.iter().take(MOST_ADD_ONS).enumerate().map(|(place, plan)| (format!("/add_ons/{place}"), plan));
        for (pointer, plan) in named.chain(added).filter(|(_, plan)| !plans.contains_key(*plan)) {
            let shown: String = plan.chars().take(LONGEST_ROLE).collect();
            let known: Vec<_> = plans.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            add(&pointer, format!("`{shown}` is not a plan of this product's manifest; there are: {known}"));
        }
        if wrong.is_empty() { Ok(self) } else { Err(wrong) }
    }
}

/// Whether a text can name a role.
#[must_use]
pub fn is_role(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    text.len() <= LONGEST_ROLE && text.bytes().all(legal) && text.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(profile: Value) -> Result<Profile, Vec<String>> {
        let profile: Profile = serde_json::from_value(profile).unwrap();
        profile
            .checked(&BTreeMap::from([("pro".to_owned(), Plan::default())]))
            .map_err(|wrong| wrong.into_iter().map(|violation| violation.pointer).collect())
    }

    #[test]
    fn all_may_be_absent_and_what_is_there_gets_one_spelling() {
        assert_eq!(check(json!({})), Ok(Profile::default()));
        let ada = json!({
            "email": "ada@example.com", "name": "Ada, Countess of Lovelace", "time_zone": "europe/london", "locale": "EN-gb",
            "roles": ["moderator", "a1_b"], "channels": {"push": false},
        });
        let ada = check(ada).unwrap();
        assert_eq!((ada.time_zone.as_deref(), ada.locale.as_deref()), (Some("Europe/London"), Some("en-GB")));
        assert_eq!((ada.channels.push, ada.channels.email), (false, true));
    }

    #[test]
    fn what_can_not_be_is_named_by_its_field() {
        // 254 are the most: RFC 5321, section 4.5.3.1.3, less the angle brackets.
        let of = |last: usize| format!("{}@{}.{}.{}.com", "a".repeat(64), "b".repeat(63), "c".repeat(63), "d".repeat(last));
        let (longest, long) = (of(57), of(58));
        assert_eq!(longest.len(), 254);
        for email in
            ["", "ada", "ada@", "Ada <ada@example.com>", "a@b.example, c@d.example", "ada@example.com\r\nBcc: x@example.com", &long]
        {
            assert_eq!(check(json!({ "email": email })), Err(vec!["/email".to_owned()]), "{email}");
        }
        assert!(check(json!({ "email": longest })).is_ok());
        for name in ["", "a\nb", &"a".repeat(256)] {
            assert_eq!(check(json!({ "name": name })), Err(vec!["/name".to_owned()]), "{name}");
        }
        for zone in ["", "London", "+01:00", "Europe/London\u{0}"] {
            assert_eq!(check(json!({ "time_zone": zone })), Err(vec!["/time_zone".to_owned()]), "{zone}");
        }
        for role in ["", "Moderator", "1st", "a b", "é", &"a".repeat(64)] {
            assert_eq!(check(json!({ "roles": [role] })), Err(vec!["/roles".to_owned()]), "{role}");
        }
        let many: Vec<_> = (0..21).map(|number| format!("r{number}")).collect();
        assert_eq!(check(json!({ "roles": many })), Err(vec!["/roles".to_owned()]));
        assert_eq!(check(json!({"plan": "none", "add_ons": ["pro", "x"]})), Err(vec!["/plan".to_owned(), "/add_ons/1".to_owned()]));
        assert!(check(json!({"plan": "pro", "add_ons": ["pro"]})).is_ok());
        assert_eq!(check(json!({ "add_ons": vec!["pro"; 11] })), Err(vec!["/add_ons".to_owned()]));
        assert_eq!(check(json!({"email": "x", "locale": "x"})), Err(vec!["/email".to_owned(), "/locale".to_owned()]));
    }
}
