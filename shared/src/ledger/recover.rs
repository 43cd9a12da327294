//! Step 8, recover: who is alive, and what went missing between Postgres, Redis and a process.
//!
//! All times here are Postgres' own (`clock_timestamp()`), so replicas need not agree on a clock, and none of this depends on
//! business time. A worker that stays silent for [`DEAD_AFTER`] is dead; it stops its own work at [`FENCE_AFTER`] by its
//! monotonic clock, so that two processes never believe that they hold one job.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, PgExecutor, PgPool, Row};
use uuid::Uuid;

use super::{LedgerError, insert::insert_within};
use crate::{
    job::{JobId, Priority, State},
    notification::{Addressee, reach_owner},
    queue::{Queue, keys::Lane, push::Handover},
};

/// Between two heartbeats of a worker.
pub const BEAT_EVERY: Duration = Duration::from_secs(2);
/// After so long without an answered heartbeat, counted from when the last good one was sent, a worker stops its own work.
pub const FENCE_AFTER: Duration = Duration::from_secs(4);
/// After so long without a heartbeat, by Postgres' clock, others take a worker's jobs over. The two seconds above
/// [`FENCE_AFTER`] are for the slowest way from Postgres to the fenced worker's tasks.
pub const DEAD_AFTER: Duration = Duration::from_secs(6);
/// A queued job that has not reached its stream by then may have been lost on the way.
pub const PUSHED_WITHIN: Duration = Duration::from_secs(2);
/// Lost workers after which a job still reruns beside others: the machine failed, or a neighbour did. So what a killed process ran
/// is all running again at once, however long its jobs are. From then on it is a suspect, and runs in a process of its own.
pub const CRASHES_IN_COMPANY: u16 = 3;
/// Deaths of processes of its own that fail a job as poison. The worker that started them lived: so it was the job.
pub const DEATHS_OF_POISON: u16 = 3;
/// Lost workers that fail a job as poison without such proof. Far beyond what accidents bring about: it only ends a job that takes
/// the whole machine down whenever it runs.
pub const CRASHES_OF_POISON: i16 = 1_000;

/// Enters this process.
///
/// # Errors
/// [`LedgerError`].
pub async fn register(connection: &mut PgConnection, worker: Uuid, name: &str, queues: &[Queue], version: &str) -> Result<(), LedgerError> {
    let queues: Vec<&str> = queues.iter().map(|queue| queue.name()).collect();
    sqlx::query(
        "INSERT INTO worker (id, name, queues, version, started_at, seen_at) VALUES ($1, $2, $3, $4, clock_timestamp(), clock_timestamp())
         ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()",
    )
    .bind(worker)
    .bind(name)
    .bind(queues)
    .bind(version)
    .execute(connection)
    .await?;
    Ok(())
}

/// Says that this process is alive. Answers whether the ledger still knows it: if not, it was declared dead and its jobs were
/// taken over.
///
/// Touches `worker` and nothing else: whoever locks the tables of jobs must not make all workers look dead.
///
/// # Errors
/// [`LedgerError`].
pub async fn beat(connection: &mut PgConnection, worker: Uuid) -> Result<bool, LedgerError> {
    let beaten = sqlx::query("UPDATE worker SET seen_at = clock_timestamp() WHERE id = $1").bind(worker).execute(connection).await?;
    Ok(beaten.rows_affected() == 1)
}

/// The wishes to cancel what this worker runs.
///
/// # Errors
/// [`LedgerError`].
pub async fn cancels(executor: impl PgExecutor<'_>, worker: Uuid) -> Result<Vec<JobId>, LedgerError> {
    let jobs: Vec<Uuid> =
        sqlx::query_scalar("SELECT job_id FROM job_cancel WHERE worker = $1 LIMIT 1000").bind(worker).fetch_all(executor).await?;
    Ok(jobs.into_iter().map(JobId).collect())
}

/// Leaves in good order: this process holds nothing any more.
///
/// # Errors
/// [`LedgerError`].
pub async fn deregister(executor: impl PgExecutor<'_>, worker: Uuid) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM worker WHERE id = $1").bind(worker).execute(executor).await?;
    Ok(())
}

