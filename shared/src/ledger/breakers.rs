//! Circuit breakers, as the ledger knows them: the jobs that wait for one, what became of each, and what operators set.
//!
//! Whether a breaker lets calls through is decided elsewhere (`worker/src/clients/breaker`); nothing here is asked before a call.
//!
//! What must stay true:
//! - a job that waits for a breaker has used no attempt, stands in the backlog, never due, and in `job_held` with the breaker's name;
//! - however many wait, nobody comes by them while their breaker is open: who looks reads one row for each breaker that has any;
//! - none waits longer than its kind's deadline, nor than [`LONGEST_WAIT`]; `start_by` expires it sooner ([`super::late`]);
//! - a job is found by what it waits for, not by what happened: a breaker of which nobody knows anything any more lets its jobs go.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::LedgerError;
use crate::{
    job::{Failure, JobId, Policy},
    queue::Queue,
};

/// The longest that a job waits for a breaker, since it was due.
pub const LONGEST_WAIT: TimeDelta = TimeDelta::hours(24);

/// Jobs released by one statement.
pub const BATCH: i64 = 1_000;

/// How long it is kept what became of a breaker, after its last change; its state has been gone from Redis for long by then.
const KEPT_DAYS: i32 = 30;

/// Breakers of one look.
const LOOKED_AT: i64 = 1_000;

/// When a job that counts from then has waited long enough.
pub(super) fn gives_up(policy: &Policy, counted_from: DateTime<Utc>) -> DateTime<Utc> {
    let longest = counted_from + LONGEST_WAIT;
    policy.deadline_of(counted_from).map_or(longest, |deadline| deadline.min(longest))
}

/// Why a job fails that has.
pub(super) fn given_up(gives_up: DateTime<Utc>) -> Failure {
    let message = format!(
        "its provider had not answered as it should until {}, and it waits no longer; `api breaker list` shows what became of it",
        gives_up.format("%FT%TZ")
    );
    Failure::permanent("provider_unavailable", message).for_owner("The service that this needs was not available for too long.")
}

/// Whether any job waits for a breaker.
///
/// # Errors
/// [`LedgerError`].
pub async fn any_held(pool: &PgPool) -> Result<bool, LedgerError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM job_held WHERE breaker IS NOT NULL)").fetch_one(pool).await?)
}

/// The breakers that jobs of a queue wait for, each once.
///
/// # Errors
/// [`LedgerError`].
pub async fn awaited(pool: &PgPool, queue: Queue) -> Result<Vec<String>, LedgerError> {
    // From one to the next by one probe each.
    Ok(sqlx::query_scalar(
        "WITH RECURSIVE names (breaker) AS (
            (SELECT h.breaker FROM job_held h WHERE h.breaker IS NOT NULL AND h.queue = $1 ORDER BY h.breaker LIMIT 1)
            UNION ALL
            SELECT n.breaker FROM names s CROSS JOIN LATERAL (
                SELECT h.breaker FROM job_held h WHERE h.breaker IS NOT NULL AND h.queue = $1 AND h.breaker > s.breaker ORDER BY h.breaker LIMIT 1
            ) n
         )
         SELECT breaker FROM names LIMIT $2",
    )
    .bind(queue.name())
    .bind(LOOKED_AT)
    .fetch_all(pool)
    .await?)
}

/// Which jobs are let go.
#[derive(Debug, Clone, Copy)]
pub enum Let<'a> {
    /// Of those that wait for this breaker so many: first who has not been put off for a call of its own that failed, so that no question
    /// under which its provider fails is the probe again and again; the oldest of them first.
    Through(&'a str, i64),
    /// Those that have waited for as long as they may: their next run fails them, should their breaker still be open.
    GiveUp,
}

