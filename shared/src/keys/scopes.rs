//! What a key may do, in words that stay: they are stored with keys and named by documents.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// Everything, also what is added later.
    #[serde(rename = "*")]
    All,
    /// Read jobs.
    #[serde(rename = "jobs:read")]
    JobsRead,
    /// Create, cancel and retry jobs.
    #[serde(rename = "jobs:write")]
    JobsWrite,
    /// Read exports and download their files.
    #[serde(rename = "exports:read")]
    ExportsRead,
    /// Create exports.
    #[serde(rename = "exports:write")]
    ExportsWrite,
    /// Read schedules and what became of their ticks.
    #[serde(rename = "schedules:read")]
    SchedulesRead,
    /// Create, change, pause, run and delete schedules.
    #[serde(rename = "schedules:write")]
    SchedulesWrite,
    /// Read users, and whom they follow.
    #[serde(rename = "users:read")]
    UsersRead,
    /// Put, change and erase users.
    #[serde(rename = "users:write")]
    UsersWrite,
    /// Read inboxes.
    #[serde(rename = "notifications:read")]
    NotificationsRead,
    /// Mark what is in inboxes.
    #[serde(rename = "notifications:write")]
    NotificationsWrite,
    /// Make tokens for users.
    #[serde(rename = "tokens:write")]
    TokensWrite,
    /// Read who gets no mail any more, and why.
    #[serde(rename = "emails:read")]
    EmailsRead,
    /// Send mail; say who gets none any more, and who does again.
    #[serde(rename = "emails:write")]
    EmailsWrite,
    /// Read by which key browsers subscribe.
    #[serde(rename = "pushes:read")]
    PushesRead,
    /// Push to browsers; register and forget them.
    #[serde(rename = "pushes:write")]
    PushesWrite,
    /// Tell what a mail provider's hook tells: nothing else, so that its key can be given away.
    #[serde(rename = "hooks:write")]
    HooksWrite,
    /// Report content.
    #[serde(rename = "reports:write")]
    ReportsWrite,
    /// Read reports, what moderators did, and who is suspended.
    #[serde(rename = "moderation:read")]
    ModerationRead,
    /// Act on reports and users.
    #[serde(rename = "moderation:write")]
    ModerationWrite,
    /// Read feeds.
    #[serde(rename = "feeds:read")]
    FeedsRead,
    /// Tell what users did.
    #[serde(rename = "feeds:write")]
    FeedsWrite,
    /// Read which keys users have brought.
    #[serde(rename = "byok:read")]
    ByokRead,
    /// Put, test and delete keys of users.
    #[serde(rename = "byok:write")]
    ByokWrite,
    /// Put tasks to models.
    #[serde(rename = "ai:write")]
    AiWrite,
    /// Read statistics and summaries.
    #[serde(rename = "stats:read")]
    StatsRead,
    /// Refresh statistics, and accept readings that were not believed.
    #[serde(rename = "stats:write")]
    StatsWrite,
    /// Send events: nothing else, so that its key can be given away.
    #[serde(rename = "events:write")]
    EventsWrite,
    /// Read metrics and views.
    #[serde(rename = "analytics:read")]
    AnalyticsRead,
    /// Have metrics counted anew.
    #[serde(rename = "analytics:write")]
    AnalyticsWrite,
    /// Read what was used, and what may yet be.
    #[serde(rename = "usage:read")]
    UsageRead,
    /// Tell of AI calls that were made elsewhere.
    #[serde(rename = "usage:write")]
    UsageWrite,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 32] = [
        Self::All,
        Self::JobsRead,
        Self::JobsWrite,
        Self::ExportsRead,
        Self::ExportsWrite,
        Self::SchedulesRead,
        Self::SchedulesWrite,
        Self::UsersRead,
        Self::UsersWrite,
        Self::NotificationsRead,
        Self::NotificationsWrite,
        Self::TokensWrite,
        Self::EmailsRead,
        Self::EmailsWrite,
        Self::PushesRead,
        Self::PushesWrite,
        Self::HooksWrite,
        Self::ReportsWrite,
        Self::ModerationRead,
        Self::ModerationWrite,
        Self::FeedsRead,
        Self::FeedsWrite,
        Self::ByokRead,
        Self::ByokWrite,
        Self::AiWrite,
        Self::StatsRead,
        Self::StatsWrite,
        Self::EventsWrite,
        Self::AnalyticsRead,
        Self::AnalyticsWrite,
        Self::UsageRead,
        Self::UsageWrite,
    ];

    /// What a user's token may do, where the key that it was made by may do it: with what is the user's own, and behind doors that are
    /// open to tokens.
    pub const OF_TOKENS: [Self; 11] = [
        Self::JobsRead,
        Self::ExportsRead,
        Self::NotificationsRead,
        Self::NotificationsWrite,
        Self::PushesRead,
        Self::PushesWrite,
        Self::FeedsRead,
        Self::AnalyticsRead,
        Self::UsageRead,
        Self::ByokRead,
        Self::ByokWrite,
    ];

    /// Its word in commands, rows and answers.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::All => "*",
            Self::JobsRead => "jobs:read",
            Self::JobsWrite => "jobs:write",
            Self::ExportsRead => "exports:read",
            Self::ExportsWrite => "exports:write",
            Self::SchedulesRead => "schedules:read",
            Self::SchedulesWrite => "schedules:write",
            Self::UsersRead => "users:read",
            Self::UsersWrite => "users:write",
            Self::NotificationsRead => "notifications:read",
            Self::NotificationsWrite => "notifications:write",
            Self::TokensWrite => "tokens:write",
            Self::EmailsRead => "emails:read",
            Self::EmailsWrite => "emails:write",
            Self::PushesRead => "pushes:read",
            Self::PushesWrite => "pushes:write",
            Self::HooksWrite => "hooks:write",
            Self::ReportsWrite => "reports:write",
            Self::ModerationRead => "moderation:read",
            Self::ModerationWrite => "moderation:write",
            Self::FeedsRead => "feeds:read",
            Self::FeedsWrite => "feeds:write",
            Self::ByokRead => "byok:read",
            Self::ByokWrite => "byok:write",
            Self::AiWrite => "ai:write",
            Self::StatsRead => "stats:read",
            Self::StatsWrite => "stats:write",
            Self::EventsWrite => "events:write",
            Self::AnalyticsRead => "analytics:read",
            Self::AnalyticsWrite => "analytics:write",
            Self::UsageRead => "usage:read",
            Self::UsageWrite => "usage:write",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// There is no scope of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no scope `{0}`; there are {words}", words = Scope::ALL.map(Scope::word).join(", "))]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(word: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.word() == word).ok_or_else(|| UnknownScope(word.to_owned()))
    }
}

