//! Takes events in: requests of one product that come together share a transaction.
//!
//! What must stay true: an answer is given once its events are durable; what is under way is bounded in bytes, of all and of each product, and
//! counted as it comes ([`Place::grow_to`]): who announces much and sends little holds little. More than there is room for is refused before
//! it is read ([`Intake::enter`]) and costs next to nothing; a request whose events can't be stored fails alone.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    clock::Clock,
    ledger::{
        LedgerError,
        events::{NewEvent, Outcome, Prepared, take},
        timed_out,
    },
    tenant::{Metric, Tenant},
};
use sqlx::PgPool;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout},
};

/// Bytes of bodies, unpacked, that are under way at a time in one process. Read and parsed they take some five times as much.
const UNDER_WAY: usize = 48 * 1024 * 1024;

/// Bodies that are unpacked and read at a time: of one that is packed nobody knows its size before.
const READING: usize = 4;

/// How much of that is one product's at the most, so that others find room beside it.
const OF_TENANT: usize = UNDER_WAY / 2;

/// What a request counts for at least, in bytes.
const LEAST: usize = 1024;

/// The most events of a transaction.
const TOGETHER: usize = 10_000;

/// Transactions of one product, and of all, at a time.
const WRITERS_OF_TENANT: usize = 2;
const WRITERS: usize = 4;

/// The longest that a transaction is waited for.
const WITHIN: Duration = Duration::from_secs(20);

/// Takes events in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: PgPool,
    clock: Clock,
    prepared: Prepared,
    room: Arc<Room>,
    reading: Arc<Semaphore>,
    writers: Semaphore,
    lanes: Mutex<HashMap<i32, Lane>>,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Entry>,
    writers: usize,
}

#[derive(Debug)]
struct Entry {
    tenant: Arc<Tenant>,
    events: Vec<NewEvent>,
    answer: oneshot::Sender<Result<Vec<Outcome>, Arc<LedgerError>>>,
}

/// What is under way, in bytes.
#[derive(Debug, Default)]
struct Room(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    all: usize,
    tenants: HashMap<i32, usize>,
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for so many more bytes of a product.
    fn has(&self, tenant: i32, more: usize) -> bool {
        self.lock().has(tenant, more)
    }

    /// What was `from` bytes of a product is `to` bytes; `false`, and as it was, where there is no room for them.
    fn change(&self, tenant: i32, from: usize, to: usize) -> bool {
        let mut held = self.lock();
        if to > from && !held.has(tenant, to - from) {
            return false;
        }
        held.all = held.all.saturating_sub(from).saturating_add(to);
        let own = held.tenants.entry(tenant).or_default();
        *own = own.saturating_sub(from).saturating_add(to);
        if *own == 0 {
            held.tenants.remove(&tenant);
        }
        // Under the lock, so that the last one who says it is right.
        metrics::gauge!("offstage_events_bytes_under_way").set(held.all as f64);
        true
    }
}

impl Held {
    fn has(&self, tenant: i32, more: usize) -> bool {
        let own = self.tenants.get(&tenant).copied().unwrap_or_default();
        self.all.saturating_add(more) <= UNDER_WAY && own.saturating_add(more) <= OF_TENANT
    }
}

/// A body's share of what may be under way. Given back when dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    tenant: i32,
    bytes: usize,
}

impl Intake {
    /// An intake that stores with this pool.
    #[must_use]
    pub fn new(pool: PgPool, clock: Clock) -> Self {
        metrics::gauge!("offstage_events_bytes_under_way").set(0.0);
        for outcome in ["taken", "duplicate", "rejected"] {
            metrics::counter!("offstage_events_total", "outcome" => outcome).increment(0);
        }
        metrics::counter!("offstage_events_refused_total").increment(0);
        let _registered = (metrics::histogram!("offstage_events_batch"), metrics::histogram!("offstage_events_store_seconds"));
        Self(Arc::new(Inner {
            pool,
            clock,
            prepared: Prepared::default(),
            room: Arc::default(),
            reading: Arc::new(Semaphore::new(READING)),
            writers: Semaphore::new(WRITERS),
            lanes: Mutex::default(),
        }))
    }

    /// A place for a body of which so many bytes are announced; `None` where there is no room for them. It holds next to nothing before they
    /// come.
    #[must_use]
    pub fn enter(&self, tenant: i32, announced: usize) -> Option<Place> {
        let room = Arc::clone(&self.0.room);
        let is_taken = room.has(tenant, announced) && room.change(tenant, 0, LEAST);
        is_taken.then_some(Place { room, tenant, bytes: LEAST })
    }

    /// The turn of one who unpacks and reads a body; `None` when the program ends.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.reading).acquire_owned().await.ok()
    }

    /// Stores events; answers what became of each.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn take(&self, tenant: Arc<Tenant>, events: Vec<NewEvent>) -> Result<Vec<Outcome>, Arc<LedgerError>> {
        let (answer, answered) = oneshot::channel();
        let id = tenant.id;
        let begins = {
            let mut lanes = self.0.lanes();
            let lane = lanes.entry(id).or_default();
            lane.waiting.push_back(Entry { tenant, events, answer });
            let begins = lane.writers < WRITERS_OF_TENANT;
            lane.writers += usize::from(begins);
            begins
        };
        if begins {
            tokio::spawn(Writing { inner: Arc::clone(&self.0), tenant: id, is_over: false }.run());
        }
        // The task is gone: the process is stopping, or a transaction was lost to a panic.
        answered.await.unwrap_or_else(|_| Err(Arc::new(timed_out())))
    }
}

