//! `push.send`: one message to all browsers of a user.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Kind, Told, Violation};
use crate::{
    job::{Backoff, Policy, SnoozeBounds},
    keys::Scope,
    queue::Queue,
    tenant::{Manifest, check_user},
};

/// The longest message, as the page's service worker is given it, in bytes: 4,096 are the most that a push service must take (RFC 8030,
/// section 7.2), 103 of them the sealing's (RFC 8291).
pub const LONGEST_MESSAGE: usize = 3_993;

/// The longest title and tag, in characters.
const LONGEST_LINE: usize = 255;

/// The longest that a push service keeps one, in seconds: vendors cut what is longer to four weeks or a month.
const LONGEST_TTL: u32 = 28 * 86_400;

/// How urgent a push is (RFC 8030, section 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PushUrgency {
    /// On power and Wi-Fi.
    VeryLow,
    /// On either power or Wi-Fi.
    Low,
    /// On neither.
    #[default]
    Normal,
    /// With a low battery too.
    High,
}

/// The payload of `push.send`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PushSend {
    /// Whose browsers.
    pub user: String,
    /// What is shown first.
    pub title: String,
    /// What is shown below it.
    #[serde(default)]
    pub body: String,
    /// What a click opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A picture beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icon: Option<String>,
    /// A message takes the place of one of the same tag: on the way, and where it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// For how long it is worth being shown, in seconds.
    #[serde(default = "a_day")]
    pub ttl: u32,
    /// Whether it may wake a device.
    #[serde(default)]
    pub urgency: PushUrgency,
    /// The notification that it tells of: whether its user wants it is asked when it is about to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<Told>,
}

/// How long a message is worth being shown unless told otherwise, in seconds.
#[must_use]
pub const fn a_day() -> u32 {
    86_400
}

impl PushSend {
    /// What the page's service worker is given. `id` is the same in each copy of a message: shown under a tag made of it, a second copy
    /// takes the first one's place.
    #[must_use]
    pub fn message(&self, id: &str) -> Value {
        let mut message = json!({ "id": id, "title": self.title, "body": self.body });
        if let Some(fields) = message.as_object_mut() {
            for (name, value) in [("url", &self.url), ("icon", &self.icon), ("tag", &self.tag)] {
                if let Some(value) = value {
                    fields.insert(name.to_owned(), json!(value));
                }
            }
        }
        message
    }
}

impl Kind for PushSend {
    const NAME: &'static str = "push.send";
    const QUEUE: Queue = Queue::Push;
    const OUTWARD: bool = true;
    const SCOPE: Option<Scope> = Some(Scope::PushesWrite);
    const CONFIDENTIAL: bool = true;
    /// From half a minute to an hour apart, or later where a push service says so; 12 hours in all, unless the message's own time is over
    /// before. The timeout is above that of all of a user's browsers, some at a time, 20 s each.
    const POLICY: Policy = Policy {
        attempts: 14,
        backoff: Backoff { first: Duration::from_secs(30), cap: Duration::from_secs(3_600), jitter_percent: 20 },
        timeout: Duration::from_secs(120),
        // As of mail, and as long as quiet hours may take.
        deadline: Duration::from_secs(3 * 24 * 3_600),
        snooze: SnoozeBounds::QUIET_HOURS,
    };
    const ESTIMATE: Duration = Duration::from_secs(2);

    fn violations(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        if let Err(detail) = check_user(&self.user) {
            violations.push(Violation::new("/user", detail));
        }
        let mut line = |pointer: &str, text: &str| {
            if !(1..=LONGEST_LINE).contains(&text.chars().count()) || text.chars().any(char::is_control) {
                violations.push(Violation::new(pointer, format!("must have 1 to {LONGEST_LINE} characters on one line")));
            }
        };
        line("/title", &self.title);
        if let Some(tag) = &self.tag {
            line("/tag", tag);
        }
        for (pointer, link) in [("/url", &self.url), ("/icon", &self.icon)] {
            if link.as_ref().is_some_and(|link| !is_link(link)) {
                let detail = "must be an https:// address, or a path of the page's own that begins with one slash";
                violations.push(Violation::new(pointer, detail));
            }
        }
        if self.ttl > LONGEST_TTL {
            violations.push(Violation::new("/ttl", format!("is {}; {LONGEST_TTL} s (four weeks) are the most", self.ttl)));
        }
        let length = self.message(&Uuid::nil().to_string()).to_string().len();
        if length > LONGEST_MESSAGE {
            violations.push(Violation::new(
                "/body",
                format!("makes the message {length} bytes long; {LONGEST_MESSAGE} are the most, title, links and tag included"),
            ));
        }
        violations
    }

    fn violations_for(&self, _: &Manifest, owner: Option<&str>) -> Vec<Violation> {
        match owner {
            Some(owner) if owner != self.user => vec![Violation::new("/user", "must be the job's owner, or the job have none")],
            _ => Vec::new(),
        }
    }

    fn sample() -> Self {
        Self {
            user: "ada".into(),
            title: "Your export is ready".into(),
            body: "prompts.csv, 12 MB".into(),
            url: Some("/exports/1".into()),
            icon: Some("https://app.example.com/icon.png".into()),
            tag: Some("export-1".into()),
            ttl: 3_600,
            urgency: PushUrgency::High,
            notification: None,
        }
    }
}

/// What a service worker may open: nothing that runs (`javascript:`), nothing in the clear but the page's own machine while it is made.
#[must_use]
pub fn is_link(text: &str) -> bool {
    if text.len() > 2_000 || text.chars().any(|c| c.is_control() || c == '\\') {
        return false;
    }
    if text.starts_with('/') {
        return !text.starts_with("//");
    }
    let Ok(url) = url::Url::parse(text) else { return false };
    let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    url.scheme() == "https" || (url.scheme() == "http" && local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        assert_eq!(PushSend::sample().violations(), []);
        let wrong = PushSend {
            user: "a b".into(),
            title: String::new(),
            body: "ü".repeat(2_000),
            url: Some("javascript:alert(1)".into()),
            icon: Some("//evil.example/x".into()),
            tag: Some("a\nb".into()),
            ttl: u32::MAX,
            urgency: PushUrgency::Low,
            notification: None,
        };
        let mut places: Vec<_> = wrong.violations().into_iter().map(|violation| violation.pointer).collect();
        places.sort();
        assert_eq!(places, ["/body", "/icon", "/tag", "/title", "/ttl", "/url", "/user"]);
        let of = |owner| PushSend::sample().violations_for(&Manifest::default(), owner).len();
        assert_eq!((of(None), of(Some("ada")), of(Some("eve"))), (0, 0, 1));
    }

    #[test]
    fn the_message_is_what_a_service_worker_needs() {
        let plain: PushSend = serde_json::from_value(json!({"user": "ada", "title": "Hello"})).unwrap();
        assert_eq!(plain.message("1"), json!({"id": "1", "title": "Hello", "body": ""}));
        assert_eq!((plain.ttl, plain.urgency), (86_400, PushUrgency::Normal));
        assert_eq!(PushSend::sample().message("1")["tag"], "export-1");
        for (link, allowed) in [
            ("/a?b#c", true),
            ("https://app.example.com/", true),
            ("http://localhost:3000/", true),
            ("http://app.example.com/", false),
            ("//app.example.com/", false),
            ("/\\evil.example", false),
            ("data:text/html,x", false),
            ("a", false),
        ] {
            assert_eq!(is_link(link), allowed, "{link}");
        }
    }
}
