//! What streams of notifications are fed by: the new ones are read once for all who listen here, by the transactions that wrote them.
//!
//! What must stay true:
//! - whoever listens was registered before they read what there is, so nothing falls between the two;
//! - nobody misses a notification because an older transaction ends later: reading begins anew above the oldest one under way, and what
//!   was told from above that is remembered until then;
//! - the database is asked once a second and process while anybody listens, sooner after a hint, and never per listener;
//! - a listener who reads slowly, or not at all, costs a bounded number of events; then it is told to look for itself.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::ledger::{
    LedgerError,
    inbox::{self, News},
};
use sqlx::PgPool;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::places::{Place, Places};

/// How often is looked without a hint.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The pause between two looks, hints or not.
const BREATH: Duration = Duration::from_millis(100);

/// Notifications of one statement.
const READ_TOGETHER: i32 = 1_000;

/// The longest that one reading may take.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// News that may wait for one listener.
const MOST_PENDING: usize = 100;

/// Told ones that are remembered while an older transaction is under way.
const MOST_REMEMBERED: usize = 20_000;

/// What came for a listener.
#[derive(Debug, Default)]
pub struct Arrived {
    /// The news, in the order in which they were found.
    pub news: VecDeque<Arc<News>>,
    /// Every transaction up to this one has ended, and what they wrote for this listener is in `news` or came before.
    pub settled: i64,
    /// Something did not fit: the listener looks for itself.
    pub missed: bool,
    /// The latest transaction that it was told of and that was not known to be settled then.
    unsettled: Option<i64>,
}

#[derive(Debug)]
struct Inbox {
    tenant: i32,
    owner: String,
    arrived: Mutex<Arrived>,
    news: Notify,
}

/// Who listens, by tenant and owner.
type Listeners = HashMap<(i32, String), Vec<Arc<Inbox>>>;

