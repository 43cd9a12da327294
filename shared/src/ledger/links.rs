//! Addresses that show one job to whoever has them (`job_link`). The token is in no statement, and so in no log of the database:
//! its hash is all that is kept and asked for.

use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::LedgerError;
use crate::{job::JobId, random};

/// The length of a token, in characters: some 190 bits.
pub const TOKEN_LENGTH: usize = 32;

/// The most addresses that one job has at a time; the oldest gives way.
pub const MOST_OF_JOB: i64 = 20;

/// The SHA-256 of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkHash([u8; 32]);

impl LinkHash {
    /// Of a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        Self(hash)
    }
}

/// A new token: letters and digits.
#[must_use]
pub fn token() -> String {
    random::base62(TOKEN_LENGTH)
}

/// What an address leads to.
#[derive(Debug, Clone, Copy)]
pub struct FoundLink {
    /// The job.
    pub job: JobId,
    /// Whose product.
    pub tenant: i32,
    /// Until when it leads there.
    pub expires_at: DateTime<Utc>,
}

/// Writes a new address of a job down, and strikes out those beyond [`MOST_OF_JOB`] and those whose time is over.
///
/// # Errors
/// [`LedgerError`].
pub async fn add(
    connection: &mut PgConnection,
    tenant: i32,
    job: JobId,
    hash: LinkHash,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<(), LedgerError> {
    sqlx::query(
        "WITH gone AS (
            DELETE FROM job_link WHERE job_id = $1 AND tenant_id = $2 AND (expires_at <= $4 OR hash NOT IN (
                SELECT hash FROM job_link WHERE job_id = $1 AND tenant_id = $2 AND expires_at > $4 ORDER BY created_at DESC LIMIT $6 - 1
            ))
         )
         INSERT INTO job_link (hash, job_id, tenant_id, created_at, expires_at) VALUES ($3, $1, $2, $4, $5)",
    )
    .bind(job.0)
    .bind(tenant)
    .bind(hash.0.as_slice())
    .bind(now)
    .bind(expires_at)
    .bind(MOST_OF_JOB)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes all addresses of a job back; answers how many led there.
///
/// # Errors
/// [`LedgerError`].
pub async fn revoke(connection: &mut PgConnection, tenant: i32, job: JobId) -> Result<u64, LedgerError> {
    let revoked =
        sqlx::query("DELETE FROM job_link WHERE job_id = $1 AND tenant_id = $2").bind(job.0).bind(tenant).execute(connection).await?;
    Ok(revoked.rows_affected())
}

/// Where an address leads, by nothing but its hash.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(pool: &PgPool, hash: LinkHash, now: DateTime<Utc>) -> Result<Option<FoundLink>, LedgerError> {
    let row = sqlx::query("SELECT job_id, tenant_id, expires_at FROM find_job_link($1, $2)")
        .bind(hash.0.as_slice())
        .bind(now)
        .fetch_optional(pool)
        .await?;
    row.map(|row| Ok(FoundLink { job: JobId(row.try_get(0)?), tenant: row.try_get(1)?, expires_at: row.try_get(2)? })).transpose()
}

/// The addresses that lead to these jobs of a tenant.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_jobs(
    connection: &mut PgConnection,
    tenant: i32,
    jobs: &[Uuid],
    now: DateTime<Utc>,
) -> Result<Vec<(JobId, LinkHash)>, LedgerError> {
    let rows: Vec<(Uuid, Vec<u8>)> =
        sqlx::query_as("SELECT job_id, hash FROM job_link WHERE job_id = ANY ($1) AND tenant_id = $2 AND expires_at > $3")
            .bind(jobs)
            .bind(tenant)
            .bind(now)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().filter_map(|(job, hash)| Some((JobId(job), LinkHash(hash.try_into().ok()?)))).collect())
}
