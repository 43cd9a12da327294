//! Who waits for news of a job, and how they hear of it.
//!
//! Redis carries hints and never answers: whoever hears that a job changed reads its row. One subscription serves the whole
//! process.
//!
//! What must stay true:
//! - whoever waits was registered before they read, so no change falls between the two;
//! - a lost hint costs at most [`LOOK_EVERY`]: that often the versions of all watched jobs are read together. Always, and not
//!   only while our Redis is away: a worker may have lost its own, which we can't know;
//! - the number of waiting requests is bounded, and well below the number of connections, so that those who wait leave
//!   room for those who ask; and one tenant's are bounded below that, so that its clients leave room for other tenants'.
//!
//! Who waits once is a [`Watch`]; who goes on listening is in [`streams`], in places of their own.

mod inboxes;
mod places;
mod streams;
mod words;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use shared::{
    clock::Clock,
    config::Streams as Bounds,
    job::JobId,
    ledger::{LedgerError, find},
    queue::{
        Commands, Queue, Redis,
        signal::{self, Channel, Signal},
    },
    tenant,
};
use sqlx::PgPool;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use inboxes::{Inboxes, Listener};
pub use streams::{Following, Interest, Latest, Listening, Seen, Streams};
pub use words::{Hearing, Words};

use crate::{accept::Room, server::MOST_CONNECTIONS};
use places::Places;

/// Requests that may wait at a time. A request occupies its connection, so a quarter of those stays free.
pub const MOST_WAITING: usize = MOST_CONNECTIONS / 4 * 3;

/// Of those, one tenant's. R6 asks for 900 users, and they may well be one product's.
pub const MOST_WAITING_OF_TENANT: usize = MOST_WAITING / 3;

/// How often the watched jobs are looked at without a hint.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// At which of these looks the addresses are asked for by which jobs are followed.
const DOUBT_LINKS_EVERY: u32 = 5;

/// Jobs of one look's statement.
const LOOKED_AT_TOGETHER: usize = 1_000;

/// Changes of our own that may wait for Redis; what is beyond is dropped, and found by looking.
const TELLINGS: usize = 1_024;

/// Changes told in one go.
const TOLD_TOGETHER: usize = 64;

/// Follows jobs and tells of changes. Clones share everything.
#[derive(Clone, Debug)]
pub struct Follow {
    registry: Arc<Registry>,
    streams: Arc<Streams>,
    inboxes: Arc<Inboxes>,
    words: Arc<Words>,
    tell: mpsc::Sender<Telling>,
}

/// What the workers should do about a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Nothing.
    Nothing,
    /// Whoever runs the job should ask whether it is to go on.
    Stop,
    /// The dispatcher of this queue should look.
    Dispatch(Queue),
}

/// Something to tell.
#[derive(Clone, Copy, Debug)]
struct Telling {
    changed: Option<JobId>,
    call: Call,
}

impl Follow {
    /// Starts listening, looking and telling, until `stop`. Needs a Tokio runtime.
    #[must_use]
    pub fn start(pool: PgPool, redis: &Redis, room: Arc<Room>, clock: Clock, bounds: Bounds, stop: CancellationToken) -> Self {
        let registry = Arc::new(Registry::new(MOST_WAITING, MOST_WAITING_OF_TENANT));
        let (tell, tellings) = mpsc::channel(TELLINGS);
        tokio::spawn(tell_redis(redis.commands(), redis.clone(), tellings));
        let signals = signal::listen(redis.clone(), &[Channel::Changes, Channel::Accepted], stop.clone());
        let places = Arc::new(Places::new(bounds.most, bounds.most_of_tenant));
        let streams = Arc::new(Streams::new(pool.clone(), clock, Arc::clone(&places)));
        let inboxes = Arc::new(Inboxes::new(pool.clone(), places));
        tokio::spawn(hear(Arc::clone(&registry), Arc::clone(&streams), Arc::clone(&inboxes), room, signals));
        tokio::spawn(Arc::clone(&inboxes).run(stop.clone()));
        tokio::spawn(Arc::clone(&streams).run(stop.clone()));
        let said = signal::listen(redis.clone(), &[Channel::Said], stop.clone());
        let words = Arc::new(Words::new(redis));
        tokio::spawn(Arc::clone(&words).hear(said));
        tokio::spawn(look(Arc::clone(&registry), Arc::clone(&streams), pool, stop));
        Self { registry, streams, inboxes, words, tell }
    }