/// The scopes of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// Whether a key with these may do that.
    #[must_use]
    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&Scope::All) || self.0.contains(&scope)
    }

    /// Whether these allow nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From stored words. A word that this program does not know allows nothing, and a newer program's scope must not make
    /// a key useless here.
    #[must_use]
    pub fn from_words(words: &[String]) -> Self {
        Self(words.iter().filter_map(|word| word.parse().ok()).collect())
    }

    /// As stored words.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        self.0.iter().map(|scope| scope.word().to_owned()).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().collect())
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_lead_back_and_all_allows_all() {
        for scope in Scope::ALL {
            assert_eq!(scope.word().parse(), Ok(scope));
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.word());
            assert!(Scopes::from_iter([Scope::All]).allow(scope));
        }
        let scopes = Scopes::from_words(&["jobs:read".into(), "console:all".into()]);
        assert!(scopes.allow(Scope::JobsRead) && !scopes.allow(Scope::JobsWrite) && !scopes.allow(Scope::All));
        assert!(!Scopes::default().allow(Scope::JobsRead));
        assert_eq!(
            "jobs".parse::<Scope>().unwrap_err().to_string(),
            "there is no scope `jobs`; there are *, jobs:read, jobs:write, exports:read, exports:write, schedules:read, schedules:write, users:read, users:write, \
             notifications:read, notifications:write, tokens:write, emails:read, emails:write, pushes:read, pushes:write, hooks:write, \
             reports:write, moderation:read, moderation:write, feeds:read, feeds:write, byok:read, byok:write, ai:write, \
              stats:read, stats:write, events:write, analytics:read, analytics:write, usage:read, usage:write"
        );
    }
}
