//! What is asked of breakers and said by them: names, calls, refusals, what operators set, what changed.

use std::{fmt, time::Duration};

use ::shared::tenant::BreakerSettings;
use uuid::Uuid;

use super::circuit::{Counts, Phase};

/// By which key a provider is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Credential {
    /// The platform's.
    Platform,
    /// A user's own, by its row.
    Own(Uuid),
}

impl Credential {
    /// Its word in metrics, rows and the log.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Own(_) => "own",
        }
    }
}

/// What has a breaker of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BreakerKey {
    /// Whose provider.
    pub tenant: i32,
    /// The provider, as the manifest calls it.
    pub provider: String,
    /// By which key it is called.
    pub credential: Credential,
}

impl fmt::Display for BreakerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.credential {
            Credential::Platform => write!(f, "{}:{}:platform", self.tenant, self.provider),
            Credential::Own(row) => write!(f, "{}:{}:{}", self.tenant, self.provider, row.simple()),
        }
    }
}

/// A call that wants to begin.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Whose breaker it asks.
    pub key: &'a BreakerKey,
    /// How that one is set.
    pub settings: BreakerSettings,
    /// The longest that the call takes.
    pub deadline: Duration,
}

/// A call that may not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The breaker's name: what its job waits for.
    pub breaker: String,
    /// In how long asking again may help; `None` where an operator has to say so.
    pub again_in: Option<Duration>,
}

/// What an operator has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No call goes through.
    ForcedOpen,
    /// All go through, and are counted as ever.
    MetricsOnly,
}

/// An operator's word on breakers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Whose; `None` for every tenant's.
    pub tenant: Option<i32>,
    /// Which provider's; `None` for every provider's.
    pub provider: Option<String>,
    /// What is set.
    pub mode: Mode,
}

/// A change of a breaker that this process brought about.
#[derive(Debug, Clone)]
pub struct Transition {
    /// Which one.
    pub key: BreakerKey,
    /// Where it stands now.
    pub phase: Phase,
    /// For how long it is open, if it is.
    pub open_for: Option<Duration>,
    /// The window's calls then.
    pub counts: Counts,
}
