//! `[notifications.NAME]` of a manifest: the types of what a product tells its users, beside those that are built in (R20, R12).
//!
//! What must stay true: a type that is built in may be declared anew, and then the declaration holds; templates that can't be read are
//! refused when the manifest is applied.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    kinds::PushUrgency,
    ledger::moderation::{ACTION_TYPE, REPORT_TYPE},
    notification::template::{LONGEST_TEXT, Renderer},
};

/// The built-in types of R20: their words come with each request.
const TOLD_AS_SENT: [&str; 6] = ["like", "follow", "share", "comment", "mention", "system"];

/// The types that tell of ends of exports (R12).
pub const EXPORT_READY: &str = "export_ready";

/// See [`EXPORT_READY`].
pub const EXPORT_FAILED: &str = "export_failed";

/// The most types of a product.
const MOST_TYPES: usize = 200;

/// The most languages of a type.
const MOST_LOCALES: usize = 50;

/// The longest template of one line, in bytes; of mail, see [`LONGEST_TEXT`].
const LONGEST_LINE: usize = 4 * 1024;

/// The longest window of a digest or of a throttle, in minutes: a week.
const LONGEST_WINDOW: u32 = 7 * 24 * 60;

/// A type of notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotificationType {
    /// By what users have preferences and unsubscribe; the type's own name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The channels that it goes by unless a user wants otherwise.
    #[serde(default = "in_app_and_push")]
    pub channels: Vec<Way>,
    /// The channels that it goes by where a user chose them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub optional: Vec<Way>,
    /// Whether it can't be muted, waits for nothing and is never gathered: a code to sign in with.
    #[serde(default, skip_serializing_if = "is_false")]
    pub critical: bool,
    /// Whether a push may wake a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urgency: Option<PushUrgency>,
    /// For how long a push is worth being shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// What it says, by language; `default` is for everybody else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<String, Texts>,
    /// Pushes and mails of a while are gathered to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// No more pushes and mails than so many in a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Throttle>,
}

/// A channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The inbox in the product.
    InApp,
    /// Web push.
    Push,
    /// Mail.
    Email,
}

fn in_app_and_push() -> Vec<Way> {
    vec![Way::InApp, Way::Push]
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// What a notification says in one language. What a language leaves out is as in `default`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Texts {
    /// The title; the request's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The message; the request's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What a click opens; the request's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The mail's subject; the title when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The mail, in Markdown; the message and where it leads when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// How messages are gathered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// How long, from the first one on.
    pub window_minutes: u32,
    /// What the digest says; `items` and `count` are filled in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<String, Texts>,
}

/// How many messages may be sent to one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// How many, by each channel.
    pub most: u32,
    /// In how many minutes.
    pub window_minutes: u32,
}

/// Which of a type's texts.
type Field = fn(&Texts) -> Option<&String>;

/// The text for a language: of the tag itself, of ever less of it, of `default`.
#[must_use]
pub fn text_for<'a>(templates: &'a BTreeMap<String, Texts>, locale: Option<&str>, field: Field) -> Option<&'a str> {
    let mut tag = locale;
    while let Some(asked) = tag {
        let found = templates.iter().find(|(known, _)| known.eq_ignore_ascii_case(asked));
        if let Some(text) = found.and_then(|(_, texts)| field(texts)) {
            return Some(text);
        }
        tag = asked.rsplit_once('-').map(|(rest, _)| rest);
    }
    templates.get("default").and_then(field).map(String::as_str)
}

impl NotificationType {
    /// A type that is built in.
    #[must_use]
    pub fn built_in(name: &str) -> Option<Self> {
        let plain = Self {
            category: None,
            channels: in_app_and_push(),
            optional: vec![Way::Email],
            critical: false,
            urgency: None,
            ttl_seconds: None,
            templates: BTreeMap::new(),
            digest: None,
            throttle: None,
        };
        match name {
            EXPORT_READY | EXPORT_FAILED => Some(Self { category: Some("exports".to_owned()), ..plain }),
            REPORT_TYPE => Some(plain),
            ACTION_TYPE => Some(Self { channels: vec![Way::InApp, Way::Email], optional: vec![Way::Push], ..plain }),
            name if TOLD_AS_SENT.contains(&name) => Some(plain),
            _ => None,
        }
    }

    /// By what users have preferences.
    #[must_use]
    pub fn category<'a>(&'a self, name: &'a str) -> &'a str {
        self.category.as_deref().unwrap_or(name)
    }

    /// Whether a user is told by a channel: as they said, or else as the product has it. What is critical is told by all of the product's.
    #[must_use]
    pub fn goes_by(&self, way: Way, said: Option<bool>) -> bool {
        let usual = self.channels.contains(&way);
        if self.critical {
            return usual || (self.optional.contains(&way) && said == Some(true));
        }
        said.unwrap_or(usual) && (usual || self.optional.contains(&way))
    }

