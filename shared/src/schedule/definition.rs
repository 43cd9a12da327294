//! What a schedule says: the same words over HTTP, in a manifest and in the database.

use std::ops::RangeInclusive;

use chrono::{DateTime, Datelike, TimeDelta, Timelike, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{Missed, Overlap, Timing, Zone, cron::Cron};
use crate::{
    job::Priority,
    kinds::{PAYLOAD_LIMIT, Registry, Violation},
    tenant::{Manifest, check_user},
};

/// The longest name, in characters.
const LONGEST_NAME: usize = 63;

/// The longest interval, and the longest that a job may be worth starting after its tick: a year, in seconds.
const YEAR: u32 = 366 * 24 * 3_600;

/// When an interval may begin.
const YEARS: RangeInclusive<i32> = 1970..=2200;

/// The widest jitter: a day, in seconds.
const DAY: u32 = 24 * 3_600;

/// The most failures that a notice may wait for.
const MOST_FAILURES: u16 = 1_000;

/// What a schedule does, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ScheduleDefinition)]
pub struct Definition {
    /// The kind of its jobs.
    #[schema(example = "export.create")]
    pub kind: String,
    /// The payload of its jobs, as the kind wants it; at most 256 KiB. `{}` when absent.
    #[serde(default = "nothing")]
    #[schema(value_type = Object, example = json!({"dataset": "all_prompts", "format": "csv"}))]
    pub payload: Value,
    /// The end user whose jobs they are; the backend's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub owner: Option<String>,
    /// Which jobs of their queue they go before.
    #[serde(default = "normal")]
    pub priority: Priority,
    /// When, as five cron fields: minute, hour, day of the month, month, day of the week. Either this or `every_seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "30 2 * * MON-FRI")]
    pub cron: Option<String>,
    /// The IANA time zone of `cron`; `UTC` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "Europe/Berlin")]
    pub time_zone: Option<String>,
    /// An even interval, whatever any clock shows: 1 s to 366 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_622_400)]
    pub every_seconds: Option<u32>,
    /// The first tick of an interval; one interval from its creation when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<DateTime<Utc>>,
    /// Each job is due up to so long after its tick, by a number that follows from the tick: at most a day, and less than the interval.
    #[serde(default)]
    #[schema(maximum = 86_400)]
    pub jitter_seconds: u32,
    /// What becomes of ticks that were missed.
    #[serde(default)]
    pub missed: Missed,
    /// What becomes of a tick while the job of one before has not ended.
    #[serde(default)]
    pub overlap: Overlap,
    /// So long after it is due a job is no longer worth starting; it is always when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_622_400)]
    pub start_by_seconds: Option<u32>,
    /// After so many failed ticks in a row somebody is told; 0: never. Of a missed tick somebody is told in any case.
    #[serde(default = "three")]
    #[schema(maximum = 1_000, default = 3)]
    pub notify_after_failures: u16,
}

fn nothing() -> Value {
    Value::Object(Map::new())
}

const fn normal() -> Priority {
    Priority::Normal
}

const fn three() -> u16 {
    3
}

impl Definition {
    /// A schedule of the backend's own, by defaults, which comes round never: whoever makes one says when.
    #[must_use]
    pub fn of(kind: &str, payload: Value) -> Self {
        Self {
            kind: kind.to_owned(),
            payload,
            owner: None,
            priority: normal(),
            cron: None,
            time_zone: None,
            every_seconds: None,
            starts_at: None,
            jitter_seconds: 0,
            missed: Missed::default(),
            overlap: Overlap::default(),
            start_by_seconds: None,
            notify_after_failures: three(),
        }
    }

    /// When it comes round. `anchor` is what an interval without a start of its own counts from.
    ///
    /// # Errors
    /// What is wrong with what it says of that.
    pub fn timing(&self, anchor: DateTime<Utc>) -> Result<Timing, Vec<Violation>> {
        let mut wrong = Vec::new();
        let mut violate = |pointer: &str, detail: &str| wrong.push(Violation::new(pointer, detail));
        match (&self.cron, self.every_seconds) {
            (Some(_), Some(_)) => violate("/every_seconds", "stands beside cron; send one of the two"),
            (None, None) => violate("/cron", "is missing; send a cron expression, or every_seconds"),
            (Some(text), None) => {
                if self.starts_at.is_some() {
                    violate("/starts_at", "belongs to every_seconds; leave it out");
                }
                let name = self.time_zone.as_deref().unwrap_or("UTC");
                let zone = Zone::find(name);
                if zone.is_none() {
                    let shown: String = name.chars().take(LONGEST_NAME).collect();
                    violate("/time_zone", &format!("there is no time zone `{shown}`; write an IANA name such as Europe/Berlin, or UTC"));
                }
                match (Cron::parse(text), zone) {
                    (Err(detail), _) => violate("/cron", &detail),
                    (Ok(cron), Some(zone)) if wrong.is_empty() => {
                        let timing = Timing::Cron { cron: Box::new(cron), zone };
                        if timing.next(anchor).is_some() {
                            return Ok(timing);
                        }
                        wrong.push(Violation::new("/cron", format!("`{text}` never comes round; see its day and month")));
                    }
                    _ => {}
                }
            }
            (None, Some(seconds)) => {
                if self.time_zone.is_some() {
                    violate("/time_zone", "belongs to cron, as an interval is the same in every zone; leave it out");
                }
                if self.starts_at.is_some_and(|start| !YEARS.contains(&start.year())) {
                    violate("/starts_at", &format!("is not within the years {} to {}", YEARS.start(), YEARS.end()));
                }
                if !(1..=YEAR).contains(&seconds) {
                    violate("/every_seconds", &format!("is {seconds}; 1 to {YEAR} are allowed"));
                }
                let every = TimeDelta::seconds(i64::from(seconds));
                if wrong.is_empty() {
                    let first = self.starts_at.or_else(|| anchor.checked_add_signed(every)).unwrap_or(anchor);
                    // Whole seconds, so that due times read well.
                    let anchor = first.with_nanosecond(0).unwrap_or(first);
                    return Ok(Timing::Interval { every, anchor });
                }
            }
        }
        Err(wrong)
    }

    /// All that is wrong with it for a tenant, by pointers into the definition.
    #[must_use]
    pub fn violations(&self, kinds: &Registry, tenant: &Manifest) -> Vec<Violation> {
        let mut wrong = Vec::new();
        let mut within = |pointer: &str, value: u32, least: u32, most: u32| {
            if !(least..=most).contains(&value) {
                wrong.push(Violation::new(pointer, format!("is {value}; {least} to {most} are allowed")));
            }
        };
        within("/jitter_seconds", self.jitter_seconds, 0, self.every_seconds.map_or(DAY, |every| DAY.min(every.saturating_sub(1))));
        within("/start_by_seconds", self.start_by_seconds.unwrap_or(1), 1, YEAR);
        within("/notify_after_failures", self.notify_after_failures.into(), 0, MOST_FAILURES.into());
        let owner_is_wrong = match self.owner.as_deref().map(check_user) {
            Some(Err(detail)) => {
                wrong.push(Violation::new("/owner", detail));
                true
            }
            _ => false,
        };
        // What comes round at all has come round since 1970.
        if let Err(found) = self.timing(DateTime::UNIX_EPOCH) {
            wrong.extend(found);
        }
        let size = self.payload.to_string().len();
        if size > PAYLOAD_LIMIT {
            wrong.push(Violation::new("/payload", format!("has {size} bytes of JSON; {PAYLOAD_LIMIT} are allowed")));
        } else if let Some(entry) = kinds.find(&self.kind) {
            // The payload is looked at as if the owner were right, so that no mistake is named that is none.
            let owner = self.owner.as_deref().filter(|_| !owner_is_wrong);
            let found = (entry.check)(&self.payload, tenant, owner).err().unwrap_or_default();
            wrong.extend(found.into_iter().map(|violation| Violation::new(format!("/payload{}", violation.pointer), violation.detail)));
        } else {
            let known: Vec<_> = kinds.entries().map(|entry| entry.name).collect();
            let named: String = self.kind.chars().take(100).collect();
            wrong.push(Violation::new("/kind", format!("there is no kind `{named}`; there are: {}", known.join(", "))));
        }
        wrong
    }

    /// The latest that a job that is due then may be started.
    #[must_use]
    pub fn start_by(&self, run_at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        run_at.checked_add_signed(TimeDelta::seconds(i64::from(self.start_by_seconds?)))
    }

    /// The widest jitter.
    #[must_use]
    pub fn jitter(&self) -> TimeDelta {
        TimeDelta::seconds(self.jitter_seconds.into())
    }
}

/// Whether a text can name a schedule: as all names of a manifest are.
///
/// # Errors
/// What is wrong, to be put behind the field's name.
pub fn check_name(name: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if begins && name.len() <= LONGEST_NAME && name.bytes().all(legal) {
        return Ok(());
    }
    let shown: String = name.chars().take(LONGEST_NAME + 1).collect();
    Err(format!("`{shown}` must begin with a lower-case letter and have only lower-case letters, digits and `_`, at most {LONGEST_NAME}"))
}