/// The workers that are alive.
///
/// # Errors
/// [`LedgerError`].
pub async fn living_workers(pool: &PgPool) -> Result<Vec<Uuid>, LedgerError> {
    Ok(sqlx::query_scalar("SELECT id FROM worker").fetch_all(pool).await?)
}

/// The workers that have been silent for [`DEAD_AFTER`].
///
/// # Errors
/// [`LedgerError`].
pub async fn dead_workers(pool: &PgPool) -> Result<Vec<Uuid>, LedgerError> {
    Ok(sqlx::query_scalar("SELECT id FROM worker WHERE seen_at < clock_timestamp() - make_interval(secs => $1)")
        .bind(DEAD_AFTER.as_secs_f64())
        .fetch_all(pool)
        .await?)
}

/// The owners of running jobs that are no workers any more: a claim whose commit came after its worker had left.
///
/// # Errors
/// [`LedgerError`].
pub async fn vanished_workers(pool: &PgPool) -> Result<Vec<Uuid>, LedgerError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT s.worker FROM job_dispatched d JOIN job_state s ON s.job_id = d.job_id
         WHERE s.state = 2 AND s.worker IS NOT NULL AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = s.worker)",
    )
    .fetch_all(pool)
    .await?)
}

/// A job taken from a dead worker or given back by a living one.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The job.
    pub job: JobId,
    /// What it is now.
    pub state: State,
    /// The push that must follow, if it is queued again.
    pub handover: Option<Handover>,
}

/// Takes up to `limit` running jobs over from workers that are dead: back to `queued` without costing an attempt, cancelled
/// if that was wished, failed as poison at the [`CRASHES_OF_POISON`]th crash. Writes the crashed run down.
///
/// # Errors
/// [`LedgerError`].
pub async fn take_over(pool: &PgPool, dead: &[Uuid], now: DateTime<Utc>, limit: i64) -> Result<Vec<Recovered>, LedgerError> {
    let mut transaction = pool.begin().await?;
    let rows = sqlx::query(
        "WITH lost AS (
            SELECT s.job_id, d.queue, d.priority
            FROM job_dispatched d JOIN job_state s ON s.job_id = d.job_id
            WHERE s.state = 2 AND s.worker = ANY ($1)
              -- Judged again under the row's lock: a worker that came back in time keeps its jobs.
              AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = s.worker AND w.seen_at >= clock_timestamp() - make_interval(secs => $5))
            ORDER BY s.job_id LIMIT $3 FOR UPDATE OF s SKIP LOCKED
        ), taken AS (
            UPDATE job_state s
            SET state = CASE WHEN s.cancel_requested THEN 5 WHEN s.crashes + 1 >= $4 THEN 4 ELSE 1 END,
                crashes = s.crashes + 1,
                attempt = CASE WHEN s.cancel_requested OR s.crashes + 1 >= $4 THEN s.attempt ELSE s.attempt - 1 END,
                token = 0, changed_at = $2, version = s.version + 1,
                finished_at = CASE WHEN s.cancel_requested OR s.crashes + 1 >= $4 THEN $2 END
            FROM lost l WHERE s.job_id = ANY (ARRAY[l.job_id])
            RETURNING s.job_id, s.tenant_id, s.state, s.runs, s.attempt, s.started_at, s.worker, s.crashes, l.queue, l.priority
        ), runs AS (
            INSERT INTO job_attempt (job_id, run, attempt, tenant_id, started_at, finished_at, worker, outcome, error)
            SELECT job_id, runs, attempt, tenant_id, started_at, $2, worker, CASE WHEN state = 5 THEN 'cancelled' ELSE 'crashed' END,
                   CASE WHEN state = 4
                        THEN jsonb_build_object('code', 'poison', 'class', 'permanent', 'causes', '[]'::jsonb, 'message',
                             format('%s worker processes died while running this job; look at the last ones'' logs before retrying it', crashes))
                        ELSE jsonb_build_object('code', 'worker_lost', 'class', 'transient', 'causes', '[]'::jsonb, 'message',
                             'the worker process that ran this job died or lost its connections')
                   END
            FROM taken
        ), again AS (
            UPDATE job_dispatched d SET dispatched_at = now(), lost_at = (SELECT seen_at FROM worker w WHERE w.id = t.worker)
            FROM taken t WHERE d.job_id = ANY (ARRAY[t.job_id]) AND t.state = 1
        ), gone AS (
            DELETE FROM job_dispatched d USING taken t WHERE d.job_id = ANY (ARRAY[t.job_id]) AND t.state <> 1
        ), unsuccessful AS (
            INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, error_code, ended_at)
            SELECT t.job_id, t.tenant_id, t.state, j.kind, t.queue, CASE WHEN t.state = 4 THEN 'poison' END, $2
            FROM taken t JOIN job j ON j.id = ANY (ARRAY[t.job_id]) WHERE t.state <> 1
        )
        SELECT job_id, state, queue, priority FROM taken",
    )
    .bind(dead)
    .bind(now)
    .bind(limit)
    .bind(CRASHES_OF_POISON)
    .bind(DEAD_AFTER.as_secs_f64())
    .fetch_all(&mut *transaction)
    .await?;
    let recovered: Vec<Recovered> = rows.iter().map(recovered).collect::<Result<_, _>>()?;
    let poisoned: Vec<JobId> =
        recovered.iter().filter(|recovered| recovered.state == State::Failed).map(|recovered| recovered.job).collect();
    if !poisoned.is_empty() {
        tell_owners(&mut transaction, &poisoned, now).await?;
    }
    super::leave_unrun(&mut transaction, ended(&recovered), now).await?;
    transaction.commit().await?;
    Ok(recovered)
}

