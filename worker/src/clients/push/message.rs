//! What is pushed, and how urgently (RFC 8030, section 5).

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use shared::push::Subscription;

/// A message to one browser.
#[derive(Debug, Clone)]
pub struct Message<'a> {
    /// What the page's service worker is given; at most [`LONGEST_PAYLOAD`](super::seal::LONGEST_PAYLOAD) bytes.
    pub payload: &'a [u8],
    /// For how long the push service keeps it for a browser that is away, in whole seconds; services keep less than asked (a month at most).
    pub ttl: Duration,
    /// Whether it may wake a device.
    pub urgency: Urgency,
    /// A message takes the place of one with the same topic that was not delivered yet.
    pub topic: Option<&'a Topic>,
}

/// How urgent a message is (RFC 8030, section 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Urgency {
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

impl Urgency {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::VeryLow => "very-low",
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// A topic: 32 characters of base64url (RFC 8030, section 5.4), made of whatever names what is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic(String);

impl Topic {
    /// The topic of a key such as a digest's, for one browser: the push service can't tell what it stands for, nor that another browser's is
    /// the same.
    #[must_use]
    pub fn of(key: &str, to: &Subscription) -> Self {
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, to.auth());
        let tag = aws_lc_rs::hmac::sign(&secret, key.as_bytes());
        Self(BASE64_URL_SAFE_NO_PAD.encode(tag.as_ref().get(..24).unwrap_or_default()))
    }

    /// As it is sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
