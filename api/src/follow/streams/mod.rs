//! What streams of events are fed by: each job that somebody follows is read once for all who follow it, after a change, many jobs
//! by one statement.
//!
//! What must stay true:
//! - whoever follows was registered before they read, so no change falls between the two;
//! - the ledger is asked per change and never per listener; an idle listener holds no connection to it and no task of its own;
//! - a listener that is slow, or reads nothing at all, costs no more than the newest state of what it follows: of one job a newer
//!   state replaces an older one, of many jobs a bounded number wait and then a new picture is taken ([`feeds::Inbox`]);
//! - what is told of one job never goes back: a state replaces only those of lower versions;
//! - who asks for another tenant's job follows nothing: rooms are a tenant's, and what is read for one is read as that tenant.

mod feeds;
mod listeners;
mod seen;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    clock::Clock,
    job::JobId,
    ledger::{
        LedgerError,
        find::{self, FoundJob},
        links::{self, LinkHash},
    },
    tenant,
};
use sqlx::PgPool;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use feeds::Feed;
pub use feeds::Interest;
pub use listeners::{Following, Listening};
pub use seen::{Latest, Seen};

use super::places::Places;

/// Jobs of one statement; each may have a result of 64 KiB.
const READ_TOGETHER: usize = 200;

/// Changed jobs that may wait to be read for listeners to many; beyond it they take a new picture.
const MOST_DIRTY: usize = 50_000;

/// The longest that one reading may take.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// The pause after a reading that failed.
const AFTER_FAULT: Duration = Duration::from_millis(500);

/// The followers of one job.
#[derive(Debug)]
struct Room {
    tenant: i32,
    latest: watch::Sender<Latest>,
    followers: usize,
    /// Of those, the ones that came by an address.
    by_link: usize,
}

/// All that is streamed here.
#[derive(Debug)]
pub struct Streams {
    pool: PgPool,
    clock: Clock,
    places: Arc<Places>,
    /// Of each job its followers, by the tenant that they say it is of: mostly one.
    rooms: Mutex<HashMap<JobId, Vec<Room>>>,
    feeds: Mutex<HashMap<i32, Vec<Arc<Feed>>>>,
    dirty: Mutex<HashSet<JobId>>,
    work: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    pub(super) fn new(pool: PgPool, clock: Clock, places: Arc<Places>) -> Self {
        Self { pool, clock, places, rooms: Mutex::default(), feeds: Mutex::default(), dirty: Mutex::default(), work: Notify::new() }
    }

    /// Follows one job from now on, to be done before its row is read; `None` when there is no place.
    #[must_use]
    pub fn follow(self: &Arc<Self>, tenant: i32, job: JobId, by_link: bool) -> Option<Following> {
        let place = self.places.enter(tenant)?;
        let mut rooms = lock(&self.rooms);
        let of_job = rooms.entry(job).or_insert_with(|| Vec::with_capacity(1));
        let receiver = if let Some(room) = of_job.iter_mut().find(|room| room.tenant == tenant) {
            room.followers += 1;
            room.by_link += usize::from(by_link);
            room.latest.subscribe()
        } else {
            let (latest, receiver) = watch::channel(Latest::Unread);
            of_job.push(Room { tenant, latest, followers: 1, by_link: usize::from(by_link) });
            receiver
        };
        drop(rooms);
        Some(Following { streams: Arc::clone(self), tenant, job, by_link, receiver, _place: place })
    }

    /// Listens to a tenant's jobs from now on, to be done before a picture is taken; `None` when there is no place.
    #[must_use]
    pub fn listen(self: &Arc<Self>, tenant: i32, interest: Interest) -> Option<Listening> {
        let place = self.places.enter(tenant)?;
        let feed = Arc::new(Feed { interest, inbox: Mutex::default(), news: Notify::new() });
        lock(&self.feeds).entry(tenant).or_default().push(Arc::clone(&feed));
        Some(Listening { streams: Arc::clone(self), tenant, feed, _place: place })
    }

    /// These jobs changed, of whichever tenant.
    pub(super) fn changed(&self, jobs: &[JobId]) {
        let everything = !lock(&self.feeds).is_empty();
        let rooms = lock(&self.rooms);
        if !everything && rooms.is_empty() {
            return;
        }
        let mut dirty = lock(&self.dirty);
        for job in jobs {
            if rooms.contains_key(job) || (everything && dirty.len() < MOST_DIRTY) {
                dirty.insert(*job);
            } else if everything {
                drop(dirty);
                drop(rooms);
                self.missed();
                return;
            }
        }
        let any = !dirty.is_empty();
        drop(dirty);
        drop(rooms);
        if any {
            self.work.notify_one();
        }
    }

    /// Nobody knows what changed: all who listen to many jobs take a new picture.
    pub(super) fn missed(&self) {
        for feed in lock(&self.feeds).values().flatten() {
            lock(&feed.inbox).miss();
            feed.news.notify_one();
        }
    }

    /// The followed jobs by tenant: row-level security shows one tenant a transaction.
    pub(super) fn by_tenant(&self) -> HashMap<i32, Vec<Uuid>> {
        let mut tenants: HashMap<i32, Vec<Uuid>> = HashMap::new();
        for (job, rooms) in &*lock(&self.rooms) {
            for room in rooms {
                tenants.entry(room.tenant).or_default().push(job.0);
            }
        }
        tenants
    }

