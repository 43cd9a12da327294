//! Why a job is not running, and when it should: what the ledger knows of whatever a job may wait for.
//!
//! Only read when somebody asks, so it may cost some probes; each is by an index and bounded.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use super::{LedgerError, breakers, claim::options_of, find::FoundJob, holds, recover::DEAD_AFTER};
use crate::job::{JobId, Limit, Rate, Reason, State};

/// Where counting of what stands before a job stops.
pub const COUNTED: i64 = 10_000;

/// What is known of a job's surroundings.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Live workers that serve its queue.
    pub workers: i64,
    /// The worker that runs it, by name, where one does.
    pub worker: Option<String>,
    /// Due jobs of its tenant that go before it, of its priority in its queue, counted up to [`COUNTED`].
    pub ahead: i64,
    /// Pauses and throttles that concern its tenant.
    pub holds: holds::Holds,
    /// Its limiting key.
    pub key: Option<Key>,
    /// The circuit breaker that it waits for.
    pub breaker: Option<breakers::Standing>,
    /// The provider of that one, and who keeps it open, if an operator does.
    pub forced: Option<(String, breakers::Override)>,
}

/// A job's limiting key as it stands.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its name.
    pub name: String,
    /// How many may run at a time.
    pub running: Option<u32>,
    /// How many may start in a time.
    pub rate: Option<Rate>,
    /// How many run, or are on their way to it.
    pub admitted: i64,
    /// Whether this job is one of them.
    pub is_admitted: bool,
    /// How many wait for it before this job, counted up to [`COUNTED`].
    pub ahead: i64,
    /// When the rate allows the next start; past where it allows one now.
    pub next_start: Option<DateTime<Utc>>,
}

/// Looks around a job, in a transaction that acts for its tenant.
///
/// # Errors
/// [`LedgerError`].
pub async fn surroundings(connection: &mut PgConnection, tenant: i32, job: &FoundJob) -> Result<Surroundings, LedgerError> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM worker w WHERE $2 = ANY (w.queues) AND w.seen_at >= clock_timestamp() - make_interval(secs => $3)) AS workers,
                (SELECT w.name FROM job_state s JOIN worker w ON w.id = s.worker WHERE s.job_id = $1 AND s.state = 2) AS worker,
                (SELECT j.options::text FROM job j WHERE j.id = $1) AS options",
    )
    .bind(job.id.0)
    .bind(&job.queue)
    .bind(DEAD_AFTER.as_secs_f64())
    .fetch_one(&mut *connection)
    .await?;
    let options: Option<String> = row.try_get("options")?;
    let limit = options.map(|options| options_of(&options)).transpose()?.and_then(|options| options.limit);
    let mut found = Surroundings { workers: row.try_get("workers")?, worker: row.try_get("worker")?, ..Surroundings::default() };
    if job.state.is_terminal() || job.state == State::Running {
        return Ok(found);
    }
    found.holds = holds::read(connection).await?;
    if let Some(limit) = limit {
        found.key = key(connection, tenant, job.id, limit).await?;
    }
    if job.reason == Reason::BreakerOpen {
        found.breaker = breakers::of_job(connection, job.id).await?;
        found.forced = breakers::forced_over(connection, job.id).await?;
    }
    if job.state == State::Waiting && !matches!(job.reason, Reason::SwitchedOff | Reason::Paused | Reason::BreakerOpen) {
        found.ahead = sqlx::query_scalar(
            "SELECT count(*) FROM (
                SELECT FROM job_waiting w
                WHERE w.queue = $1 AND w.priority = $2 AND w.tenant_id = $3 AND (w.run_at, w.job_id) < ($4, $5) LIMIT $6
             ) ahead",
        )
        .bind(&job.queue)
        .bind(job.priority.code())
        .bind(tenant)
        .bind(job.run_at)
        .bind(job.id.0)
        .bind(COUNTED)
        .fetch_one(connection)
        .await?;
    }
    Ok(found)
}

async fn key(connection: &mut PgConnection, tenant: i32, job: JobId, limit: Limit) -> Result<Option<Key>, LedgerError> {
    let row = sqlx::query(
        "SELECT k.running, k.rate_jobs,
                CASE WHEN k.rate_jobs IS NOT NULL AND k.next_start > '-infinity'
                     THEN k.next_start - make_interval(secs => (k.rate_burst - 1) * k.rate_seconds / k.rate_jobs) END AS next_start,
                coalesce(own.admitted, false) AS is_admitted,
                (SELECT count(*) FROM (SELECT FROM job_limited l WHERE l.key_id = k.id AND l.admitted LIMIT $4) a) AS admitted,
                (SELECT count(*) FROM (SELECT FROM job_limited l WHERE l.key_id = k.id AND NOT l.admitted
                                       AND (l.turn_at, l.job_id) < (own.turn_at, own.job_id) LIMIT $4) b) AS ahead
         FROM limit_key k LEFT JOIN job_limited own ON own.job_id = $3 AND own.key_id = k.id
         WHERE k.tenant_id = $1 AND k.name = $2",
    )
    .bind(tenant)
    .bind(&limit.key)
    .bind(job.0)
    .bind(COUNTED)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let running: Option<i32> = row.try_get("running")?;
    Ok(Some(Key {
        name: limit.key,
        running: running.and_then(|running| u32::try_from(running).ok()),
        rate: limit.rate,
        admitted: row.try_get("admitted")?,
        is_admitted: row.try_get("is_admitted")?,
        ahead: row.try_get("ahead")?,
        next_start: row.try_get("next_start")?,
    }))
}
