//! What streams of events are fed by: each job that somebody follows is read once for all who follow it, after a change, many jobs
//! by one statement.
//!
//! What must stay true:
//! - whoever follows was registered before they read, so no change falls between the two;
//! - the ledger is asked per change and never per listener; an idle listener holds no connection to it and no task of its own;
//! - a listener that is slow, or reads nothing at all, costs no more than the newest state of what it follows: of one job a newer
//!   state replaces an older one, of many jobs a bounded number wait and then a new picture is taken ([`Inbox`]);
//! - what is told of one job never goes back: a state replaces only those of lower versions;
//! - who asks for another tenant's job follows nothing: rooms are a tenant's, and what is read for one is read as that tenant.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use shared::{
    clock::Clock,
    job::JobId,
    kinds::Registry,
    ledger::{
        LedgerError,
        find::{self, FoundJob},
        links::{self, LinkHash},
    },
    status::{Job, Reader},
    tenant,
};
use sqlx::PgPool;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::places::{Place, Places};

/// Jobs of one statement; each may have a result of 64 KiB.
const READ_TOGETHER: usize = 200;

/// Changed jobs that may wait to be read for listeners to many; beyond it they take a new picture.
const MOST_DIRTY: usize = 50_000;

/// Changes that may wait for one listener to many jobs; beyond it, it takes a new picture.
const MOST_PENDING: usize = 500;

/// The longest that one reading may take.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// The pause after a reading that failed.
const AFTER_FAULT: Duration = Duration::from_millis(500);

/// A job as it was last read, shared by all who follow it.
#[derive(Debug)]
pub struct Seen {
    /// The job; without its payload.
    pub job: FoundJob,
    /// The addresses that lead to it; `None` where nobody follows it by one.
    pub links: Option<Vec<LinkHash>>,
    rendered: [OnceLock<Bytes>; 4],
}

impl Seen {
    /// Of what was read.
    #[must_use]
    pub fn new(job: FoundJob, links: Option<Vec<LinkHash>>) -> Self {
        Self { job, links, rendered: Default::default() }
    }

    /// The job's view as JSON, made once for all readers of a sort; without its result where `brief`.
    #[must_use]
    pub fn view(&self, kinds: &Registry, clock: &Clock, reader: Reader, brief: bool) -> Bytes {
        let sort = usize::from(reader == Reader::User) + 2 * usize::from(brief);
        let make = || {
            let mut job = self.job.clone();
            if brief {
                job.result = None;
            }
            // A view is strings and numbers: nothing in it that JSON can't hold.
            serde_json::to_vec(&Job::of(job, None, kinds, clock.now(), reader)).unwrap_or_default().into()
        };
        self.rendered.get(sort).map_or_else(make, |rendered| rendered.get_or_init(make).clone())
    }
}

/// What is known of a job that is followed.
#[derive(Debug, Clone, Default)]
pub enum Latest {
    /// It has not been read yet.
    #[default]
    Unread,
    /// It was read.
    Seen(Arc<Seen>),
    /// It has been removed.
    Gone,
}

/// The followers of one job.
#[derive(Debug)]
struct Room {
    tenant: i32,
    latest: watch::Sender<Latest>,
    followers: usize,
    /// Of those, the ones that came by an address.
    by_link: usize,
}

/// Which of a tenant's jobs a listener to many hears of.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// Only this end user's.
    pub owner: Option<String>,
    /// Only this kind's.
    pub kind: Option<String>,
    /// Only this queue's.
    pub queue: Option<String>,
}

impl Interest {
    /// Whether a job is of interest.
    #[must_use]
    pub fn holds(&self, job: &FoundJob) -> bool {
        self.owner.as_ref().is_none_or(|owner| job.owner.as_ref() == Some(owner))
            && self.kind.as_ref().is_none_or(|kind| job.kind == *kind)
            && self.queue.as_ref().is_none_or(|queue| job.queue == *queue)
    }
}

/// What waits for one listener to many jobs.
#[derive(Debug, Default)]
pub struct Inbox {
    pending: HashMap<JobId, Arc<Seen>>,
    /// Something may have been missed: a new picture is to be taken.
    missed: bool,
}

impl Inbox {
    fn put(&mut self, seen: &Arc<Seen>) {
        if self.missed {
            return;
        }
        if self.pending.len() >= MOST_PENDING && !self.pending.contains_key(&seen.job.id) {
            self.miss();
            return;
        }
        self.pending.insert(seen.job.id, Arc::clone(seen));
    }

    fn miss(&mut self) {
        self.missed = true;
        self.pending = HashMap::new();
    }
}

