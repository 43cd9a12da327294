//! The database's schema: the migrations this program brings, and whether a database has them.

use std::collections::BTreeSet;

use shared::ledger::LedgerError;
use sqlx::{PgConnection, PgPool, migrate::Migrator};

/// The migrations, in order, built into the program.
static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The migrations could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
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
    let before = applied(&mut connection).await?;
    MIGRATIONS.run(&mut *connection).await.map_err(MigrateError::Migration)?;
    // The programs ask whether the schema is as new as they are.
    sqlx::query("GRANT SELECT ON _sqlx_migrations TO offstage_api, offstage_engine")
        .execute(&mut *connection)
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
