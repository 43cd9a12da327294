//! A connection that is kept from statement to statement.
//!
//! Whoever sends statement upon statement (the settler, the dispatcher of a backlog) is best served by one session: it has the plans,
//! the tables and the server's memory at hand, which each of a pool's would make for itself, and the pool asks after none in between.

use shared::ledger::LedgerError;
use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};

/// A pool's connection, while there is work for it.
#[derive(Debug)]
pub(super) struct Kept {
    pool: PgPool,
    connection: Option<PoolConnection<Postgres>>,
}

impl Kept {
    pub(super) const fn of(pool: PgPool) -> Self {
        Self { pool, connection: None }
    }

    /// Sends something on it. One on which something went wrong, or whose answer was not waited for, goes back to the pool, which looks
    /// at it; the next is another.
    pub(super) async fn on<T>(
        &mut self,
        exchange: impl AsyncFnOnce(&mut PgConnection) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.pool.acquire().await?,
        };
        let answer = exchange(&mut connection).await?;
        self.connection = Some(connection);
        Ok(answer)
    }

    /// Back to the pool: there is nothing to do.
    pub(super) fn release(&mut self) {
        self.connection = None;
    }
}