/// All who listen to inboxes here.
#[derive(Debug)]
pub struct Inboxes {
    pool: PgPool,
    places: Arc<Places>,
    listeners: Mutex<Listeners>,
    /// All transactions up to this one are read; `None` while nobody listens. Locked after `listeners`, where both are.
    settled: Mutex<Option<i64>>,
    look: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inboxes {
    pub(super) fn new(pool: PgPool, places: Arc<Places>) -> Self {
        Self { pool, places, listeners: Mutex::default(), settled: Mutex::default(), look: Notify::new() }
    }

    /// Listens to an inbox from now on, to be done before it is read; `None` when there is no place.
    ///
    /// # Errors
    /// [`LedgerError`]: where the present moment is could not be found out.
    pub async fn listen(self: &Arc<Self>, tenant: i32, owner: &str) -> Result<Option<Listener>, LedgerError> {
        let Some(place) = self.places.enter(tenant) else { return Ok(None) };
        let inbox = Arc::new(Inbox { tenant, owner: owner.to_owned(), arrived: Mutex::default(), news: Notify::new() });
        lock(&self.listeners).entry((tenant, owner.to_owned())).or_default().push(Arc::clone(&inbox));
        let listener = Listener { inboxes: Arc::clone(self), inbox, _place: place };
        if lock(&self.settled).is_none() {
            let settled = within(inbox::settled_up_to(&self.pool)).await?;
            // Who was quicker found out no later moment than the one at which this listener begins to read.
            lock(&self.settled).get_or_insert(settled);
        }
        Ok(Some(listener))
    }

    /// Something may have been written.
    pub(super) fn hint(&self) {
        if !lock(&self.listeners).is_empty() {
            self.look.notify_one();
        }
    }

    /// Reads what is new and hands it to whoever listens, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        // Those told of transactions above what is settled.
        let mut told = HashMap::new();
        loop {
            let next = Instant::now() + LOOK_EVERY;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.look.notified() => {}
                () = sleep_until(next) => {}
            }
            if let Err(error) = self.read(&mut told).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not read for those who listen to inboxes; trying again");
            }
            tokio::time::sleep(BREATH).await;
        }
    }

    /// The tenants of those who listen; where nobody does, reading begins anew with whoever comes next.
    fn tenants(&self) -> Vec<i32> {
        let listeners = lock(&self.listeners);
        let mut tenants: Vec<i32> = listeners.keys().map(|(tenant, _)| *tenant).collect();
        if tenants.is_empty() {
            // While nobody can register: who does so afterwards finds that reading is yet to begin.
            *lock(&self.settled) = None;
        }
        drop(listeners);
        tenants.sort_unstable();
        tenants.dedup();
        tenants
    }

    async fn read(&self, told: &mut HashMap<Uuid, i64>) -> Result<(), LedgerError> {
        let tenants = self.tenants();
        if tenants.is_empty() {
            told.clear();
            return Ok(());
        }
        // Before what is new is read: what these transactions wrote is visible then.
        let settled = within(inbox::settled_up_to(&self.pool)).await?;
        let mut after = *lock(&self.settled).get_or_insert(settled);
        loop {
            let found = within(inbox::news(&self.pool, after, &tenants, READ_TOGETHER)).await?;
            let last_page = found.len() < usize::try_from(READ_TOGETHER).unwrap_or(usize::MAX);
            let last = found.last().map_or(after, |news| news.position);
            // The last transaction of a full page may have written more; it is read again with the next one, if it was not the only one.
            let several = found.first().is_some_and(|first| first.position < last);
            let whole = if last_page || !several { last } else { last - 1 };
            for news in found.into_iter().filter(|news| news.position <= whole) {
                if told.insert(news.notification.id, news.position).is_none() {
                    self.tell(news);
                }
            }
            if last_page {
                break;
            }
            if !several {
                // One transaction that wrote more than a page: who listens looks for themselves.
                self.all_missed();
            }
            after = whole;
        }
        if told.len() > MOST_REMEMBERED {
            // A transaction has been open for very long: better told to look again than twice the same.
            told.clear();
            *lock(&self.settled) = Some(after.max(settled));
            self.all_missed();
            return Ok(());
        }
        told.retain(|_, position| *position > settled);
        *lock(&self.settled) = Some(settled);
        self.settle(settled);
        Ok(())
    }

    fn tell(&self, news: News) {
        let listeners = lock(&self.listeners);
        let Some(inboxes) = listeners.get(&(news.tenant, news.owner.clone())) else { return };
        let news = Arc::new(news);
        for inbox in inboxes {
            let mut arrived = lock(&inbox.arrived);
            if arrived.news.len() >= MOST_PENDING {
                arrived.missed = true;
                arrived.news.clear();
            }
            if !arrived.missed {
                arrived.unsettled = arrived.unsettled.max(Some(news.position));
                arrived.news.push_back(Arc::clone(&news));
            }
            drop(arrived);
            inbox.news.notify_one();
        }
    }

    fn settle(&self, settled: i64) {
        for inbox in lock(&self.listeners).values().flatten() {
            let mut arrived = lock(&inbox.arrived);
            arrived.settled = arrived.settled.max(settled);
            // Nobody else is woken for a number.
            if arrived.unsettled.is_some_and(|position| position <= settled) {
                arrived.unsettled = None;
                drop(arrived);
                inbox.news.notify_one();
            }
        }
    }

    fn all_missed(&self) {
        for inbox in lock(&self.listeners).values().flatten() {
            let mut arrived = lock(&inbox.arrived);
            arrived.missed = true;
            arrived.news.clear();
            drop(arrived);
            inbox.news.notify_one();
        }
    }
}

/// A reading, or that it took too long.
async fn within<T>(reading: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
    timeout(READ_WITHIN, reading).await.unwrap_or_else(|_| Err(shared::ledger::timed_out()))
}

/// One who listens to an inbox; ends when dropped.
#[derive(Debug)]
pub struct Listener {
    inboxes: Arc<Inboxes>,
    inbox: Arc<Inbox>,
    _place: Place,
}

impl Listener {
    /// The product.
    #[must_use]
    pub fn tenant(&self) -> i32 {
        self.inbox.tenant
    }

