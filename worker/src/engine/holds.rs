//! What this process knows of pauses and throttles, and the pace at which jobs start here.
//!
//! A rate is asked twice: the dispatcher moves no more than is due, so that what has to wait waits in the backlog; and a run asks before it
//! starts, so that what piled up on the way, or comes back from a worker that died, keeps the rate too. Each place counts for itself.
//!
//! Rates are counted for the fleet in Redis. While that is away each process keeps its share of them by itself: work neither stops nor
//! runs free.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use shared::{
    job::Rate,
    ledger::{
        LedgerError,
        claim::ClaimedJob,
        holds::{self, Holds, Throttle},
        recover,
    },
    queue::{
        Commands, Queue, Redis,
        pace::{self, Pace},
    },
};

use super::Engine;

/// The longest that a run waits in its slot for its start; longer it waits in the backlog.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Rates that are kept here while Redis is away.
const MOST_LOCAL: usize = 10_000;

/// Pauses, throttles, and the local pace.
#[derive(Debug)]
pub struct Known {
    holds: RwLock<Arc<Holds>>,
    connection: Commands,
    redis: Redis,
    /// When the next start of a rate is due, while Redis is away.
    local: Mutex<HashMap<String, Instant>>,
    /// Workers that are alive, among which the rates are divided then.
    workers: AtomicU32,
}

impl Known {
    pub(super) fn new(redis: &Redis) -> Self {
        Self {
            holds: RwLock::default(),
            connection: redis.commands(),
            redis: redis.clone(),
            local: Mutex::default(),
            workers: AtomicU32::new(1),
        }
    }

    /// As last read.
    pub fn holds(&self) -> Arc<Holds> {
        Arc::clone(&self.holds.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads them anew.
    ///
    /// # Errors
    /// [`LedgerError`]; what is known stays in force.
    pub(super) async fn read(&self, engine: &Engine) -> Result<(), LedgerError> {
        let mut ledger = engine.services.pool.acquire().await?;
        let mut holds = holds::read(&mut ledger).await?;
        let now = engine.services.clock.now();
        if holds.pauses.iter().any(|pause| pause.until.is_some_and(|until| until <= now)) {
            holds::end_those_over(&mut ledger, now).await?;
            holds = holds::read(&mut ledger).await?;
        }
        drop(ledger);
        // What the product paused itself, since the outside would take nothing: somebody should look.
        metrics::gauge!("offstage_pauses_by_itself").set(holds.pauses.iter().filter(|pause| pause.until.is_some()).count() as f64);
        let changed = *self.holds() != holds;
        if changed {
            tracing::info!(pauses = holds.pauses.len(), throttles = holds.throttles.len(), "pauses or throttles have changed");
            *self.holds.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(holds);
            // What was held up may go on.
            engine.dispatch.all_due();
        }
        let workers = recover::living_workers(&engine.services.pool).await?.len();
        self.workers.store(u32::try_from(workers).unwrap_or(u32::MAX).max(1), Ordering::Relaxed);
        Ok(())
    }

    /// Whether a tenant's jobs of a kind in a queue are paused.
    pub fn is_paused(&self, tenant: i32, queue: Queue, kind: &str) -> bool {
        self.holds().pauses.iter().any(|pause| pause.stops(tenant, queue, kind))
    }

    /// Waits until a job may start by all the rates that bound it; how long it should stay away where that is too long.
    pub async fn pace(&self, job: &ClaimedJob) -> Result<(), Duration> {
        let holds = self.holds();
        let own = job.options.as_ref().and_then(|options| options.limit.as_ref());
        let own = own.and_then(|limit| limit.rate.map(|rate| (format!("{}:key:{}", job.tenant, limit.key), rate)));
        let throttles = holds.throttles.iter().filter(|throttle| throttle.bounds(job.tenant, job.queue));
        let mut wait = Duration::ZERO;
        for (name, rate) in own.into_iter().chain(throttles.map(|throttle| (throttle.name(), throttle.rate))) {
            match self.reserve(&name, rate).await {
                Pace::After(after) => wait = wait.max(after),
                Pace::Later(later) => return Err(later),
            }
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    async fn reserve(&self, name: &str, rate: Rate) -> Pace {
        let mut connection = self.connection.clone();
        match pace::reserve(&mut connection, self.redis.keys(), name, rate, LONGEST_WAIT).await {
            Ok(pace) => pace,
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "Redis does not count the starts; keeping a share of the rate here"
                );
                self.reserve_here(name, rate)
            }
        }
    }

    /// The same for this process' share of a rate.
    fn reserve_here(&self, name: &str, rate: Rate) -> Pace {
        let workers = self.workers.load(Ordering::Relaxed).max(1);
        let every = pace::interval(rate) * workers;
        let burst = (rate.burst / workers).max(1);
        let now = Instant::now();
        let mut local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        if local.len() >= MOST_LOCAL {
            local.retain(|_, due| *due > now);
        }
        let due = local.get(name).copied().unwrap_or(now).max(now);
        let wait = due.duration_since(now).saturating_sub(every * (burst - 1));
        if wait > LONGEST_WAIT {
            return Pace::Later(wait);
        }
        local.insert(name.to_owned(), due + every);
        Pace::After(wait)
    }

    /// As many of the wanted jobs as a throttle lets the dispatcher move now.
    pub async fn draw(&self, throttle: &Throttle, wanted: usize) -> usize {
        let mut connection = self.connection.clone();
        // Without Redis nothing can be dispatched anyway.
        pace::draw(&mut connection, self.redis.keys(), &throttle.name(), throttle.rate, wanted).await.unwrap_or(0)
    }
}
