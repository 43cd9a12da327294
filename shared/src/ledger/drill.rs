//! What a drill (`worker drill`) puts into the ledger, reads from it at the end, and takes out again. Its jobs are nobody's: their
//! tenant is [`TENANT`], which no product ever is, so no API shows them.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::{
    Kept, LedgerError, change,
    insert::{Arrival, NewJob, insert},
};
use crate::{
    job::{JobId, Options, Priority, Reason},
    kinds::{Kind, ProbeRun},
    queue::Queue,
};

/// The tenant of drills; products are counted from 1.
pub const TENANT: i32 = 0;
/// Jobs of one statement.
const BATCH: usize = 250;

/// Puts probes into the drill's queue.
///
/// # Errors
/// [`LedgerError`]; some of them may be in it.
pub async fn put(pool: &PgPool, jobs: &[JobId], payload: &str, now: DateTime<Utc>) -> Result<(), Arc<LedgerError>> {
    let connections = Kept::of(pool.clone(), 1);
    for batch in jobs.chunks(BATCH) {
        let batch: Vec<NewJob> = batch
            .iter()
            .map(|id| NewJob {
                id: *id,
                tenant: TENANT,
                owner: None,
                subject: None,
                kind: ProbeRun::NAME,
                queue: Queue::Drill,
                priority: Priority::Normal,
                payload: payload.to_owned(),
                attempts: ProbeRun::POLICY.attempts,
                created_at: now,
                run_at: now,
                start_by: None,
                state: Arrival::Waiting(Reason::Window),
                idempotency: None,
                options: Options::default(),
                meter: None,
            })
            .collect();
        for inserted in insert(&connections, now, &batch).await {
            inserted?;
        }
    }
    Ok(())
}

/// How a drill's jobs stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Jobs that the ledger knows.
    pub known: i64,
    /// Jobs that succeeded.
    pub succeeded: i64,
    /// Jobs that have not ended.
    pub open: i64,
    /// Runs that ended with their worker.
    pub crashed: i64,
}

/// Looks at a drill's jobs.
///
/// # Errors
/// [`LedgerError`].
pub async fn look(pool: &PgPool, jobs: &[JobId]) -> Result<Standing, LedgerError> {
    let row = sqlx::query(
        "SELECT count(*) AS known, count(*) FILTER (WHERE state = 3) AS succeeded, count(*) FILTER (WHERE state < 3) AS open,
                coalesce(sum(crashes), 0)::bigint AS crashed
         FROM job_state WHERE job_id = ANY ($1)",
    )
    .bind(ids(jobs))
    .fetch_one(pool)
    .await?;
    Ok(Standing {
        known: row.try_get("known")?,
        succeeded: row.try_get("succeeded")?,
        open: row.try_get("open")?,
        crashed: row.try_get("crashed")?,
    })
}

/// Those of a drill's jobs with an effect that the ledger lists as unknown: it may have happened twice, and says so.
///
/// # Errors
/// [`LedgerError`].
pub async fn unknown(pool: &PgPool, jobs: &[JobId]) -> Result<Vec<JobId>, LedgerError> {
    let jobs: Vec<Uuid> = sqlx::query_scalar("SELECT DISTINCT job_id FROM effect WHERE job_id = ANY ($1) AND state = 2")
        .bind(ids(jobs))
        .fetch_all(pool)
        .await?;
    Ok(jobs.into_iter().map(JobId).collect())
}

/// The workers that the ledger thinks run a drill's jobs.
///
/// # Errors
/// [`LedgerError`].
pub async fn holders(pool: &PgPool, jobs: &[JobId]) -> Result<Vec<Uuid>, LedgerError> {
    Ok(sqlx::query_scalar("SELECT DISTINCT worker FROM job_state WHERE job_id = ANY ($1) AND state = 2 AND worker IS NOT NULL")
        .bind(ids(jobs))
        .fetch_all(pool)
        .await?)
}

/// Takes a drill's jobs out, ended or not. Answers how many are left, which somebody holds just now: ask again.
///
/// # Errors
/// [`LedgerError`].
pub async fn take_out(pool: &PgPool, jobs: &[JobId], now: DateTime<Utc>) -> Result<i64, LedgerError> {
    let open: Vec<Uuid> = sqlx::query_scalar("SELECT job_id FROM job_state WHERE job_id = ANY ($1) AND state < 3 ORDER BY job_id")
        .bind(ids(jobs))
        .fetch_all(pool)
        .await?;
    for job in open {
        let mut transaction = pool.begin().await?;
        change::cancel(&mut transaction, TENANT, JobId(job), now).await?;
        transaction.commit().await?;
    }
    for batch in jobs.chunks(BATCH) {
        sqlx::query("SELECT count(*) FROM bury_jobs($1, $2, false, $3)").bind(TENANT).bind(ids(batch)).bind(now).execute(pool).await?;
        sqlx::query("DELETE FROM job_tombstone WHERE job_id = ANY ($1)").bind(ids(batch)).execute(pool).await?;
    }
    Ok(look(pool, jobs).await?.known)
}

fn ids(jobs: &[JobId]) -> Vec<Uuid> {
    jobs.iter().map(|job| job.0).collect()
}
