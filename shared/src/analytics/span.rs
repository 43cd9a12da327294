//! A span of time that numbers are asked of: what was said of it, and which periods that comes to.
//!
//! What must stay true: the reading doors and exports come to the same periods for the same words.

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{Granularity, Period, bucket_of, calendar};
use crate::schedule::Zone;

/// The longest span, in days: what is kept of a year and its year before, and some.
const LONGEST_DAYS: i64 = 1_100;

/// How far ahead a span may end, in days.
const AHEAD_DAYS: i64 = 366;

/// What is said of a span. Whatever is not said follows from the rest, and from now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SpanWords {
    /// From when: a date of the zone, or a moment (RFC 3339). The period that it is in is shown whole.
    pub from: Option<String>,
    /// Up to when, that not included: a date or a moment. Up to the end of the present period when absent.
    pub to: Option<String>,
    /// How long each period is.
    pub granularity: Option<Granularity>,
    /// The zone of periods and dates, by its IANA name; UTC when absent.
    pub tz: Option<String>,
}

/// What is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {detail}")]
pub struct SpanFault {
    /// Which of its words.
    pub field: &'static str,
    /// What to do about it.
    pub detail: String,
}

fn fault(field: &'static str, detail: impl Into<String>) -> SpanFault {
    SpanFault { field, detail: detail.into() }
}

/// A span of time, by periods.
#[derive(Debug, Clone, Serialize)]
pub struct Span {
    /// The zone's name.
    pub tz: String,
    /// How long each is.
    pub granularity: Granularity,
    /// From and up to when, in buckets: what is kept is found by it.
    pub buckets: (i64, i64),
    /// Whether the time before is shown too.
    pub compare: bool,
    /// The periods.
    #[serde(skip)]
    pub periods: Vec<Period>,
    /// Those before.
    #[serde(skip)]
    pub before: Vec<Period>,
    /// The zone.
    #[serde(skip)]
    pub zone: Zone,
}

/// The beginning and the end, where they are said.
type Ends = (Option<DateTime<Utc>>, Option<DateTime<Utc>>);

impl SpanWords {
    /// What is wrong with it whatever the time is: for what is asked now and read later.
    ///
    /// # Errors
    /// [`SpanFault`].
    pub fn check(&self, days: u32, granularity: Granularity) -> Result<(), SpanFault> {
        let zone = self.zone()?;
        let (from, to) = self.ends(&zone)?;
        // Read at its own end, or as soon as it has begun, or at any other time.
        let now = to.or(from).unwrap_or(DateTime::UNIX_EPOCH + TimeDelta::days(LONGEST_DAYS));
        Span::of(self, now, days, granularity).map(drop)
    }

    fn zone(&self) -> Result<Zone, SpanFault> {
        let name = self.tz.as_deref().unwrap_or("UTC");
        Zone::find(name).ok_or_else(|| fault("tz", "is no zone of the IANA database; send for example Europe/Berlin"))
    }

    fn ends(&self, zone: &Zone) -> Result<Ends, SpanFault> {
        let end = |field, text: &Option<String>| text.as_deref().map(|text| moment(field, text, zone)).transpose();
        Ok((end("from", &self.from)?, end("to", &self.to)?))
    }
}

impl Span {
    /// Which span the words mean now, where `days` and `granularity` hold for what they don't say.
    ///
    /// # Errors
    /// [`SpanFault`].
    pub fn of(words: &SpanWords, now: DateTime<Utc>, days: u32, granularity: Granularity) -> Result<Self, SpanFault> {
        let zone = words.zone()?;
        let granularity = words.granularity.unwrap_or(granularity);
        let (from, to) = words.ends(&zone)?;
        let to = to.unwrap_or(now + TimeDelta::microseconds(1));
        let from = from.unwrap_or_else(|| {
            let last = zone.local(to - TimeDelta::microseconds(1)).date_naive();
            let first = last.checked_sub_days(Days::new(u64::from(days.saturating_sub(1))));
            first.and_then(|first| calendar::midnight(&zone, first)).unwrap_or(to - TimeDelta::days(i64::from(days)))
        });
        if from >= to {
            return Err(fault("from", "must be before `to`"));
        }
        if to - from > TimeDelta::days(LONGEST_DAYS) || to > now + TimeDelta::days(AHEAD_DAYS) {
            return Err(fault("from", format!("the span is longer than {LONGEST_DAYS} days, or ends more than a year ahead")));
        }
        let periods = calendar::periods(&zone, granularity, from, to).map_err(too_many)?;
        Ok(Self {
            tz: zone.name().to_owned(),
            granularity,
            buckets: (periods.first().map_or(0, |first| first.first), periods.last().map_or(0, |last| last.end)),
            compare: false,
            periods,
            before: Vec::new(),
            zone,
        })
    }

