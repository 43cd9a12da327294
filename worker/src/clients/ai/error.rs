//! Why a model has not answered, what that means for the job, and whether another model may do better.

use std::{error::Error, time::Duration};

use chrono::{DateTime, Utc};
use reqwest::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use shared::job::{Failure, FailureClass};

use super::{Reply, pause};
use crate::clients::outbound::{Answer, OutboundError};

/// The most characters of a provider's words that are quoted.
const EXCERPT: usize = 300;

/// Anthropic's word for "too many for us all just now" (<https://platform.claude.com/docs/en/api/errors>).
const OVERLOADED: u16 = 529;

/// The outcome of a call that was answered, in figures.
pub const ANSWERED: &str = "answered";

/// The outcomes of calls, in figures: [`ANSWERED`], and the codes of errors.
pub const OUTCOMES: [&str; 13] = [
    ANSWERED,
    "ai_address_not_allowed",
    "ai_unanswered",
    "ai_key_refused",
    "ai_quota_exhausted",
    "ai_limited",
    "ai_unavailable",
    "ai_refused",
    "ai_cut",
    "ai_unreadable",
    "ai_too_long",
    "ai_late",
    "ai_given_up",
];

/// A call without an answer. Holds neither key nor address.
#[derive(Debug, thiserror::Error)]
pub enum AiError {
    /// Nobody answered, or may be asked.
    #[error("{0}{hint}", hint = advice(.0))]
    Outbound(#[from] OutboundError),
    /// The key can't stand in a header.
    #[error("the provider's key has characters that no key has; set it anew")]
    KeyUnusable,
    /// The provider does not take the key (401, 403): a user's key is invalid by this, a product's has to be looked at.
    #[error("the provider does not take the key ({status}){}", said(words.as_deref()))]
    KeyRefused {
        /// The status.
        status: StatusCode,
        /// The beginning of what it said.
        words: Option<String>,
    },
    /// The account has no money or quota left: no pause helps.
    #[error("the provider's account has no quota left{}", said(words.as_deref()))]
    NoQuota {
        /// The beginning of what it said.
        words: Option<String>,
    },
    /// Too many calls just now.
    #[error("the provider takes no more calls just now ({status}){}", said(words.as_deref()))]
    Limited {
        /// The status.
        status: StatusCode,
        /// When it wants to be asked again, within bounds.
        pause: Option<Duration>,
        /// The beginning of what it said.
        words: Option<String>,
    },
    /// A fault of the provider's.
    #[error("the provider failed ({status}){}", said(words.as_deref()))]
    Unavailable {
        /// The status.
        status: StatusCode,
        /// When it wants to be asked again, within bounds.
        pause: Option<Duration>,
        /// The beginning of what it said.
        words: Option<String>,
    },
    /// The question is not one that the provider takes.
    #[error("the provider refused the question ({status}){}", said(words.as_deref()))]
    Refused {
        /// The status.
        status: StatusCode,
        /// The beginning of what it said.
        words: Option<String>,
    },
    /// A fault that was told within a stream.
    #[error("the provider broke its answer off{}", said(words.as_deref()))]
    Broken {
        /// The beginning of what it said.
        words: Option<String>,
    },
    /// The answer is not what the protocol says.
    #[error("the provider's answer can't be read: {0}")]
    Unreadable(String),
    /// The answer has no end.
    #[error("the provider's answer is longer than any task's may be")]
    TooLong,
    /// The connection was cut within the answer.
    #[error("the connection was cut before the answer was whole")]
    Cut {
        /// What was heard until then, with an estimate of its tokens.
        heard: Option<Box<Reply>>,
    },
    /// The job was cancelled within the answer.
    #[error("the job was cancelled before the answer was whole")]
    GivenUp {
        /// What was heard until then, with an estimate of its tokens; nothing where it was not streamed.
        heard: Option<Box<Reply>>,
    },
    /// The deadline passed within the answer.
    #[error("the answer was not whole within {} s", within.as_secs())]
    Late {
        /// The deadline.
        within: Duration,
        /// What was heard until then, with an estimate of its tokens.
        heard: Option<Box<Reply>>,
    },
}

fn said(words: Option<&str>) -> String {
    words.map(|words| format!(": {words}")).unwrap_or_default()
}

/// What to do about a refusal of our own.
fn advice(error: &OutboundError) -> &'static str {
    match error {
        OutboundError::NotAllowed { .. } => {
            "; a server of one's own needs `private = true` at its provider in the manifest, or OFFSTAGE_OUTBOUND_ALLOW"
        }
        _ => "",
    }
}

