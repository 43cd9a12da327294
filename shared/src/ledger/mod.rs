//! The ledger: every accepted job in Postgres, and the only statements that change one.
//!
//! What must stay true, whatever crashes or races:
//! - a job accepted (its insert committed) is never lost: each state is found by somebody ([`dispatch`] finds what waits,
//!   [`recover`] what was handed over and went missing);
//! - one live claim: `running` is entered by a compare-and-set with a fresh token ([`claim`]), and only who holds that token
//!   settles it ([`settle`]);
//! - terminal stays terminal, until a person asks for a retry ([`change`]);
//! - `version` only grows.
//!
//! A job is in `job_waiting` exactly while it waits (never due there while a switch holds it, see [`switches`]), in `job_dispatched` exactly while it is queued or running.
//! Business time comes in as a parameter; who is alive is judged by Postgres' clock alone.

pub mod ai;
pub mod batch;
pub mod breakers;
pub mod browsers;
pub mod change;
pub mod checkpoint;
pub mod claim;
pub mod completion;
pub mod dead;
pub mod deliveries;
pub mod dispatch;
pub mod drill;
pub mod effects;
pub mod ended;
pub mod events;
pub mod explain;
pub mod feeds;
pub mod files;
pub mod find;
pub mod holds;
pub mod inbox;
pub mod inquiries;
pub mod insert;
mod kept;
pub mod late;
pub mod limits;
pub mod links;
pub mod moderation;
pub mod next;
pub mod notifications;
pub mod own_keys;
pub mod people;
pub mod recover;
pub mod repeat;
pub mod retention;
pub mod rollups;
pub mod schedule;
pub mod settle;
pub mod statistics;
pub mod summaries;
pub mod suppressions;
pub mod switches;
pub mod unique;
pub mod vendors;

use std::{str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

pub use kept::Kept;

use crate::job::Failure;

/// The longest one statement of ours may run on the server (R6: queries are ended after 30 s).
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest that a request waits for somebody else's lock; its caller is told to come back then.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(4);

/// The longest that a connection may take to say that it is alive. One that was lost on the way (a firewall forgot it, its server's
/// host is gone) never says anything, and the library would wait for it, its place in the pool taken.
const ALIVE_WITHIN: Duration = Duration::from_secs(2);

/// How long a connection may lie idle and still be used unasked. Busy ones are not asked, which would cost each statement a
/// round trip.
const TRUSTED: Duration = Duration::from_secs(1);

/// Tells of jobs that are neither queued nor running any more, behind the statement that made them so and in its transaction: their
/// limiting keys have room again, who follows their end hears of it, and what they reserved and did not use is given back. Harmless for
/// jobs without options.
async fn leave(connection: &mut PgConnection, jobs: Vec<Uuid>, now: DateTime<Utc>) -> Result<(), LedgerError> {
    // Counters before limiting keys, as those who accept jobs take them.
    settle_usage(connection, &jobs, now).await?;
    leave_jobs(connection, &jobs, now).await
}

/// The part of [`leave`] about what was reserved: for jobs that are metered.
async fn settle_usage(connection: &mut PgConnection, jobs: &[Uuid], now: DateTime<Utc>) -> Result<(), LedgerError> {
    if !jobs.is_empty() {
        sqlx::query("SELECT settle_usage($1, $2)").bind(jobs).bind(now).execute(connection).await?;
    }
    Ok(())
}

/// The part of [`leave`] about other jobs: for those that concern such.
async fn leave_jobs(connection: &mut PgConnection, jobs: &[Uuid], now: DateTime<Utc>) -> Result<(), LedgerError> {
    if !jobs.is_empty() {
        sqlx::query("SELECT leave_jobs($1, $2)").bind(jobs).bind(now).execute(connection).await?;
    }
    Ok(())
}

/// The same for jobs that no run ended. Calls of models that died with their workers are written down first, whether or not anything was
/// reserved for them; a run does that for its own job.
async fn leave_unrun(connection: &mut PgConnection, jobs: Vec<Uuid>, now: DateTime<Utc>) -> Result<(), LedgerError> {
    if !jobs.is_empty() {
        sqlx::query("SELECT charge_lost_calls($1, $2)").bind(&jobs).bind(now).execute(&mut *connection).await?;
    }
    leave(connection, jobs, now).await
}

/// Puts those of some jobs that wait, and have a limiting key, behind it; in the transaction that made them wait.
async fn limit(connection: &mut PgConnection, jobs: Vec<Uuid>, now: DateTime<Utc>) -> Result<(), LedgerError> {
    if !jobs.is_empty() {
        sqlx::query("SELECT limit_jobs($1, $2)").bind(jobs).bind(now).execute(connection).await?;
    }
    Ok(())
}

/// A fault between us and the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The address can't be used at all.
    #[error("{setting} is not a Postgres address")]
    Address {
        /// The setting that holds it.
        setting: &'static str,
        /// What is wrong; never the address itself, which holds a password.
        #[source]
        source: sqlx::Error,
    },
    /// Postgres did not answer, or not in time, or is full: worth trying again.
    #[error("the database is not available now")]
    Unavailable(#[source] sqlx::Error),
    /// Postgres refused the statement: a fault of ours, or of the data in it.
    #[error("the database refused a statement")]
    Refused(#[source] sqlx::Error),
    /// A row says what this program does not understand; a newer version wrote it.
    #[error("a row holds {what} {value}, which this version does not know; upgrade it")]
    Unknown {
        /// Which column's meaning.
        what: &'static str,
        /// The value.
        value: String,
    },
}

impl LedgerError {
    /// Whether trying the same again later may work.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether the statement's data was at fault: a batch is then split, so that one bad member fails alone.
    #[must_use]
    pub fn is_about_data(&self) -> bool {
        // SQLSTATE class 22, data exception; 54, program limit exceeded. <https://www.postgresql.org/docs/15/errcodes-appendix.html>
        matches!(self, Self::Refused(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("54")))
    }
}

impl From<sqlx::Error> for LedgerError {
    fn from(error: sqlx::Error) -> Self {
        let passing = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => true,
            // 08 connection, 40 rollback (deadlock, serialization), 53 resources, 55P03 lock not available, 57 operator
            // intervention (shutdown, statement timeout), 25006 read-only after a failover.
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class)) || code == "55P03" || code == "25006"
            }),
            _ => false,
        };
        if passing { Self::Unavailable(error) } else { Self::Refused(error) }
    }
}

