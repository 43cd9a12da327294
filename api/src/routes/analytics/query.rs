//! What is asked of a metric or a view.

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    analytics::{Granularity, Period, bucket_of, calendar},
    schedule::Zone,
    tenant::{MOST_TOP, Metric, Panel, TOP},
};

use crate::problem::{Code, Problem};

/// The longest span: what is kept of a year and its year before, and some.
const LONGEST: TimeDelta = TimeDelta::days(1_100);

/// What is asked.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AnalyticsQuery {
    /// From when: a date of the zone, or a moment (RFC 3339). The period that it is in is shown whole. 30 days back when absent.
    from: Option<String>,
    /// Up to when, that not included: a date or a moment. Up to the end of the present period when absent.
    to: Option<String>,
    /// How long each period is; `day` when absent.
    #[param(inline)]
    granularity: Option<Granularity>,
    /// The zone of periods and dates, by its IANA name; UTC when absent.
    #[param(example = "Asia/Kathmandu")]
    tz: Option<String>,
    /// Dimensions, parted by commas.
    group_by: Option<String>,
    /// How many groups are shown for themselves, 1 to 50; 10 when absent.
    #[param(minimum = 1, maximum = 50)]
    top: Option<usize>,
    /// `previous`: beside it the same number of periods before.
    #[param(inline)]
    compare: Option<Compare>,
}

/// With what it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// The periods before.
    Previous,
    /// Nothing.
    None,
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
    pub zone: Option<Zone>,
}

fn invalid(detail: impl std::fmt::Display) -> Problem {
    Problem::new(Code::QueryInvalid, format!("{detail}."))
}

impl AnalyticsQuery {
    /// How it is grouped.
    pub fn panel(&self, metric: &Metric) -> Result<Panel, Problem> {
        let group_by: Vec<String> = match self.group_by.as_deref().map(str::trim) {
            None | Some("") => Vec::new(),
            Some(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        };
        for (place, name) in group_by.iter().enumerate() {
            if !metric.dimensions().contains(name) {
                let known = if metric.dimensions().is_empty() { "none".to_owned() } else { metric.dimensions().join(", ") };
                let shown: String = name.chars().take(100).collect();
                return Err(invalid(format!("group_by: the metric has no dimension `{shown}`; it has: {known}")));
            }
            if group_by.iter().take(place).any(|before| before == name) {
                return Err(invalid(format!("group_by: names `{name}` twice")));
            }
        }
        let top = self.top.unwrap_or(TOP);
        if !(1..=MOST_TOP).contains(&top) {
            return Err(invalid(format!("top: is {top}; 1 to {MOST_TOP} are allowed")));
        }
        Ok(Panel { metric: String::new(), group_by, top: Some(top) })
    }

    /// Whether it says how things are grouped, which a view says for itself.
    pub fn is_grouped(&self) -> bool {
        self.group_by.is_some() || self.top.is_some()
    }

    /// Whether it says with what it is compared.
    pub fn compares(&self) -> bool {
        self.compare.is_some()
    }
}

impl Span {
    /// Reads it, where `days` and `granularity` hold for what is not said.
    pub fn of(query: &AnalyticsQuery, now: DateTime<Utc>, days: u32, granularity: Granularity) -> Result<Self, Problem> {
        let name = query.tz.as_deref().unwrap_or("UTC");
        let zone = Zone::find(name).ok_or_else(|| invalid("tz: is no zone of the IANA database; send for example Europe/Berlin"))?;
        let granularity = query.granularity.unwrap_or(granularity);
        let to = query.to.as_deref().map(|text| moment("to", text, &zone)).transpose()?;
        let to = to.unwrap_or(now + TimeDelta::microseconds(1));
        let from = if let Some(text) = query.from.as_deref() {
            moment("from", text, &zone)?
        } else {
            let last = zone.local(to - TimeDelta::microseconds(1)).date_naive();
            let first = last.checked_sub_days(Days::new(u64::from(days.saturating_sub(1))));
            first.and_then(|first| calendar::midnight(&zone, first)).unwrap_or(to - TimeDelta::days(i64::from(days)))
        };
        if from >= to {
            return Err(invalid("from: must be before `to`"));
        }
        if to - from > LONGEST || to > now + TimeDelta::days(366) {
            return Err(invalid(format!("from: the span is longer than {} days, or ends more than a year ahead", LONGEST.num_days())));
        }
        let too_many = |error: calendar::TooManyPeriods| invalid(format!("granularity: {error}"));
        let periods = calendar::periods(&zone, granularity, from, to).map_err(too_many)?;
        let compare = query.compare == Some(Compare::Previous);
        let mut span = Self {
            tz: zone.name().to_owned(),
            granularity,
            buckets: (periods.first().map_or(0, |first| first.first), periods.last().map_or(0, |last| last.end)),
            compare: false,
            periods,
            before: Vec::new(),
            zone: Some(zone),
        };
        if compare {
            span.compare()?;
        }
        Ok(span)
    }

