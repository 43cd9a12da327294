//! Hours, days, weeks and months of a zone, as whole numbers of base buckets.
//!
//! - a **day** is from the first moment that the zone's clocks show its date to the first that they show the next one: 23, 24 or 25 hours
//!   in most zones, 23.5 or 24.5 on Lord Howe;
//! - a **week** begins on Monday (ISO 8601), a **month** on the first;
//! - an **hour** is what the clocks show one hour of, at one offset: where they are put back, that hour comes twice, and where they are
//!   changed by half an hour, an hour has half.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, Utc};
use jiff::{civil, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{BUCKET_SECONDS, bucket_of, bucket_start};
use crate::schedule::{Zone, moment, timestamp};

/// The most periods of an answer.
pub const MOST_PERIODS: usize = 2_000;

/// How long each period is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// 15 minutes.
    QuarterHour,
    /// An hour of the clocks.
    Hour,
    /// A date.
    Day,
    /// From Monday to Sunday.
    Week,
    /// A calendar month.
    Month,
}

/// A period: from its beginning to the next one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// When it begins.
    pub start: DateTime<Utc>,
    /// Its first bucket.
    pub first: i64,
    /// The bucket behind its last.
    pub end: i64,
}

/// The span has more periods than an answer shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("has more than {MOST_PERIODS} periods; ask for a shorter span or a coarser granularity")]
pub struct TooManyPeriods;

/// The periods that a span touches, in order, without a gap.
///
/// # Errors
/// [`TooManyPeriods`].
pub fn periods(zone: &Zone, granularity: Granularity, from: DateTime<Utc>, to: DateTime<Utc>) -> Result<Vec<Period>, TooManyPeriods> {
    let mut found = Vec::new();
    let mut start = start_of(zone, granularity, from);
    while start < to {
        if found.len() == MOST_PERIODS {
            return Err(TooManyPeriods);
        }
        let next = next_after(zone, granularity, start);
        found.push(Period { start, first: bucket_of(start), end: bucket_of(next) });
        start = next;
    }
    Ok(found)
}

/// When the period that a moment is in begins.
#[must_use]
pub fn start_of(zone: &Zone, granularity: Granularity, at: DateTime<Utc>) -> DateTime<Utc> {
    match granularity {
        Granularity::QuarterHour => bucket_start(bucket_of(at)),
        Granularity::Hour => {
            let mut start = bucket_of(at);
            let hour = hour_of(zone, start);
            // An hour is four buckets at most.
            while hour_of(zone, start - 1) == hour {
                start -= 1;
            }
            bucket_start(start)
        }
        Granularity::Day | Granularity::Week | Granularity::Month => {
            midnight(zone, first_date(granularity, zone.local(at).date_naive())).unwrap_or(at)
        }
    }
}

fn next_after(zone: &Zone, granularity: Granularity, start: DateTime<Utc>) -> DateTime<Utc> {
    let bucket = bucket_of(start);
    let next = match granularity {
        Granularity::QuarterHour => Some(bucket_start(bucket + 1)),
        Granularity::Hour => {
            let hour = hour_of(zone, bucket);
            (1..=4).find(|more| hour_of(zone, bucket + more) != hour).map(|more| bucket_start(bucket + more))
        }
        Granularity::Day | Granularity::Week | Granularity::Month => {
            let date = zone.local(start).date_naive();
            let next = match granularity {
                Granularity::Week => date.checked_add_days(Days::new(7)),
                Granularity::Month => date.checked_add_months(Months::new(1)),
                _ => date.checked_add_days(Days::new(1)),
            };
            next.and_then(|date| midnight(zone, date))
        }
    };
    // It always goes on: dates that a zone left out (Samoa had no 30 December 2011) begin where the next one does.
    next.filter(|next| *next > start).unwrap_or_else(|| bucket_start(bucket + 1))
}

