//! Dead letters: jobs that failed, were cancelled or expired, found by what went wrong, and many of them redriven or discarded.
//!
//! What must stay true: however many match, each statement touches a bounded number of them and holds their rows for as long
//! as it runs; what was done before a fault stays done, and the next call finds the rest. What is redriven enters the backlog
//! like any other work, so the queues' windows and everybody else's share hold for a million at once.
//!
//! All of it runs in a transaction of the caller's.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Postgres, Row, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::{LedgerError, change::redriven};
use crate::{
    job::{JobId, State},
    queue::Queue,
};

/// Jobs that one statement changes.
pub const BATCH: i64 = 500;

/// Which dead letters.
#[derive(Debug, Clone)]
pub struct Filter {
    /// [`State::Failed`], [`State::Cancelled`] or [`State::Expired`].
    pub state: State,
    /// Only this kind's.
    pub kind: Option<String>,
    /// Only this queue's.
    pub queue: Option<Queue>,
    /// Only those whose last run failed of this.
    pub error_code: Option<String>,
    /// Only this owner's.
    pub owner: Option<String>,
    /// Only those that ended then or later.
    pub ended_from: Option<DateTime<Utc>>,
    /// Only those that ended before. A redrive needs it: a job that fails again at once would else match again.
    pub ended_before: DateTime<Utc>,
}

impl Filter {
    /// All that failed before a time.
    #[must_use]
    pub fn failed_before(ended_before: DateTime<Utc>) -> Self {
        Self { state: State::Failed, kind: None, queue: None, error_code: None, owner: None, ended_from: None, ended_before }
    }
}

/// What is to be done with them, which decides which of them it can be done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run again: not what could only expire again.
    Redrive,
    /// To be removed.
    Discard,
}

/// The dead letters of a filter, `f`, with their jobs, `j`: by the index of an owner's jobs, of an error's code, or of a
/// state. `$1` tenant, `$2` state, `$3` kind, `$4` queue, `$5` code, `$6` owner, `$7` and `$8` times, `$9` now where they
/// must still be worth starting and nobody else may hold their unique key, `$10` how many.
///
/// An index is asked for by ranges of one and by its own order: told that they are equal, the planner leaves them out of the
/// order and likes to walk a primary key, past everybody's jobs.
macro_rules! found {
    (owner) => {
        found!(concat "job j JOIN job_unsuccessful f ON f.job_id = j.id",
            "f.tenant_id = $1 AND j.tenant_id = $1 AND j.owner = $6 AND f.state = $2 AND ($5::text IS NULL OR f.error_code = $5)")
    };
    (code) => {
        found!(concat "job_unsuccessful f JOIN job j ON j.id = f.job_id",
            "f.tenant_id >= $1 AND f.tenant_id <= $1 AND f.state >= $2 AND f.state <= $2 AND f.error_code >= $5 AND f.error_code <= $5
             AND $6::text IS NULL")
    };
    (state) => {
        found!(concat "job_unsuccessful f JOIN job j ON j.id = f.job_id",
            "f.tenant_id >= $1 AND f.tenant_id <= $1 AND f.state >= $2 AND f.state <= $2 AND $5::text IS NULL AND $6::text IS NULL")
    };
    (concat $from:literal, $by:literal) => {
        concat!(
            "FROM ", $from, " JOIN job_state s ON s.job_id = f.job_id
             WHERE ", $by, "
               AND ($3::text IS NULL OR f.kind = $3) AND ($4::text IS NULL OR f.queue = $4)
               AND ($7::timestamptz IS NULL OR f.ended_at >= $7) AND f.ended_at < $8
               AND ($9::timestamptz IS NULL OR j.start_by IS NULL OR j.start_by > $9)
               AND ($9::timestamptz IS NULL OR j.options IS NULL OR NOT j.options ? 'unique' OR unique_may_run(j.id, $9))
               AND s.state = $2"
        )
    };
}

/// Oldest first, by the order of the index.
macro_rules! oldest_first {
    (owner) => {
        " ORDER BY f.job_id LIMIT $10"
    };
    (code) => {
        " ORDER BY f.tenant_id, f.state, f.error_code, f.job_id LIMIT $10"
    };
    (state) => {
        " ORDER BY f.tenant_id, f.state, f.job_id LIMIT $10"
    };
}

macro_rules! statement {
    ($filter:expr, $before:literal, $($after:expr),+) => {
        match ($filter.owner.is_some(), $filter.error_code.is_some()) {
            (true, _) => sqlx::query(concat!($before, found!(owner), oldest_first!(owner), $($after),+)),
            (false, true) => sqlx::query(concat!($before, found!(code), oldest_first!(code), $($after),+)),
            (false, false) => sqlx::query(concat!($before, found!(state), oldest_first!(state), $($after),+)),
        }
    };
}

/// Leaves the transaction's next statements nothing but nested loops from the dead letters to their jobs: whoever asks for the
/// first few hundred of a million must not have whole tables joined first (measured: 1.8 s rather than 3 ms).
async fn by_nested_loops(connection: &mut PgConnection) -> Result<(), LedgerError> {
    sqlx::raw_sql("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL plan_cache_mode = force_generic_plan")
        .execute(connection)
        .await?;
    Ok(())
}

fn bind<'q>(
    query: Query<'q, Postgres, PgArguments>,
    tenant: i32,
    filter: &'q Filter,
    worth_starting_at: Option<DateTime<Utc>>,
    limit: i64,
) -> Query<'q, Postgres, PgArguments> {
    query
        .bind(tenant)
        .bind(filter.state.code())
        .bind(filter.kind.as_deref())
        .bind(filter.queue.map(Queue::name))
        .bind(filter.error_code.as_deref())
        .bind(filter.owner.as_deref())
        .bind(filter.ended_from)
        .bind(filter.ended_before)
        .bind(worth_starting_at)
        .bind(limit)
}