/// Lets up to [`BATCH`] of a queue's jobs go on: they are due as they were before.
///
/// # Errors
/// [`LedgerError`].
pub async fn release(pool: &PgPool, queue: Queue, which: Let<'_>, now: DateTime<Utc>) -> Result<Vec<JobId>, LedgerError> {
    let (breaker, most) = match which {
        Let::Through(breaker, most) => (Some(breaker), most.min(BATCH)),
        Let::GiveUp => (None, BATCH),
    };
    if most <= 0 {
        return Ok(Vec::new());
    }
    let mut transaction = pool.begin().await?;
    let rows: Vec<Uuid> = sqlx::query_scalar(
        "WITH free AS MATERIALIZED (
            (SELECT h.job_id FROM job_held h WHERE h.breaker IS NOT NULL AND h.queue = $1 AND h.breaker = $2
             ORDER BY h.tried, h.job_id LIMIT $4 FOR UPDATE SKIP LOCKED)
        ), late AS MATERIALIZED (
            (SELECT h.job_id FROM job_held h WHERE h.breaker IS NOT NULL AND h.queue = $1 AND $2::text IS NULL AND h.gives_up_at <= $3
             ORDER BY h.gives_up_at LIMIT $4 FOR UPDATE SKIP LOCKED)
        ), waiting AS MATERIALIZED (
            -- The backlog's row before the state's, as dispatch and cancel take them.
            SELECT w.job_id FROM job_waiting w JOIN (SELECT job_id FROM free UNION ALL SELECT job_id FROM late) f ON f.job_id = w.job_id
            WHERE w.run_at = 'infinity' ORDER BY w.job_id FOR UPDATE OF w
        ), gone AS (
            DELETE FROM job_held h USING (SELECT job_id FROM free UNION ALL SELECT job_id FROM late) f WHERE h.job_id = f.job_id
        ), released AS (
            UPDATE job_state s SET reason = 3, changed_at = $3, version = s.version + 1
            FROM waiting w WHERE s.job_id = w.job_id AND s.state = 0 AND s.reason = 8
            RETURNING s.job_id, s.run_at
        ), due AS (
            UPDATE job_waiting w SET run_at = r.run_at, reason = 3 FROM released r WHERE w.job_id = r.job_id
        )
        SELECT job_id FROM released",
    )
    .bind(queue.name())
    .bind(breaker)
    .bind(now)
    .bind(most)
    .fetch_all(&mut *transaction)
    .await?;
    super::limit(&mut transaction, rows.clone(), now).await?;
    transaction.commit().await?;
    Ok(rows.into_iter().map(JobId).collect())
}

/// How many of a queue's jobs wait for a breaker, counted up to [`super::switches::COUNTED`].
///
/// # Errors
/// [`LedgerError`].
pub async fn held(pool: &PgPool, queue: Queue) -> Result<i64, LedgerError> {
    let count = sqlx::query_scalar("SELECT count(*) FROM (SELECT FROM job_held WHERE breaker IS NOT NULL AND queue = $1 LIMIT $2) h");
    Ok(count.bind(queue.name()).bind(super::switches::COUNTED).fetch_one(pool).await?)
}

/// What became of a breaker.
#[derive(Debug, Clone)]
pub struct Became<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whose.
    pub tenant: i32,
    /// The provider, as the manifest calls it.
    pub provider: &'a str,
    /// `platform` or `own`.
    pub credential: &'a str,
    /// Where it stands now: `closed`, `open`, `half_open`, `ramp`.
    pub phase: &'a str,
    /// For how long it is open, if it is.
    pub open_for: Option<Duration>,
    /// The window's calls, where it opened: all, failed, slow.
    pub counts: [u64; 3],
}

