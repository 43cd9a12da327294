//! `email.send`: one mail to one person.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Kind, Told, Violation, pointer_token};
use crate::{
    job::{Backoff, Policy, SnoozeBounds},
    keys::Scope,
    mail,
    queue::Queue,
    tenant::Manifest,
};

/// The longest subject and the longest name of a person, in characters.
const LONGEST_LINE: usize = 255;

/// The longest address, in bytes (RFC 5321, section 4.5.3.1.3).
const LONGEST_ADDRESS: usize = 254;

/// The longest text and the longest HTML, in bytes; the payload has a limit for both together.
const LONGEST_BODY: usize = 200 * 1024;

/// The most headers of one's own.
const MOST_HEADERS: usize = 20;

/// The longest value of such a header, in bytes: its line must stay below 998 (RFC 5322, section 2.1.1).
const LONGEST_HEADER: usize = 800;

/// Headers that a mail may have besides those that begin with `X-`: threads (RFC 5322, section 3.6.4), lists (RFC 2919), and by what
/// providers of mailboxes tell campaigns apart.
const HEADERS: [&str; 4] = ["in-reply-to", "references", "list-id", "feedback-id"];

/// Somebody with a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mailbox {
    /// The address.
    #[schema(example = "ada@example.com", max_length = 254)]
    pub email: String,
    /// The name that is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "Ada Lovelace", max_length = 255)]
    pub name: Option<String>,
}

/// The payload of `email.send`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EmailSend {
    /// Whom it is for.
    pub to: Mailbox,
    /// Whom it is from; as the manifest says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Mailbox>,
    /// Whom an answer reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<Mailbox>,
    /// What it is about.
    pub subject: String,
    /// What it says.
    pub text: String,
    /// The same, set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// What sort of mail it is: people unsubscribe from one.
    pub category: String,
    /// Headers of one's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Whether it can be unsubscribed from by one click.
    #[serde(default)]
    pub unsubscribe: bool,
    /// The notification that it tells of: whether its user wants it is asked when it is about to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<Told>,
}

fn mailbox(mailbox: &Mailbox, pointer: &str, violations: &mut Vec<Violation>) {
    if mailbox.email.len() > LONGEST_ADDRESS || mail::address(&mailbox.email).is_none() {
        let detail = format!(
            "is not one plain address of at most {LONGEST_ADDRESS} bytes, ASCII before the @; write for example ada@example.com, and the name beside it"
        );
        violations.push(Violation::new(format!("{pointer}/email"), detail));
    }
    if let Some(name) = &mailbox.name {
        line(name, 0, &format!("{pointer}/name"), violations);
    }
}

fn line(text: &str, least: usize, pointer: &str, violations: &mut Vec<Violation>) {
    let length = text.chars().count();
    if !(least..=LONGEST_LINE).contains(&length) || text.chars().any(char::is_control) {
        violations.push(Violation::new(pointer, format!("must have {least} to {LONGEST_LINE} characters on one line")));
    }
}

impl Kind for EmailSend {
    const NAME: &'static str = "email.send";
    const QUEUE: Queue = Queue::Email;
    const OUTWARD: bool = true;
    const SCOPE: Option<Scope> = Some(Scope::EmailsWrite);
    const CONFIDENTIAL: bool = true;
    /// What a server puts off it is asked again after 5, 10, 20, 40, 80 and 160 minutes and then every 4 hours, two days in all. RFC 5321,
    /// section 4.5.4.1, has 30 minutes at least and 4 to 5 days in all for servers among themselves, with two tries in the first hour,
    /// since most troubles are short; ours is the sender's own server, which keeps what it has taken for those days. The timeout is above
    /// the longest that one mail may take there (370 s) and a turn among the connections before it.
    const POLICY: Policy = Policy {
        attempts: 18,
        backoff: Backoff { first: Duration::from_secs(300), cap: Duration::from_secs(4 * 3_600), jitter_percent: 20 },
        timeout: Duration::from_secs(1_200),
        deadline: Duration::from_secs(3 * 24 * 3_600),
        snooze: SnoozeBounds::QUIET_HOURS,
    };
    const ESTIMATE: Duration = Duration::from_secs(3);

    fn violations(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        mailbox(&self.to, "/to", &mut violations);
        if let Some(from) = &self.from {
            mailbox(from, "/from", &mut violations);
        }
        if let Some(reply_to) = &self.reply_to {
            mailbox(reply_to, "/reply_to", &mut violations);
        }
        line(&self.subject, 1, "/subject", &mut violations);
        if self.text.trim().is_empty() || self.text.len() > LONGEST_BODY {
            violations.push(Violation::new("/text", format!("must have 1 to {LONGEST_BODY} bytes; it is what is read where HTML is not")));
        }
        if self.html.as_ref().is_some_and(|html| html.len() > LONGEST_BODY) {
            violations.push(Violation::new("/html", format!("must have at most {LONGEST_BODY} bytes")));
        }
        if !mail::is_category(&self.category) {
            let detail =
                "must be lower-case letters, digits, `_`, `-` and `.`, at most 63, beginning with a letter; write for example digest";
            violations.push(Violation::new("/category", detail));
        }
        if self.headers.len() > MOST_HEADERS {
            violations.push(Violation::new("/headers", format!("has {} headers; {MOST_HEADERS} are the most", self.headers.len())));
        }
        for (name, value) in self.headers.iter().take(MOST_HEADERS) {
            let pointer = format!("/headers{}", pointer_token(name));
            if !is_free(name) {
                let detail = "is not a header to be set here; there are X-…, In-Reply-To, References, List-Id and Feedback-ID";
                violations.push(Violation::new(pointer, detail));
            } else if value.is_empty() || value.len() > LONGEST_HEADER || !value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
            {
                violations.push(Violation::new(pointer, format!("must have 1 to {LONGEST_HEADER} visible ASCII characters")));
            }
        }
        violations
    }