/// What the owner of a job that failed as poison is told. What the operator reads of it is about processes; its owner can't do
/// anything about those.
pub(crate) const POISON_FOR_OWNERS: &str = "what makes it failed again and again. Try it again later.";

/// Notifies the owners of jobs that have just failed as poison, which no settle will.
async fn tell_owners(connection: &mut PgConnection, poisoned: &[JobId], now: DateTime<Utc>) -> Result<(), LedgerError> {
    let jobs: Vec<Uuid> = poisoned.iter().map(|job| job.0).collect();
    let rows =
        sqlx::query("SELECT id, tenant_id, kind, owner, payload::text AS payload FROM job WHERE id = ANY ($1) AND owner IS NOT NULL")
            .bind(jobs)
            .fetch_all(&mut *connection)
            .await?;
    let error = serde_json::json!({ "message": POISON_FOR_OWNERS });
    for row in rows {
        let (id, tenant): (Uuid, i32) = (row.try_get("id")?, row.try_get("tenant_id")?);
        let (kind, owner, payload): (String, Option<String>, String) =
            (row.try_get("kind")?, row.try_get("owner")?, row.try_get("payload")?);
        let addressee = Addressee::of(JobId(id), &kind, owner.as_deref(), &payload);
        let Some(notification) = addressee.and_then(|addressee| addressee.told(State::Failed, None, Some(&error))) else { continue };
        sqlx::query(
            "INSERT INTO notification (tenant_id, owner, type, title, message, data, created_at)
             SELECT $1, n.owner, 'system', n.title, n.message, n.data, $3
             FROM jsonb_to_record($2::jsonb) AS n (owner text, title text, message text, data jsonb)",
        )
        .bind(tenant)
        .bind(&notification)
        .bind(now)
        .execute(&mut *connection)
        .await?;
        if let Some(job) = reach_owner(tenant, JobId(id), State::Failed, &notification, now) {
            insert_within(&mut *connection, now, &[job]).await?;
        }
    }
    Ok(())
}

/// Forgets dead workers whose jobs have all been taken over.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget_workers(pool: &PgPool, dead: &[Uuid]) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM worker WHERE id = ANY ($1) AND seen_at < clock_timestamp() - make_interval(secs => $2)")
        .bind(dead)
        .bind(DEAD_AFTER.as_secs_f64())
        .execute(pool)
        .await?;
    Ok(())
}

/// The claims that the ledger says a worker holds.
///
/// # Errors
/// [`LedgerError`].
pub async fn claims_of(pool: &PgPool, worker: Uuid) -> Result<Vec<(JobId, i64)>, LedgerError> {
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT s.job_id, s.token FROM job_dispatched d JOIN job_state s ON s.job_id = d.job_id WHERE s.state = 2 AND s.worker = $1",
    )
    .bind(worker)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|(job, token)| (JobId(job), token)).collect())
}