/// Writes down what became of a breaker. By Postgres' clock: who writes it has none of its own that the others share.
///
/// # Errors
/// [`LedgerError`].
pub async fn became(pool: &PgPool, what: &Became<'_>) -> Result<(), LedgerError> {
    let [calls, failures, slow] = what.counts.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
    sqlx::query(
        "INSERT INTO breaker AS b (name, tenant_id, provider, credential, phase, since, until, calls, failures, slow, opened)
         VALUES ($1, $2, $3, $4, $5, clock_timestamp(), clock_timestamp() + make_interval(secs => $6), $7, $8, $9, ($5 = 'open')::integer)
         ON CONFLICT (name) DO UPDATE SET
            phase = excluded.phase, since = excluded.since, until = excluded.until, opened = b.opened + excluded.opened,
            calls = CASE WHEN excluded.phase = 'open' THEN excluded.calls ELSE b.calls END,
            failures = CASE WHEN excluded.phase = 'open' THEN excluded.failures ELSE b.failures END,
            slow = CASE WHEN excluded.phase = 'open' THEN excluded.slow ELSE b.slow END",
    )
    .bind(what.name)
    .bind(what.tenant)
    .bind(what.provider)
    .bind(what.credential)
    .bind(what.phase)
    .bind(what.open_for.map(|open_for| open_for.as_secs_f64()))
    .bind(calls)
    .bind(failures)
    .bind(slow)
    .execute(pool)
    .await?;
    Ok(())
}

/// Where a breaker stands, for people.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Whose.
    pub tenant: i32,
    /// The provider, as the manifest calls it.
    pub provider: String,
    /// `platform` or `own`.
    pub credential: String,
    /// `closed`, `open`, `half_open`, `ramp`.
    pub phase: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// While it is open: when one call is tried.
    pub until: Option<DateTime<Utc>>,
    /// The window when it opened last: calls that ended, failed ones, slow ones; after a failed probe that one.
    pub calls: i64,
    /// See `calls`.
    pub failures: i64,
    /// See `calls`.
    pub slow: i64,
    /// How often it has opened.
    pub opened: i64,
    /// Whether an operator keeps it open.
    pub forced: bool,
}

const STANDING: &str = "b.name, b.tenant_id, b.provider, b.credential, b.phase, b.since, b.until, b.calls, b.failures, b.slow, b.opened,
    EXISTS (SELECT FROM breaker_override o WHERE o.lifted_at IS NULL AND o.mode = 'forced_open'
            AND (o.tenant_id IS NULL OR o.tenant_id = b.tenant_id) AND (o.provider IS NULL OR o.provider = b.provider)) AS forced";

fn standing(row: &sqlx::postgres::PgRow) -> Result<Standing, LedgerError> {
    Ok(Standing {
        name: row.try_get("name")?,
        tenant: row.try_get("tenant_id")?,
        provider: row.try_get("provider")?,
        credential: row.try_get("credential")?,
        phase: row.try_get("phase")?,
        since: row.try_get("since")?,
        until: row.try_get("until")?,
        calls: row.try_get("calls")?,
        failures: row.try_get("failures")?,
        slow: row.try_get("slow")?,
        opened: row.try_get("opened")?,
        forced: row.try_get("forced")?,
    })
}

/// The breaker that a job waits for, if it does and anything was written down of it.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_job(connection: &mut PgConnection, job: JobId) -> Result<Option<Standing>, LedgerError> {
    // Words of this file, all of them.
    let statement = format!("SELECT {STANDING} FROM job_held h JOIN breaker b ON b.name = h.breaker WHERE h.job_id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(job.0).fetch_optional(connection).await?;
    row.as_ref().map(standing).transpose()
}

/// The provider that a job waits for and what an operator set, where that keeps its breaker open; the narrowest of several. Its breaker need
/// never have opened by itself.
///
/// # Errors
/// [`LedgerError`].
pub async fn forced_over(connection: &mut PgConnection, job: JobId) -> Result<Option<(String, Override)>, LedgerError> {
    let row = sqlx::query(
        "SELECT p.name AS awaited, o.tenant_id, o.provider, o.mode, o.set_at, o.set_by, o.reason
         FROM job_held h CROSS JOIN LATERAL (SELECT split_part(h.breaker, ':', 2) AS name) p
         JOIN breaker_override o ON o.lifted_at IS NULL AND o.mode = 'forced_open'
              AND (o.tenant_id IS NULL OR o.tenant_id = h.tenant_id) AND (o.provider IS NULL OR o.provider = p.name)
         WHERE h.job_id = $1 AND h.breaker IS NOT NULL ORDER BY o.tenant_id NULLS LAST, o.provider NULLS LAST LIMIT 1",
    )
    .bind(job.0)
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok((row.try_get("awaited")?, read_override(&row)?))).transpose()
}

