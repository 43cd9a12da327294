//! Periods as stretches of time: an hour, a day, a month of the calendar in a time zone, and the one that never ends.

use chrono::{DateTime, Utc};
use jiff::{Timestamp, Zoned};

use crate::{
    schedule::{Zone, moment, timestamp},
    tenant::Period,
};

/// A period at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its beginning; the epoch for [`Period::Total`].
    pub starts_at: DateTime<Utc>,
    /// When the next one begins; `None`: never.
    pub ends_at: Option<DateTime<Utc>>,
}

impl Span {
    /// The one that a moment is in, by the zone's clocks.
    ///
    /// An hour begins when the clocks show a full one, a day and a month when they show the first moment of it: that is not midnight
    /// where the clocks are put forward at midnight. The hour that the clocks show twice is one of two hours.
    #[must_use]
    pub fn of(period: Period, zone: &Zone, at: DateTime<Utc>) -> Self {
        let forever = Self { starts_at: DateTime::UNIX_EPOCH, ends_at: None };
        // Beyond the years that the calendar knows nothing begins any more.
        if period == Period::Total { forever } else { Self::on_the_calendar(period, zone, at).unwrap_or(forever) }
    }

    fn on_the_calendar(period: Period, zone: &Zone, at: DateTime<Utc>) -> Option<Self> {
        let local = timestamp(at)?.to_zoned(zone.rules().clone());
        let (starts_at, ends_at) = match period {
            Period::Hour => hour(&local)?,
            Period::Day => {
                let start = local.start_of_day().ok()?;
                (start.timestamp(), local.tomorrow().ok()?.start_of_day().ok()?.timestamp())
            }
            Period::Month => {
                let next = local.last_of_month().ok()?.tomorrow().ok()?;
                (local.first_of_month().ok()?.start_of_day().ok()?.timestamp(), next.start_of_day().ok()?.timestamp())
            }
            Period::Total => return None,
        };
        Some(Self { starts_at: moment(starts_at)?, ends_at: Some(moment(ends_at)?) })
    }
}

/// The full hour by the clocks' offset of this moment: some zones are half an hour beside the others.
fn hour(local: &Zoned) -> Option<(Timestamp, Timestamp)> {
    let (offset, second) = (i64::from(local.offset().seconds()), local.timestamp().as_second());
    let start = (second + offset).div_euclid(3_600) * 3_600 - offset;
    Some((Timestamp::from_second(start).ok()?, Timestamp::from_second(start + 3_600).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn span(period: Period, zone: &str, moment: &str) -> (String, String) {
        let span = Span::of(period, &Zone::find(zone).unwrap(), at(moment));
        let shown = |moment: DateTime<Utc>| moment.format("%FT%RZ").to_string();
        (shown(span.starts_at), span.ends_at.map(shown).unwrap_or_default())
    }

    #[test]
    fn periods_are_the_calendars() {
        let of = |start: &str, end: &str| (start.to_owned(), end.to_owned());
        assert_eq!(span(Period::Hour, "UTC", "2026-11-22T10:59:59.999Z"), of("2026-11-22T10:00Z", "2026-11-22T11:00Z"));
        assert_eq!(span(Period::Day, "UTC", "2026-12-31T00:00:00Z"), of("2026-12-31T00:00Z", "2027-01-01T00:00Z"));
        assert_eq!(span(Period::Month, "UTC", "2026-12-31T23:59:59Z"), of("2026-12-01T00:00Z", "2027-01-01T00:00Z"));
        // In Berlin it is December already, and one hour more.
        assert_eq!(span(Period::Month, "Europe/Berlin", "2026-11-30T23:30:00Z"), of("2026-11-30T23:00Z", "2026-12-31T23:00Z"));
        // Half an hour beside the others.
        assert_eq!(span(Period::Hour, "Asia/Kolkata", "2026-11-22T10:10:00Z"), of("2026-11-22T09:30Z", "2026-11-22T10:30Z"));
        assert_eq!(span(Period::Total, "Europe/Berlin", "2026-11-22T10:10:00Z"), of("1970-01-01T00:00Z", ""));
    }

    #[test]
    fn a_day_on_which_the_clocks_change_is_shorter_or_longer_and_its_hours_are_hours() {
        let of = |start: &str, end: &str| (start.to_owned(), end.to_owned());
        assert_eq!(span(Period::Day, "Europe/Berlin", "2026-03-29T10:00:00Z"), of("2026-03-28T23:00Z", "2026-03-29T22:00Z"));
        assert_eq!(span(Period::Day, "Europe/Berlin", "2026-10-25T10:00:00Z"), of("2026-10-24T22:00Z", "2026-10-25T23:00Z"));
        // Half past two comes twice.
        assert_eq!(span(Period::Hour, "Europe/Berlin", "2026-10-25T00:30:00Z"), of("2026-10-25T00:00Z", "2026-10-25T01:00Z"));
        assert_eq!(span(Period::Hour, "Europe/Berlin", "2026-10-25T01:30:00Z"), of("2026-10-25T01:00Z", "2026-10-25T02:00Z"));
        // Put forward at midnight: the day begins at one.
        assert_eq!(span(Period::Day, "America/Asuncion", "2024-10-06T12:00:00Z").0, "2024-10-06T04:00Z");
    }

    #[test]
    fn spans_follow_each_other_without_a_gap() {
        for zone in ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia"] {
            let found = Zone::find(zone).unwrap();
            for period in [Period::Day, Period::Month] {
                let mut here = at("2011-01-01T00:00:00Z");
                for _ in 0..800 {
                    let span = Span::of(period, &found, here);
                    let next = span.ends_at.unwrap();
                    assert!(span.starts_at <= here && here < next, "{zone} {here} {span:?}");
                    let following = Span::of(period, &found, next);
                    assert_eq!(following.starts_at, next, "{zone} {period:?}");
                    here = next;
                }
            }
        }
    }
}
