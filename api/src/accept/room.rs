//! Where a due job goes: straight to its queue's stream, in the lane of those who go first or in that of its priority; or to the
//! backlog, where tenants take turns.
//!
//! What must stay true:
//! - who has hardly anything in hand waits behind nobody's many: a tenant may have [`MOST_FIRST`] jobs of a queue in the lane of those
//!   who go first;
//! - nobody's many fill a lane by this way: beyond what a few slots take at once they wait in the backlog, of which the
//!   dispatchers take from each tenant in turn;
//! - nothing is remembered for long of jobs whose fate nobody tells us: Redis' hints may get lost.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use shared::{
    job::{JobId, Priority, Reason},
    ledger::insert::Arrival,
    queue::{
        Queue,
        keys::Lane,
        push::{Depth, Handover},
    },
};

/// A tenant's jobs of a queue that are in the lane of those who go first, by way of this process.
const MOST_FIRST: usize = 8;
/// How long one counts of whose claim nobody told us.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);
/// How long a tenant counts as one with a backlog after a job of its went there: what it posts meanwhile goes behind that.
const HAS_BACKLOG: Duration = Duration::from_secs(1);
/// Entries a slot of a worker up to which a lane takes what comes, without regard to whose it is.
const STRAIGHT: u64 = 4;
/// How old a known depth may be before it is asked for again.
const DEPTH_AGE: Duration = Duration::from_millis(250);

/// What this process knows of the queues and of who is in them.
#[derive(Debug)]
pub struct Room {
    /// Jobs that a queue's streams may hold.
    window: u64,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    depths: BTreeMap<Queue, Measured>,
    /// Jobs in the lanes of those who go first, and whose they are.
    first: HashMap<JobId, (Queue, i32, Instant)>,
    standings: HashMap<(Queue, i32), Standing>,
    swept: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    /// `None` while Redis does not answer: then the backlog takes everything, since a stream may take nothing.
    depth: Option<Depth>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Standing {
    first: usize,
    backlog: Option<Instant>,
}

impl Room {
    /// For queues whose streams may hold so many jobs.
    #[must_use]
    pub fn new(window: u64) -> Self {
        let known = Known { depths: BTreeMap::new(), first: HashMap::new(), standings: HashMap::new(), swept: Instant::now() };
        Self { window, known: Mutex::new(known) }
    }

    /// Where a job that is due goes; counts it there.
    pub fn admit(&self, job: JobId, tenant: i32, queue: Queue, priority: Priority) -> Arrival {
        let now = Instant::now();
        let mut known = self.lock();
        known.sweep(now);
        let Known { depths, first, standings, .. } = &mut *known;
        let depth = &mut depths.entry(queue).or_insert(Measured { depth: Some(Depth::default()), at: now }).depth;
        let standing = standings.entry((queue, tenant)).or_default();
        let has_backlog = standing.backlog.is_some_and(|since| now.duration_since(since) < HAS_BACKLOG);
        if let Some(depth) = depth.as_mut() {
            // Whatever stands in the other lanes: nobody waits behind those here.
            let has_place = standing.first < MOST_FIRST && depth.of(Lane::First) < self.window / 4;
            if !has_backlog && priority != Priority::Low && has_place {
                standing.first += 1;
                first.insert(job, (queue, tenant, now));
                depth.add(Lane::First);
                return Arrival::First;
            }
            let lane = Lane::of(priority);
            if depth.total() < self.window / 2 && depth.of(lane) < STRAIGHT * queue.default_concurrency() as u64 {
                depth.add(lane);
                return Arrival::Queued;
            }
        }
        standing.backlog = Some(now);
        Arrival::Waiting(Reason::Window)
    }

    /// These jobs changed, or were not stored: they are where they were put no more.
    pub fn left(&self, jobs: impl IntoIterator<Item = JobId>) {
        let mut known = self.lock();
        if !known.first.is_empty() {
            jobs.into_iter().for_each(|job| known.forget(job));
        }
    }

    /// Redis said how deep a queue is, or nothing.
    pub fn learn(&self, queue: Queue, depth: Option<Depth>) {
        self.lock().depths.insert(queue, Measured { depth, at: Instant::now() });
    }

