//! What a failure means, by the stage at which it came.
//!
//! | stage | 4xx, cut, late | 5xx | enhanced code 5.7.x |
//! |---|---|---|---|
//! | connect, greeting, EHLO, STARTTLS, AUTH, MAIL | retry | the sender pauses | the sender pauses |
//! | RCPT | retry | a mailbox's code: suppress; else: the mail fails | the sender pauses |
//! | DATA (the command) | retry | the mail fails | the sender pauses |
//! | message | 4xx: retry; cut, late: unknown | the mail fails | the sender pauses |
//!
//! A server without STARTTLS or AUTH, and one whose certificate is not trusted, pauses the sender too.

use std::{fmt, time::Duration};

use shared::job::Failure;

/// How long a sender is left alone whom a server refuses: somebody has to change a setting, or a password, first.
pub const SENDER_PAUSE: Duration = Duration::from_secs(30 * 60);

/// How far a delivery had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Looking the server up, connecting, and TLS where it comes first.
    Connect,
    /// The server's greeting.
    Greeting,
    /// EHLO.
    Ehlo,
    /// STARTTLS, up to EHLO under it.
    StartTls,
    /// Signing in.
    Auth,
    /// MAIL FROM.
    Mail,
    /// RCPT TO.
    Rcpt,
    /// The DATA command.
    Data,
    /// The message, from its first byte to the answer.
    Message,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Greeting => "the greeting",
            Self::Ehlo => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::Message => "the message",
        })
    }
}

/// What went wrong there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The server said no.
    Reply {
        /// The code, as 550.
        code: u16,
        /// The enhanced code (RFC 3463), as `[5, 1, 1]`.
        enhanced: Option<[u16; 3]>,
        /// Its words, without addresses.
        text: String,
    },
    /// The connection failed, or what came over it was no SMTP.
    Cut(String),
    /// Its deadline passed.
    Late(Duration),
    /// The server's certificate is not trusted, or TLS could not be agreed on.
    Tls(String),
    /// The server can't do what the settings want of it.
    Unsupported(&'static str),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reply { code, enhanced: Some([a, b, c]), text } => write!(f, "answered {code} {a}.{b}.{c} {text}"),
            Self::Reply { code, enhanced: None, text } => write!(f, "answered {code} {text}"),
            Self::Cut(why) => write!(f, "failed: {why}"),
            Self::Late(within) => write!(f, "took more than {} ms", within.as_millis()),
            Self::Tls(why) => write!(f, "failed in TLS: {why}"),
            Self::Unsupported(what) => write!(f, "is not what the settings say: {what}"),
        }
    }
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// In passing: try again, on a schedule of minutes to hours.
    Retry,
    /// There is no such mailbox: send nothing there any more.
    Suppress,
    /// This mail is refused, and would be again; the recipient is not to blame.
    Fail,
    /// We are refused: hold everything that goes over this server, and tell the operator.
    PauseSender,
    /// It may have been taken: list it, and try again under the same Message-ID.
    Unknown,
}

impl Verdict {
    /// One word, for metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Suppress => "suppress",
            Self::Fail => "fail",
            Self::PauseSender => "pause_sender",
            Self::Unknown => "unknown",
        }
    }
}

/// A mail that was not taken, or not for all we know. Names no recipient.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MailError {
    /// The settings have no such server.
    #[error("this worker has no mail server {0}: set it, and start it anew")]
    NoServer(String),
    /// It failed at a stage.
    #[error("mail server {host}: {stage} {trouble}")]
    At {
        /// The server.
        host: String,
        /// The stage.
        stage: Stage,
        /// What went wrong.
        trouble: Trouble,
    },
}

impl MailError {
    /// What it means.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::NoServer(_) => Verdict::PauseSender,
            Self::At { stage, trouble, .. } => verdict(*stage, trouble),
        }
    }
}

#[expect(clippy::match_same_arms, reason = "a table, in the order in which it is asked")]
fn verdict(stage: Stage, trouble: &Trouble) -> Verdict {
    match (stage, trouble) {
        (_, Trouble::Unsupported(_)) | (Stage::Connect | Stage::StartTls, Trouble::Tls(_)) => Verdict::PauseSender,
        // An alert or a broken record on a connection that stood is a cut like any other.
        (Stage::Message, Trouble::Cut(_) | Trouble::Late(_) | Trouble::Tls(_)) => Verdict::Unknown,
        (_, Trouble::Cut(_) | Trouble::Late(_) | Trouble::Tls(_)) => Verdict::Retry,
        (_, Trouble::Reply { code: ..500, .. }) => Verdict::Retry,
        (Stage::Rcpt, Trouble::Reply { code, enhanced, text }) => of_recipient(*code, *enhanced, text),
        (Stage::Data | Stage::Message, Trouble::Reply { code, enhanced, .. }) => {
            if is_of_us(*code, *enhanced) {
                Verdict::PauseSender
            } else {
                Verdict::Fail
            }
        }
        (_, Trouble::Reply { .. }) => Verdict::PauseSender,
    }
}