    /// Versions that a look found: those above what is known are read.
    pub(super) fn found(&self, tenant: i32, versions: &[(JobId, i32)]) {
        let rooms = lock(&self.rooms);
        let newer = |(job, version): &&(JobId, i32)| {
            room_of(&rooms, *job, tenant).is_some_and(|room| match &*room.latest.borrow() {
                Latest::Unread => true,
                Latest::Seen(seen) => seen.job.version < *version,
                Latest::Gone => false,
            })
        };
        let newer: Vec<JobId> = versions.iter().filter(newer).map(|(job, _)| *job).collect();
        drop(rooms);
        self.changed(&newer);
    }

    /// Looks again at what is followed by an address, which may have been taken back while a hint was lost.
    pub(super) fn doubt_links(&self) {
        let doubted: Vec<JobId> =
            lock(&self.rooms).iter().filter(|(_, rooms)| rooms.iter().any(|room| room.by_link > 0)).map(|(job, _)| *job).collect();
        self.changed(&doubted);
    }

    /// Reads what changed and hands it to its followers, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.work.notified() => {}
            }
            loop {
                let dirty = std::mem::take(&mut *lock(&self.dirty));
                if dirty.is_empty() {
                    break;
                }
                if let Err(error) = self.read(&dirty).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "could not read for those who follow; trying again");
                    lock(&self.dirty).extend(dirty);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(AFTER_FAULT) => {}
                    }
                }
            }
        }
    }

    async fn read(&self, dirty: &HashSet<JobId>) -> Result<(), LedgerError> {
        /// What is to be read of a tenant.
        #[derive(Default)]
        struct Wanted {
            jobs: HashSet<Uuid>,
            followed: HashSet<Uuid>,
            by_link: bool,
        }
        let mut tenants: HashMap<i32, Wanted> = HashMap::new();
        {
            let rooms = lock(&self.rooms);
            for (job, room) in dirty.iter().flat_map(|job| rooms.get(job).into_iter().flatten().map(move |room| (job, room))) {
                let wanted = tenants.entry(room.tenant).or_default();
                wanted.jobs.insert(job.0);
                wanted.followed.insert(job.0);
                wanted.by_link |= room.by_link > 0;
            }
        }
        let listening: Vec<i32> = lock(&self.feeds).keys().copied().collect();
        if !listening.is_empty() {
            let ids: Vec<Uuid> = dirty.iter().map(|job| job.0).collect();
            for ids in ids.chunks(1_000) {
                for (job, tenant) in within(find::tenants(&self.pool, ids, &listening)).await? {
                    tenants.entry(tenant).or_default().jobs.insert(job.0);
                }
            }
        }
        for (tenant, wanted) in tenants {
            let jobs: Vec<Uuid> = wanted.jobs.into_iter().collect();
            for jobs in jobs.chunks(READ_TOGETHER) {
                let followed: Vec<Uuid> = jobs.iter().copied().filter(|job| wanted.followed.contains(job)).collect();
                let (found, links) = within(self.read_some(tenant, jobs, &followed, wanted.by_link)).await?;
                self.tell(tenant, found, links.as_deref(), &followed);
            }
        }
        Ok(())
    }

    async fn read_some(
        &self,
        tenant: i32,
        jobs: &[Uuid],
        followed: &[Uuid],
        by_link: bool,
    ) -> Result<(Vec<FoundJob>, Option<Vec<(JobId, LinkHash)>>), LedgerError> {
        let mut transaction = tenant::lookup(&self.pool, tenant).await?;
        let found = find::followed(&mut transaction, tenant, jobs, followed).await?;
        let mut links = None;
        if by_link {
            links = Some(links::of_jobs(&mut transaction, tenant, followed, self.clock.now()).await?);
        }
        Ok((found, links))
    }

    fn tell(&self, tenant: i32, found: Vec<FoundJob>, links: Option<&[(JobId, LinkHash)]>, followed: &[Uuid]) {
        let there: HashSet<Uuid> = found.iter().map(|job| job.id.0).collect();
        let feeds: Vec<Arc<Feed>> = lock(&self.feeds).get(&tenant).cloned().unwrap_or_default();
        for job in found {
            let links = links.map(|links| links.iter().filter(|(of, _)| *of == job.id).map(|(_, hash)| *hash).collect());
            let seen = Arc::new(Seen::new(job, links));
            self.publish(tenant, &seen);
            for feed in feeds.iter().filter(|feed| feed.interest.holds(&seen.job)) {
                lock(&feed.inbox).put(&seen);
                feed.news.notify_one();
            }
        }
        let rooms = lock(&self.rooms);
        for gone in followed.iter().filter(|job| !there.contains(*job)) {
            if let Some(room) = room_of(&rooms, JobId(*gone), tenant) {
                room.latest.send_replace(Latest::Gone);
            }
        }
    }

    /// Hands a job as it was read to those who follow it, unless they know more.
    fn publish(&self, tenant: i32, seen: &Arc<Seen>) {
        let rooms = lock(&self.rooms);
        let Some(room) = room_of(&rooms, seen.job.id, tenant) else { return };
        room.latest.send_if_modified(|latest| {
            let is_news = match latest {
                Latest::Unread => true,
                Latest::Seen(known) if known.job.version > seen.job.version => false,
                Latest::Seen(known) => known.job.version < seen.job.version || (seen.links.is_some() && known.links != seen.links),
                Latest::Gone => false,
            };
            if is_news {
                *latest = Latest::Seen(Arc::clone(seen));
            }
            is_news
        });
    }
}

fn room_of(rooms: &HashMap<JobId, Vec<Room>>, job: JobId, tenant: i32) -> Option<&Room> {
    rooms.get(&job)?.iter().find(|room| room.tenant == tenant)
}

/// A reading, or that it took too long.
async fn within<T>(reading: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
    tokio::time::timeout(READ_WITHIN, reading).await.unwrap_or_else(|_| Err(shared::ledger::timed_out()))
}