/// A listener to many jobs.
#[derive(Debug)]
struct Feed {
    interest: Interest,
    inbox: Mutex<Inbox>,
    news: Notify,
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
    pub(super) fn new(pool: PgPool, clock: Clock, most: usize, most_of_tenant: usize) -> Self {
        let places = Arc::new(Places::new(most, most_of_tenant));
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

/// One listener's interest in a job; ends when dropped.
#[derive(Debug)]
pub struct Following {
    streams: Arc<Streams>,
    tenant: i32,
    job: JobId,
    by_link: bool,
    receiver: watch::Receiver<Latest>,
    _place: Place,
}

impl Following {
    /// What is known of the job; from now on news is what comes after it.
    pub fn latest(&mut self) -> Latest {
        self.receiver.borrow_and_update().clone()
    }

    /// What is known of the job, read where it is not known yet: together with what others wait for. `None` when that took too long.
    pub async fn known(&mut self) -> Option<Latest> {
        let reading = async {
            loop {
                match self.latest() {
                    Latest::Unread => {
                        self.streams.changed(&[self.job]);
                        self.news().await;
                    }
                    known => return known,
                }
            }
        };
        tokio::time::timeout(READ_WITHIN, reading).await.ok()
    }

    /// Waits until there is something after what [`Self::latest`] told.
    pub async fn news(&mut self) {
        // The room outlives its followers, so its sender is there.
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut rooms = lock(&self.streams.rooms);
        let Some(of_job) = rooms.get_mut(&self.job) else { return };
        if let Some(room) = of_job.iter_mut().find(|room| room.tenant == self.tenant) {
            room.followers = room.followers.saturating_sub(1);
            room.by_link = room.by_link.saturating_sub(usize::from(self.by_link));
        }
        of_job.retain(|room| room.followers > 0);
        if of_job.is_empty() {
            rooms.remove(&self.job);
        }
    }
}

/// One listener's interest in many jobs; ends when dropped.
#[derive(Debug)]
pub struct Listening {
    streams: Arc<Streams>,
    tenant: i32,
    feed: Arc<Feed>,
    _place: Place,
}

impl Listening {
    /// What of the tenant's jobs it hears.
    #[must_use]
    pub fn interest(&self) -> &Interest {
        &self.feed.interest
    }

    /// Takes what has come, in the order of the jobs; `None` when something was missed, and a new picture is to be taken.
    #[must_use]
    pub fn take(&self) -> Option<Vec<Arc<Seen>>> {
        let inbox = std::mem::take(&mut *lock(&self.feed.inbox));
        if inbox.missed {
            return None;
        }
        let mut seen: Vec<_> = inbox.pending.into_values().collect();
        seen.sort_unstable_by_key(|seen| (seen.job.finished_at.is_none(), seen.job.id));
        Some(seen)
    }

    /// Waits until something came since the last time this returned.
    pub async fn news(&self) {
        self.feed.news.notified().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut feeds = lock(&self.streams.feeds);
        if let Some(of_tenant) = feeds.get_mut(&self.tenant) {
            of_tenant.retain(|feed| !Arc::ptr_eq(feed, &self.feed));
            if of_tenant.is_empty() {
                feeds.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use shared::job::{Options, Priority, Reason, State};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;

    fn streams() -> Arc<Streams> {
        // Connects at first use, and there is none.
        let pool = PgPoolOptions::new().connect_lazy_with(PgConnectOptions::new());
        Arc::new(Streams::new(pool, Clock::system(), 100, 100))
    }

    fn seen(number: u128, version: i32, links: Option<Vec<LinkHash>>) -> Arc<Seen> {
        let now = DateTime::UNIX_EPOCH;
        let job = FoundJob {
            id: JobId(Uuid::from_u128(number)),
            kind: "probe.run".into(),
            queue: "analytics".into(),
            priority: Priority::Normal,
            owner: None,
            state: State::Running,
            reason: Reason::None,
            version,
            attempt: 1,
            attempts_allowed: 3,
            cancel_requested: false,
            created_at: now,
            run_at: now,
            start_by: None,
            started_at: Some(now),
            finished_at: None,
            progress_done: None,
            progress_total: None,
            payload: None,
            result: None,
            error: None,
            options: Options::default(),
            children: Vec::new(),
        };
        Arc::new(Seen::new(job, links))
    }

    fn version(following: &mut Following) -> Option<i32> {
        match following.latest() {
            Latest::Seen(seen) => Some(seen.job.version),
            Latest::Unread | Latest::Gone => None,
        }
    }

    #[tokio::test]
    async fn what_is_told_never_goes_back_and_stays_with_its_tenant() {
        let streams = streams();
        let job = JobId(Uuid::from_u128(1));
        let (mut ours, mut theirs) = (streams.follow(1, job, false).unwrap(), streams.follow(2, job, false).unwrap());
        streams.publish(1, &seen(1, 4, None));
        streams.publish(1, &seen(1, 3, None));
        assert_eq!((version(&mut ours), version(&mut theirs)), (Some(4), None));
        // Another address list is news, an older state with it is not.
        let hash = LinkHash::of("a token");
        streams.publish(1, &seen(1, 3, Some(vec![hash])));
        assert!(!ours.receiver.has_changed().unwrap());
        streams.publish(1, &seen(1, 4, Some(vec![hash])));
        assert!(ours.receiver.has_changed().unwrap());
        assert_eq!(streams.by_tenant().len(), 2);
        drop((ours, theirs));
        assert!(lock(&streams.rooms).is_empty() && streams.by_tenant().is_empty());
    }

    #[tokio::test]
    async fn a_slow_listener_to_many_costs_no_more_than_a_new_picture() {
        let streams = streams();
        let listening = streams.listen(1, Interest::default()).unwrap();
        let put = |number: u128, version: i32| lock(&listening.feed.inbox).put(&seen(number, version, None));
        for version in 1..=10 {
            put(7, version);
        }
        let taken = listening.take().unwrap();
        assert_eq!(taken.iter().map(|seen| seen.job.version).collect::<Vec<_>>(), [10], "the newest state replaces older ones");
        for number in 0..=MOST_PENDING as u128 {
            put(number, 1);
        }
        assert!(lock(&listening.feed.inbox).pending.is_empty(), "nothing is kept");
        assert!(listening.take().is_none(), "it takes a new picture");
        assert!(listening.take().unwrap().is_empty());
        drop(listening);
        assert!(lock(&streams.feeds).is_empty());
    }
}
