//! What every request can reach.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use shared::{
    clock::Clock,
    config::ApiConfig,
    kinds::Registry,
    ledger::{self, LedgerError, Sessions, rollups::ask::Turns},
    queue::{Commands, QueueError, Redis},
    shutdown::Shutdown,
    storage::Storage,
    telemetry::Metrics,
    tenant::Tenants,
};
use sqlx::PgPool;
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    accept::{Acceptor, Room},
    auth::KeyCache,
    backlog::Backlogs,
    follow::Follow,
    intake::Intake,
    origin::Origins,
    pace::Paces,
    routes::{Answers, Health},
};

/// Batches that are read and stored at a time; further ones wait for their turn.
pub const BATCHES: usize = 4;

/// Counters that are there from the start, so that an alert on one finds it before the first event.
const FROM_THE_START: &[&str] = &[
    "offstage_announcements_dropped_total",
    "offstage_backlog_refused_total",
    "offstage_batches_accepted_total",
    "offstage_handovers_dropped_total",
    "offstage_http_waiting_refused_total",
    "offstage_jobs_discarded_total",
    "offstage_jobs_redriven_total",
    "offstage_schedule_runs_wished_total",
    "offstage_stream_events_total",
    "offstage_streams_refused_total",
    "offstage_usage_refused_total",
];

/// Pictures of many jobs that are taken at a time.
const PICTURES: usize = 4;

/// The program's parts, shared by all requests. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// See [`App`].
pub struct Parts {
    /// The settings.
    pub config: ApiConfig,
    /// Business time.
    pub clock: Clock,
    /// Postgres, as the role `offstage_api`.
    pub pool: PgPool,
    /// Redis, for what answers at once.
    pub redis: Commands,
    /// Object storage, for links to files.
    pub storage: Storage,
    /// The kinds of jobs.
    pub kinds: Registry,
    /// Takes jobs in.
    pub acceptor: Acceptor,
    /// Takes events in.
    pub intake: Intake,
    /// Answers about what is over, for a while.
    pub answers: Answers,
    /// Turns of those who have answers computed of what was counted, so that they leave cores and connections to others.
    pub turns: Turns,
    /// Turns of those who take pictures of many jobs, so that they leave connections to others.
    pub pictures: Semaphore,
    /// How much of each tenant waits.
    pub backlogs: Backlogs,
    /// Batches under way: each holds some megabytes, so there are few at a time.
    pub batches: Arc<Semaphore>,
    /// Who waits for news of jobs.
    pub follow: Follow,
    /// How long jobs take.
    pub paces: Paces,
    /// Tenants as last read.
    pub tenants: Tenants,
    /// API keys as last read.
    pub keys: KeyCache,
    /// Pages that browsers may call from, as last read.
    pub origins: Origins,
    /// Health as last judged.
    pub health: Health,
    /// The figures.
    pub metrics: Metrics,
    /// Whether the program is ending: what waits for something should stop waiting.
    pub shutdown: Shutdown,
    /// When the program started.
    pub started: Instant,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

/// The program could not be put together from its settings.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Postgres' address.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Redis' address.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl App {
    /// Puts the program together. Connects to nothing yet: a database that comes up later is found then. Needs a Tokio
    /// runtime.
    ///
    /// # Errors
    /// [`AppError`] for addresses that can't be used.
    pub fn new(config: ApiConfig, clock: Clock, metrics: Metrics, shutdown: Shutdown) -> Result<Self, AppError> {
        for name in FROM_THE_START {
            metrics::counter!(*name).increment(0);
        }
        let _registered = metrics::histogram!("offstage_batch_store_seconds");
        let _registered = metrics::histogram!("offstage_accept_metered_seconds");
        for by in ["idempotency_key", "unique"] {
            metrics::counter!("offstage_jobs_duplicate_total", "by" => by).increment(0);
        }
        metrics::counter!("offstage_http_panics_total", "route" => "unmatched").increment(0);
        metrics::gauge!("offstage_http_requests_waiting").increment(0.0);
        metrics::gauge!("offstage_streams").set(0.0);
        let pool = ledger::pool("OFFSTAGE_API_DATABASE_URL", &config.database.url, Sessions::Plain, config.database.pool)?;
        let redis = Redis::new(&config.redis.url, &config.redis.prefix)?;
        let room = Arc::new(Room::new(config.window.into()));
        let (acceptor, accepting) = Acceptor::start(pool.clone(), &redis, clock.clone(), Arc::clone(&room));
        let follow = Follow::start(pool.clone(), &redis, room, clock.clone(), config.streams, shutdown.asked().clone());
        Ok(Self(Arc::new(Parts {
            paces: Paces::new(pool.clone()),
            tenants: Tenants::new(pool.clone()),
            keys: KeyCache::new(pool.clone(), clock.clone()),
            origins: Origins::new(pool.clone()),
            health: Health::default(),
            storage: Storage::new(&config.s3),
            kinds: Registry::new(config.probe.enabled),
            acceptor,
            intake: Intake::new(pool.clone(), clock.clone()),
            answers: Answers::default(),
            turns: Turns::default(),
            pictures: Semaphore::new(PICTURES),
            backlogs: Backlogs::new(pool.clone()),
            batches: Arc::new(Semaphore::new(BATCHES)),
            follow,
            redis: redis.commands(),
            config,
            clock,
            pool,
            metrics,
            shutdown,
            started: Instant::now(),
            accepting: Mutex::new(Some(accepting)),
        })))
    }

    /// What to wait for once this and all its clones are gone: what was accepted is told to Redis by then.
    #[must_use]
    pub fn accepting(&self) -> Option<JoinHandle<()>> {
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
