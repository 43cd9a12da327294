//! What a vendor says, and why there is no answer: each with its word for metrics, or its class as a failure.

use chrono::{DateTime, Utc};
use shared::{job::Failure, statistic::Figures};
use url::Url;

use crate::clients::outbound::OutboundError;

/// What a vendor says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// Figures.
    Figures {
        /// The figures.
        figures: Figures,
        /// When something was last done there.
        worked_at: Option<DateTime<Utc>>,
        /// The answer's tag.
        etag: Option<String>,
        /// The answer's time of change.
        last_modified: Option<String>,
    },
    /// It is as it was.
    Unchanged,
    /// It is elsewhere.
    Moved {
        /// Where.
        to: Url,
        /// For good.
        is_permanent: bool,
    },
    /// There is no such thing (any more).
    Gone,
    /// Not now: what is told of the budgets says when.
    Limited,
    /// The credential is to be made anew: ask again.
    Again,
    /// It does not say, and will not.
    Refused {
        /// The answer's status.
        status: u16,
        /// The beginning of what it said.
        excerpt: Option<String>,
    },
    /// It can't say.
    Down(u16),
    /// It says what can't be understood.
    Malformed(String),
}

impl Said {
    /// Its word in metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Figures { .. } => "figures",
            Self::Unchanged => "unchanged",
            Self::Moved { .. } => "moved",
            Self::Gone => "gone",
            Self::Limited => "limited",
            Self::Again => "token_expired",
            Self::Refused { .. } => "refused",
            Self::Down(_) => "down",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// A vendor was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum VendorError {
    /// This worker has no such credential.
    #[error("this worker has no credential: set {0}, and start it again")]
    NoCredential(String),
    /// The credential is not of the form that the vendor's has.
    #[error("{0} does not hold a credential of the form `client id:client secret`")]
    CredentialForm(String),
    /// The vendor does not know the client.
    #[error("`{host}` refused the client's credential with {status}")]
    ClientRefused {
        /// The host.
        host: String,
        /// The status.
        status: u16,
    },
    /// The vendor's door for clients does not open now.
    #[error("`{host}` gave no token: {why}")]
    NoToken {
        /// The host.
        host: String,
        /// Why.
        why: String,
    },
    /// No answer.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
}

impl From<VendorError> for Failure {
    fn from(error: VendorError) -> Self {
        let message = error.to_string();
        match error {
            VendorError::NoCredential(_) => Self::transient("credential_missing", message),
            VendorError::CredentialForm(_) => Self::permanent("credential_malformed", message),
            VendorError::ClientRefused { .. } => Self::permanent("credential_refused", message),
            VendorError::NoToken { .. } => Self::transient("vendor_unanswered", message),
            VendorError::Outbound(error) => error.into_failure("address_not_allowed", "vendor_unanswered"),
        }
    }
}