/// A 5xx to RCPT. With an enhanced code it is clear what is meant (RFC 3463, sections 3.2 and 3.3; RFC 7505 for 5.1.10, a domain that takes
/// no mail). Without one, 550, 551 and 553 speak of the mailbox (RFC 5321, section 4.2.3), and some servers refuse relaying by them.
fn of_recipient(code: u16, enhanced: Option<[u16; 3]>, text: &str) -> Verdict {
    match enhanced {
        _ if is_of_us(code, enhanced) => Verdict::PauseSender,
        Some([5, 1, 1 | 2 | 3 | 6 | 10] | [5, 2, 1]) => Verdict::Suppress,
        None if speaks_of_policy(text) => Verdict::PauseSender,
        None if matches!(code, 550 | 551 | 553 | 556) => Verdict::Suppress,
        _ => Verdict::Fail,
    }
}

/// Security or policy status (RFC 3463, section 3.8), or a code that asks us to sign in or to use TLS (RFC 4954, section 6).
fn is_of_us(code: u16, enhanced: Option<[u16; 3]>) -> bool {
    matches!(enhanced, Some([5, 7, _])) || (enhanced.is_none() && matches!(code, 530 | 534 | 535 | 538))
}

fn speaks_of_policy(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["relay", "policy", "denied", "blocked", "blacklist", "blocklist", "spam", "authenticat", "spf", "dmarc"]
        .iter()
        .any(|word| text.contains(word))
}

impl From<MailError> for Failure {
    fn from(error: MailError) -> Self {
        let message = error.to_string();
        match error.verdict() {
            Verdict::Retry => Self::transient("mail_deferred", message),
            Verdict::Unknown => Self::transient("mail_unknown", message),
            Verdict::Suppress => Self::permanent("mail_mailbox_unknown", message),
            Verdict::Fail => Self::permanent("mail_refused", message),
            Verdict::PauseSender => Self::limited("mail_sender_refused", message, SENDER_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_tls_is_of_us_only_while_it_is_made() {
        let alert = Trouble::Tls("received fatal alert: InternalError".to_owned());
        for (stage, expected) in [
            (Stage::Connect, Verdict::PauseSender),
            (Stage::StartTls, Verdict::PauseSender),
            (Stage::Auth, Verdict::Retry),
            (Stage::Mail, Verdict::Retry),
            (Stage::Rcpt, Verdict::Retry),
            (Stage::Data, Verdict::Retry),
            (Stage::Message, Verdict::Unknown),
        ] {
            assert_eq!(verdict(stage, &alert), expected, "{stage}");
        }
    }

    /// What servers are known to say to RCPT.
    #[test]
    fn only_what_speaks_of_the_mailbox_suppresses() {
        use Verdict::{Fail, PauseSender, Retry, Suppress};
        for (code, enhanced, text, expected) in [
            (550, Some([5, 1, 1]), "user unknown", Suppress),
            (550, Some([5, 1, 2]), "no such domain", Suppress),
            (550, Some([5, 1, 3]), "bad address", Suppress),
            (551, Some([5, 1, 6]), "has moved", Suppress),
            (556, Some([5, 1, 10]), "null MX", Suppress),
            (550, Some([5, 2, 1]), "mailbox disabled", Suppress),
            (550, None, "mailbox unavailable", Suppress),
            (551, None, "user not local", Suppress),
            (553, None, "mailbox name not allowed", Suppress),
            (556, None, "domain does not accept mail", Suppress),
            (552, Some([5, 2, 2]), "mailbox full", Fail),
            (552, None, "mailbox full", Fail),
            (550, Some([5, 2, 3]), "message too long for this mailbox", Fail),
            (554, None, "transaction failed", Fail),
            (550, Some([5, 4, 1]), "no answer from host", Fail),
            (550, Some([5, 1, 8]), "bad sender's system address", Fail),
            (550, Some([5, 1, 0]), "address rejected", Fail),
            (503, Some([5, 5, 1]), "bad sequence", Fail),
            (550, Some([5, 7, 1]), "blocked by policy", PauseSender),
            (554, Some([5, 7, 1]), "relay access denied", PauseSender),
            (550, Some([5, 7, 26]), "unauthenticated mail", PauseSender),
            (530, None, "sign in first", PauseSender),
            (530, Some([5, 7, 0]), "STARTTLS first", PauseSender),
            (550, None, "relay not permitted", PauseSender),
            (550, None, "Blocked, see https://example.com", PauseSender),
            (450, Some([4, 2, 0]), "greylisted", Retry),
            (452, Some([4, 2, 2]), "mailbox full", Retry),
            (451, Some([4, 7, 1]), "try again later", Retry),
            (421, None, "busy", Retry),
        ] {
            let trouble = Trouble::Reply { code, enhanced, text: text.to_owned() };
            assert_eq!(verdict(Stage::Rcpt, &trouble), expected, "{trouble}");
        }
    }
}
