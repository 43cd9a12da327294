//! A mail's bytes (RFC 5322), the same whenever the same mail is written.
//!
//! What must stay true: nothing that a user or a template says can add a header or a recipient; the Message-ID is the mail's, not the
//! attempt's, so a second copy is known as one.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use lettre::{
    Address, Message,
    message::{
        Mailbox, MultiPart, SinglePart,
        header::{ContentType, HeaderName, HeaderValue},
    },
};
use sha2::{Digest, Sha256};
use shared::{job::Failure, mail::DkimKey};
use url::Url;

use super::dkim::{self, Signing};

/// The longest address (RFC 5321, section 4.5.3.1.3).
const ADDRESS: usize = 254;

/// The longest subject and name, in characters.
const LINE: usize = 255;

/// The longest link that goes into a header: its line must stay below 998 bytes (RFC 5322, section 2.1.1).
const LINK: usize = 900;

/// The longest text and HTML together, in bytes.
const LARGEST: usize = 5 * 1024 * 1024;

/// A mail.
#[derive(Debug, Clone)]
pub struct Mail<'a> {
    /// What names it: a job's id, with whatever tells its mails apart. Letters, digits, `.`, `-` and `_`.
    pub id: &'a str,
    /// Whom it is from; its domain stands in the Message-ID too.
    pub from: Party<'a>,
    /// Whom it is for.
    pub to: Party<'a>,
    /// Whom an answer reaches, where that is somebody else.
    pub reply_to: Option<Party<'a>>,
    /// What it is about.
    pub subject: &'a str,
    /// What it says.
    pub text: &'a str,
    /// The same for those who like it set.
    pub html: Option<&'a str>,
    /// When it was written: the job's time, not the attempt's.
    pub date: DateTime<Utc>,
    /// Where one POST ends such mails (RFC 8058); an https address.
    pub unsubscribe: Option<&'a Url>,
    /// Headers of the product's own; the kind's contract says which there may be.
    pub headers: &'a BTreeMap<String, String>,
    /// How it is signed.
    pub dkim: Option<Dkim<'a>>,
}

/// Somebody with a mailbox.
#[derive(Debug, Clone, Copy)]
pub struct Party<'a> {
    /// The name that is shown.
    pub name: Option<&'a str>,
    /// The address.
    pub address: &'a str,
}

/// Whose signature a mail bears.
#[derive(Debug, Clone, Copy)]
pub struct Dkim<'a> {
    /// The domain that answers for it; the sender's, for DMARC.
    pub domain: &'a str,
    /// Under which name the public key stands in the domain's zone.
    pub selector: &'a str,
    /// The variable that holds the private key, `OFFSTAGE_DKIM_…`.
    pub key: &'a str,
}

/// A mail that can be sent: made by [`Mailer::compose`](super::Mailer::compose) alone, which redirects all mail of a staging installation.
#[derive(Debug, Clone)]
pub struct Composed {
    pub(super) from: Address,
    pub(super) to: Address,
    pub(super) bytes: Vec<u8>,
    message_id: String,
}

impl Composed {
    /// The Message-ID, for intents and receipts.
    #[must_use]
    pub fn message_id(&self) -> &str {
        &self.message_id
    }
}

/// A mail that can't be written. Names no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No address, or one that mail can't be sent to from here.
    #[error("the mail's `{0}` is not an address that mail can be sent to (letters beyond ASCII before the @ are not supported)")]
    Address(&'static str),
    /// Characters that don't belong into a Message-ID.
    #[error("a mail's id is letters, digits, `.`, `-` and `_`")]
    Id,
    /// Not the name of a header.
    #[error("one of the mail's headers has a name that no header can have")]
    Header,
    /// Not https, or too long.
    #[error("the address for unsubscribing must be https and have at most {LINK} characters")]
    Unsubscribe,
    /// Too large.
    #[error("the mail has {0} bytes; {LARGEST} are the most")]
    TooLarge(usize),
    /// No such key.
    #[error("this worker has no DKIM key {0}: set it, and start it anew")]
    NoKey(String),
    /// Not a name of the DNS.
    #[error("the domain or the selector of DKIM is not a name")]
    DkimName,
    /// lettre refuses it, or there is no randomness.
    #[error("the mail could not be written: {0}")]
    Other(String),
}

impl From<MessageError> for Failure {
    fn from(error: MessageError) -> Self {
        let message = error.to_string();
        match error {
            MessageError::NoKey(_) => Self::transient("mail_key_missing", message),
            MessageError::Address(_) => Self::permanent("mail_address_invalid", message),
            _ => Self::permanent("mail_invalid", message),
        }
    }
}