/// The breakers that have ever opened, the latest change first, at most 1,000.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(pool: &PgPool) -> Result<Vec<Standing>, LedgerError> {
    let statement = format!("SELECT {STANDING} FROM breaker b ORDER BY b.since DESC LIMIT 1000");
    sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(pool).await?.iter().map(standing).collect()
}

/// Forgets what became of breakers that have not changed for long, and for which no job waits; answers how many: call again until none. By
/// Postgres' clock, by which they were written.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool) -> Result<u64, LedgerError> {
    let forgotten = sqlx::query(
        "DELETE FROM breaker b
         USING (SELECT name FROM breaker WHERE since < clock_timestamp() - make_interval(days => $1) LIMIT 5000 FOR UPDATE SKIP LOCKED) old
         WHERE b.name = old.name AND NOT EXISTS (SELECT FROM job_held h WHERE h.breaker = b.name)",
    );
    Ok(forgotten.bind(KEPT_DAYS).execute(pool).await?.rows_affected())
}

/// What an operator set.
#[derive(Debug, Clone)]
pub struct Override {
    /// Whose breakers; `None` for every tenant's.
    pub tenant: Option<i32>,
    /// Which provider's; `None` for every provider's.
    pub provider: Option<String>,
    /// `forced_open` or `metrics_only`.
    pub mode: String,
    /// When.
    pub at: DateTime<Utc>,
    /// By whom.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// What operators have set and not lifted.
///
/// # Errors
/// [`LedgerError`].
pub async fn overrides(pool: &PgPool) -> Result<Vec<Override>, LedgerError> {
    let rows = sqlx::query(
        "SELECT tenant_id, provider, mode, set_at, set_by, reason FROM breaker_override WHERE lifted_at IS NULL ORDER BY id LIMIT 10000",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(read_override).collect()
}

fn read_override(row: &sqlx::postgres::PgRow) -> Result<Override, LedgerError> {
    Ok(Override {
        tenant: row.try_get("tenant_id")?,
        provider: row.try_get("provider")?,
        mode: row.try_get("mode")?,
        at: row.try_get("set_at")?,
        by: row.try_get("set_by")?,
        reason: row.try_get("reason")?,
    })
}

/// Sets a mode for the breakers that `tenant` and `provider` name, in the place of another one; `None` lifts what is set. Answers false, and
/// changes nothing, where that was so before.
///
/// # Errors
/// [`LedgerError`].
pub async fn set(
    pool: &PgPool,
    (tenant, provider): (Option<i32>, Option<&str>),
    mode: Option<&str>,
    (by, reason): (&str, &str),
    now: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    let mut transaction = pool.begin().await?;
    let lifted = sqlx::query(
        "UPDATE breaker_override SET lifted_at = $4, lifted_by = $5
         WHERE lifted_at IS NULL AND tenant_id IS NOT DISTINCT FROM $1 AND provider IS NOT DISTINCT FROM $2 AND mode IS DISTINCT FROM $3",
    )
    .bind(tenant)
    .bind(provider)
    .bind(mode)
    .bind(now)
    .bind(by)
    .execute(&mut *transaction)
    .await?;
    let Some(mode) = mode else {
        transaction.commit().await?;
        return Ok(lifted.rows_affected() > 0);
    };
    let set = sqlx::query(
        "INSERT INTO breaker_override (tenant_id, provider, mode, set_at, set_by, reason) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (coalesce(tenant_id, -1), coalesce(provider, '')) WHERE lifted_at IS NULL DO NOTHING",
    )
    .bind(tenant)
    .bind(provider)
    .bind(mode)
    .bind(now)
    .bind(by)
    .bind(reason)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(set.rows_affected() == 1)
}