    /// The streams of events.
    #[must_use]
    pub const fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    /// What models say.
    #[must_use]
    pub const fn words(&self) -> &Arc<Words> {
        &self.words
    }

    /// The streams of notifications.
    #[must_use]
    pub const fn inboxes(&self) -> &Arc<Inboxes> {
        &self.inboxes
    }

    /// Registers an interest in a job, to be done before its row is read; `None` when too many wait already.
    #[must_use]
    pub fn watch(&self, tenant: i32, job: JobId) -> Option<Watch> {
        self.registry.watch(tenant, job)
    }

    /// Tells everybody that a job changed by a request: those who wait here at once, others by way of Redis, which may be
    /// away: then workers find it by themselves, seconds later.
    pub fn tell(&self, changed: JobId, call: Call) {
        self.registry.wake(&[changed]);
        self.streams.changed(&[changed]);
        self.send(Telling { changed: Some(changed), call });
    }

    /// Tells the workers of something that is about no job.
    pub fn nudge(&self, call: Call) {
        self.send(Telling { changed: None, call });
    }

    fn send(&self, telling: Telling) {
        if self.tell.try_send(telling).is_err() {
            metrics::counter!("offstage_announcements_dropped_total").increment(1);
        }
    }
}

/// One request's interest in a job; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    registry: Arc<Registry>,
    tenant: i32,
    job: JobId,
    watcher: Arc<Watcher>,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// Says which version was read, so that a look which finds the same wakes nobody.
    pub fn saw(&self, version: i32) {
        self.watcher.known.store(version, Ordering::Relaxed);
    }

    /// Waits until the job may have changed since the last time this returned, or since the watch began.
    pub async fn news(&self) {
        self.watcher.news.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.registry.leave(self.job, &self.watcher);
        self.registry.give_up(self.tenant);
        metrics::gauge!("offstage_http_requests_waiting").decrement(1.0);
    }
}

#[derive(Debug)]
struct Registry {
    watched: Mutex<HashMap<JobId, Watched>>,
    places: Arc<Semaphore>,
    /// How many of each tenant wait; tenants without any are not in it.
    taken: Mutex<HashMap<i32, usize>>,
    places_of_tenant: usize,
    /// Asks for a look out of turn.
    look: Notify,
}

#[derive(Debug)]
struct Watched {
    tenant: i32,
    watchers: Vec<Arc<Watcher>>,
}

#[derive(Debug)]
struct Watcher {
    /// The version last read; the highest there is until then, since the reading is yet to come.
    known: AtomicI32,
    news: Notify,
}

impl Registry {
    fn new(places: usize, places_of_tenant: usize) -> Self {
        let (watched, taken) = (Mutex::default(), Mutex::default());
        Self { watched, places: Arc::new(Semaphore::new(places)), taken, places_of_tenant, look: Notify::new() }
    }