impl AiError {
    /// What an answer says that is not a success.
    pub(super) fn refused(answer: &Answer, key: Option<&SecretString>, now: DateTime<Utc>) -> Self {
        let Answer { status, .. } = *answer;
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let words = words_of(&body).map(str::to_owned).or_else(|| Some(String::from_utf8_lossy(&answer.body).into_owned()));
        let words = words.and_then(|words| passed_on(&words, key));
        let pause = pause::of(answer, now);
        let has_no_quota = ["/error/code", "/error/type"].iter().any(|place| {
            let code = body.pointer(place).and_then(Value::as_str);
            code.is_some_and(|code| ["insufficient_quota", "billing_error", "billing_hard_limit_reached"].contains(&code))
        });
        match status.as_u16() {
            402 => Self::NoQuota { words },
            429 | 403 | 400 if has_no_quota => Self::NoQuota { words },
            401 | 403 => Self::KeyRefused { status, words },
            429 | OVERLOADED => Self::Limited { status, pause, words },
            503 if pause.is_some() => Self::Limited { status, pause, words },
            // Redirects are not followed: by one the key would go elsewhere.
            408 | 409 | 425 | 500.. => Self::Unavailable { status, pause, words },
            _ => Self::Refused { status, words },
        }
    }

    /// A fault that is told in place of an answer, or within one. Its words are not fit to be passed on before [`Self::told_without`].
    pub(super) fn in_stream(error: &Value) -> Self {
        let message = error.get("message").or(Some(error)).and_then(Value::as_str);
        Self::Broken { words: message.map(str::to_owned) }
    }

    /// The same, without the key in the words of a fault that was told within an answer.
    pub(super) fn told_without(self, key: Option<&SecretString>) -> Self {
        match self {
            Self::Broken { words } => Self::Broken { words: words.and_then(|words| passed_on(&words, key)) },
            error => error,
        }
    }

    /// What is no JSON, or other JSON. Says where, not what: that is somebody's data.
    pub(super) fn unreadable(error: &serde_json::Error) -> Self {
        let what = if error.is_data() { "fields of other types than the protocol's" } else { "no JSON" };
        Self::Unreadable(format!("{what} (column {})", error.column()))
    }

    /// Whether the call may have been made, and charged, all the same.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Outbound(error) => error.may_have_arrived(),
            Self::Broken { .. } | Self::Unreadable(_) | Self::TooLong | Self::Cut { .. } | Self::GivenUp { .. } | Self::Late { .. } => true,
            Self::KeyUnusable
            | Self::KeyRefused { .. }
            | Self::NoQuota { .. }
            | Self::Limited { .. }
            | Self::Unavailable { .. }
            | Self::Refused { .. } => false,
        }
    }

    /// Whether another model may be asked in this one's place: not where the question is at fault, and not where nobody wants an answer.
    #[must_use]
    pub const fn another_may_help(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::GivenUp { .. })
    }

    /// Whether the provider does not take the key.
    #[must_use]
    pub const fn is_of_the_key(&self) -> bool {
        matches!(self, Self::KeyUnusable | Self::KeyRefused { .. })
    }

    /// Whether the provider is at fault, or its connection: what a circuit breaker counts. Neither the key nor the question nor a limit is.
    #[must_use]
    pub fn is_of_the_provider(&self) -> bool {
        match self {
            Self::Outbound(error) => !matches!(error, OutboundError::NotAllowed { .. } | OutboundError::Client(_)),
            Self::Unavailable { .. } | Self::Broken { .. } | Self::Unreadable(_) | Self::Cut { .. } | Self::Late { .. } => true,
            Self::KeyUnusable
            | Self::KeyRefused { .. }
            | Self::NoQuota { .. }
            | Self::Limited { .. }
            | Self::Refused { .. }
            | Self::GivenUp { .. }
            | Self::TooLong => false,
        }
    }

    /// What was heard before it failed, for what that costs.
    #[must_use]
    pub fn heard(&self) -> Option<&Reply> {
        match self {
            Self::Cut { heard } | Self::GivenUp { heard } | Self::Late { heard, .. } => heard.as_deref(),
            _ => None,
        }
    }

    /// The stable word.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Outbound(OutboundError::NotAllowed { .. }) => "ai_address_not_allowed",
            Self::Outbound(_) => "ai_unanswered",
            Self::KeyUnusable | Self::KeyRefused { .. } => "ai_key_refused",
            Self::NoQuota { .. } => "ai_quota_exhausted",
            Self::Limited { .. } => "ai_limited",
            Self::Unavailable { .. } => "ai_unavailable",
            Self::Refused { .. } => "ai_refused",
            Self::Broken { .. } | Self::Cut { .. } => "ai_cut",
            Self::Unreadable(_) => "ai_unreadable",
            Self::TooLong => "ai_too_long",
            Self::Late { .. } => "ai_late",
            Self::GivenUp { .. } => "ai_given_up",
        }
    }
}