    /// Whose inbox.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.inbox.owner
    }

    /// Takes what has come.
    #[must_use]
    pub fn take(&self) -> Arrived {
        let mut arrived = lock(&self.inbox.arrived);
        let (settled, unsettled) = (arrived.settled, arrived.unsettled);
        std::mem::replace(&mut *arrived, Arrived { settled, unsettled, ..Arrived::default() })
    }

    /// Waits until something came since the last time this returned.
    pub async fn news(&self) {
        self.inbox.news.notified().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut listeners = lock(&self.inboxes.listeners);
        let of = (self.inbox.tenant, self.inbox.owner.clone());
        if let Some(inboxes) = listeners.get_mut(&of) {
            inboxes.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
            if inboxes.is_empty() {
                listeners.remove(&of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use futures_util::FutureExt;
    use serde_json::Value;
    use shared::ledger::inbox::Notification;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;

    fn inboxes() -> Arc<Inboxes> {
        // Connects at first use, and there is none.
        let pool = PgPoolOptions::new().connect_lazy_with(PgConnectOptions::new());
        let inboxes = Inboxes::new(pool, Arc::new(Places::new(3, 2)));
        *lock(&inboxes.settled) = Some(100);
        Arc::new(inboxes)
    }

    async fn listen(inboxes: &Arc<Inboxes>, tenant: i32, owner: &str) -> Option<Listener> {
        inboxes.listen(tenant, owner).await.unwrap()
    }

    fn news(tenant: i32, owner: &str, number: u128) -> News {
        let notification = Notification {
            id: Uuid::from_u128(number),
            sort: "system".into(),
            title: "T".into(),
            message: "M".into(),
            data: Value::Null,
            read_at: None,
            clicked_at: None,
            archived_at: None,
            created_at: DateTime::UNIX_EPOCH,
        };
        News { tenant, owner: owner.into(), position: 100 + i64::try_from(number).unwrap(), notification }
    }

    fn numbers(arrived: &Arrived) -> Vec<i64> {
        arrived.news.iter().map(|news| news.position - 100).collect()
    }

    #[tokio::test]
    async fn each_hears_of_their_own() {
        let inboxes = inboxes();
        let (ada, again) = (listen(&inboxes, 1, "ada").await.unwrap(), listen(&inboxes, 1, "ada").await.unwrap());
        assert!(listen(&inboxes, 1, "eve").await.is_none(), "its places are taken");
        let other = listen(&inboxes, 2, "ada").await.unwrap();
        inboxes.tell(news(1, "ada", 1));
        inboxes.tell(news(1, "eve", 2));
        inboxes.tell(news(2, "ada", 3));
        assert_eq!([&ada, &again, &other].map(|listener| numbers(&listener.take())), [vec![1], vec![1], vec![3]]);
        assert!(ada.take().news.is_empty());
        drop((ada, again, other));
        assert!(lock(&inboxes.listeners).is_empty() && inboxes.tenants().is_empty());
        assert_eq!(*lock(&inboxes.settled), None, "who comes next begins anew");
    }

    #[tokio::test]
    async fn only_who_was_told_early_is_woken_for_a_mark() {
        let inboxes = inboxes();
        let (ada, eve) = (listen(&inboxes, 1, "ada").await.unwrap(), listen(&inboxes, 1, "eve").await.unwrap());
        inboxes.tell(news(1, "ada", 7));
        assert!(ada.news().now_or_never().is_some());
        assert_eq!(numbers(&ada.take()), [7]);
        inboxes.settle(106);
        assert!(ada.news().now_or_never().is_none(), "an older transaction is under way");
        inboxes.settle(107);
        assert!(ada.news().now_or_never().is_some() && eve.news().now_or_never().is_none());
        assert_eq!((ada.take().settled, eve.take().settled), (107, 107));
    }

    #[tokio::test]
    async fn who_reads_nothing_costs_a_bounded_number_and_looks_again() {
        let inboxes = inboxes();
        let ada = listen(&inboxes, 1, "ada").await.unwrap();
        for number in 0..=MOST_PENDING as u128 {
            inboxes.tell(news(1, "ada", number));
        }
        let arrived = ada.take();
        assert!(arrived.missed && arrived.news.is_empty());
        inboxes.tell(news(1, "ada", 5));
        assert_eq!(numbers(&ada.take()), [5], "from then on as before");
    }
}