/// Gives claims back that the worker owns and does not hold (the answer to its claim was lost on the way): queued again, no
/// attempt used.
///
/// # Errors
/// [`LedgerError`].
pub async fn give_back(connection: &mut PgConnection, claims: &[(JobId, i64)], now: DateTime<Utc>) -> Result<Vec<Recovered>, LedgerError> {
    let mut transaction = connection.begin().await?;
    let jobs: Vec<Uuid> = claims.iter().map(|(job, _)| job.0).collect();
    let tokens: Vec<i64> = claims.iter().map(|(_, token)| *token).collect();
    let rows = sqlx::query(
        "WITH given AS (
            UPDATE job_state s
            SET state = CASE WHEN s.cancel_requested THEN 5 ELSE 1 END, attempt = s.attempt - 1, token = 0, changed_at = $3,
                version = s.version + 1, finished_at = CASE WHEN s.cancel_requested THEN $3 END
            FROM unnest($1::uuid[], $2::bigint[]) AS c (id, token)
            WHERE s.job_id = ANY (ARRAY[c.id]) AND s.token = c.token AND s.state = 2
            RETURNING s.job_id, s.tenant_id, s.state
        ), again AS (
            UPDATE job_dispatched d SET dispatched_at = now() FROM given g WHERE d.job_id = ANY (ARRAY[g.job_id]) AND g.state = 1
        ), gone AS (
            DELETE FROM job_dispatched d USING given g WHERE d.job_id = ANY (ARRAY[g.job_id]) AND g.state <> 1
        ), unsuccessful AS (
            INSERT INTO job_unsuccessful (job_id, tenant_id, state, kind, queue, ended_at)
            SELECT g.job_id, g.tenant_id, g.state, j.kind, j.queue, $3 FROM given g JOIN job j ON j.id = ANY (ARRAY[g.job_id]) WHERE g.state <> 1
        )
        SELECT g.job_id, g.state, j.queue, j.priority FROM given g JOIN job j ON j.id = ANY (ARRAY[g.job_id])",
    )
    .bind(jobs)
    .bind(tokens)
    .bind(now)
    .fetch_all(&mut *transaction)
    .await?;
    let recovered: Vec<Recovered> = rows.iter().map(recovered).collect::<Result<_, _>>()?;
    super::leave_unrun(&mut transaction, ended(&recovered), now).await?;
    transaction.commit().await?;
    Ok(recovered)
}

/// Those that nobody will run again.
fn ended(recovered: &[Recovered]) -> Vec<Uuid> {
    recovered.iter().filter(|recovered| recovered.state != State::Queued).map(|recovered| recovered.job.0).collect()
}

fn recovered(row: &sqlx::postgres::PgRow) -> Result<Recovered, LedgerError> {
    let job = JobId(row.try_get("job_id")?);
    let code: i16 = row.try_get("state")?;
    let state = State::from_code(code).ok_or(LedgerError::Unknown { what: "state", value: code.to_string() })?;
    let handover = if state == State::Queued { Some(handover(job, row)?) } else { None };
    Ok(Recovered { job, state, handover })
}

fn handover(job: JobId, row: &sqlx::postgres::PgRow) -> Result<Handover, LedgerError> {
    let queue: String = row.try_get("queue")?;
    let priority: i16 = row.try_get("priority")?;
    Ok(Handover {
        job,
        queue: Queue::from_name(&queue).ok_or(LedgerError::Unknown { what: "queue", value: queue })?,
        lane: Lane::of(Priority::from_code(priority).unwrap_or(Priority::Normal)),
    })
}

/// Jobs of a queue that were handed over longer than [`PUSHED_WITHIN`] ago: queued still, or running by now.
///
/// # Errors
/// [`LedgerError`].
pub async fn handed_over(pool: &PgPool, queue: Queue) -> Result<Vec<JobId>, LedgerError> {
    let jobs: Vec<Uuid> =
        sqlx::query_scalar("SELECT job_id FROM job_dispatched WHERE queue = $1 AND dispatched_at < now() - make_interval(secs => $2)")
            .bind(queue.name())
            .bind(PUSHED_WITHIN.as_secs_f64())
            .fetch_all(pool)
            .await?;
    Ok(jobs.into_iter().map(JobId).collect())
}