pub(super) fn compose(mail: &Mail<'_>, keys: &BTreeMap<String, Arc<DkimKey>>, redirect: Option<&str>) -> Result<Composed, MessageError> {
    let size = mail.text.len() + mail.html.map_or(0, str::len);
    if size > LARGEST {
        return Err(MessageError::TooLarge(size));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if mail.id.is_empty() || mail.id.len() > 128 || !mail.id.bytes().all(legal) {
        return Err(MessageError::Id);
    }
    let from = mailbox(&mail.from, "from")?;
    let meant_for = mailbox(&mail.to, "to")?;
    let to = match redirect {
        Some(address) => Mailbox::new(None, self::address(address).ok_or(MessageError::Address("to"))?),
        None => meant_for.clone(),
    };
    let message_id = format!("<{}@{}>", mail.id, from.email.domain());
    let boundary = format!("offstage-{}", hex::encode(Sha256::digest(message_id.as_bytes()).get(..16).unwrap_or_default()));

    let mut builder = Message::builder()
        .from(from.clone())
        .to(to.clone())
        .raw_header(subject(mail.subject))
        .date(mail.date.into())
        .message_id(Some(message_id.clone()))
        .raw_header(header("Auto-Submitted", "auto-generated"));
    if let Some(party) = &mail.reply_to {
        builder = builder.reply_to(mailbox(party, "reply_to")?);
    }
    if let Some(url) = mail.unsubscribe {
        if url.scheme() != "https" || url.as_str().len() > LINK {
            return Err(MessageError::Unsubscribe);
        }
        builder = builder
            .raw_header(header("List-Unsubscribe", &format!("<{url}>")))
            .raw_header(header("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"));
    }
    for (name, value) in mail.headers {
        let name = HeaderName::new_from_ascii(name.clone()).map_err(|_| MessageError::Header)?;
        builder = builder.raw_header(named(name, value));
    }
    if redirect.is_some() {
        builder = builder.raw_header(header("X-Original-To", meant_for.email.as_ref()));
    }
    let text = SinglePart::builder().header(ContentType::TEXT_PLAIN).body(mail.text.to_owned());
    let message = match mail.html {
        // Text first: the last part is the one that is shown where it can be (RFC 2046, section 5.1.4).
        Some(html) => builder.multipart(
            MultiPart::alternative()
                .boundary(boundary)
                .singlepart(text)
                .singlepart(SinglePart::builder().header(ContentType::TEXT_HTML).body(html.to_owned())),
        ),
        None => builder.singlepart(text),
    };
    let mut bytes = message.map_err(|error| MessageError::Other(error.to_string()))?.formatted();
    if let Some(Dkim { domain, selector, key }) = mail.dkim {
        let key = keys.get(key).ok_or_else(|| MessageError::NoKey(key.to_owned()))?;
        let signing = Signing { domain, selector, key, at: mail.date };
        if !signing.is_well_formed() {
            return Err(MessageError::DkimName);
        }
        let signature = dkim::header(&bytes, &signing).ok_or_else(|| MessageError::Other("it could not be signed".to_owned()))?;
        bytes.splice(0..0, signature);
    }
    Ok(Composed { from: from.email, to: to.email, bytes, message_id })
}

/// A header whose value is ASCII that needs no encoding: what is not is left out.
fn header(name: &'static str, value: &str) -> HeaderValue {
    named(HeaderName::new_from_ascii_str(name), value)
}

fn named(name: HeaderName, value: &str) -> HeaderValue {
    let value: String = value.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    HeaderValue::dangerous_new_pre_encoded(name, value.clone(), value)
}

/// A subject. One that has itself the form of an encoded-word (RFC 2047, section 2) would be read as what it encodes, line breaks and all: it
/// is encoded as a whole, and so is shown as it was written.
fn subject(text: &str) -> HeaderValue {
    let name = HeaderName::new_from_ascii_str("Subject");
    let text = line(text);
    if !text.contains("=?") {
        return HeaderValue::new(name, text);
    }
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        // 75 characters a word with its marks, by fours of base64.
        if word.len() + c.len_utf8() > 45 {
            words.push(std::mem::take(&mut word));
        }
        word.push(c);
    }
    words.push(word);
    let encoded: Vec<String> = words.iter().map(|word| format!("=?utf-8?b?{}?=", BASE64_STANDARD.encode(word))).collect();
    HeaderValue::dangerous_new_pre_encoded(name, text, encoded.join("\r\n "))
}

fn mailbox(party: &Party<'_>, field: &'static str) -> Result<Mailbox, MessageError> {
    let name = party.name.map(line).filter(|name| !name.is_empty());
    Ok(Mailbox::new(name, address(party.address).ok_or(MessageError::Address(field))?))
}

/// An address whose domain is written in ASCII.
fn address(text: &str) -> Option<Address> {
    let (user, domain) = shared::mail::address(text)?;
    let address = Address::new(user, domain).ok()?;
    let length = address.user().len() + 1 + address.domain().len();
    (length <= ADDRESS).then_some(address)
}

/// One line: what would end it, or can't be seen, becomes a space.
fn line(text: &str) -> String {
    let unseen = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let words = text.split(|c: char| unseen(c) || c == ' ').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(LINE).collect()
}