impl From<AiError> for Failure {
    fn from(error: AiError) -> Self {
        let class = match &error {
            AiError::Outbound(OutboundError::NotAllowed { .. })
            | AiError::KeyUnusable
            | AiError::KeyRefused { .. }
            | AiError::NoQuota { .. }
            | AiError::Refused { .. }
            | AiError::TooLong => FailureClass::Permanent,
            AiError::Limited { pause: Some(_), .. } | AiError::Unavailable { pause: Some(_), .. } => FailureClass::Limited,
            _ => FailureClass::Transient,
        };
        let retry_after = match &error {
            AiError::Limited { pause, .. } | AiError::Unavailable { pause, .. } => *pause,
            _ => None,
        };
        let failure = Self { class, retry_after, ..Self::transient(error.code(), error.to_string()) };
        match error.source() {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        }
    }
}

/// What an error's body says for people, in either dialect.
fn words_of(body: &Value) -> Option<&str> {
    let found = ["/error/message", "/message", "/0/error/message", "/error"].iter().find_map(|place| body.pointer(place)?.as_str());
    found.filter(|words| !words.trim().is_empty())
}

/// Of a key so much in a row is a part of it, wherever it stands.
const PART: usize = 8;

/// A provider's words, fit to be passed on: without the key, and short. The key goes before they are cut, or a part of it would stay.
fn passed_on(words: &str, key: Option<&SecretString>) -> Option<String> {
    let text: String = hidden(words, key).chars().map(|c| if c.is_control() { ' ' } else { c }).take(EXCERPT).collect();
    Some(without(text.trim(), key)).filter(|words| !words.is_empty())
}

/// A text without the key, wherever it stands: as it is, and as it would stand in JSON or in an address.
pub(super) fn hidden(text: &str, key: Option<&SecretString>) -> String {
    let Some(key) = key.map(ExposeSecret::expose_secret).filter(|key| !key.is_empty()) else { return text.to_owned() };
    let escaped = Value::from(key).to_string();
    let encoded: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
    [key, escaped.trim_matches('"'), &encoded].iter().fold(text.to_owned(), |text, form| text.replace(form, "…"))
}

/// Providers quote a part of a key that they don't know: nothing that looks like one is passed on.
fn without(words: &str, key: Option<&SecretString>) -> String {
    let key = key.map(ExposeSecret::expose_secret);
    let has_part = |word: &str| {
        let word = word.as_bytes();
        key.is_some_and(|key| key.as_bytes().windows(PART).any(|part| word.windows(PART).any(|other| other == part)))
    };
    let looks_like_one = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        let is_of_the_key = key.is_some_and(|key| bare.len() >= 4 && key.contains(bare)) || has_part(word);
        is_of_the_key || bare.starts_with("sk-") || bare.contains("****") || bare.starts_with("hf_") || bare.starts_with("AIza")
    };
    words.split(' ').map(|word| if looks_like_one(word) { "…" } else { word }).collect::<Vec<_>>().join(" ")
}