    /// What is wrong with it, by its field.
    pub(super) fn faults(&self, renderer: &Renderer) -> Vec<(Vec<String>, String)> {
        let mut faults = Vec::new();
        if self.category.as_ref().is_some_and(|category| !crate::people::is_role(category)) {
            let detail = "is not a category: a lower-case letter, then lower-case letters, digits or `_`, at most 63";
            faults.push((vec!["category".to_owned()], detail.to_owned()));
        }
        if self.channels.is_empty() && self.optional.is_empty() {
            faults.push((vec!["channels".to_owned()], "is empty: nobody would be told".to_owned()));
        }
        if self.ttl_seconds.is_some_and(|ttl| ttl > 28 * 86_400) {
            faults.push((vec!["ttl_seconds".to_owned()], "must be at most 2419200 (four weeks)".to_owned()));
        }
        faults_of(&self.templates, &["templates"], renderer, &mut faults);
        if let Some(digest) = &self.digest {
            if !(1..=LONGEST_WINDOW).contains(&digest.window_minutes) {
                let path = ["digest", "window_minutes"].map(str::to_owned).to_vec();
                faults.push((path, format!("is {}; 1 to {LONGEST_WINDOW} are allowed", digest.window_minutes)));
            }
            if self.critical {
                faults.push((vec!["digest".to_owned()], "what is critical can't wait to be gathered".to_owned()));
            }
            faults_of(&digest.templates, &["digest", "templates"], renderer, &mut faults);
        }
        if let Some(throttle) = self.throttle {
            if !(1..=LONGEST_WINDOW).contains(&throttle.window_minutes) {
                let path = ["throttle", "window_minutes"].map(str::to_owned).to_vec();
                faults.push((path, format!("is {}; 1 to {LONGEST_WINDOW} are allowed", throttle.window_minutes)));
            }
            if !(1..=1_000).contains(&throttle.most) {
                let path = ["throttle", "most"].map(str::to_owned).to_vec();
                faults.push((path, format!("is {}; 1 to 1000 are allowed", throttle.most)));
            }
        }
        faults
    }
}

fn faults_of(templates: &BTreeMap<String, Texts>, at: &[&str], renderer: &Renderer, faults: &mut Vec<(Vec<String>, String)>) {
    let place = |rest: &[&str]| at.iter().chain(rest).map(|part| (*part).to_owned()).collect::<Vec<_>>();
    if templates.len() > MOST_LOCALES {
        faults.push((place(&[]), format!("has {} languages; {MOST_LOCALES} are the most", templates.len())));
    }
    for (locale, texts) in templates.iter().take(MOST_LOCALES) {
        if locale != "default" && crate::people::canonical_locale(locale).is_none() {
            faults.push((place(&[locale]), "is not a language tag (BCP 47), nor `default`".to_owned()));
        }
        let Texts { title, message, url, subject, email } = texts;
        for (field, text, longest) in [
            ("title", title, LONGEST_LINE),
            ("message", message, LONGEST_LINE),
            ("url", url, LONGEST_LINE),
            ("subject", subject, LONGEST_LINE),
            ("email", email, LONGEST_TEXT),
        ] {
            let Some(text) = text else { continue };
            if text.is_empty() || text.len() > longest {
                faults.push((place(&[locale, field]), format!("must have 1 to {longest} bytes")));
            } else if let Err(error) = renderer.check(text) {
                faults.push((place(&[locale, field]), format!("is not a template: {error}")));
            }
        }
    }
}

/// What is wrong with the types of a manifest as a whole.
pub(super) fn too_many(types: &BTreeMap<String, NotificationType>) -> Option<String> {
    (types.len() > MOST_TYPES).then(|| format!("has {} types; {MOST_TYPES} are the most", types.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_the_users_to_choose_but_for_what_is_critical() {
        let like = NotificationType::built_in("like").unwrap();
        for (way, said, goes) in [
            (Way::Push, None, true),
            (Way::Push, Some(false), false),
            (Way::Email, None, false),
            (Way::Email, Some(true), true),
            (Way::InApp, Some(false), false),
        ] {
            assert_eq!(like.goes_by(way, said), goes, "{way:?} {said:?}");
        }
        let code = NotificationType { critical: true, channels: vec![Way::Email], optional: Vec::new(), ..like };
        assert!(code.goes_by(Way::Email, Some(false)) && !code.goes_by(Way::Push, Some(true)));
        assert_eq!(NotificationType::built_in("export_ready").unwrap().category("export_ready"), "exports");
        assert_eq!(NotificationType::built_in("sale"), None);
    }

    #[test]
    fn a_language_leaves_to_the_one_before_it_what_it_does_not_say() {
        let texts = |title: Option<&str>, message: Option<&str>| Texts {
            title: title.map(str::to_owned),
            message: message.map(str::to_owned),
            ..Texts::default()
        };
        let templates = BTreeMap::from([
            ("default".to_owned(), texts(Some("Hello"), Some("World"))),
            ("de".to_owned(), texts(Some("Hallo"), None)),
            ("de-CH".to_owned(), texts(Some("Grüezi"), None)),
        ]);
        let title = |locale| text_for(&templates, locale, |texts| texts.title.as_ref());
        assert_eq!(
            [title(Some("de-CH")), title(Some("de-AT")), title(Some("fr")), title(None)],
            [Some("Grüezi"), Some("Hallo"), Some("Hello"), Some("Hello")]
        );
        assert_eq!(text_for(&templates, Some("de-CH"), |texts| texts.message.as_ref()), Some("World"));
    }
}