    /// A place among its tenant's; false when all are taken.
    fn enter(&self, tenant: i32) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(tenant).or_default();
        let is_free = *count < self.places_of_tenant;
        *count += usize::from(is_free);
        is_free
    }

    fn give_up(&self, tenant: i32) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&tenant);
            }
        }
    }

    fn watch(self: &Arc<Self>, tenant: i32, job: JobId) -> Option<Watch> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        if !self.enter(tenant) {
            metrics::counter!("offstage_http_waiting_refused_total").increment(1);
            return None;
        }
        let watcher = Arc::new(Watcher { known: AtomicI32::new(i32::MAX), news: Notify::new() });
        let mut jobs = self.lock();
        jobs.entry(job).or_insert_with(|| Watched { tenant, watchers: Vec::with_capacity(1) }).watchers.push(Arc::clone(&watcher));
        drop(jobs);
        metrics::gauge!("offstage_http_requests_waiting").increment(1.0);
        Some(Watch { registry: Arc::clone(self), tenant, job, watcher, _place: place })
    }

    fn leave(&self, job: JobId, watcher: &Arc<Watcher>) {
        let mut jobs = self.lock();
        if let Some(entry) = jobs.get_mut(&job) {
            entry.watchers.retain(|other| !Arc::ptr_eq(other, watcher));
            if entry.watchers.is_empty() {
                jobs.remove(&job);
            }
        }
    }

    /// Wakes all who watch these jobs.
    fn wake(&self, jobs: &[JobId]) {
        let watched = self.lock();
        if watched.is_empty() {
            return;
        }
        for entry in jobs.iter().filter_map(|job| watched.get(job)) {
            // A permit is kept for whoever is just reading and not waiting yet.
            entry.watchers.iter().for_each(|watcher| watcher.news.notify_one());
        }
    }

    /// Wakes those who know less than what was found.
    fn found(&self, versions: &[(JobId, i32)]) {
        let watched = self.lock();
        for (job, version) in versions {
            let Some(entry) = watched.get(job) else { continue };
            entry
                .watchers
                .iter()
                .filter(|watcher| watcher.known.load(Ordering::Relaxed) < *version)
                .for_each(|watcher| watcher.news.notify_one());
        }
    }

    /// The watched jobs by tenant: row-level security shows one tenant a transaction.
    fn by_tenant(&self) -> HashMap<i32, Vec<Uuid>> {
        let mut tenants: HashMap<i32, Vec<Uuid>> = HashMap::new();
        for (job, entry) in &*self.lock() {
            tenants.entry(entry.tenant).or_default().push(job.0);
        }
        tenants
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on what Redis says, until its sender ends with `stop`.
async fn hear(registry: Arc<Registry>, streams: Arc<Streams>, inboxes: Arc<Inboxes>, room: Arc<Room>, mut signals: mpsc::Receiver<Signal>) {
    while let Some(signal) = signals.recv().await {
        match signal {
            Signal::Changed(jobs) => {
                registry.wake(&jobs);
                streams.changed(&jobs);
                // A job that ended may have told its owner so.
                inboxes.hint();
                room.left(jobs);
            }
            Signal::Subscribed => {
                registry.look.notify_one();
                streams.missed();
            }
            Signal::Accepted(jobs) => streams.changed(&jobs),
            Signal::Wake(_) | Signal::Cancel(_) | Signal::Breaker(_) | Signal::Said(_) => {}
        }
    }
}

/// Looks at all that is watched, every so often and after each subscription.
async fn look(registry: Arc<Registry>, streams: Arc<Streams>, pool: PgPool, stop: CancellationToken) {
    let mut turns = tokio::time::interval(LOOK_EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks: u32 = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = turns.tick() => {}
            () = registry.look.notified() => {}
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(DOUBT_LINKS_EVERY) {
            streams.doubt_links();
        }
        let mut tenants = registry.by_tenant();
        for (tenant, jobs) in streams.by_tenant() {
            tenants.entry(tenant).or_default().extend(jobs);
        }
        for (tenant, jobs) in tenants {
            for jobs in jobs.chunks(LOOKED_AT_TOGETHER) {
                match versions(&pool, tenant, jobs).await {
                    Ok(versions) => {
                        registry.found(&versions);
                        streams.found(tenant, &versions);
                    }
                    // Who waits reads again at the end of their time; what fails then is theirs to hear.
                    Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "could not look at the watched jobs"),
                }
            }
        }
    }
}