impl Place {
    /// As much as so many bytes, which have come or were unpacked; `false` where there is no room for them.
    #[must_use]
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let is_taken = bytes <= self.bytes || self.room.change(self.tenant, self.bytes, bytes);
        if is_taken {
            self.bytes = self.bytes.max(bytes);
        }
        is_taken
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.change(self.tenant, self.bytes, 0);
    }
}

/// A product's writer. It counts as one until it found nothing to write, or was lost to a panic.
struct Writing {
    inner: Arc<Inner>,
    tenant: i32,
    is_over: bool,
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.is_over
            && let Some(lane) = self.inner.lanes().get_mut(&self.tenant)
        {
            lane.writers = lane.writers.saturating_sub(1);
        }
    }
}

impl Writing {
    async fn run(mut self) {
        loop {
            let inner = Arc::clone(&self.inner);
            let Ok(_turn) = inner.writers.acquire().await else { return };
            let batch = inner.next(self.tenant);
            if batch.is_empty() {
                self.is_over = true;
                return;
            }
            inner.write(self.tenant, batch).await;
        }
    }
}

impl Inner {
    fn lanes(&self) -> MutexGuard<'_, HashMap<i32, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next entries of a product. Where there are none its writer ends, which is noted under the lock that entries are put down
    /// under, so that none is left behind.
    fn next(&self, tenant: i32) -> Vec<Entry> {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.get_mut(&tenant) else { return Vec::new() };
        let (mut batch, mut events) = (Vec::new(), 0);
        while let Some(next) = lane.waiting.front() {
            if !batch.is_empty() && events + next.events.len() > TOGETHER {
                break;
            }
            events += next.events.len();
            batch.extend(lane.waiting.pop_front());
        }
        if batch.is_empty() {
            lane.writers = lane.writers.saturating_sub(1);
            if lane.writers == 0 {
                lanes.remove(&tenant);
            }
        }
        batch
    }

    async fn write(&self, tenant: i32, batch: Vec<Entry>) {
        let Some(declared) = batch.last().map(|entry| Arc::clone(&entry.tenant)) else { return };
        let declared: Vec<&Metric> = declared.manifest.metrics.values().collect();
        let mut events = Vec::new();
        let mut answers = Vec::with_capacity(batch.len());
        for entry in batch {
            answers.push((entry.events.len(), entry.answer));
            events.extend(entry.events);
        }
        metrics::histogram!("offstage_events_batch").record(events.len() as f64);
        match self.take(tenant, &declared, &events).await {
            Ok(outcomes) => {
                let mut rest = outcomes.as_slice();
                for (length, answer) in answers {
                    let (own, others) = rest.split_at(length.min(rest.len()));
                    rest = others;
                    // Who went away finds them to be duplicates.
                    let _ = answer.send(Ok(own.to_vec()));
                }
            }
            Err(error) if error.is_about_data() && answers.len() > 1 => {
                // One request's events are no data for Postgres: each by itself, and that one alone fails.
                let mut rest = events.as_slice();
                for (length, answer) in answers {
                    let (own, others) = rest.split_at(length.min(rest.len()));
                    rest = others;
                    let _ = answer.send(self.take(tenant, &declared, own).await.map_err(Arc::new));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for (_, answer) in answers {
                    let _ = answer.send(Err(Arc::clone(&error)));
                }
            }
        }
    }

    async fn take(&self, tenant: i32, declared: &[&Metric], events: &[NewEvent]) -> Result<Vec<Outcome>, LedgerError> {
        let began = Instant::now();
        let taken = timeout(WITHIN, take(&self.pool, &self.prepared, tenant, declared, events, self.clock.now())).await;
        metrics::histogram!("offstage_events_store_seconds").record(began.elapsed().as_secs_f64());
        taken.unwrap_or_else(|_| Err(timed_out()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(room: &Arc<Room>, tenant: i32) -> Place {
        assert!(room.change(tenant, 0, LEAST));
        Place { room: Arc::clone(room), tenant, bytes: LEAST }
    }

    #[test]
    fn a_product_has_half_of_the_room_and_gives_all_of_it_back() {
        let room = Arc::new(Room::default());
        let (mut one, mut two, mut other) = (place(&room, 1), place(&room, 1), place(&room, 2));
        assert!(one.grow_to(OF_TENANT - LEAST) && !two.grow_to(LEAST + 1) && !room.has(1, 1));
        assert!(other.grow_to(OF_TENANT) && !room.has(3, 1), "{room:?}");
        assert!(one.grow_to(1), "it has as much already");
        drop(one);
        assert!(two.grow_to(OF_TENANT) && !room.has(1, 1));
        drop((two, other));
        let held = room.lock();
        assert!(held.all == 0 && held.tenants.is_empty(), "{held:?}");
    }
}
