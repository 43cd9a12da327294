//! Reports, history and standing, as the product's backend sees them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{
    content::Content,
    ledger::moderation::{self, FoundAction, FoundReport, ModerationAction, ReportReason, ReportStatus},
};
use utoipa::ToSchema;
use uuid::Uuid;

/// A report on content.
#[derive(Debug, Serialize, ToSchema)]
pub struct Report {
    /// Its id.
    id: Uuid,
    /// What was reported.
    content: Content,
    /// Whose content it is, where the product said so.
    #[schema(required)]
    user: Option<String>,
    /// Who reported it; `null` for the product itself, and for somebody who was erased.
    #[schema(required)]
    reporter: Option<String>,
    reason: ReportReason,
    /// The reporter's words.
    #[schema(required)]
    details: Option<String>,
    status: ReportStatus,
    /// When it came.
    created_at: DateTime<Utc>,
    /// When its status last changed.
    changed_at: DateTime<Utc>,
    /// What was done about it, the latest first, at most 100; of one report alone, not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    history: Option<Vec<Done>>,
}

impl From<FoundReport> for Report {
    fn from(found: FoundReport) -> Self {
        let FoundReport { id, reporter, user, content, reason, details, status, created_at, changed_at } = found;
        Self { id, content, user, reporter, reason, details, status, created_at, changed_at, history: None }
    }
}

impl Report {
    /// With what was done about it.
    pub fn with(self, history: Vec<FoundAction>) -> Self {
        Self { history: Some(history.into_iter().map(Done::from).collect()), ..self }
    }
}

/// A page of reports, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReportPage {
    pub items: Vec<Report>,
    /// Send it as `cursor` for the next page; `null` at the end.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

/// Something that was done.
#[derive(Debug, Serialize, ToSchema)]
pub struct Done {
    /// Its id.
    id: Uuid,
    /// `null` where only a report's status changed.
    #[schema(required)]
    action: Option<ModerationAction>,
    /// What the report became by it.
    #[schema(required)]
    status: Option<ReportStatus>,
    /// Of a suspension: until when.
    #[schema(required)]
    until: Option<DateTime<Utc>>,
    /// The moderator's words.
    #[schema(required)]
    notes: Option<String>,
    /// Who did it; `null` where nobody was named, for somebody who was erased, and of a suspension that ended by itself.
    #[schema(required)]
    moderator: Option<String>,
    /// The report it was about.
    #[schema(required)]
    report: Option<Uuid>,
    /// The content it was about.
    #[schema(required)]
    content: Option<Content>,
    /// When.
    created_at: DateTime<Utc>,
}

impl From<FoundAction> for Done {
    fn from(found: FoundAction) -> Self {
        let FoundAction { id, report, content, action, status, until, notes, moderator, created_at } = found;
        Self { id, action, status, until, notes, moderator, report, content, created_at }
    }
}

/// How a user stands.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StandingState {
    /// Nothing is held against them.
    Active,
    /// They are suspended until a moment.
    Suspended,
    /// They are suspended for good.
    Banned,
}

/// A user as moderators see them.
#[derive(Debug, Serialize, ToSchema)]
pub struct Standing {
    /// The user.
    #[schema(example = "user-42")]
    user: String,
    state: StandingState,
    /// Since when they are suspended or banned.
    #[schema(required)]
    since: Option<DateTime<Utc>>,
    /// Until when they are suspended.
    #[schema(required)]
    until: Option<DateTime<Utc>>,
    /// What was done about them, the latest first.
    history: Vec<Done>,
    /// Send it as `cursor` for the next page of the history; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

impl Standing {
    /// Of what the ledger has.
    pub fn of(user: String, standing: moderation::Standing, history: Vec<FoundAction>, next_cursor: Option<String>) -> Self {
        let (state, since, until) = match standing {
            moderation::Standing::Active => (StandingState::Active, None, None),
            moderation::Standing::Suspended { since, until } => (StandingState::Suspended, Some(since), Some(until)),
            moderation::Standing::Banned { since } => (StandingState::Banned, Some(since), None),
        };
        Self { user, state, since, until, history: history.into_iter().map(Done::from).collect(), next_cursor }
    }
}
