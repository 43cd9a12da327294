//! What becomes of files: published ones, deleted at their time or at their owner's wish; and what runs left in object storage
//! that published nothing.
//!
//! What must stay true: nothing here names an object for deletion that a live claim may still publish, or that a job has
//! published and keeps. A claim that is gone never comes back (its token is random), so what is lost stays lost; whether
//! it is published is read in the same snapshot as whether its claim lives, and a settle changes both at once.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::LedgerError;
use crate::{job::JobId, random};

/// The length of a [`page_token`], in characters.
pub const PAGE_TOKEN_LENGTH: usize = 32;

/// How long after its claim something of a run may still reach object storage, generously: the longest call that a run makes
/// there, completing an upload, is given ten minutes.
pub const STRAGGLERS_ARRIVE_WITHIN: TimeDelta = TimeDelta::minutes(15);

/// A new token that opens a file's page to whoever has it (`job_file.page_token`): letters and digits, some 190 bits.
#[must_use]
pub fn page_token() -> String {
    random::base62(PAGE_TOKEN_LENGTH)
}

/// A published file whose object is to be deleted.
#[derive(Debug, Clone)]
pub struct DueFile {
    /// Its job.
    pub job: JobId,
    /// Its object.
    pub object_key: String,
    /// Whether its owner asked for it, before its time.
    pub removed: bool,
    /// Deletions that failed so far.
    pub failures: i16,
}

/// Files that have expired or were removed and whose objects still stand, the longest due first.
///
/// # Errors
/// [`LedgerError`].
pub async fn due(pool: &PgPool, now: DateTime<Utc>, limit: i64) -> Result<Vec<DueFile>, LedgerError> {
    let rows = sqlx::query(
        "SELECT job_id, object_key, removed_at IS NOT NULL AS removed, deletion_failures FROM job_file
         WHERE deleted_at IS NULL AND least(expires_at, removed_at) <= $1 AND (retry_at IS NULL OR retry_at <= $1)
         ORDER BY least(expires_at, removed_at) LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(DueFile {
                job: JobId(row.try_get("job_id")?),
                object_key: row.try_get("object_key")?,
                removed: row.try_get("removed")?,
                failures: row.try_get("deletion_failures")?,
            })
        })
        .collect()
}

/// Notes that these files' objects are gone.
///
/// # Errors
/// [`LedgerError`].
pub async fn deleted(pool: &PgPool, jobs: &[JobId], now: DateTime<Utc>) -> Result<(), LedgerError> {
    let jobs: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
    sqlx::query("UPDATE job_file SET deleted_at = $2, retry_at = NULL WHERE job_id = ANY ($1) AND deleted_at IS NULL")
        .bind(jobs)
        .bind(now)
        .execute(pool)
        .await?;
    Ok(())
}

/// Notes that an object could not be deleted, and when to try again.
///
/// # Errors
/// [`LedgerError`].
pub async fn not_deleted(pool: &PgPool, job: JobId, retry_at: DateTime<Utc>) -> Result<(), LedgerError> {
    sqlx::query(
        "UPDATE job_file SET deletion_failures = least(deletion_failures + 1, 32767), retry_at = $2 WHERE job_id = $1 AND deleted_at IS NULL",
    )
    .bind(job.0)
    .bind(retry_at)
    .execute(pool)
    .await?;
    Ok(())
}

/// How many files should have been deleted and are not, counted up to `most`.
///
/// # Errors
/// [`LedgerError`].
pub async fn overdue(pool: &PgPool, now: DateTime<Utc>, most: i64) -> Result<i64, LedgerError> {
    let count = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT FROM job_file WHERE deleted_at IS NULL AND least(expires_at, removed_at) <= $1 LIMIT $2) AS overdue",
    );
    Ok(count.bind(now).bind(most).fetch_one(pool).await?)
}

/// What a run may have left in object storage without publishing it.
#[derive(Debug, Clone)]
pub struct Leftover {
    /// The job.
    pub job: JobId,
    /// The effect that tells of it.
    pub effect: String,
    /// The object, or what an upload would have become.
    pub object_key: Option<String>,
    /// The multipart upload, where its id is known.
    pub upload_id: Option<String>,
    /// Whether it was swept before: then nothing of its run can still be on its way.
    pub swept: bool,
}