/// How many there are, counted up to `most`.
///
/// # Errors
/// [`LedgerError`].
pub async fn count(
    connection: &mut PgConnection,
    tenant: i32,
    filter: &Filter,
    purpose: Purpose,
    now: DateTime<Utc>,
    most: i64,
) -> Result<i64, LedgerError> {
    by_nested_loops(connection).await?;
    let query = statement!(filter, "SELECT count(*) FROM (SELECT ", ") AS dead");
    let worth_starting_at = (purpose == Purpose::Redrive).then_some(now);
    Ok(bind(query, tenant, filter, worth_starting_at, most).fetch_one(connection).await?.try_get(0)?)
}

/// Runs up to `limit` of them again, oldest first, with their kinds' full number of attempts: they wait as due now, and the
/// caller wakes the dispatchers of the queues. Those that somebody else changes just now are passed over.
///
/// # Errors
/// [`LedgerError`].
pub async fn redrive(
    connection: &mut PgConnection,
    tenant: i32,
    filter: &Filter,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<(JobId, Option<Queue>)>, LedgerError> {
    by_nested_loops(connection).await?;
    let query = statement!(
        filter,
        "WITH picked AS MATERIALIZED (
            SELECT f.job_id, j.queue, j.priority, j.max_attempts ",
        // The state's row first, as whoever redrives a single job takes it.
        " FOR UPDATE OF s SKIP LOCKED
        ), refused AS MATERIALIZED (
            SELECT refused_id FROM hold_unique(ARRAY (SELECT job_id FROM picked), $9)
        ), again AS (
            UPDATE job_state s SET ",
        redriven!("$9", "p"),
        " FROM picked p WHERE s.job_id = p.job_id AND p.job_id NOT IN (SELECT refused_id FROM refused)
            RETURNING s.job_id, s.tenant_id, p.priority, p.queue
        ), gone AS (
            DELETE FROM job_unsuccessful u USING again a WHERE u.job_id = a.job_id
        )
        INSERT INTO job_waiting (job_id, tenant_id, run_at, priority, reason, queue)
        SELECT job_id, tenant_id, $9, priority, 3, queue FROM again
        RETURNING job_id, queue"
    );
    let rows = bind(query, tenant, filter, Some(now), limit).fetch_all(&mut *connection).await?;
    let jobs = rows.iter().map(|row| row.try_get("job_id")).collect::<Result<Vec<Uuid>, _>>()?;
    super::limit(connection, jobs, now).await?;
    rows.into_iter()
        .map(|row| {
            let queue: String = row.try_get("queue")?;
            Ok((JobId(row.try_get("job_id")?), Queue::from_name(&queue)))
        })
        .collect()
}

