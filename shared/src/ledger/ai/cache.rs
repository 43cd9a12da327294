//! Answers that are kept for who asks exactly the same. Truth of nothing: whatever is missing here is asked for again.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgPool;

use crate::ledger::LedgerError;

/// Entries whose time is over that each new one takes with it: more than one, so that they go down.
const SWEPT: i64 = 20;

/// The answer that is kept for a question.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(pool: &PgPool, tenant: i32, digest: &[u8; 32], now: DateTime<Utc>) -> Result<Option<Value>, LedgerError> {
    let find = sqlx::query_scalar("SELECT result FROM ai_cache WHERE tenant_id = $1 AND digest = $2 AND expires_at > $3");
    Ok(find.bind(tenant).bind(digest.as_slice()).bind(now).fetch_optional(pool).await?)
}

/// Keeps an answer, and removes some whose time is over. One that is kept already stays until its own time is over, and its first owner's.
/// Nothing is kept of a user who is being erased.
///
/// # Errors
/// [`LedgerError`].
pub async fn keep(
    pool: &PgPool,
    tenant: i32,
    digest: &[u8; 32],
    owner: Option<&str>,
    result: &Value,
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<(), LedgerError> {
    sqlx::query(
        "WITH over AS (
            DELETE FROM ai_cache WHERE ctid = ANY (ARRAY (
                SELECT ctid FROM ai_cache WHERE expires_at <= $5 AND NOT (tenant_id = $1 AND digest = $2) ORDER BY expires_at LIMIT $7
                FOR UPDATE SKIP LOCKED
            ))
         )
         INSERT INTO ai_cache (tenant_id, digest, owner, result, expires_at)
         SELECT $1, $2, $3, $4, $6
         WHERE $3 IS NULL OR NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = $1 AND e.user_id = $3)
         ON CONFLICT (tenant_id, digest) DO UPDATE SET owner = excluded.owner, result = excluded.result, expires_at = excluded.expires_at
         WHERE ai_cache.expires_at <= $5",
    )
    .bind(tenant)
    .bind(digest.as_slice())
    .bind(owner)
    .bind(result)
    .bind(now)
    .bind(until)
    .bind(SWEPT)
    .execute(pool)
    .await?;
    Ok(())
}
