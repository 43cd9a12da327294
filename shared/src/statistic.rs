//! Statistics of other people's services: what a reading is, which one is believed, and how active a community is said to be. No I/O in
//! here, so that each rule can be read and tested by itself.
//!
//! What must stay true: a figure that was not told is not there, never zero; what is not believed is not stored in a good reading's place.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::tenant::{About, StatisticSource};

/// For so long a reading is fresh: readers get it and nobody is asked (R62, R63).
pub const FRESH: TimeDelta = TimeDelta::minutes(5);

/// Refreshes of one statistic that people may wish in an hour.
pub const MOST_WISHED: i32 = 12;

/// The hour of [`MOST_WISHED`].
pub const WISHED_WITHIN: TimeDelta = TimeDelta::hours(1);

/// What was read: figures by name, in the order of their names.
pub type Figures = BTreeMap<String, f64>;

/// The figure that stands for a community's size.
pub const MEMBERS: &str = "members";

/// The figure that stands for those who are there just now.
pub const ACTIVE: &str = "active";

/// A change of fewer than this is believed, whatever it is by proportion: small communities double.
const SMALL: f64 = 100.0;

/// A figure of at least this does not fall to nothing from one reading to the next: somebody read a page that says something else.
const NOTHING_FROM: f64 = 10.0;

/// How active a community is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ActivityLevel)]
pub enum Activity {
    /// Much goes on.
    High,
    /// Something goes on.
    Medium,
    /// Little goes on.
    Low,
    /// Nothing is told that would say so.
    Unknown,
}

impl Activity {
    /// Its word in rows.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
            Self::Unknown => "unknown",
        }
    }

    /// The level of a word; unknown for any other.
    #[must_use]
    pub fn of_word(word: &str) -> Self {
        [Self::High, Self::Medium, Self::Low].into_iter().find(|level| level.word() == word).unwrap_or(Self::Unknown)
    }

    fn of(value: f64, high: f64, medium: f64) -> Self {
        if value >= high {
            Self::High
        } else if value >= medium {
            Self::Medium
        } else {
            Self::Low
        }
    }
}

/// By which shares of members that are active a level is reached, (high, medium). Who has Discord open counts there, which is many; Reddit
/// counts who looked at the community in the last quarter of an hour, which is few.
const fn shares(about: About) -> (f64, f64) {
    match about {
        About::RedditCommunity => (0.002, 0.000_5),
        _ => (0.10, 0.03),
    }
}

/// How active a community is, by the first of these that is known:
///
/// 1. the share of its members that are there now: on Discord 10 % and more is high, 3 % medium; on Reddit 0.2 % and 0.05 %;
/// 2. how long ago something was last done (a push, a change of a model): within 7 days is high, within 30 medium;
/// 3. by how much `members` grew in a month, counted from a reading at least a week old: 5 % is high, 1 % medium.
#[must_use]
pub fn activity(
    about: About,
    figures: &Figures,
    worked_at: Option<DateTime<Utc>>,
    before: Option<(&Figures, DateTime<Utc>)>,
    now: DateTime<Utc>,
) -> Activity {
    let members = figures.get(MEMBERS).copied().filter(|members| *members > 0.0);
    if let (Some(active), Some(members)) = (figures.get(ACTIVE), members) {
        let (high, medium) = shares(about);
        return Activity::of(active / members, high, medium);
    }
    if let Some(worked_at) = worked_at {
        // Negated, since the later the more.
        let days = (now - worked_at).as_seconds_f64() / 86_400.0;
        return Activity::of(-days, -7.0, -30.0);
    }
    let before = before.filter(|(_, at)| now - *at >= TimeDelta::days(7));
    let grown = before.and_then(|(figures, at)| {
        let then = figures.get(MEMBERS).copied().filter(|then| *then > 0.0)?;
        let months = (now - at).as_seconds_f64() / (30.0 * 86_400.0);
        Some((members? / then - 1.0) / months)
    });
    grown.map_or(Activity::Unknown, |grown| Activity::of(grown, 0.05, 0.01))
}

/// Whether a figure builds up over time, so that a jump of it is suspicious. What is active just now, waits, or is counted over a month
/// comes and goes.
fn builds_up(name: &str) -> bool {
    ![ACTIVE, "open_issues", "downloads"].contains(&name)
}

