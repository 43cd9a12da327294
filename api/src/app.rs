//! What every request can reach.

use std::{ops::Deref, sync::Arc, time::Instant};

use redis::aio::ConnectionManager;
use shared::{
    clock::Clock,
    config::ApiConfig,
    ledger::{self, LedgerError, Sessions},
    queue::{QueueError, Redis},
    shutdown::Shutdown,
    telemetry::Metrics,
    tenant::Tenants,
};
use sqlx::PgPool;

use crate::{auth::KeyCache, routes::Health};

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
    pub redis: ConnectionManager,
    /// Tenants as last read.
    pub tenants: Tenants,
    /// API keys as last read.
    pub keys: KeyCache,
    /// Health as last judged.
    pub health: Health,
    /// The figures.
    pub metrics: Metrics,
    /// Whether the program is ending: what waits for something should stop waiting.
    pub shutdown: Shutdown,
    /// When the program started.
    pub started: Instant,
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
        let pool = ledger::pool("OFFSTAGE_API_DATABASE_URL", &config.database.url, Sessions::Plain, config.database.pool)?;
        let redis = Redis::new(&config.redis.url, &config.redis.prefix)?.commands()?;
        Ok(Self(Arc::new(Parts {
            tenants: Tenants::new(pool.clone()),
            keys: KeyCache::new(pool.clone(), clock.clone()),
            health: Health::default(),
            config,
            clock,
            pool,
            redis,
            metrics,
            shutdown,
            started: Instant::now(),
        })))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