/// Of jobs that are in no stream, those that are queued and so belong in one.
///
/// # Errors
/// [`LedgerError`].
pub async fn missing(pool: &PgPool, jobs: &[JobId]) -> Result<Vec<Handover>, LedgerError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
    let rows = sqlx::query(
        "SELECT d.job_id, d.queue, d.priority FROM job_dispatched d JOIN job_state s ON s.job_id = d.job_id
         WHERE d.job_id = ANY ($1) AND s.state = 1",
    )
    .bind(jobs)
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| handover(JobId(row.try_get("job_id")?), row)).collect()
}

/// The time of these jobs' handover starts anew: they were pushed again. Told afterwards, so that what could not be pushed is
/// still overdue; a push that is told of by nobody happens twice, and its second entry loses at the claim.
///
/// # Errors
/// [`LedgerError`].
pub async fn pushed(pool: &PgPool, handovers: &[Handover]) -> Result<(), LedgerError> {
    let mut jobs: Vec<Uuid> = handovers.iter().map(|handover| handover.job.0).collect();
    // One order for all batches that lock several rows, so that they queue up and don't deadlock.
    jobs.sort_unstable();
    sqlx::query(
        "UPDATE job_dispatched d SET dispatched_at = now()
         FROM (SELECT job_id FROM job_dispatched WHERE job_id = ANY ($1) ORDER BY job_id FOR UPDATE) p WHERE d.job_id = p.job_id",
    )
    .bind(jobs)
    .execute(pool)
    .await?;
    Ok(())
}

/// Lays a duty down before its time, for whoever comes next.
///
/// # Errors
/// [`LedgerError`].
pub async fn lay_down_duty(pool: &PgPool, name: &'static str, worker: Uuid) -> Result<(), LedgerError> {
    sqlx::query("UPDATE duty SET taken_until = clock_timestamp() WHERE name = $1 AND worker = $2")
        .bind(name)
        .bind(worker)
        .execute(pool)
        .await?;
    Ok(())
}

/// Takes a periodic duty for `period` if nobody has it: how replicas share what needs doing once a period, without a leader.
///
/// # Errors
/// [`LedgerError`].
pub async fn take_duty(pool: &PgPool, name: &str, worker: Uuid, period: Duration) -> Result<bool, LedgerError> {
    let taken = sqlx::query(
        "INSERT INTO duty AS d (name, taken_until, worker) VALUES ($1, clock_timestamp() + make_interval(secs => $3), $2)
         ON CONFLICT (name) DO UPDATE SET taken_until = excluded.taken_until, worker = excluded.worker
         WHERE d.taken_until <= clock_timestamp()",
    )
    .bind(name)
    .bind(worker)
    .bind(period.as_secs_f64())
    .execute(pool)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Gives a duty up before its period is over, so that somebody else may take it at once.
///
/// # Errors
/// [`LedgerError`].
pub async fn give_up_duty(pool: &PgPool, name: &str, worker: Uuid) -> Result<(), LedgerError> {
    sqlx::query("UPDATE duty SET taken_until = clock_timestamp() WHERE name = $1 AND worker = $2")
        .bind(name)
        .bind(worker)
        .execute(pool)
        .await?;
    Ok(())
}

/// Forgets what has served its purpose, a bounded bite at a time: expired idempotency keys and links, and wishes to cancel
/// what no longer runs.
///
/// # Errors
/// [`LedgerError`].
pub async fn tidy(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let keys = sqlx::query(
        "DELETE FROM idempotency_key k USING (SELECT tenant_id, owner, key FROM idempotency_key WHERE expires_at <= $1 LIMIT 5000 FOR UPDATE SKIP LOCKED) e
         WHERE k.tenant_id = e.tenant_id AND k.owner = e.owner AND k.key = e.key",
    )
    .bind(now)
    .execute(pool)
    .await?;
    let wishes = sqlx::query("DELETE FROM job_cancel c USING job_state s WHERE s.job_id = c.job_id AND s.state <> 2").execute(pool).await?;
    let links = sqlx::query(
        "DELETE FROM job_link l USING (SELECT hash FROM job_link WHERE expires_at <= $1 LIMIT 5000 FOR UPDATE SKIP LOCKED) e WHERE l.hash = e.hash",
    )
    .bind(now)
    .execute(pool)
    .await?;
    Ok(keys.rows_affected() + wishes.rows_affected() + links.rows_affected())
}