/// As many periods as there are, that end where the first of them begins.
///
/// # Errors
/// [`TooManyPeriods`].
pub fn before(zone: &Zone, granularity: Granularity, periods: &[Period]) -> Result<Vec<Period>, TooManyPeriods> {
    let Some(first) = periods.first() else { return Ok(Vec::new()) };
    let mut found = Vec::with_capacity(periods.len());
    let mut start = first.start;
    for _ in periods {
        let end = start;
        start = start_of(zone, granularity, bucket_start(bucket_of(end) - 1));
        found.push(Period { start, first: bucket_of(start), end: bucket_of(end) });
    }
    found.reverse();
    Ok(found)
}

/// The beginning of a date, on the clocks of a zone; `None` beyond the years 1 to 9999.
#[must_use]
pub fn midnight(zone: &Zone, date: NaiveDate) -> Option<DateTime<Utc>> {
    let day = civil::Date::new(i16::try_from(date.year()).ok()?, i8::try_from(date.month()).ok()?, i8::try_from(date.day()).ok()?).ok()?;
    let zone: TimeZone = zone.rules().clone();
    let start = zone.to_ambiguous_zoned(day.to_datetime(civil::Time::midnight())).compatible().ok()?;
    let start = moment(start.timestamp())?;
    // Offsets of long ago have odd minutes; the bucket counts then.
    Some(bucket_start(bucket_of(start)))
}

fn first_date(granularity: Granularity, date: NaiveDate) -> NaiveDate {
    match granularity {
        Granularity::Week => date.checked_sub_days(Days::new(u64::from(date.weekday().num_days_from_monday()))).unwrap_or(date),
        Granularity::Month => date.with_day(1).unwrap_or(date),
        _ => date,
    }
}

