//! How much of each tenant waits, and whether more of it may.
//!
//! Counting a million rows at each request is out of the question, so each process counts in the background, now and then, and adds
//! what it has let in since. What other processes let in shows with the next count; so the limit is kept to within what they take
//! in that time.
//!
//! What must stay true: a request never waits for a count; a count is bounded by the limit it is compared with, and counting takes
//! a small part of one connection's time, however large the backlog; while nobody asks, nobody counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use shared::{ledger::LedgerError, tenant};
use sqlx::PgPool;

/// How old a count may be while the backlog is well below its limit.
const FRESH_BELOW: Duration = Duration::from_secs(10);
/// The same near the limit and above it.
const FRESH_NEAR: Duration = Duration::from_millis(250);
/// How much longer than a count took it is used at least: counting has a fiftieth of the time.
const REST: u32 = 50;
/// What those are told to wait who can't be told how fast the backlog goes down.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(30);
/// The longest that somebody is told to wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// The weight of the latest count in what is known of how fast the backlog goes down.
const LATEST: f64 = 0.3;

/// Counts backlogs. Clones share everything.
#[derive(Clone, Debug)]
pub struct Backlogs {
    pool: PgPool,
    known: Arc<Mutex<HashMap<i32, Known>>>,
}

/// What is known of a tenant's backlog. Operators make tenants, callers don't, so their number needs no bound here.
#[derive(Debug, Default)]
struct Known {
    counted: u64,
    /// Let in since that was counted.
    added: u64,
    /// Let in past the backlog since that was counted: what a pause or a limit stops on its way comes back to wait.
    passed: u64,
    /// On its way in.
    entering: u64,
    counted_at: Option<Instant>,
    /// How long the count took.
    took: Duration,
    is_counting: bool,
    /// Jobs a second that left, lately.
    leaving: Option<f64>,
}

impl Known {
    fn waiting(&self) -> u64 {
        self.counted.saturating_add(self.added).saturating_add(self.entering)
    }

    fn is_stale(&self, limit: u64) -> bool {
        let near = self.waiting().saturating_add(self.passed) >= limit / 2;
        let fresh = if near { FRESH_NEAR } else { FRESH_BELOW }.max(self.took * REST);
        !self.is_counting && self.counted_at.is_none_or(|at| at.elapsed() >= fresh)
    }

    /// Takes a count that began at `began`, when `added_then` had been let in since the one before.
    fn learn(&mut self, counted: u64, added_then: u64, began: Instant, took: Duration) {
        if let Some(before) = self.counted_at {
            let span = began.saturating_duration_since(before).as_secs_f64();
            let left = self.counted.saturating_add(added_then).saturating_sub(counted);
            if span > 0.0 {
                #[expect(clippy::cast_precision_loss, reason = "an estimate")]
                let latest = left as f64 / span;
                // What stands still may go on at any speed, and what is empty says nothing of the speed.
                self.leaving = match left {
                    0 if counted > 0 => None,
                    0 => self.leaving,
                    _ => Some(self.leaving.map_or(latest, |known| known * (1.0 - LATEST) + latest * LATEST)),
                };
            }
        }
        self.counted = counted;
        self.added = self.added.saturating_sub(added_then);
        self.passed = 0;
        self.counted_at = Some(began);
        self.took = took;
    }
}

/// No more may wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Full {
    /// Jobs that wait, counted up to somewhat above the limit.
    pub waiting: u64,
    /// Jobs that may.
    pub limit: u64,
    /// Jobs that were to come in.
    pub jobs: u64,
    /// When there may be room, by how fast the backlog went down lately; `None` where that is not known.
    pub room_in: Option<Duration>,
}

impl Full {
    /// When to come again.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        self.room_in.unwrap_or(UNKNOWN_PAUSE)
    }
}

/// Room for some jobs, until they have been let in or not.
#[derive(Debug)]
pub struct Place {
    backlogs: Backlogs,
    tenant: i32,
    jobs: u64,
    waiting: u64,
}

impl Place {
    /// So many of them wait now; the others are in a stream already, or were not let in.
    pub fn wait(&mut self, jobs: u64) {
        self.waiting = jobs.min(self.jobs);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(known) = self.backlogs.lock().get_mut(&self.tenant) {
            known.entering = known.entering.saturating_sub(self.jobs);
            known.added = known.added.saturating_add(self.waiting);
            known.passed = known.passed.saturating_add(self.jobs - self.waiting);
        }
    }
}

