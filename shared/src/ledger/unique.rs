//! Unique keys: one unfinished job at a time, or one in a period. Taken when a job is accepted (the SQL function `accept_jobs`) and
//! when one that has ended is to run again.
//!
//! What must stay true: of several who want a key at once one gets it, and the others learn who; nobody gets one whose holder has
//! not ended, or whose period is not over. So the holder is judged under the lock of the key's row, by a statement that began
//! after the row was locked.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::LedgerError;
use crate::job::JobId;

/// Keys that one statement of the sweep looks at.
const PAGE: i64 = 1_000;

/// Takes a job's key again before it runs again; the caller has locked its state. Answers who holds it where somebody else does.
///
/// # Errors
/// [`LedgerError`].
pub async fn hold(connection: &mut PgConnection, job: JobId, now: DateTime<Utc>) -> Result<Option<JobId>, LedgerError> {
    let holder: Option<Uuid> = sqlx::query_scalar("SELECT holder_id FROM hold_unique(ARRAY[$1::uuid], $2)")
        .bind(job.0)
        .bind(now)
        .fetch_optional(connection)
        .await?;
    Ok(holder.map(JobId))
}

/// A key: tenant, owner, kind, and the key itself.
pub type Key = (i32, String, String, String);

/// Who holds a key now, as far as a look can tell.
///
/// # Errors
/// [`LedgerError`].
pub async fn holder(connection: &mut PgConnection, key: &Key, now: DateTime<Utc>) -> Result<Option<JobId>, LedgerError> {
    let (tenant, owner, kind, key) = key;
    let holder: Option<Uuid> = sqlx::query_scalar(
        "SELECT job_id FROM job_unique WHERE tenant_id = $1 AND owner = $2 AND kind = $3 AND key = $4 AND NOT unique_is_free(job_id, until, $5)",
    )
    .bind(tenant)
    .bind(owner)
    .bind(kind)
    .bind(key)
    .bind(now)
    .fetch_optional(connection)
    .await?;
    Ok(holder.map(JobId))
}

/// Forgets keys that are free, from behind `after` on, a page at a time. Answers where to go on; `None` at the end.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, after: Option<&Key>, now: DateTime<Utc>) -> Result<Option<Key>, LedgerError> {
    let first = (i32::MIN, String::new(), String::new(), String::new());
    let (tenant, owner, kind, key) = after.unwrap_or(&first);
    // The page's rows are locked and then judged by a statement of its own, as everybody does it.
    let mut transaction = pool.begin().await?;
    let page: Vec<Key> = sqlx::query_as(
        "SELECT tenant_id, owner, kind, key FROM job_unique WHERE (tenant_id, owner, kind, key) > ($1, $2, $3, $4)
         ORDER BY tenant_id, owner, kind, key LIMIT $5 FOR UPDATE SKIP LOCKED",
    )
    .bind(tenant)
    .bind(owner)
    .bind(kind)
    .bind(key)
    .bind(PAGE)
    .fetch_all(&mut *transaction)
    .await?;
    let Some(last) = page.last().cloned() else { return Ok(None) };
    sqlx::query(
        "DELETE FROM job_unique u USING unnest($1::integer[], $2::text[], $3::text[], $4::text[]) AS e (tenant, owner, kind, key)
         WHERE u.tenant_id = e.tenant AND u.owner = e.owner AND u.kind = e.kind AND u.key = e.key AND unique_is_free(u.job_id, u.until, $5)",
    )
    .bind(page.iter().map(|key| key.0).collect::<Vec<_>>())
    .bind(page.iter().map(|key| key.1.as_str()).collect::<Vec<_>>())
    .bind(page.iter().map(|key| key.2.as_str()).collect::<Vec<_>>())
    .bind(page.iter().map(|key| key.3.as_str()).collect::<Vec<_>>())
    .bind(now)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Some(last))
}
