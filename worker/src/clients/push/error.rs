//! What a push service's answer means for the subscription and for the job.

use std::time::Duration;

use chrono::{DateTime, Utc};
use shared::job::Failure;
use url::Url;

use super::seal::LONGEST_PAYLOAD;
use crate::clients::outbound::{Answer, OutboundError};

/// How long a push service is left alone that refuses us by a fault of ours: somebody has to change a setting first.
const FAULT_PAUSE: Duration = Duration::from_secs(15 * 60);

/// What becomes of the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It stays.
    Keep,
    /// It stays, and the operator is told: the fault is ours.
    KeepAndAlert,
    /// It goes: the browser has none any more.
    Remove,
}

/// A push that was not taken. Shows the push service's host, never the endpoint.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// This worker has no keys.
    #[error("this worker has no keys for web push: set OFFSTAGE_PUSH_KEYS, and start it anew")]
    NoKeys,
    /// The key that the subscription was made with is not in the settings: taken out, or overwritten by mistake.
    #[error(
        "the key that this browser subscribed with is not in OFFSTAGE_PUSH_KEYS: put it back behind the current one, and start the worker anew"
    )]
    KeyGone,
    /// No randomness, or a key that can't be used.
    #[error("the message could not be sealed or signed")]
    Crypto,
    /// Too large, by our measure.
    #[error("the message has {bytes} bytes; {LONGEST_PAYLOAD} are the most")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Nobody answered, or may be asked.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// 404 or 410: the subscription ended (RFC 8030, section 7.3).
    #[error("`{host}` answered {status}: the browser is not subscribed any more")]
    Gone {
        /// The push service.
        host: String,
        /// The status.
        status: u16,
    },
    /// 413: too large by its measure (RFC 8030, section 7.2).
    #[error("`{host}` answered 413: the message is too large for it")]
    Refused413 {
        /// The push service.
        host: String,
    },
    /// 408, 429 or 5xx: not now.
    #[error("`{host}` answered {status}{}", quoted(excerpt.as_deref()))]
    Later {
        /// The push service.
        host: String,
        /// The status.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
        /// What it said.
        excerpt: Option<String>,
    },
    /// 401 or 403: it does not take our signature.
    #[error(
        "`{host}` answered {status}{}: it does not take our key or signature; look at OFFSTAGE_PUSH_KEYS, OFFSTAGE_PUSH_CONTACT and this machine's clock",
        quoted(excerpt.as_deref())
    )]
    Unauthorised {
        /// The push service.
        host: String,
        /// The status.
        status: u16,
        /// What it said.
        excerpt: Option<String>,
    },
    /// Any other: it does not understand us, redirects among them.
    #[error("`{host}` answered {status}{}", quoted(excerpt.as_deref()))]
    Unexpected {
        /// The push service.
        host: String,
        /// The status.
        status: u16,
        /// What it said.
        excerpt: Option<String>,
    },
}

/// A piece of an endpoint that is as good as the whole, in characters.
const TELLING: usize = 8;

/// What it said, unless it repeats the endpoint, which is as good as a secret: the body is written by whoever's server that is.
fn said(endpoint: &Url, answer: &Answer) -> Option<String> {
    let telling = |piece: &str| piece.get(..TELLING).map(str::to_owned);
    let pieces: Vec<String> = endpoint.path().split('/').chain(endpoint.query()).filter_map(telling).collect();
    answer.excerpt().filter(|text| !pieces.iter().any(|piece| text.contains(piece)))
}

fn quoted(excerpt: Option<&str>) -> String {
    excerpt.map(|text| format!(" ({text})")).unwrap_or_default()
}

impl PushError {
    pub(super) fn refused(endpoint: &Url, answer: &Answer, now: DateTime<Utc>) -> Self {
        let host = endpoint.host_str().unwrap_or_default().to_owned();
        let status = answer.status.as_u16();
        match status {
            404 | 410 => Self::Gone { host, status },
            413 => Self::Refused413 { host },
            408 | 429 | 500..=599 => Self::Later { host, status, retry_after: answer.retry_after(now), excerpt: said(endpoint, answer) },
            401 | 403 => Self::Unauthorised { host, status, excerpt: said(endpoint, answer) },
            _ => Self::Unexpected { host, status, excerpt: said(endpoint, answer) },
        }
    }

    /// What becomes of the subscription.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::Gone { .. } => Action::Remove,
            Self::NoKeys | Self::KeyGone | Self::Crypto | Self::Unauthorised { .. } | Self::Unexpected { .. } => Action::KeepAndAlert,
            Self::TooLarge { .. } | Self::Refused413 { .. } | Self::Later { .. } | Self::Outbound(_) => Action::Keep,
        }
    }

    /// Whether the message may have been taken all the same. Another copy of it is no harm with a topic; without one the browser may show
    /// it twice.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Outbound(error) if error.may_have_arrived())
    }

    /// One word for the metric.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::NoKeys | Self::Crypto => "not_set_up",
            Self::KeyGone => "key_gone",
            Self::TooLarge { .. } | Self::Refused413 { .. } => "too_large",
            Self::Outbound(OutboundError::NotAllowed { .. }) => "not_allowed",
            Self::Outbound(_) => "unanswered",
            Self::Gone { .. } => "gone",
            Self::Later { .. } => "later",
            Self::Unauthorised { .. } => "unauthorised",
            Self::Unexpected { .. } => "unexpected",
        }
    }
}

impl From<PushError> for Failure {
    fn from(error: PushError) -> Self {
        let message = error.to_string();
        match error {
            PushError::Outbound(error) => error.into_failure("push_not_allowed", "push_unanswered"),
            PushError::NoKeys | PushError::Crypto => Self::limited("push_not_set_up", message, FAULT_PAUSE),
            PushError::Unauthorised { .. } => Self::limited("push_unauthorised", message, FAULT_PAUSE),
            PushError::KeyGone => Self::limited("push_key_gone", message, FAULT_PAUSE),
            PushError::Gone { .. } => Self::permanent("push_subscription_gone", message),
            PushError::TooLarge { .. } | PushError::Refused413 { .. } => Self::permanent("push_too_large", message),
            PushError::Later { retry_after: Some(pause), .. } => Self::limited("push_later", message, pause),
            PushError::Later { .. } => Self::transient("push_later", message),
            PushError::Unexpected { .. } => Self::permanent("push_refused", message),
        }
    }
}
