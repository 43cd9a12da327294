//! What a job may carry beside its payload: who else it has to wait for, and what follows its end.
//!
//! Stored with the job and never changed. Most jobs have none of it, and then it costs them nothing.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Next, Parent, Unique};

/// A job's options. Every field has a default, so that old rows and old programs stay readable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The key that limits it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// The schedule that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduledBy>,
    /// Where its end is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_url: Option<String>,
    /// The key that no other unfinished job, or none for a period, may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<Unique>,
    /// The batch that it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Uuid>,
    /// What it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// What follows it when it succeeds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Next>,
    /// Whether what it uses is metered: its end is told to [`crate::usage`]. Whoever reserves for a job has it say so; a reservation of
    /// another one is left to the sweep.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub metered: bool,
}

/// Where a scheduled job comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduledBy {
    /// The schedule.
    pub id: Uuid,
    /// Its name then.
    pub name: String,
    /// The due time of the tick, before jitter.
    pub due_at: DateTime<Utc>,
}

impl Options {
    /// Whether there is nothing in it: then the job is stored without.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As the ledger keeps them: JSON, or nothing.
    #[must_use]
    pub fn to_json(&self) -> Option<String> {
        // A struct of plain fields always becomes JSON.
        if self.is_empty() { None } else { serde_json::to_string(self).ok() }
    }

    /// Whether somebody acts upon the job's end: it then leaves a row for [`crate::ledger::ended`].
    #[must_use]
    pub const fn is_followed(&self) -> bool {
        self.schedule.is_some() || self.batch.is_some() || !self.then.is_empty() || self.completion_url.is_some()
    }

    /// Whether its end, or a pause, concerns other jobs: those that follow it, and those behind the same limiting key.
    #[must_use]
    pub const fn concerns_others(&self) -> bool {
        self.limit.is_some() || self.is_followed()
    }
}

/// Jobs of one tenant that name the same key share these limits; what the newest of them says counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// What they have in common: an endpoint, a credential, a customer. 1 to 255 visible ASCII characters.
    #[schema(min_length = 1, max_length = 255, example = "endpoint:42")]
    pub key: String,
    /// How many of them run at a time, at most; any number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10_000)]
    pub running: Option<u32>,
    /// How many of them start in a time, at most; any number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

/// So many starts in so many seconds, evenly, after a pause a burst at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rate {
    /// Starts in the time.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub jobs: u32,
    /// The time in seconds.
    #[serde(default = "one_second")]
    #[schema(minimum = 1, maximum = 86_400)]
    pub seconds: u32,
    /// Starts at once after a pause; 1 when absent, which spaces them evenly.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 10_000)]
    pub burst: u32,
}

const fn one_second() -> u32 {
    1
}

const fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_empty_until_something_is_set_and_survive_json() {
        assert!(Options::default().is_empty());
        assert_eq!(serde_json::to_string(&Options::default()).unwrap(), "{}");
        let rate = Some(Rate { jobs: 10, seconds: 1, burst: 1 });
        let schedule = Some(ScheduledBy { id: Uuid::nil(), name: "nightly".into(), due_at: DateTime::UNIX_EPOCH });
        let options = Options { limit: Some(Limit { key: "endpoint:1".into(), running: Some(5), rate }), schedule, ..Options::default() };
        assert!(Options { completion_url: Some("https://a.example/".into()), ..Options::default() }.is_followed());
        assert!(!options.is_empty());
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), options);
        assert_eq!(
            serde_json::from_str::<Options>(r#"{"limit": {"key": "k", "rate": {"jobs": 3}}}"#)
                .unwrap()
                .limit
                .unwrap()
                .rate
                .unwrap()
                .seconds,
            1
        );
    }
}
