//! A statistic as a reader sees it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use shared::{
    ledger::statistics::{FoundStatistic, Reading, figures_json},
    statistic::{Activity, FRESH, Figures},
    tenant::{About, StatisticSource},
};
use utoipa::ToSchema;

/// How a statistic stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StatisticState {
    /// Nothing was measured yet; it is on its way.
    Pending,
    /// There are figures.
    Measured,
    /// The service says that there is no such thing (any more). Its last figures are still told.
    Gone,
}

/// What goes wrong with a statistic.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StatisticFailure {
    /// Since when nothing came.
    since: Option<DateTime<Utc>>,
    /// For programs.
    #[schema(example = "vendor_down")]
    code: String,
    /// In words.
    detail: String,
}

/// A reading that was not believed; `POST …/accept` believes it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FlaggedReading {
    /// What was read.
    #[schema(value_type = Object)]
    figures: Value,
    /// When it was last read.
    at: DateTime<Utc>,
    /// Why it was not believed.
    why: String,
}

/// A statistic.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StatisticView {
    /// Its name in the manifest.
    #[schema(example = "tools")]
    source: String,
    /// What it is about.
    #[schema(value_type = String, example = "github_repository")]
    about: About,
    /// Its name there; `null` for JSON.
    #[schema(required)]
    subject: Option<String>,
    state: StatisticState,
    /// The last figures that were believed; `null` while there are none. `members` is the size of what it is about: stars, followers,
    /// subscribers, members, likes.
    #[schema(value_type = Option<Object>, required, example = json!({"members": 1234, "forks": 56}))]
    figures: Option<Value>,
    activity: Activity,
    /// Seconds since the service last said that the figures are so; `null` while there are none.
    #[schema(required)]
    age: Option<i64>,
    /// Whether that is more than five minutes ago, or there is none, or it is gone.
    pub(super) stale: bool,
    /// When the service last said that the figures are so.
    #[schema(required)]
    measured_at: Option<DateTime<Utc>>,
    /// When it first said so.
    #[schema(required)]
    changed_at: Option<DateTime<Utc>>,
    /// When something was last done there, where it tells.
    #[schema(required)]
    worked_at: Option<DateTime<Utc>>,
    /// Since when there is no such thing.
    #[schema(required)]
    gone_at: Option<DateTime<Utc>>,
    /// When the service may be asked again, where it said so.
    #[schema(required)]
    not_before: Option<DateTime<Utc>>,
    /// Why nothing newer came.
    #[schema(required)]
    failing: Option<StatisticFailure>,
    /// A reading that was not believed.
    #[schema(required)]
    flagged: Option<FlaggedReading>,
    /// Grows with whatever is told here but for the age.
    pub(super) version: i64,
}

impl StatisticView {
    pub(super) fn of(name: &str, source: &StatisticSource, found: Option<FoundStatistic>, now: DateTime<Utc>) -> Self {
        let state = match &found {
            Some(found) if found.gone_at.is_some() => StatisticState::Gone,
            Some(found) if found.measured_at.is_some() => StatisticState::Measured,
            _ => StatisticState::Pending,
        };
        let view = Self {
            source: name.to_owned(),
            about: source.about,
            subject: source.subject.clone(),
            state,
            figures: None,
            activity: Activity::Unknown,
            age: None,
            stale: true,
            measured_at: None,
            changed_at: None,
            worked_at: None,
            gone_at: None,
            not_before: None,
            failing: None,
            flagged: None,
            version: 0,
        };
        let Some(found) = found else { return view };
        let age = found.measured_at.map(|at| now - at);
        Self {
            figures: found.figures.as_ref().map(figures_json),
            activity: found.activity,
            age: age.map(|age| age.num_seconds().max(0)),
            stale: state == StatisticState::Gone || age.is_none_or(|age| age > FRESH),
            measured_at: found.measured_at,
            changed_at: found.changed_at,
            worked_at: found.worked_at,
            gone_at: found.gone_at,
            not_before: found.not_before.filter(|at| *at > now),
            failing: found.failure_code.map(|code| StatisticFailure {
                since: found.failing_since,
                code,
                detail: found.failure.unwrap_or_default(),
            }),
            flagged: found.flagged.map(|flagged| FlaggedReading {
                figures: figures_json(&flagged.figures),
                at: flagged.at,
                why: flagged.why,
            }),
            version: found.version,
            ..view
        }
    }
}

/// What was believed at a time.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReadingView {
    measured_at: DateTime<Utc>,
    #[schema(value_type = Object)]
    figures: Value,
    activity: Activity,
    /// Whether a person accepted it although it was flagged.
    accepted: bool,
}

impl From<Reading> for ReadingView {
    fn from(reading: Reading) -> Self {
        let figures: &Figures = &reading.figures;
        Self { measured_at: reading.measured_at, figures: figures_json(figures), activity: reading.activity, accepted: reading.accepted }
    }
}