async fn versions(pool: &PgPool, tenant: i32, jobs: &[Uuid]) -> Result<Vec<(JobId, i32)>, LedgerError> {
    let mut transaction = tenant::lookup(pool, tenant).await?;
    find::versions(&mut transaction, tenant, jobs).await
}

/// Tells Redis until every [`Follow`] is gone. A Redis that is away delays nobody: what can't be told is dropped.
async fn tell_redis(mut connection: Commands, redis: Redis, mut tellings: mpsc::Receiver<Telling>) {
    let mut batch = Vec::with_capacity(TOLD_TOGETHER);
    while tellings.recv_many(&mut batch, TOLD_TOGETHER).await > 0 {
        let told = async {
            for telling in &batch {
                match telling.call {
                    Call::Nothing => {}
                    Call::Stop => {
                        if let Some(job) = telling.changed {
                            signal::cancel(&mut connection, redis.keys(), job).await?;
                        }
                    }
                    Call::Dispatch(queue) => signal::wake(&mut connection, redis.keys(), queue).await?,
                }
            }
            signal::changed(&mut connection, redis.keys(), batch.drain(..).filter_map(|telling| telling.changed)).await
        };
        if let Err(error) = told.await {
            metrics::counter!("offstage_announcements_dropped_total").increment(1);
            tracing::warn!(error = &error as &dyn std::error::Error, "could not tell Redis of a change; others find it by looking");
        }
        batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn job(number: u128) -> JobId {
        JobId(Uuid::from_u128(number))
    }

    fn has_news(watch: &Watch) -> bool {
        watch.news().now_or_never().is_some()
    }

    #[test]
    fn a_hint_reaches_all_who_watch_the_job_also_those_not_waiting_yet() {
        let registry = Arc::new(Registry::new(10, 10));
        let (one, other, elsewhere) =
            (registry.watch(1, job(1)).unwrap(), registry.watch(1, job(1)).unwrap(), registry.watch(1, job(2)).unwrap());
        registry.wake(&[job(1), job(1), job(3)]);
        assert!(has_news(&one) && has_news(&other) && !has_news(&elsewhere));
        assert!(!has_news(&one), "two hints before a reading are one piece of news");
    }

    #[test]
    fn a_look_wakes_only_those_who_know_less() {
        let registry = Arc::new(Registry::new(10, 10));
        let (old, new, reading) =
            (registry.watch(1, job(1)).unwrap(), registry.watch(1, job(1)).unwrap(), registry.watch(1, job(1)).unwrap());
        old.saw(4);
        new.saw(5);
        registry.found(&[(job(1), 5), (job(9), 1)]);
        assert!(has_news(&old) && !has_news(&new) && !has_news(&reading));
    }

    #[test]
    fn places_are_bounded_and_come_back_with_the_last_of_a_job() {
        let registry = Arc::new(Registry::new(2, 2));
        let (one, two) = (registry.watch(1, job(1)).unwrap(), registry.watch(2, job(2)).unwrap());
        assert!(registry.watch(1, job(3)).is_none());
        assert_eq!(registry.by_tenant(), HashMap::from([(1, vec![job(1).0]), (2, vec![job(2).0])]));
        drop(two);
        let again = registry.watch(1, job(1)).unwrap();
        drop(one);
        registry.wake(&[job(1)]);
        assert!(has_news(&again));
        drop(again);
        assert!(registry.lock().is_empty());
    }

    #[test]
    fn one_tenant_leaves_places_for_others() {
        let registry = Arc::new(Registry::new(3, 2));
        let (one, two) = (registry.watch(1, job(1)).unwrap(), registry.watch(1, job(2)).unwrap());
        assert!(registry.watch(1, job(3)).is_none(), "its places are taken");
        let other = registry.watch(2, job(4)).unwrap();
        drop((one, other));
        let again = registry.watch(1, job(3)).unwrap();
        drop((two, again));
        assert!(registry.taken.lock().unwrap().is_empty(), "nobody is remembered who does not wait");
    }
}