/// Removes up to `limit` of them, oldest first, for good. Those that somebody else changes just now are passed over.
///
/// # Errors
/// [`LedgerError`].
pub async fn discard(
    connection: &mut PgConnection,
    tenant: i32,
    filter: &Filter,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<JobId>, LedgerError> {
    by_nested_loops(connection).await?;
    let query = statement!(filter, "SELECT bury_jobs($1, ARRAY (SELECT f.job_id ", "), true, $11) AS job_id");
    let rows = bind(query, tenant, filter, None, limit).bind(now).fetch_all(connection).await?;
    rows.into_iter().map(|row| Ok(JobId(row.try_get("job_id")?))).collect()
}

/// What became of a wish to discard one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    /// It is gone.
    Done,
    /// Its state does not allow it.
    NotFrom(State),
    /// Somebody else changes it just now.
    Moved,
    /// This tenant has no such job.
    Missing,
}

/// Removes one dead letter for good.
///
/// # Errors
/// [`LedgerError`].
pub async fn discard_one(connection: &mut PgConnection, tenant: i32, job: JobId, now: DateTime<Utc>) -> Result<Discarded, LedgerError> {
    let buried: Option<Uuid> = sqlx::query_scalar("SELECT bury_jobs($1, ARRAY[$2::uuid], true, $3)")
        .bind(tenant)
        .bind(job.0)
        .bind(now)
        .fetch_optional(&mut *connection)
        .await?;
    if buried.is_some() {
        return Ok(Discarded::Done);
    }
    let state: Option<i16> = sqlx::query_scalar("SELECT state FROM job_state WHERE job_id = $1 AND tenant_id = $2")
        .bind(job.0)
        .bind(tenant)
        .fetch_optional(connection)
        .await?;
    let Some(code) = state else { return Ok(Discarded::Missing) };
    let state = State::from_code(code).ok_or(LedgerError::Unknown { what: "state", value: code.to_string() })?;
    let is_dead = matches!(state, State::Failed | State::Cancelled | State::Expired);
    Ok(if is_dead { Discarded::Moved } else { Discarded::NotFrom(state) })
}

/// What is left of a job that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// Its kind.
    pub kind: String,
    /// When it went.
    pub gone_at: DateTime<Utc>,
    /// Whether a person discarded it; else its time was over.
    pub discarded: bool,
}

/// The tombstone of a job of this tenant, and of `owner` where one is given.
///
/// # Errors
/// [`LedgerError`].
pub async fn tombstone(
    connection: &mut PgConnection,
    tenant: i32,
    owner: Option<&str>,
    job: JobId,
) -> Result<Option<Tombstone>, LedgerError> {
    let row = sqlx::query(
        "SELECT kind, gone_at, discarded FROM job_tombstone WHERE job_id = $1 AND tenant_id = $2 AND ($3::text IS NULL OR owner = $3)",
    )
    .bind(job.0)
    .bind(tenant)
    .bind(owner)
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok(Tombstone { kind: row.try_get("kind")?, gone_at: row.try_get("gone_at")?, discarded: row.try_get("discarded")? }))
        .transpose()
}
