//! `notification.fan_out`: something is told to a user, a list, a role or somebody's followers. `notification.tell` tells a chunk of them,
//! `notification.digest` what was gathered for one; both are made here in the house, never by a client.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Kind, Violation};
use crate::{
    job::{Backoff, JobId, Policy},
    keys::Scope,
    notification::LONGEST_TITLE,
    queue::Queue,
    tenant::{Manifest, check_user},
};

/// The longest message, in characters.
pub const LONGEST_NOTIFICATION: usize = 4_000;

/// The longest link, in bytes: with the longest title it still fits into a push.
const LONGEST_URL: usize = 1_000;

/// The most users of a list.
const MOST_USERS: usize = 1_000;

/// The longest key of a digest, in characters.
const LONGEST_KEY: usize = 255;

/// The most data for programs, in bytes of JSON: it stands in each recipient's inbox.
const MOST_DATA: usize = 4 * 1024;

/// Whom something is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", try_from = "Named")]
pub enum Recipients {
    /// One user.
    User(String),
    /// Up to 1,000 users.
    Users(Vec<String>),
    /// All users who have a role, such as `moderator`.
    Role(String),
    /// All users who follow this one.
    FollowersOf(String),
}

/// Recipients as they are written: one of these, which is said of what is something else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    user: Option<String>,
    users: Option<Vec<String>>,
    role: Option<String>,
    followers_of: Option<String>,
}

impl TryFrom<Named> for Recipients {
    type Error = &'static str;

    fn try_from(named: Named) -> Result<Self, Self::Error> {
        match named {
            Named { user: Some(user), users: None, role: None, followers_of: None } => Ok(Self::User(user)),
            Named { user: None, users: Some(users), role: None, followers_of: None } => Ok(Self::Users(users)),
            Named { user: None, users: None, role: Some(role), followers_of: None } => Ok(Self::Role(role)),
            Named { user: None, users: None, role: None, followers_of: Some(user) } => Ok(Self::FollowersOf(user)),
            _ => Err("must have one of `user`, `users`, `role` and `followers_of`, and no other"),
        }
    }
}

/// The payload of `notification.fan_out`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NotificationFanOut {
    /// The type: built in, or of the manifest.
    #[serde(rename = "type")]
    pub sort: String,
    /// Whom it is told.
    pub to: Recipients,
    /// The title, where the type has no words of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What a click opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// For programs, and for templates.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
    /// With what it is gathered, where its type is; with all of the type when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_key: Option<String>,
    /// When it is no use any more: what was not sent by then is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_by: Option<DateTime<Utc>>,
    /// The export whose end this tells of; its owner's inbox has it already. By the ledger only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<JobId>,
}

/// What a push or a mail tells of, as the job that sends it carries it: asked again when it is about to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The type.
    #[serde(rename = "type")]
    pub sort: String,
    /// The job that it came of.
    pub trigger: Uuid,
    /// When it is no use any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_by: Option<DateTime<Utc>>,
}

impl Kind for NotificationFanOut {
    const NAME: &'static str = "notification.fan_out";
    const QUEUE: Queue = Queue::Analytics;
    /// It writes down who is told; what leaves the house are jobs of their own.
    const OUTWARD: bool = false;
    const SCOPE: Option<Scope> = Some(Scope::NotificationsWrite);
    const CONFIDENTIAL: bool = true;
    const POLICY: Policy = HOUSEWORK;
    const ESTIMATE: Duration = Duration::from_secs(1);

    fn violations(&self) -> Vec<Violation> {
        let mut wrong = Vec::new();
        let mut add = |pointer: &str, detail: String| wrong.push(Violation::new(pointer, detail));
        match &self.to {
            Recipients::User(user) => check_user(user).unwrap_or_else(|detail| add("/to/user", detail)),
            Recipients::FollowersOf(user) => check_user(user).unwrap_or_else(|detail| add("/to/followers_of", detail)),
            Recipients::Role(role) if !crate::people::is_role(role) => {
                add("/to/role", "is not a role: a lower-case letter, then lower-case letters, digits or `_`, at most 63".to_owned());
            }
            Recipients::Role(_) => {}
            Recipients::Users(users) => {
                if users.is_empty() || users.len() > MOST_USERS {
                    add("/to/users", format!("has {} users; 1 to {MOST_USERS} are allowed. More are told by a role", users.len()));
                }
                let mut seen = HashSet::new();
                for (place, user) in users.iter().enumerate().take(MOST_USERS) {
                    if let Err(detail) = check_user(user) {
                        add(&format!("/to/users/{place}"), detail);
                    } else if !seen.insert(user) {
                        add(&format!("/to/users/{place}"), "is in the list twice".to_owned());
                    }
                }
            }
        }
        let title = self.title.as_ref().is_none_or(|title| is_line(title));
        if !title {
            add("/title", format!("must have 1 to {LONGEST_TITLE} characters on one line"));
        }
        if self.message.as_ref().is_some_and(|message| message.chars().count() > LONGEST_NOTIFICATION) {
            add("/message", format!("must have at most {LONGEST_NOTIFICATION} characters"));
        }
        if self.url.as_ref().is_some_and(|url| url.len() > LONGEST_URL || !super::push::is_link(url)) {
            add(
                "/url",
                format!(
                    "must be an https:// address, or a path of the page's own that begins with one slash, of at most {LONGEST_URL} bytes"
                ),
            );
        }
        if self.data.contains_key("url") {
            add("/data/url", "stands in the inbox as what a click opens: say it as `url`".to_owned());
        }
        let data = Value::Object(self.data.clone()).to_string().len();
        if data > MOST_DATA {
            add("/data", format!("has {data} bytes of JSON; {MOST_DATA} are the most"));
        }
        if self.digest_key.as_ref().is_some_and(|key| !(1..=LONGEST_KEY).contains(&key.chars().count())) {
            add("/digest_key", format!("must have 1 to {LONGEST_KEY} characters"));
        }
        wrong
    }

