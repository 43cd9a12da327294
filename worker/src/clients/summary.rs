//! Materialised views and summary tables of a product's own database, brought up to date there.
//!
//! What must stay true: one at a time for a summary, whoever asks and whatever crashed: an advisory lock of that database, which ends with
//! the session that holds it; the server ends what we walked away from. Readers of a view go on meanwhile (`CONCURRENTLY`), but for the very
//! first time, when there is nothing to read.
//!
//! The lock is the session's, so a transaction pooler must not stand in between.

use std::{str::FromStr, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use shared::{job::Failure, tenant::Refreshed};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row, postgres::PgConnectOptions};
use tokio::time::{Instant, timeout};

/// The longest that connecting may take, authentication included.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// What is waited for beyond the server's own statement timeout before the server counts as gone.
const GRACE: Duration = Duration::from_secs(10);

/// The longest that a lock of somebody else's is waited for: while it is, everybody behind us waits too.
const LOCK_WITHIN: Duration = Duration::from_secs(15);

/// A summary about to be refreshed.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The product and the summary: nobody else has this name.
    pub lock: &'a str,
    /// The source's name in the manifest.
    pub source: &'a str,
    /// Its address.
    pub url: &'a SecretString,
    /// What is refreshed.
    pub refreshed: Refreshed<'a>,
    /// The longest that it may take.
    pub within: Duration,
}

/// It is up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// What it took.
    pub took: Duration,
    /// Whether readers could go on meanwhile.
    pub concurrently: bool,
}

/// It is not.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// Somebody refreshes it just now.
    #[error("the summary is being refreshed by another run")]
    Busy,
    /// No connection, or it broke.
    #[error("the database of source `{name}` is not available now")]
    Unavailable {
        /// The source's name in the manifest.
        name: String,
        /// What happened.
        #[source]
        source: sqlx::Error,
    },
    /// The server does not answer.
    #[error("the database of source `{name}` did not answer within {} s", within.as_secs())]
    Silent {
        /// The source's name in the manifest.
        name: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// The source's variable holds no usable address.
    #[error("the variable of source `{0}` does not hold a Postgres URL")]
    Address(String),
    /// There is no such view.
    #[error("there is no materialised view `{0}` there, or the source's role does not see it; make it, or correct the manifest")]
    NoView(String),
    /// It can't be refreshed while somebody reads it.
    #[error(
        "the materialised view `{0}` has no unique index over plain columns and all rows, which refreshing it beside its readers needs; make one: CREATE UNIQUE INDEX ON {0} (…)"
    )]
    NoUniqueIndex(String),
    /// It takes longer than it may.
    #[error("the refresh ran into its timeout of {} s; make it cheaper, or raise `timeout_seconds` in the manifest", .0.as_secs())]
    Timeout(Duration),
    /// Somebody else's lock was in the way.
    #[error("somebody held a lock on it for more than {} s", LOCK_WITHIN.as_secs())]
    Locked,
    /// The server refuses.
    #[error("the database refused the refresh, {code}: {said}")]
    Refused {
        /// The SQLSTATE.
        code: String,
        /// What it says.
        said: String,
    },
}

impl From<SummaryError> for Failure {
    fn from(error: SummaryError) -> Self {
        let message = error.to_string();
        let failure = match &error {
            SummaryError::Busy => Self::transient("summary_busy", message),
            SummaryError::Unavailable { .. } | SummaryError::Silent { .. } => Self::transient("source_unavailable", message),
            SummaryError::Locked => Self::transient("summary_locked", message),
            SummaryError::Address(_) => Self::permanent("source_address", message),
            SummaryError::NoView(_) => Self::permanent("summary_missing", message),
            SummaryError::NoUniqueIndex(_) => Self::permanent("summary_index_missing", message),
            SummaryError::Timeout(_) => Self::permanent("summary_timeout", message),
            SummaryError::Refused { .. } => Self::permanent("summary_refused", message),
        };
        match std::error::Error::source(&error) {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        }
    }
}