/// Leftovers to sweep: of runs whose claim is gone, whose file is not the job's, and which no later run goes on with.
///
/// # Errors
/// [`LedgerError`].
pub async fn leftovers(pool: &PgPool, now: DateTime<Utc>, limit: i64) -> Result<Vec<Leftover>, LedgerError> {
    let rows = sqlx::query(
        "SELECT e.job_id, e.key, e.intent ->> 'key' AS object_key, e.intent ->> 'upload_id' AS upload_id, e.swept_at IS NOT NULL AS swept
         FROM effect e LEFT JOIN job_state s ON s.job_id = e.job_id
         WHERE NOT e.published AND (e.key LIKE 'object:%' OR e.key LIKE 'upload:%')
           AND (e.sweep_at IS NULL OR e.sweep_at <= $1)
           AND NOT coalesce(s.state = 2 AND s.token = e.token, false)
           AND NOT EXISTS (SELECT FROM job_file f WHERE f.job_id = e.job_id AND f.object_key = e.intent ->> 'key')
           AND NOT EXISTS (SELECT FROM job_checkpoint c WHERE c.job_id = e.job_id AND c.keeps = e.intent ->> 'key' AND s.state <= 2)
         ORDER BY e.intended_at LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Leftover {
                job: JobId(row.try_get("job_id")?),
                effect: row.try_get("key")?,
                object_key: row.try_get("object_key")?,
                upload_id: row.try_get("upload_id")?,
                swept: row.try_get("swept")?,
            })
        })
        .collect()
}

/// Takes what has been published off the sweep's list, up to `limit`. Its receipt stays.
///
/// # Errors
/// [`LedgerError`].
pub async fn set_published_aside(pool: &PgPool, limit: i64) -> Result<u64, LedgerError> {
    let done = sqlx::query(
        "UPDATE effect e SET published = true
         FROM (SELECT e.job_id, e.key FROM effect e JOIN job_file f ON f.job_id = e.job_id AND f.object_key = e.intent ->> 'key'
               WHERE NOT e.published AND (e.key LIKE 'object:%' OR e.key LIKE 'upload:%')
               ORDER BY e.intended_at LIMIT $1) AS p
         WHERE e.job_id = p.job_id AND e.key = p.key",
    );
    Ok(done.bind(limit).execute(pool).await?.rows_affected())
}

/// Notes that a leftover was removed: struck out if it had been swept before; else it is looked at once more when no
/// straggler of its run can arrive any more.
///
/// # Errors
/// [`LedgerError`].
pub async fn swept(pool: &PgPool, leftover: &Leftover, now: DateTime<Utc>) -> Result<(), LedgerError> {
    if leftover.swept {
        return super::effects::forget(pool, leftover.job, &leftover.effect).await;
    }
    look_again(pool, leftover, Some(now), now + STRAGGLERS_ARRIVE_WITHIN).await
}

/// Notes that a leftover could not be removed, and when to try again.
///
/// # Errors
/// [`LedgerError`].
pub async fn not_swept(pool: &PgPool, leftover: &Leftover, retry_at: DateTime<Utc>) -> Result<(), LedgerError> {
    look_again(pool, leftover, None, retry_at).await
}

async fn look_again(
    pool: &PgPool,
    leftover: &Leftover,
    swept_at: Option<DateTime<Utc>>,
    sweep_at: DateTime<Utc>,
) -> Result<(), LedgerError> {
    sqlx::query("UPDATE effect SET swept_at = coalesce(swept_at, $3), sweep_at = $4 WHERE job_id = $1 AND key = $2")
        .bind(leftover.job.0)
        .bind(&leftover.effect)
        .bind(swept_at)
        .bind(sweep_at)
        .execute(pool)
        .await?;
    Ok(())
}

/// A claim, as the key of an object names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimOfKey {
    /// The tenant.
    pub tenant: i32,
    /// The job.
    pub job: JobId,
    /// The claim's token.
    pub token: i64,
}

/// An object's key with the claim that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedKey {
    /// The claim.
    pub claim: ClaimOfKey,
    /// The whole key.
    pub key: String,
}

/// Which of these keys' claims this ledger knows of and are gone, with no later run that goes on with the key, by their place. Jobs that it does not know are left out: they are
/// another installation's.
///
/// # Errors
/// [`LedgerError`].
pub async fn gone(pool: &PgPool, keys: &[NamedKey]) -> Result<Vec<usize>, LedgerError> {
    let places: Vec<i64> = sqlx::query_scalar(
        "SELECT c.place FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::text[]) WITH ORDINALITY AS c (job, tenant, token, key, place)
         LEFT JOIN job_state s ON s.job_id = c.job AND s.tenant_id = c.tenant
         WHERE NOT (s.state = 2 AND s.token = c.token)
               AND NOT EXISTS (SELECT FROM job_checkpoint p WHERE p.job_id = c.job AND p.keeps = c.key AND s.state <= 2)
            OR s.job_id IS NULL AND EXISTS (SELECT FROM job_tombstone t WHERE t.job_id = c.job AND t.tenant_id = c.tenant)",
    )
    .bind(keys.iter().map(|key| key.claim.job.0).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.claim.tenant).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.claim.token).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.key.as_str()).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    Ok(places.into_iter().filter_map(|place| usize::try_from(place - 1).ok()).collect())
}