    fn violations_for(&self, tenant: &Manifest, owner: Option<&str>) -> Vec<Violation> {
        let mut wrong = Vec::new();
        if self.export.is_some() {
            wrong.push(Violation::new("/export", "is set when an export ends; leave it out"));
        }
        match tenant.notification(&self.sort) {
            None => {
                let known: Vec<_> = tenant.notifications.keys().map(String::as_str).collect();
                let declared = if known.is_empty() { String::new() } else { format!(", and of this product: {}", known.join(", ")) };
                let detail = format!("is not a type; there are like, follow, share, comment, mention, system{declared}");
                wrong.push(Violation::new("/type", detail));
            }
            Some(sort) => {
                let has_words = crate::tenant::text_for(&sort.templates, None, |texts| texts.title.as_ref()).is_some();
                if self.title.is_none() && !has_words {
                    wrong.push(Violation::new("/title", "is missing: this type has no words of its own for everybody"));
                }
            }
        }
        // What tells of one user goes with them.
        let of_one = match &self.to {
            Recipients::User(user) | Recipients::FollowersOf(user) => Some(user.as_str()),
            Recipients::Users(_) | Recipients::Role(_) => None,
        };
        if owner.is_some() && owner != of_one {
            wrong.push(Violation::new("/to", "must be the job's owner, or their followers; or the job have none"));
        }
        wrong
    }

    fn sample() -> Self {
        Self {
            sort: "comment".into(),
            to: Recipients::User("ada".into()),
            title: Some("Bob commented".into()),
            message: Some("Nice prompt!".into()),
            url: Some("/prompts/1".into()),
            data: json!({"prompt": 1}).as_object().cloned().unwrap_or_default(),
            digest_key: Some("prompt-1".into()),
            send_by: Some(DateTime::UNIX_EPOCH),
            export: Some(JobId(Uuid::nil())),
        }
    }
}

fn is_line(text: &str) -> bool {
    (1..=LONGEST_TITLE).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// Short work on the ledger, which waits for nobody outside: what fails does so with the database, and is tried for hours.
const HOUSEWORK: Policy = Policy {
    attempts: 20,
    backoff: Backoff { first: Duration::from_secs(2), cap: Duration::from_secs(1_800), jitter_percent: 20 },
    timeout: Duration::from_secs(300),
    ..Policy::DEFAULT
};

/// The payload of `notification.tell`. It holds no names: whom it is about stands in `notification_recipient`, until they were told.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct NotificationTell {
    /// The job that was asked for.
    pub trigger: JobId,
    /// Which of its chunks.
    pub chunk: i32,
}

impl Kind for NotificationTell {
    const NAME: &'static str = "notification.tell";
    const QUEUE: Queue = Queue::Analytics;
    const OUTWARD: bool = false;
    const POLICY: Policy = HOUSEWORK;
    const ESTIMATE: Duration = Duration::from_secs(1);

    fn violations_for(&self, _: &Manifest, _: Option<&str>) -> Vec<Violation> {
        vec![Violation::new("", "jobs of this kind are made by `notification.fan_out`; ask for that instead")]
    }

    fn sample() -> Self {
        Self { trigger: JobId(Uuid::nil()), chunk: 3 }
    }
}

/// The payload of `notification.digest`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct NotificationDigest {
    /// Which digest is closed.
    pub digest: Uuid,
}

impl Kind for NotificationDigest {
    const NAME: &'static str = "notification.digest";
    const QUEUE: Queue = Queue::Analytics;
    const OUTWARD: bool = false;
    const POLICY: Policy = HOUSEWORK;
    const ESTIMATE: Duration = Duration::from_secs(1);

    fn violations_for(&self, _: &Manifest, _: Option<&str>) -> Vec<Violation> {
        vec![Violation::new("", "jobs of this kind are made when something is gathered; ask for `notification.fan_out` instead")]
    }

    fn sample() -> Self {
        Self { digest: Uuid::nil() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let sample = NotificationFanOut { export: None, ..NotificationFanOut::sample() };
        assert_eq!(sample.violations(), []);
        let wrong = NotificationFanOut {
            to: Recipients::Users(vec!["ada".into(), "a\nb".into(), "ada".into()]),
            title: Some(String::new()),
            message: Some("x".repeat(4_001)),
            url: Some("javascript:alert(1)".into()),
            data: json!({"a": "x".repeat(5_000)}).as_object().cloned().unwrap(),
            digest_key: Some(String::new()),
            ..sample.clone()
        };
        let mut places: Vec<_> = wrong.violations().into_iter().map(|violation| violation.pointer).collect();
        places.sort();
        assert_eq!(places, ["/data", "/digest_key", "/message", "/title", "/to/users/1", "/to/users/2", "/url"]);
        let manifest = Manifest::from_toml(
            "[tenant]\nname = \"a\"\n[notifications.sale]\n[notifications.sale.templates.default]\ntitle = \"Sale {{ data.percent }}\"\n",
        )
        .unwrap();
        let of = |sort: &str, title: Option<&str>, owner: Option<&str>| {
            let asked = NotificationFanOut { sort: sort.into(), title: title.map(str::to_owned), ..sample.clone() };
            asked.violations_for(&manifest, owner).into_iter().map(|violation| violation.pointer).collect::<Vec<_>>()
        };
        assert_eq!(of("sale", None, None), [] as [&str; 0]);
        assert_eq!(of("like", None, None), ["/title"]);
        assert_eq!(of("nonsense", Some("x"), Some("eve")), ["/type", "/to"]);
    }
}