    fn violations_for(&self, tenant: &Manifest, _: Option<&str>) -> Vec<Violation> {
        let Some(declared) = &tenant.mail else {
            return vec![Violation::new("", "this product sends no mail: its manifest has no [mail]")];
        };
        match &self.from {
            Some(from) if !declared.may_be_from(&from.email) => {
                vec![Violation::new("/from/email", "must be of the domain that the product's manifest names, [mail] from")]
            }
            _ => Vec::new(),
        }
    }

    fn sample() -> Self {
        let mailbox = |email: &str, name: &str| Mailbox { email: email.to_owned(), name: Some(name.to_owned()) };
        Self {
            to: mailbox("ada@example.com", "Ada Lovelace"),
            from: Some(mailbox("support@acme.example", "Acme")),
            reply_to: Some(mailbox("inquirer@example.org", "Somebody")),
            subject: "Your inquiry".into(),
            text: "Thank you.\n\n{{unsubscribe_url}}".into(),
            html: Some("<p>Thank you.</p>".into()),
            category: "inquiry".into(),
            headers: BTreeMap::from([("X-Campaign".to_owned(), "a".to_owned())]),
            unsubscribe: true,
            notification: None,
        }
    }
}

/// Whether a header may be set: its name can't be one of ours, nor end a line.
fn is_free(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let legal = name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let of_ours = lower == "x-original-to";
    legal && !of_ours && (HEADERS.contains(&lower.as_str()) || lower.strip_prefix("x-").is_some_and(|rest| !rest.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        assert_eq!(EmailSend::sample().violations(), []);
        let headers = ["Bcc", "X-", "X-A: b\r\nBcc", "x-original-to", "Subject", "DKIM-Signature", "List-Unsubscribe"];
        let mut headers: BTreeMap<_, _> = headers.map(|name| (name.to_owned(), "a".to_owned())).into();
        headers.insert("X-B".into(), "a\r\nBcc: eve@example.com".into());
        let wrong = EmailSend {
            to: Mailbox { email: "ada@example.com, eve@example.com".into(), name: Some("a\nb".into()) },
            from: Some(Mailbox { email: String::new(), name: None }),
            reply_to: Some(Mailbox { email: "x".into(), name: None }),
            subject: String::new(),
            text: " ".into(),
            html: Some("a".repeat(LONGEST_BODY + 1)),
            category: "Digest!".into(),
            headers,
            unsubscribe: false,
            notification: None,
        };
        let mut places: Vec<_> = wrong.violations().into_iter().map(|violation| violation.pointer).collect();
        places.sort();
        assert_eq!(
            places,
            [
                "/category",
                "/from/email",
                "/headers/Bcc",
                "/headers/DKIM-Signature",
                "/headers/List-Unsubscribe",
                "/headers/Subject",
                "/headers/X-",
                "/headers/X-A: b\r\nBcc",
                "/headers/X-B",
                "/headers/x-original-to",
                "/html",
                "/reply_to/email",
                "/subject",
                "/text",
                "/to/email",
                "/to/name",
            ]
        );
    }

    #[test]
    fn only_a_product_with_mail_sends_any_and_in_its_own_name() {
        let pointers = |manifest: &str| {
            let manifest = Manifest::from_toml(manifest).unwrap();
            EmailSend::sample().violations_for(&manifest, None).into_iter().map(|violation| violation.pointer).collect::<Vec<_>>()
        };
        assert_eq!(pointers("[tenant]\nname = \"a\"\n"), [""]);
        let mail =
            |email: &str| format!("[tenant]\nname = \"a\"\n[mail]\nserver_env = \"OFFSTAGE_SMTP_URL\"\nfrom = {{ email = \"{email}\" }}\n");
        assert_eq!(pointers(&mail("no-reply@acme.example")), [] as [&str; 0]);
        assert_eq!(pointers(&mail("no-reply@other.example")), ["/from/email"]);
    }

    /// The schedule that its policy speaks of.
    #[test]
    fn it_is_tried_for_two_days() {
        let Policy { attempts, backoff, deadline, .. } = EmailSend::POLICY;
        let pauses: Vec<_> = (1..attempts).map(|attempt| backoff.pause(attempt, 0.5).as_secs() / 60).collect();
        assert_eq!(pauses[..7], [5, 10, 20, 40, 80, 160, 240]);
        let total: u64 = pauses.iter().sum();
        assert_eq!(total, 2_955);
        assert!(deadline > Duration::from_secs(total * 60) + Duration::from_secs(12 * 3_600));
    }
}