/// Brings a summary up to date.
///
/// # Errors
/// [`SummaryError`].
pub async fn refresh(wanted: Wanted<'_>) -> Result<Done, SummaryError> {
    let options = PgConnectOptions::from_str(wanted.url.expose_secret())
        .map_err(|_| SummaryError::Address(wanted.source.to_owned()))?
        .application_name("offstage summary")
        .disable_statement_logging();
    let mut connection = timeout(CONNECT_WITHIN, PgConnection::connect_with(&options))
        .await
        .map_err(|_| SummaryError::Silent { name: wanted.source.to_owned(), within: CONNECT_WITHIN })?
        .map_err(|error| wanted.fault(error))?;
    let patience = wanted.within + GRACE;
    let done = timeout(patience, wanted.run(&mut connection)).await;
    let done = done.unwrap_or_else(|_| Err(SummaryError::Silent { name: wanted.source.to_owned(), within: patience }));
    // With the session its lock goes; where the server does not hear of it, it notices by itself.
    let _ = timeout(CONNECT_WITHIN, connection.close()).await;
    done
}

impl Wanted<'_> {
    async fn run(&self, connection: &mut PgConnection) -> Result<Done, SummaryError> {
        let (statement, lock) = (self.within.as_millis(), LOCK_WITHIN.as_millis());
        // Numbers of ours. A server that knows the last setting ends what nobody waits for any more within half a second.
        let settings = format!(
            "SET statement_timeout = {statement}; SET lock_timeout = {lock}; \
             SELECT set_config(name, '500', false) FROM pg_settings WHERE name = 'client_connection_check_interval'"
        );
        connection.execute(sqlx::raw_sql(AssertSqlSafe(settings))).await.map_err(|error| self.fault(error))?;
        let is_ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
            .bind(self.lock)
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| self.fault(error))?;
        if !is_ours {
            return Err(SummaryError::Busy);
        }
        let began = Instant::now();
        // Names of the manifest, which are letters, digits, `_` and one dot.
        let (statement, concurrently) = match self.refreshed {
            Refreshed::Function(function) => (format!("SELECT {function}()"), true),
            Refreshed::View(view) => {
                let concurrently = self.look_at(connection, view).await?;
                let how = if concurrently { "CONCURRENTLY " } else { "" };
                (format!("REFRESH MATERIALIZED VIEW {how}{view}"), concurrently)
            }
        };
        connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await.map_err(|error| self.fault(error))?;
        Ok(Done { took: began.elapsed(), concurrently })
    }

    /// Whether a view can be refreshed beside its readers: not the first time.
    async fn look_at(&self, connection: &mut PgConnection, view: &str) -> Result<bool, SummaryError> {
        let row = sqlx::query(
            "SELECT c.relispopulated, EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
                                                AND i.indpred IS NULL AND i.indexprs IS NULL) AS is_unique
             FROM pg_class c WHERE c.oid = to_regclass($1) AND c.relkind = 'm'",
        )
        .bind(view)
        .persistent(false)
        .fetch_optional(connection)
        .await
        .map_err(|error| self.fault(error))?;
        let row = row.ok_or_else(|| SummaryError::NoView(view.to_owned()))?;
        let (is_populated, is_unique): (bool, bool) = (
            row.try_get("relispopulated").map_err(|error| self.fault(error))?,
            row.try_get("is_unique").map_err(|error| self.fault(error))?,
        );
        if is_populated && !is_unique {
            return Err(SummaryError::NoUniqueIndex(view.to_owned()));
        }
        Ok(is_populated)
    }

    fn fault(&self, error: sqlx::Error) -> SummaryError {
        let Some(said) = error.as_database_error() else {
            return SummaryError::Unavailable { name: self.source.to_owned(), source: error };
        };
        let code = said.code().unwrap_or_default().into_owned();
        match code.as_str() {
            "57014" => SummaryError::Timeout(self.within),
            "55P03" => SummaryError::Locked,
            // Connection, rollback, resources, shutdown: they pass.
            code if ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class)) => {
                SummaryError::Unavailable { name: self.source.to_owned(), source: error }
            }
            _ => SummaryError::Refused { said: said.message().chars().take(300).collect(), code },
        }
    }
}
