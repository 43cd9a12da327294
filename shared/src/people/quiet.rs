//! Quiet hours: when a user wants no push and no mail, on the clocks of their own zone.
//!
//! What must stay true: what is put off is put off to the first moment at which those clocks are out of the quiet hours again, also where
//! they are put forward or back in between.

use chrono::{DateTime, TimeDelta, Utc};
use jiff::{Timestamp, civil};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schedule::{Zone, moment, timestamp};

/// The quiet hours of each day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuietHours {
    /// When they begin, as `HH:MM`.
    #[schema(value_type = String, example = "22:00", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub from: Minute,
    /// When they end, as `HH:MM`; on the next day where that is not later than `from`.
    #[schema(value_type = String, example = "07:00", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub to: Minute,
}

/// A minute of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Minute(i16);

/// The minutes of a day.
const DAY: i16 = 24 * 60;

impl Minute {
    /// That many minutes after midnight.
    #[must_use]
    pub const fn new(minutes: i16) -> Option<Self> {
        if minutes >= 0 && minutes < DAY { Some(Self(minutes)) } else { None }
    }

    /// Minutes after midnight.
    #[must_use]
    pub const fn minutes(self) -> i16 {
        self.0
    }

    fn time(self) -> civil::Time {
        civil::Time::midnight() + jiff::Span::new().minutes(i64::from(self.0))
    }
}

impl TryFrom<String> for Minute {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let wrong = "must be a time such as 07:00, to the minute";
        let (hour, minute) = text.split_once(':').ok_or(wrong)?;
        let number = |text: &str, below: i16| {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<i16>().ok()).flatten().filter(|number| *number < below)
        };
        Ok(Self(number(hour, 24).ok_or(wrong)? * 60 + number(minute, 60).ok_or(wrong)?))
    }
}

impl From<Minute> for String {
    fn from(minute: Minute) -> Self {
        format!("{:02}:{:02}", minute.0 / 60, minute.0 % 60)
    }
}

impl QuietHours {
    /// Until when it is quiet, if it is now.
    #[must_use]
    pub fn until(self, now: DateTime<Utc>, zone: &Zone) -> Option<DateTime<Utc>> {
        let now = timestamp(now)?;
        if !self.covers(now, zone) {
            return None;
        }
        // It ends where the clocks show its end, each time that they do on that day, or where they are put out of it.
        let today = now.to_zoned(zone.rules().clone()).date();
        let ends = [Some(today), today.tomorrow().ok()].into_iter().flatten().flat_map(|date| {
            let shown = zone.rules().to_ambiguous_timestamp(date.to_datetime(self.to.time()));
            [shown.earlier().ok(), shown.later().ok()].into_iter().flatten()
        });
        let changes = zone.rules().following(now).map(|change| change.timestamp()).take(3);
        let end = ends.chain(changes).filter(|end| *end > now && !self.covers(*end, zone)).min()?;
        moment(end).map(|end| end.min(moment(now).unwrap_or(end) + TimeDelta::days(2)))
    }

    fn covers(self, at: Timestamp, zone: &Zone) -> bool {
        let time = at.to_zoned(zone.rules().clone()).time();
        let minute = Minute(i16::from(time.hour()) * 60 + i16::from(time.minute()));
        if self.from == self.to {
            return false;
        }
        if self.from < self.to { (self.from..self.to).contains(&minute) } else { minute >= self.from || minute < self.to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(from: &str, to: &str) -> QuietHours {
        QuietHours { from: Minute::try_from(from.to_owned()).unwrap(), to: Minute::try_from(to.to_owned()).unwrap() }
    }

    fn until(hours: QuietHours, zone: &str, now: &str) -> Option<String> {
        let end = hours.until(now.parse().unwrap(), &Zone::find(zone).unwrap())?;
        Some(end.format("%FT%TZ").to_string())
    }

    #[test]
    fn they_end_by_the_users_own_clock() {
        let night = hours("22:00", "07:00");
        assert_eq!(until(night, "Europe/Berlin", "2026-06-01T12:00:00Z"), None);
        assert_eq!(until(night, "Europe/Berlin", "2026-06-01T20:00:00Z").unwrap(), "2026-06-02T05:00:00Z");
        assert_eq!(until(night, "Europe/Berlin", "2026-06-02T04:59:59Z").unwrap(), "2026-06-02T05:00:00Z");
        assert_eq!(until(night, "Europe/Berlin", "2026-06-02T05:00:00Z"), None);
        // The night in which the clocks go forward, and the one in which they go back.
        assert_eq!(until(night, "Europe/Berlin", "2026-03-28T22:00:00Z").unwrap(), "2026-03-29T05:00:00Z");
        assert_eq!(until(night, "Europe/Berlin", "2026-10-24T22:00:00Z").unwrap(), "2026-10-25T06:00:00Z");
        assert_eq!(until(hours("07:00", "07:00"), "UTC", "2026-06-02T07:00:00Z"), None, "no hours at all");
        for wrong in ["7:00", "24:00", "07:60", "0700", "", "+7:00"] {
            assert!(Minute::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    /// An end that the clocks jump over, and one that they show twice.
    #[test]
    fn an_end_within_the_change_of_the_clocks_is_the_first_moment_out_of_it() {
        let hours = hours("01:00", "02:30");
        assert_eq!(until(hours, "Europe/Berlin", "2026-03-29T00:30:00Z").unwrap(), "2026-03-29T01:00:00Z", "02:00 is followed by 03:00");
        assert_eq!(until(hours, "Europe/Berlin", "2026-10-25T00:10:00Z").unwrap(), "2026-10-25T00:30:00Z", "the first 02:30");
        assert_eq!(until(hours, "Europe/Berlin", "2026-10-25T01:10:00Z").unwrap(), "2026-10-25T01:30:00Z", "the second");
    }

    /// Against the definition, minute by minute, through a year's changes in zones that change by an hour, by half of one, and by none.
    #[test]
    fn the_end_is_the_first_minute_that_is_not_quiet() {
        for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago"] {
            let zone = Zone::find(zone).unwrap();
            for (from, to) in [("22:00", "07:00"), ("00:00", "02:30"), ("01:30", "03:00"), ("02:00", "02:15"), ("12:00", "11:59")] {
                let hours = hours(from, to);
                for day in [
                    "2026-03-07T12:00:00Z",
                    "2026-03-28T12:00:00Z",
                    "2026-04-04T00:00:00Z",
                    "2026-09-05T12:00:00Z",
                    "2026-10-03T06:00:00Z",
                    "2026-10-24T12:00:00Z",
                    "2026-10-31T12:00:00Z",
                ] {
                    let start: DateTime<Utc> = day.parse().unwrap();
                    for minute in (0..36 * 60).step_by(37) {
                        let now = start + TimeDelta::minutes(minute);
                        let quiet = |at: DateTime<Utc>| hours.covers(timestamp(at).unwrap(), &zone);
                        let mut first = now;
                        while quiet(first) {
                            first += TimeDelta::minutes(1);
                        }
                        let expected = quiet(now).then_some(first);
                        assert_eq!(hours.until(now, &zone), expected, "{zone:?} {from}–{to} at {now}");
                    }
                }
            }
        }
    }
}