    /// Shows the time before too.
    pub fn compare(&mut self) -> Result<(), Problem> {
        if let Some(zone) = &self.zone {
            let too_many = |error: calendar::TooManyPeriods| invalid(format!("granularity: {error}"));
            self.before = calendar::before(zone, self.granularity, &self.periods).map_err(too_many)?;
            self.compare = true;
        }
        Ok(())
    }

    /// Whether the last of its buckets is over.
    pub fn is_over(&self, now: DateTime<Utc>) -> bool {
        self.buckets.1 <= bucket_of(now)
    }
}

fn moment(field: &str, text: &str, zone: &Zone) -> Result<DateTime<Utc>, Problem> {
    let text = text.trim();
    let found = match text.parse::<NaiveDate>() {
        Ok(date) => calendar::midnight(zone, date),
        Err(_) => DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()),
    };
    // Where zones and calendars have nothing odd.
    let within = |time: &DateTime<Utc>| (0..=32_503_680_000).contains(&time.timestamp());
    found.filter(within).ok_or_else(|| {
        invalid(format!("{field}: is neither a date (2026-11-21) nor a time (2026-11-21T12:00:00Z; write + as %2B) from 1970 on"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(query: &AnalyticsQuery) -> Result<Span, String> {
        Span::of(query, "2026-11-21T12:00:00Z".parse().unwrap(), 30, Granularity::Day).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn a_span_is_thirty_days_with_today_unless_one_says_otherwise() {
        let found = span(&AnalyticsQuery::default()).unwrap();
        assert_eq!(found.periods.len(), 30);
        assert_eq!(found.periods.last().unwrap().start.to_rfc3339(), "2026-11-21T00:00:00+00:00");
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        assert!(!found.is_over(now));
        let dates = AnalyticsQuery {
            from: Some("2026-11-01".into()),
            to: Some("2026-11-21".into()),
            tz: Some("asia/kathmandu".into()),
            compare: Some(Compare::Previous),
            ..AnalyticsQuery::default()
        };
        let found = span(&dates).unwrap();
        assert_eq!((found.periods.len(), found.before.len(), found.tz.as_str()), (20, 20, "Asia/Kathmandu"));
        assert_eq!(found.periods[0].start.to_rfc3339(), "2026-10-31T18:15:00+00:00");
        assert!(found.is_over(now));
    }

    #[test]
    fn nonsense_is_refused() {
        for (from, to, tz) in [
            (Some("yesterday"), None, None),
            (Some("2026-11-21"), Some("2026-11-21"), None),
            (Some("2020-01-01"), None, None),
            (Some("1969-12-31"), Some("1970-01-02"), None),
            (None, Some("9999-01-01"), None),
            (None, None, Some("Mars/Phobos")),
        ] {
            let query = AnalyticsQuery {
                from: from.map(str::to_owned),
                to: to.map(str::to_owned),
                tz: tz.map(str::to_owned),
                ..AnalyticsQuery::default()
            };
            assert!(span(&query).unwrap_err().contains("QueryInvalid"));
        }
    }
}
