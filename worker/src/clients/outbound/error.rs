//! Why a call has no answer.

use std::{error::Error, time::Duration};

use shared::{job::Failure, outbound::NotAllowed};

use super::resolve::Refused;
use crate::clients::cause::{cause, deepest};

/// A call without an answer. Holds no URL: it may hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The address may not be called.
    #[error("`{host}` {why}")]
    NotAllowed {
        /// The host.
        host: String,
        /// Why.
        why: NotAllowed,
    },
    /// This machine can't make a client.
    #[error("this worker can't make HTTP calls")]
    Client(#[source] reqwest::Error),
    /// No connection came about, so nothing was sent.
    #[error("`{host}` can't be reached: {how}")]
    Unreached {
        /// The host.
        host: String,
        /// At what it failed: its name, the connection, TLS.
        how: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The deadline passed.
    #[error("`{host}` did not answer within {} s", within.as_secs())]
    Late {
        /// The host.
        host: String,
        /// The deadline.
        within: Duration,
    },
    /// The connection was cut before an answer.
    #[error("`{host}` cut the connection before it answered")]
    Cut {
        /// The host.
        host: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
}

impl OutboundError {
    pub(super) fn of(host: String, error: reqwest::Error) -> Self {
        let error = error.without_url();
        if let Some(Refused(why)) = cause(&error) {
            return Self::NotAllowed { host, why: why.clone() };
        }
        if !error.is_connect() && !error.is_builder() {
            return Self::Cut { host, source: error };
        }
        let how = match (cause::<rustls::Error>(&error), deepest(&error)) {
            (Some(tls), _) => format!("the TLS handshake failed: {tls}"),
            (None, deepest) => deepest,
        };
        Self::Unreached { host, how, source: error }
    }

    /// Whether the call may have been heard all the same: it was sent, or may have been, and the answer did not come.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Late { .. } | Self::Cut { .. })
    }

    /// As a failure of the job that made the call, by that job's words for both sorts.
    #[must_use]
    pub fn into_failure(self, not_allowed: &'static str, unanswered: &'static str) -> Failure {
        let failure = match &self {
            Self::NotAllowed { .. } => Failure::permanent(not_allowed, self.to_string()),
            _ => Failure::transient(unanswered, self.to_string()),
        };
        match self.source() {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        }
    }
}