/// The hour that clocks show in a bucket, and their offset then.
fn hour_of(zone: &Zone, bucket: i64) -> (i64, i32) {
    let start = bucket_start(bucket);
    let offset = timestamp(start).map_or(0, |at| zone.rules().to_offset(at).seconds());
    ((bucket * BUCKET_SECONDS + i64::from(offset)).div_euclid(3_600), offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(zone: &str, granularity: Granularity, from: &str, to: &str) -> Vec<(String, i64)> {
        let zone = Zone::find(zone).unwrap();
        let found = periods(&zone, granularity, from.parse().unwrap(), to.parse().unwrap()).unwrap();
        assert!(found.windows(2).all(|two| two[0].end == two[1].first));
        found.iter().map(|period| (zone.local(period.start).format("%F %H:%M").to_string(), period.end - period.first)).collect()
    }

    fn expected(periods: &[(&str, i64)]) -> Vec<(String, i64)> {
        periods.iter().map(|(start, buckets)| ((*start).to_owned(), *buckets)).collect()
    }

    #[test]
    fn days_have_the_hours_that_their_clocks_show() {
        // Lord Howe puts its clocks on by half an hour on the first Sunday of October, and back on that of April.
        assert_eq!(
            of("Australia/Lord_Howe", Granularity::Day, "2026-10-02T20:00:00Z", "2026-10-05T00:00:00Z"),
            expected(&[("2026-10-03 00:00", 96), ("2026-10-04 00:00", 94), ("2026-10-05 00:00", 96)])
        );
        assert_eq!(
            of("Australia/Lord_Howe", Granularity::Day, "2026-04-04T14:00:00Z", "2026-04-04T14:01:00Z"),
            expected(&[("2026-04-05 00:00", 98)])
        );
        assert_eq!(
            of("Asia/Kathmandu", Granularity::Day, "2026-01-01T18:15:00Z", "2026-01-02T18:15:01Z"),
            expected(&[("2026-01-02 00:00", 96), ("2026-01-03 00:00", 96)])
        );
        for (from, buckets) in [("2026-03-29T00:00:00+01:00", 92), ("2026-10-25T00:00:00+02:00", 100)] {
            assert_eq!(of("Europe/Berlin", Granularity::Day, from, from), []);
            let to = from.replace("T00:00:00", "T00:00:01");
            assert_eq!(of("Europe/Berlin", Granularity::Day, from, &to)[0].1, buckets);
        }
        // Clocks that go on at midnight: the day begins at one.
        assert_eq!(
            of("America/Havana", Granularity::Day, "2026-03-08T12:00:00Z", "2026-03-08T13:00:00Z")[0],
            ("2026-03-08 01:00".into(), 92)
        );
    }

    #[test]
    fn hours_are_what_clocks_show_at_one_offset() {
        assert_eq!(
            of("Australia/Lord_Howe", Granularity::Hour, "2026-04-04T14:00:00Z", "2026-04-04T16:30:00Z"),
            expected(&[("2026-04-05 01:00", 4), ("2026-04-05 01:30", 2), ("2026-04-05 02:00", 4)])
        );
        assert_eq!(
            of("Europe/Berlin", Granularity::Hour, "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z"),
            expected(&[("2026-10-25 02:00", 4), ("2026-10-25 02:00", 4)])
        );
        assert_eq!(
            of("Asia/Kathmandu", Granularity::Hour, "2026-01-01T00:00:00Z", "2026-01-01T00:15:00Z"),
            expected(&[("2026-01-01 05:00", 4)])
        );
    }

    #[test]
    fn weeks_begin_on_monday_and_months_on_the_first() {
        assert_eq!(
            of("Europe/Berlin", Granularity::Week, "2026-03-26T00:00:00Z", "2026-03-30T00:00:00Z"),
            expected(&[("2026-03-23 00:00", 668), ("2026-03-30 00:00", 672)])
        );
        let months = of("Europe/Berlin", Granularity::Month, "2026-01-31T22:00:00Z", "2026-03-31T22:00:00Z");
        assert_eq!(months.iter().map(|(start, _)| &start[..7]).collect::<Vec<_>>(), ["2026-01", "2026-02", "2026-03"]);
        let zone = Zone::find("Europe/Berlin").unwrap();
        let found =
            periods(&zone, Granularity::Month, "2026-03-15T00:00:00Z".parse().unwrap(), "2026-04-15T00:00:00Z".parse().unwrap()).unwrap();
        let previous = before(&zone, Granularity::Month, &found).unwrap();
        assert_eq!((previous.len(), previous[1].end), (2, found[0].first));
        assert_eq!(zone.local(previous[0].start).format("%F %H:%M").to_string(), "2026-01-01 00:00");
    }

    #[test]
    fn days_before_have_the_hours_that_their_clocks_showed() {
        // Days of 24 hours; those before them have one of 23, 25, 23.5 and 24.5, and begin at midnight all the same.
        for (zone, from, buckets) in [
            ("Europe/Berlin", "2026-03-30", [96, 92]),
            ("Europe/Berlin", "2026-10-26", [96, 100]),
            ("Australia/Lord_Howe", "2026-10-05", [96, 94]),
            ("Australia/Lord_Howe", "2026-04-06", [96, 98]),
        ] {
            let (zone, from): (_, NaiveDate) = (Zone::find(zone).unwrap(), from.parse().unwrap());
            let start = |date: NaiveDate| midnight(&zone, date).unwrap();
            let shown = periods(&zone, Granularity::Day, start(from), start(from + Days::new(2))).unwrap();
            assert_eq!(shown.iter().map(|day| day.end - day.first).collect::<Vec<_>>(), [96, 96]);
            let previous = before(&zone, Granularity::Day, &shown).unwrap();
            assert_eq!(previous.iter().map(|day| day.end - day.first).collect::<Vec<_>>(), buckets, "{zone:?} {from}");
            assert_eq!(previous.iter().map(|day| day.start).collect::<Vec<_>>(), [start(from - Days::new(2)), start(from - Days::new(1))]);
            assert_eq!(previous[1].end, shown[0].first);
        }
    }

    #[test]
    fn long_spans_are_refused() {
        let zone = Zone::find("UTC").unwrap();
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        assert_eq!(periods(&zone, Granularity::Hour, at("2026-01-01T00:00:00Z"), at("2026-12-01T00:00:00Z")), Err(TooManyPeriods));
        assert_eq!(periods(&zone, Granularity::QuarterHour, at("2026-01-01T00:07:00Z"), at("2026-01-01T00:16:00Z")).unwrap().len(), 2);
    }
}