/// The code of a run that failed because the ledger did not answer its handler: our house's fault and not the job's, so the
/// engine counts no attempt for it.
pub const UNAVAILABLE: &str = "ledger_unavailable";

/// For a handler that asked the ledger: the ledger comes back, so the job is tried again.
impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::transient(UNAVAILABLE, "the job database did not answer; the job is tried again").caused_by(&error)
    }
}

/// Postgres, or the way to it, said nothing for as long as somebody would wait.
#[must_use]
pub fn timed_out() -> LedgerError {
    LedgerError::Unavailable(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
}

/// What a pool of connections is for; decides what its sessions are set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sessions {
    /// The API's: nothing set, so that a transaction pooler may stand between.
    Plain,
    /// The engine's settles and sweeps: plans kept, commits durable.
    Engine,
    /// Claims: what they write may be lost with the server, since a settle matches the token and recovery hands the job over
    /// again. So they need not wait for the disk.
    Claims,
}

/// Opens a pool lazily: it connects at first use and fails an acquire after five seconds.
///
/// # Errors
/// [`LedgerError::Address`].
pub fn pool(setting: &'static str, url: &SecretString, sessions: Sessions, size: u32) -> Result<PgPool, LedgerError> {
    let mut options = PgConnectOptions::from_str(url.expose_secret())
        .map_err(|source| LedgerError::Address { setting, source })?
        .application_name("offstage");
    if sessions != Sessions::Plain {
        // The engine's statements take arrays of any length and always want one plan: through the keys. Planning them anew each
        // time costs more than running them; planned once, for a length it can't know, Postgres would hash whole tables
        // (measured with 3 million jobs: 1.7 s for a dispatch of 1,000 rather than 15 ms), so only nested loops are left to it.
        // Nor may it read a table through: a plan made while the backlog was empty would do so once for each job, and be kept while the
        // backlog grows (measured: 157 rather than 30 µs of Postgres' CPU a job).
        // For the same reason the statements of a job's way join `job`, `job_state` and `job_dispatched` by `id = ANY (ARRAY[other.id])`: by
        // `id = other.id`, a table that was empty when it was last vacuumed may be walked through by its index for each job of a
        // batch (measured: 1,900 rather than 22 µs, until the next vacuum).
        let timeout = STATEMENT_TIMEOUT.as_millis().to_string();
        options = options.options([
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("enable_seqscan", "off"),
            ("jit", "off"),
            ("statement_timeout", timeout.as_str()),
        ]);
        if sessions == Sessions::Claims {
            options = options.options([("synchronous_commit", "off")]);
        }
    }
    Ok(PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(Duration::from_secs(5))
        // A burst's connections outlast it for a while: making them costs more than keeping them. See [`warm`] for the few that stay.
        .min_connections(KEPT.min(size))
        .idle_timeout(Some(IDLE))
        .max_lifetime(None)
        .test_before_acquire(false)
        // A server that restarted has broken all of them at once: who comes next must not find that out one by one.
        .before_acquire(|connection, about| {
            Box::pin(async move { if about.idle_for > TRUSTED { answers(connection).await } else { Ok(true) } })
        })
        // The library asks each connection that comes back, and waits for the answer however long it takes.
        .after_release(|connection, _| Box::pin(answers(connection)))
        .connect_lazy_with(options))
}

/// Whether a connection answers in time, and is in no transaction.
///
/// Who stops waiting for a `BEGIN` (a client that went away, a deadline) leaves the session in a transaction that the driver knows nothing
/// of: what the next one writes would be committed by nobody. A transaction that began before this very statement is such a one.
async fn answers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let free = sqlx::raw_sql("SELECT now() = statement_timestamp()").fetch_one(connection);
    match tokio::time::timeout(ALIVE_WITHIN, free).await {
        Ok(answer) => answer?.try_get(0),
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Connections of a pool that are kept open however idle it is.
const KEPT: u32 = 4;

/// Connections that are opened at the start, for the first burst. While a connection is made, SCRAM hashes 4,096 times, and the driver
/// gives way to other tasks after every fifth: on a runtime full of requests that takes a while, and a request that waits for
/// such a connection waits although an open one would have served it meanwhile.
const WARM: u32 = 8;

/// How long a connection beyond those that are kept may lie idle.
const IDLE: Duration = Duration::from_secs(300);

/// Opens a pool's first connections now and not at their first use, within its time to acquire one. Where the server is
/// away it says so and leaves them for later. More are opened as they are needed, up to the pool's bound.
pub async fn warm(pool: &PgPool) {
    let opening = (0..WARM.min(pool.options().get_max_connections())).map(|_| pool.acquire());
    // All at once, each held until the last is there, so that none is opened twice.
    let opened = join_all(opening).await;
    if let Some(error) = opened.iter().find_map(|opened| opened.as_ref().err()) {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            "not all connections to Postgres could be opened; trying again when they are needed"
        );
    }
}
