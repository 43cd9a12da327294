//! When a cron expression comes round, on a clock that is put forward and back.
//!
//! The rules, which are Vixie cron's (`man 8 cron`), said for every expression and every zone:
//! - An expression with a `*` in its minute or hour **follows the clock**: it comes round whenever the clock shows a time that it names. A
//!   time that the clock skips does not come; one that it shows twice comes twice. So `0 * * * *` runs once in each hour that passes.
//! - Any other **has its times of day**: each comes exactly once on each of its days. One that the clock skips comes at the first
//!   moment after the gap (several in one gap: once); one that the clock shows twice comes at the first.

use jiff::{Timestamp, ToSpan, civil, tz::AmbiguousOffset};

use croner::parser::{CronParser, Seconds, Year};

use super::zone::Zone;

/// The longest expression, in characters.
const LONGEST: usize = 200;

/// Times of day that can fall into one gap or be shown twice: two days of minutes. The longest gap so far was a day (Samoa, 2011).
const MOST_SHIFTED: usize = 2 * 24 * 60;

/// Changes of a zone's clock that one search looks beyond: more than a hundred years of them. What does not come round by then never
/// does.
const MOST_CHANGES: usize = 400;

/// A cron expression.
#[derive(Clone, Debug)]
pub struct Cron {
    text: String,
    pattern: croner::Cron,
    follows_the_clock: bool,
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Cron {
    /// Reads an expression of five fields: minute, hour, day of the month, month, day of the week; or `@hourly`, `@daily`, `@weekly`,
    /// `@monthly`, `@yearly`.
    ///
    /// # Errors
    /// What is wrong, to be put behind the field's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            let shown: String = text.chars().take(LONGEST).collect();
            format!(
                "`{shown}` is not a cron expression ({why}); write minute, hour, day of the month, month and day of the week, as \"30 2 * * MON-FRI\""
            )
        };
        // The library cuts text by bytes.
        if text.len() > LONGEST || !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(wrong(&format!("it has more than {LONGEST} characters, or others than those of cron")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let pattern = parser.parse(text).map_err(|error| wrong(error.to_string().trim_end_matches('.')))?;
        let follows_the_clock = pattern.as_str().split_whitespace().take(2).any(|field| field.contains('*'));
        Ok(Self { text: text.to_owned(), pattern, follows_the_clock })
    }

    /// The expression as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first time after a moment; `None` where there is none.
    pub(super) fn next(&self, zone: &Zone, after: Timestamp) -> Option<Timestamp> {
        if self.follows_the_clock { self.next_shown(zone, after) } else { self.next_time_of_day(zone, after) }
    }

    /// The first moment at which the clock shows a time that is named. Between two changes the clock runs evenly, so each such stretch is
    /// searched by itself.
    fn next_shown(&self, zone: &Zone, after: Timestamp) -> Option<Timestamp> {
        let (mut from, mut inclusive) = (after, false);
        for _ in 0..MOST_CHANGES {
            let offset = zone.rules.to_offset(from);
            let shown = self.named(offset.to_datetime(from), inclusive)?;
            let found = offset.to_timestamp(shown).ok()?;
            match zone.rules.following(from).next().map(|change| change.timestamp()) {
                Some(change) if change <= found => (from, inclusive) = (change, true),
                _ => return Some(found),
            }
        }
        None
    }

    /// The first moment that is a time of day's own. Times of day and their moments have the same order, so it is enough to go on
    /// from what the clock shows.
    fn next_time_of_day(&self, zone: &Zone, after: Timestamp) -> Option<Timestamp> {
        let mut time = zone.rules.to_datetime(after);
        for _ in 0..MOST_SHIFTED {
            time = self.named(time, false)?;
            let at = own_moment(zone, time)?;
            if at > after {
                return Some(at);
            }
        }
        None
    }

    /// The first named time after (or at) another one, on a clock that never changes.
    fn named(&self, from: civil::DateTime, inclusive: bool) -> Option<civil::DateTime> {
        self.pattern.find_next_occurrence(&from, inclusive).ok()
    }
}

/// The moment of a time of day: when the clock shows it first, or when it has just skipped it.
fn own_moment(zone: &Zone, time: civil::DateTime) -> Option<Timestamp> {
    match zone.rules.to_ambiguous_timestamp(time).offset() {
        AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => offset.to_timestamp(time).ok(),
        AmbiguousOffset::Gap { before, .. } => {
            // By the clock of before, it would be so long after the change as the time is in the gap.
            let inside = before.to_timestamp(time).ok()?;
            let just_after = inside.checked_add(1.nanosecond()).ok()?;
            zone.rules.preceding(just_after).next().map(|change| change.timestamp())
        }
    }
}
