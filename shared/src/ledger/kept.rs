//! Connections that are kept from statement to statement.
//!
//! A pool asks each connection that comes back whether it is alive, twice (the library and [`super::pool`]): two round trips for
//! one statement. Whoever sends statement upon statement keeps one instead; its session has the plans and the tables at hand too, which
//! each of a pool's would make for itself.
//!
//! What must stay true: a connection on which something went wrong, or whose answer was not waited for, is not kept; one that lay
//! idle for [`TRUSTED`] is asked before it is used; nobody waits for another's exchange.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};

use super::{LedgerError, TRUSTED};

/// Some of a pool's connections, for those who share this.
#[derive(Debug)]
pub struct Kept {
    pool: PgPool,
    most: usize,
    /// The latest one used is the last.
    idle: Mutex<Vec<(PoolConnection<Postgres>, Instant)>>,
}

impl Kept {
    /// Keeps at most so many, which must be fewer than the pool's, or who goes to the pool itself waits for them.
    #[must_use]
    pub const fn of(pool: PgPool, most: usize) -> Self {
        Self { pool, most, idle: Mutex::new(Vec::new()) }
    }

    /// Sends something on a connection that is kept, or on one of the pool's that is kept from then on.
    ///
    /// # Errors
    /// That of the exchange, or that there is no connection. The connection goes back to the pool, which looks at it.
    pub async fn on<T>(&self, exchange: impl AsyncFnOnce(&mut PgConnection) -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        let mut connection = match self.trusted() {
            Some(connection) => connection,
            None => self.pool.acquire().await?,
        };
        let answer = exchange(&mut connection).await?;
        let mut idle = self.lock();
        if idle.len() < self.most {
            idle.push((connection, Instant::now()));
        }
        Ok(answer)
    }

    /// The one that was used last; if that is too long ago, all go back to the pool.
    fn trusted(&self) -> Option<PoolConnection<Postgres>> {
        let mut idle = self.lock();
        match idle.pop() {
            Some((connection, used)) if used.elapsed() <= TRUSTED => Some(connection),
            Some(stale) => {
                let others = std::mem::take(&mut *idle);
                drop(idle);
                drop((stale, others));
                None
            }
            None => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(PoolConnection<Postgres>, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