    /// Redis did not take these.
    pub fn not_pushed(&self, handovers: &[Handover]) {
        for handover in handovers {
            self.learn(handover.queue, None);
        }
        self.left(handovers.iter().map(|handover| handover.job));
    }

    /// The queues whose depth should be asked for again.
    pub fn stale(&self) -> Vec<Queue> {
        self.lock().depths.iter().filter(|(_, known)| known.at.elapsed() > DEPTH_AGE).map(|(queue, _)| *queue).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget(&mut self, job: JobId) {
        if let Some((queue, tenant, _)) = self.first.remove(&job)
            && let Some(standing) = self.standings.get_mut(&(queue, tenant))
        {
            standing.first = standing.first.saturating_sub(1);
        }
    }

    /// Once a second: what nobody told us of, and tenants of whom there is nothing to know.
    fn sweep(&mut self, now: Instant) {
        if now.duration_since(self.swept) < Duration::from_secs(1) {
            return;
        }
        self.swept = now;
        let old = |(_, _, since): &(Queue, i32, Instant)| now.duration_since(*since) > FORGOTTEN_AFTER;
        let forgotten: Vec<JobId> = self.first.iter().filter(|(_, entry)| old(entry)).map(|(job, _)| *job).collect();
        for job in forgotten {
            self.forget(job);
        }
        self.standings
            .retain(|_, standing| standing.first > 0 || standing.backlog.is_some_and(|since| now.duration_since(since) < HAS_BACKLOG));
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const STRAIGHT_OF_EMAIL: usize = 4 * 32;

    fn job(number: u128) -> JobId {
        JobId(Uuid::from_u128(number))
    }

    #[test]
    fn a_few_go_first_some_go_straight_and_many_wait() {
        let room = Room::new(10_000);
        let arrivals: Vec<Arrival> = (0..1_000).map(|n| room.admit(job(n), 1, Queue::Email, Priority::Normal)).collect();
        let count = |wanted| arrivals.iter().filter(|arrival| **arrival == wanted).count();
        assert_eq!((count(Arrival::First), count(Arrival::Queued)), (MOST_FIRST, STRAIGHT_OF_EMAIL));
        assert_eq!(room.admit(job(5_000), 2, Queue::Email, Priority::Normal), Arrival::First, "another tenant waits behind none of them");
        assert_eq!(room.admit(job(5_001), 2, Queue::Email, Priority::Low), Arrival::Queued, "whoever says low has time");
        room.left((0..1_000).map(job));
        assert_eq!(room.admit(job(5_002), 1, Queue::Email, Priority::Normal), Arrival::Waiting(Reason::Window), "behind its own backlog");
    }

    #[test]
    fn places_come_back_with_news_of_the_jobs_that_had_them() {
        let room = Room::new(10_000);
        for round in 0..5 {
            for n in 0..8 {
                assert_eq!(room.admit(job(round * 10 + n), 1, Queue::Ai, Priority::High), Arrival::First);
            }
            assert_eq!(room.admit(job(1_000 + round), 1, Queue::Ai, Priority::High), Arrival::Queued);
            room.left((0..10).map(|n| job(round * 10 + n)));
        }
    }

    #[test]
    fn the_backlog_takes_all_while_redis_is_away_or_full() {
        let room = Room::new(100);
        room.learn(Queue::Email, None);
        assert_eq!(room.admit(job(1), 1, Queue::Email, Priority::Normal), Arrival::Waiting(Reason::Window));
        room.learn(Queue::Email, Some(Depth::default()));
        let arrivals: Vec<Arrival> = (0..100).map(|n| room.admit(job(n), 2, Queue::Email, Priority::Normal)).collect();
        assert_eq!(arrivals.iter().filter(|arrival| **arrival != Arrival::Waiting(Reason::Window)).count(), 50, "half is the dispatchers'");
        assert_eq!(room.admit(job(200), 3, Queue::Email, Priority::Normal), Arrival::First, "full lanes keep nobody from going first");
    }
}