    /// Shows the time before too.
    ///
    /// # Errors
    /// [`SpanFault`].
    pub fn compare(&mut self) -> Result<(), SpanFault> {
        self.before = calendar::before(&self.zone, self.granularity, &self.periods).map_err(too_many)?;
        self.compare = true;
        Ok(())
    }

    /// Whether the last of its buckets is over.
    #[must_use]
    pub fn is_over(&self, now: DateTime<Utc>) -> bool {
        self.buckets.1 <= bucket_of(now)
    }
}

fn too_many(error: calendar::TooManyPeriods) -> SpanFault {
    fault("granularity", error.to_string())
}

fn moment(field: &'static str, text: &str, zone: &Zone) -> Result<DateTime<Utc>, SpanFault> {
    let text = text.trim();
    let found = match text.parse::<NaiveDate>() {
        Ok(date) => calendar::midnight(zone, date),
        Err(_) => DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()),
    };
    // Where zones and calendars have nothing odd.
    let within = |time: &DateTime<Utc>| (0..=32_503_680_000).contains(&time.timestamp());
    found.filter(within).ok_or_else(|| {
        fault(field, "is neither a date (2026-11-21) nor a time (2026-11-21T12:00:00Z; in an address write + as %2B) from 1970 on")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(words: &SpanWords) -> Result<Span, SpanFault> {
        Span::of(words, "2026-11-21T12:00:00Z".parse().unwrap(), 30, Granularity::Day)
    }

    fn words(from: Option<&str>, to: Option<&str>, tz: Option<&str>) -> SpanWords {
        let own = |text: Option<&str>| text.map(str::to_owned);
        SpanWords { from: own(from), to: own(to), granularity: None, tz: own(tz) }
    }

    #[test]
    fn a_span_is_thirty_days_with_today_unless_one_says_otherwise() {
        let found = span(&SpanWords::default()).unwrap();
        assert_eq!(found.periods.len(), 30);
        assert_eq!(found.periods.last().unwrap().start.to_rfc3339(), "2026-11-21T00:00:00+00:00");
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        assert!(!found.is_over(now));
        let mut found = span(&words(Some("2026-11-01"), Some("2026-11-21"), Some("asia/kathmandu"))).unwrap();
        found.compare().unwrap();
        assert_eq!((found.periods.len(), found.before.len(), found.tz.as_str()), (20, 20, "Asia/Kathmandu"));
        assert_eq!(found.periods[0].start.to_rfc3339(), "2026-10-31T18:15:00+00:00");
        assert!(found.is_over(now));
    }

    #[test]
    fn nonsense_is_refused() {
        for (from, to, tz, field) in [
            (Some("yesterday"), None, None, "from"),
            (Some("2026-11-21"), Some("2026-11-21"), None, "from"),
            (Some("2020-01-01"), None, None, "from"),
            (Some("1969-12-31"), Some("1970-01-02"), None, "from"),
            (None, Some("9999-01-01"), None, "to"),
            (None, Some("2028-01-01"), None, "from"),
            (None, None, Some("Mars/Phobos"), "tz"),
        ] {
            assert_eq!(span(&words(from, to, tz)).unwrap_err().field, field, "{from:?} {to:?} {tz:?}");
        }
    }

    #[test]
    fn what_is_read_later_is_held_to_what_does_not_depend_on_the_time() {
        let wrong = |words: SpanWords| words.check(30, Granularity::Day).err().map(|fault| fault.field);
        assert_eq!(wrong(SpanWords::default()), None);
        assert_eq!(wrong(words(Some("2020-01-01"), None, None)), None, "when it is read decides");
        assert_eq!(wrong(words(None, Some("2020-01-01"), None)), None);
        assert_eq!(wrong(words(Some("2020-01-01"), Some("2026-01-01"), None)), Some("from"));
        assert_eq!(wrong(words(Some("2020-01-02"), Some("2020-01-01"), None)), Some("from"));
        assert_eq!(wrong(words(Some("soon"), None, None)), Some("from"));
        let fine = SpanWords { granularity: Some(Granularity::QuarterHour), ..words(Some("2020-01-01"), Some("2020-02-01"), None) };
        assert_eq!(wrong(fine), Some("granularity"));
    }
}