/// Why a reading is not believed beside the one before it: the first figure that fell to nothing, or grew or shrank by more than the
/// source's factor and by more than a hundred. `None` where it is believed.
#[must_use]
pub fn implausible(source: &StatisticSource, before: &Figures, now: &Figures) -> Option<String> {
    before.iter().filter(|(name, _)| builds_up(name)).find_map(|(name, then)| {
        let (then, Some(now)) = (*then, now.get(name).copied()) else {
            return Some(format!("`{name}` was {then} and is not told any more"));
        };
        let factor = source.jump_factor();
        if now == 0.0 && then >= NOTHING_FROM {
            return Some(format!("`{name}` fell from {then} to nothing"));
        }
        let jumped = now > then * factor || now * factor < then;
        ((now - then).abs() > SMALL && jumped)
            .then(|| format!("`{name}` went from {then} to {now} between two readings, by more than the factor {factor}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(pairs: &[(&str, f64)]) -> Figures {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    fn source(more: &str) -> StatisticSource {
        toml::from_str(&format!("about = 'discord_invite'\nsubject = 'a'\n{more}")).unwrap()
    }

    #[test]
    fn levels_by_share_then_work_then_growth() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1_000);
        let level = |about, pairs: &[_], worked: Option<i64>, before: Option<(f64, i64)>| {
            let before = before.map(|(members, days)| (figures(&[(MEMBERS, members)]), now - TimeDelta::days(days)));
            let worked = worked.map(|days| now - TimeDelta::days(days));
            activity(about, &figures(pairs), worked, before.as_ref().map(|(figures, at)| (figures, *at)), now)
        };
        let discord = |active| level(About::DiscordInvite, &[(MEMBERS, 1_000.0), (ACTIVE, active)], None, None);
        assert_eq!([discord(100.0), discord(99.0), discord(30.0), discord(29.0)].map(Activity::word), ["high", "medium", "medium", "low"]);
        let reddit = |active| level(About::RedditCommunity, &[(MEMBERS, 10_000.0), (ACTIVE, active)], None, None);
        assert_eq!([reddit(20.0), reddit(19.0), reddit(4.0)].map(Activity::word), ["high", "medium", "low"]);
        let github = |days: i64| level(About::GithubRepository, &[(MEMBERS, 5.0)], Some(days), None);
        assert_eq!(
            [github(0), github(7), github(8), github(30), github(31)].map(Activity::word),
            ["high", "high", "medium", "medium", "low"]
        );
        let grown = |then, days| level(About::GithubOrganisation, &[(MEMBERS, 1_050.0)], None, Some((then, days)));
        assert_eq!(
            [grown(1_000.0, 30), grown(1_000.0, 60), grown(1_045.0, 30), grown(1_000.0, 6)].map(Activity::word),
            ["high", "medium", "low", "unknown"]
        );
        assert_eq!(level(About::Json, &[(MEMBERS, 0.0), (ACTIVE, 5.0)], None, None), Activity::Unknown);
    }

    #[test]
    fn jumps_of_what_builds_up_are_not_believed() {
        let jump = |then: f64, now: f64| implausible(&source(""), &figures(&[(MEMBERS, then)]), &figures(&[(MEMBERS, now)])).is_some();
        for (then, now) in [(1_000.0, 2_001.0), (1_000.0, 499.0), (1_000.0, 0.0), (10.0, 0.0), (50.0, 151.0)] {
            assert!(jump(then, now), "{then} {now}");
        }
        for (then, now) in [(1_000.0, 2_000.0), (1_000.0, 500.0), (9.0, 0.0), (0.0, 100.0), (50.0, 150.0), (5.0, 5.0)] {
            assert!(!jump(then, now), "{then} {now}");
        }
        let both = |active| figures(&[(MEMBERS, 1_000.0), (ACTIVE, active)]);
        assert_eq!(implausible(&source(""), &both(5_000.0), &both(1.0)), None, "who is there comes and goes");
        assert!(implausible(&source(""), &both(1.0), &figures(&[(ACTIVE, 1.0)])).unwrap().contains("not told"));
        let generous = source("jump_factor = 10.0");
        assert_eq!(implausible(&generous, &figures(&[(MEMBERS, 1_000.0)]), &figures(&[(MEMBERS, 9_000.0)])), None);
    }
}
