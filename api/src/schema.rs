//! The database's schema: the migrations this program brings, and whether a database has them.

use std::{
    collections::BTreeSet,
    sync::LazyLock,
    time::{Duration, Instant},
};

use shared::ledger::LedgerError;
use sqlx::{PgConnection, PgPool, migrate::Migrator};

/// The migrations, in order, built into the program. The library's own lock is off: see [`TURN`].
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("../migrations");
    migrations.set_locking(false);
    migrations
});

/// The advisory lock that migrations are applied under, one process at a time. It is asked for again and again and never waited for: a
/// session that waits holds a snapshot, an index that is made concurrently waits for those to end, and the two would wait for each other.
const TURN: i64 = 0x6f66_6673_7461_6765;

/// How often it is asked for.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// The longest that another process is waited for. Its index on a large table takes a while.
const TURN_WITHIN: Duration = Duration::from_secs(3_600);

/// The migrations could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Another process is at it, and comes to no end.
    #[error("another process has been applying migrations for an hour; see what it waits for, and run this again when it is done")]
    Busy,
    /// One of them failed, or the database has others than this program; nothing after it was applied.
    #[error("the migrations were not applied")]
    Migration(#[source] sqlx::migrate::MigrateError),
}

/// A migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its number: date and time.
    pub version: i64,
    /// What it is about.
    pub description: String,
}

/// Applies what is missing, as the database's owner, and tells what that was. Several may run this at once: they take
/// turns on an advisory lock.
///
/// # Errors
/// [`MigrateError`].
pub async fn migrate(pool: &PgPool) -> Result<Vec<Applied>, MigrateError> {
    let mut connection = pool.acquire().await.map_err(LedgerError::from)?;
    take_turn(&mut connection).await?;
    // The lock ends with its session, whatever happens.
    let done = migrate_in_turn(&mut connection).await;
    let closed = connection.close().await;
    let applied = done?;
    closed.map_err(LedgerError::from)?;
    Ok(applied)
}

async fn take_turn(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let began = Instant::now();
    loop {
        let asked = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(TURN).fetch_one(&mut *connection);
        if asked.await.map_err(LedgerError::from)? {
            return Ok(());
        }
        if began.elapsed() > TURN_WITHIN {
            return Err(MigrateError::Busy);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

async fn migrate_in_turn(connection: &mut PgConnection) -> Result<Vec<Applied>, MigrateError> {
    let before = applied(connection).await?;
    MIGRATIONS.run(&mut *connection).await.map_err(MigrateError::Migration)?;
    // The programs ask whether the schema is as new as they are.
    sqlx::query("GRANT SELECT ON _sqlx_migrations TO offstage_api, offstage_engine")
        .execute(connection)
        .await
        .map_err(LedgerError::from)?;
    let fresh = MIGRATIONS.iter().filter(|migration| !before.contains(&migration.version));
    Ok(fresh.map(|migration| Applied { version: migration.version, description: migration.description.to_string() }).collect())
}

/// How many of this program's migrations the database lacks. One that has more is newer, which older programs must bear.
///
/// # Errors
/// [`LedgerError`].
pub async fn missing(connection: &mut PgConnection) -> Result<usize, LedgerError> {
    let applied = applied(connection).await?;
    Ok(MIGRATIONS.iter().filter(|migration| !applied.contains(&migration.version)).count())
}

async fn applied(connection: &mut PgConnection) -> Result<BTreeSet<i64>, LedgerError> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !exists {
        return Ok(BTreeSet::new());
    }
    let versions: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(&mut *connection).await?;
    Ok(versions.into_iter().collect())
}