impl Backlogs {
    /// Counts through `pool`, as the API's role.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, known: Arc::default() }
    }

    /// Makes room for some jobs of a tenant whose backlog may hold `limit`.
    ///
    /// # Errors
    /// [`Full`].
    pub fn enter(&self, tenant: i32, limit: u64, jobs: u64) -> Result<Place, Full> {
        let mut all = self.lock();
        let known = all.entry(tenant).or_default();
        if known.is_stale(limit) {
            known.is_counting = true;
            tokio::spawn(self.clone().count(tenant, limit));
        }
        let waiting = known.waiting();
        if waiting.saturating_add(jobs) > limit {
            let excess = waiting.saturating_add(jobs).saturating_sub(limit);
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let seconds = known.leaving.filter(|leaving| *leaving > 0.001).map(|leaving| excess as f64 / leaving);
            let room_in = seconds.map(|seconds| Duration::from_secs_f64(seconds.clamp(1.0, LONGEST_PAUSE.as_secs_f64())));
            return Err(Full { waiting, limit, jobs, room_in });
        }
        known.entering += jobs;
        drop(all);
        Ok(Place { backlogs: self.clone(), tenant, jobs, waiting: 0 })
    }

    async fn count(self, tenant: i32, limit: u64) {
        let began = Instant::now();
        let most = limit.saturating_add(limit / 10).saturating_add(1);
        let mut added = 0;
        // What was let in until just before the count is in it. What comes between the two counts twice until the next one: a refusal
        // too many for a moment rather than an overfull backlog.
        let counted = waiting(&self.pool, tenant, most, || added = self.lock().get(&tenant).map_or(0, |known| known.added)).await;
        let mut all = self.lock();
        let known = all.entry(tenant).or_default();
        known.is_counting = false;
        match counted {
            Ok(counted) => known.learn(counted, added, began, began.elapsed()),
            Err(error) => {
                // What is known stays in force, and the next request but one counts anew.
                known.counted_at = Some(began);
                tracing::debug!(tenant, error = &error as &dyn std::error::Error, "a backlog could not be counted");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tenant's jobs that wait, counted up to `most`, by the index alone; `about_to` is called just before.
async fn waiting(pool: &PgPool, tenant: i32, most: u64, about_to: impl FnOnce()) -> Result<u64, LedgerError> {
    let mut transaction = tenant::transaction(pool, tenant).await?;
    // Else the planner reads the whole table where it thinks that most of it is this tenant's.
    sqlx::raw_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off").execute(&mut *transaction).await?;
    about_to();
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM (SELECT FROM job_waiting WHERE tenant_id = $1 LIMIT $2) w")
        .bind(tenant)
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_one(&mut *transaction)
        .await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_between_two_counts_tells_how_fast_it_goes_down() {
        let began = Instant::now();
        let mut known = Known::default();
        known.learn(1_000, 0, began, Duration::ZERO);
        assert_eq!(known.leaving, None);
        known.added = 500;
        // 1,000 and 300 of 500 that had been added when the count began; 900 are left: 400 left in 10 s.
        known.learn(900, 300, began + Duration::from_secs(10), Duration::ZERO);
        assert_eq!((known.counted, known.added, known.leaving), (900, 200, Some(40.0)));
    }

    #[test]
    fn what_passed_by_may_come_back_and_is_counted_soon() {
        let mut known = Known { counted_at: Instant::now().checked_sub(Duration::from_secs(1)), ..Known::default() };
        assert!(!known.is_stale(20));
        known.passed = 10;
        assert!(known.is_stale(20));
        known.learn(10, 0, Instant::now(), Duration::ZERO);
        assert_eq!((known.passed, known.is_stale(20)), (0, false), "counted just now");
    }

    #[test]
    fn an_estimate_says_nothing_it_does_not_know() {
        let began = Instant::now();
        let mut known = Known::default();
        known.learn(1_000, 0, began, Duration::ZERO);
        known.learn(900, 0, began + Duration::from_secs(1), Duration::ZERO);
        known.learn(0, 0, began + Duration::from_secs(2), Duration::ZERO);
        let leaving = known.leaving;
        known.learn(0, 0, began + Duration::from_secs(60), Duration::ZERO);
        assert_eq!(known.leaving, leaving, "an empty backlog does not go down");
        known.learn(10, 10, began + Duration::from_secs(61), Duration::ZERO);
        known.learn(10, 0, began + Duration::from_secs(62), Duration::ZERO);
        assert_eq!(known.leaving, None, "one that stands still goes on at any speed");
    }

    #[tokio::test]
    async fn who_is_on_the_way_in_counts_and_who_did_not_get_in_does_not() {
        // Nobody answers there: what is known is what this process let in.
        let backlogs = Backlogs::new(sqlx::postgres::PgPoolOptions::new().connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap());
        let first = backlogs.enter(1, 10, 6).unwrap();
        let full = backlogs.enter(1, 10, 5).unwrap_err();
        assert_eq!((full.waiting, full.limit, full.retry_after()), (6, 10, UNKNOWN_PAUSE));
        assert!(backlogs.enter(2, 10, 10).is_ok(), "another tenant's is its own");
        drop(first);
        let mut second = backlogs.enter(1, 10, 10).unwrap();
        second.wait(9);
        drop(second);
        assert!(backlogs.enter(1, 10, 1).is_ok());
        assert!(backlogs.enter(1, 10, 2).is_err());
    }
}
