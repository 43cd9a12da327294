//! Business time, and the ids that carry it: due times, expiry, quotas, cron. Lease time (who is alive, who holds a job) is
//! another clock, Postgres' and the monotonic one, and never mixes with this.
//!
//! This is the only place that asks the operating system for the time. Everything else takes a [`Clock`], so that a test
//! can stand at the end of February without waiting for it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::{ContextV7, Timestamp, Uuid};

/// Tells the time. Clones share one source, so setting one sets them all.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    /// Keeps the ids of one millisecond in order, and stays put when the time is turned back.
    ids: Arc<Mutex<ContextV7>>,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    /// Microseconds since 1970.
    Set(Arc<AtomicI64>),
    /// What a file says, and what it said last.
    File(Arc<PathBuf>, Arc<AtomicI64>),
}

impl Clock {
    /// The operating system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::of(Source::System)
    }

    /// A clock that stands at `time` until it is told otherwise: for tests.
    #[must_use]
    pub fn at(time: DateTime<Utc>) -> Self {
        Self::of(Source::Set(Arc::new(AtomicI64::new(time.timestamp_micros()))))
    }

    /// A clock that shows the time which stands in a file (RFC 3339), whenever it is asked: several processes that read one file share its
    /// time. For tests (`OFFSTAGE_CLOCK_FILE`): replace the file, don't write into it.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn of_file(path: PathBuf) -> Result<Self, String> {
        let first = Self::read(&path)?;
        Ok(Self::of(Source::File(Arc::new(path), Arc::new(AtomicI64::new(first)))))
    }

    fn read(path: &Path) -> Result<i64, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{} can't be read: {error}", path.display()))?;
        let time =
            DateTime::parse_from_rfc3339(text.trim()).map_err(|error| format!("{} holds no RFC 3339 time: {error}", path.display()))?;
        Ok(time.timestamp_micros())
    }

    fn of(source: Source) -> Self {
        // Ten bits tell a thousand microseconds apart, which is as fine as `now` is.
        Self { source, ids: Arc::new(Mutex::new(ContextV7::new().with_additional_precision_bits(10))) }
    }

    /// The time, cut to whole microseconds: what Postgres stores, so a time read back equals the time written.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        match &self.source {
            #[expect(clippy::disallowed_methods, reason = "the one place that may")]
            Source::System => DateTime::from_timestamp_micros(Utc::now().timestamp_micros()).unwrap_or_default(),
            Source::Set(micros) => DateTime::from_timestamp_micros(micros.load(Ordering::SeqCst)).unwrap_or_default(),
            Source::File(path, last) => {
                // A file that is gone for a moment stops the clock, and no more.
                let micros = Self::read(path).unwrap_or_else(|_| last.load(Ordering::SeqCst));
                last.store(micros, Ordering::SeqCst);
                DateTime::from_timestamp_micros(micros).unwrap_or_default()
            }
        }
    }

    /// Moves a set clock to `time`. The system's clock is not ours to move: there nothing happens.
    pub fn set(&self, time: DateTime<Utc>) {
        if let Source::Set(micros) = &self.source {
            micros.store(time.timestamp_micros(), Ordering::SeqCst);
        }
    }

    /// Moves a set clock by `span`, which may be negative. The system's clock is not ours to move: there nothing happens.
    pub fn advance(&self, span: TimeDelta) {
        if let Source::Set(micros) = &self.source {
            micros.fetch_add(span.num_microseconds().unwrap_or_default(), Ordering::SeqCst);
        }
    }

    /// A new `UUIDv7` (RFC 9562): ids of one clock grow strictly, also within a microsecond and when the time is turned
    /// back. Ids of several processes are ordered as well as their clocks agree.
    #[must_use]
    pub fn new_id(&self) -> Uuid {
        let now = self.now();
        let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
        Uuid::new_v7(Timestamp::from_unix(&*self.ids, seconds, now.timestamp_subsec_nanos()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> DateTime<Utc> {
        "2026-02-28T12:00:00.123456789Z".parse().unwrap()
    }

    #[test]
    fn a_set_clock_stands_moves_and_shares() {
        let clock = Clock::at(noon());
        let twin = clock.clone();
        assert_eq!(clock.now().to_rfc3339(), "2026-02-28T12:00:00.123456+00:00");
        twin.advance(TimeDelta::hours(12));
        assert_eq!(clock.now().to_rfc3339(), "2026-03-01T00:00:00.123456+00:00");
        clock.set(noon());
        assert_eq!(twin.now().timestamp(), noon().timestamp());
    }

    #[test]
    fn the_system_clock_is_cut_to_microseconds_and_not_ours_to_move() {
        let clock = Clock::system();
        assert_eq!(clock.now().timestamp_subsec_nanos() % 1_000, 0);
        clock.set(noon());
        assert_ne!(clock.now().timestamp(), noon().timestamp());
    }

    #[test]
    fn processes_may_share_a_file_s_time() {
        let path = std::env::temp_dir().join(format!("offstage-clock-{}", std::process::id()));
        assert!(Clock::of_file(path.clone()).is_err());
        std::fs::write(&path, "2026-03-29T01:30:00+01:00\n").unwrap();
        let (one, other) = (Clock::of_file(path.clone()).unwrap(), Clock::of_file(path.clone()).unwrap());
        assert_eq!(one.now().to_rfc3339(), "2026-03-29T00:30:00+00:00");
        std::fs::write(&path, "2026-03-29T02:30:00Z").unwrap();
        assert_eq!((one.now(), one.now().to_rfc3339()), (other.now(), "2026-03-29T02:30:00+00:00".to_owned()));
        std::fs::write(&path, "soon").unwrap();
        assert_eq!(one.now().to_rfc3339(), "2026-03-29T02:30:00+00:00", "it stands still");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(one.now(), other.now());
    }

    #[test]
    fn ids_grow_in_a_standing_clock_and_in_one_turned_back() {
        let clock = Clock::at(noon());
        let mut last = clock.new_id();
        assert_eq!(last.get_version_num(), 7);
        for step in 0..20_000 {
            clock.advance(TimeDelta::microseconds(if step % 3 == 0 { -700 } else { 350 }));
            let next = clock.new_id();
            assert!(next > last, "{next} after {last}");
            last = next;
        }
    }

    #[test]
    fn ids_of_threads_are_distinct_and_carry_the_time() {
        let clock = Clock::at(noon());
        let mut ids: Vec<Uuid> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..2_000).map(|_| clock.new_id()).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 8_000);
        let (seconds, nanos) = ids[0].get_timestamp().unwrap().to_unix();
        assert_eq!(i64::try_from(seconds).unwrap(), noon().timestamp());
        assert_eq!(nanos / 1_000_000, 123);
    }
}
