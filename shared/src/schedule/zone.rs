//! Time zones by their IANA names, from the database that is built into the program: replicas on different images agree.

use std::{fmt, sync::LazyLock};

use chrono::{DateTime, FixedOffset, Utc};
use jiff::{
    Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// A time zone.
#[derive(Clone, PartialEq, Eq)]
pub struct Zone {
    name: String,
    pub(super) rules: TimeZone,
}

impl Zone {
    /// The zone of an IANA name such as `Europe/Berlin`, or `UTC`; `None` where there is none.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        let rules = ZONES.get(name).ok()?;
        // The database is asked without regard to case; what is kept is its own spelling.
        let name = rules.iana_name()?.to_owned();
        Some(Self { name, rules })
    }

    /// The zone without offsets.
    #[must_use]
    pub fn utc() -> Self {
        Self { name: "UTC".to_owned(), rules: TimeZone::UTC }
    }

    /// The IANA name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its offsets, at all times.
    pub(crate) const fn rules(&self) -> &TimeZone {
        &self.rules
    }

    /// A moment as the zone's clocks show it.
    #[must_use]
    pub fn local(&self, at: DateTime<Utc>) -> DateTime<FixedOffset> {
        let offset = timestamp(at).map_or(0, |at| self.rules.to_offset(at).seconds());
        FixedOffset::east_opt(offset).map_or_else(|| at.fixed_offset(), |offset| at.with_timezone(&offset))
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A moment in the zones' own terms; `None` for one beyond the year 9999.
pub(crate) fn timestamp(at: DateTime<Utc>) -> Option<Timestamp> {
    Timestamp::from_microsecond(at.timestamp_micros()).ok()
}

/// And back.
pub(crate) fn moment(at: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(at.as_microsecond())
}
