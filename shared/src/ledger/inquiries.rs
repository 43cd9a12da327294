//! Inquiries of the latest day (`inquiry`), counted by who sends them (R31).
//!
//! What must stay true: racing requests pass no limit, for they count one after the other; a repeated request counts once; nothing in it is an
//! address.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::LedgerError;
use crate::mail::RecipientHash;

/// Inquiries of one sender within [`WINDOW_HOURS`].
pub const MOST: i64 = 3;

/// What is counted, in hours.
pub const WINDOW_HOURS: i64 = 24;

/// Whether an inquiry may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// It may, and is counted under the id.
    Now,
    /// The same was counted before.
    Before,
    /// There have been enough; the first of them is forgotten then.
    TooMany(DateTime<Utc>),
}

/// Counts an inquiry of a sender under `id`, in the caller's transaction; `key` is the hash of its idempotency key.
///
/// # Errors
/// [`LedgerError`].
pub async fn count(
    connection: &mut PgConnection,
    (tenant, sender): (i32, RecipientHash),
    id: Uuid,
    key: Option<[u8; 32]>,
    now: DateTime<Utc>,
) -> Result<Counted, LedgerError> {
    let key = key.map(|key| key.to_vec());
    // One after the other, for one sender: a count can't be locked.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('inquiry' || $1::text || encode($2, 'hex'), 0))")
        .bind(tenant)
        .bind(sender.0.as_slice())
        .execute(&mut *connection)
        .await?;
    let sent: Vec<(DateTime<Utc>, Option<Vec<u8>>)> = sqlx::query_as(
        "SELECT created_at, key_hash FROM inquiry WHERE tenant_id = $1 AND address_hash = $2 AND created_at > $3 ORDER BY created_at DESC LIMIT 100",
    )
    .bind(tenant)
    .bind(sender.0.as_slice())
    .bind(now - TimeDelta::hours(WINDOW_HOURS))
    .fetch_all(&mut *connection)
    .await?;
    if key.is_some() && sent.iter().any(|(_, known)| *known == key) {
        return Ok(Counted::Before);
    }
    if let Some((oldest, _)) = usize::try_from(MOST - 1).ok().and_then(|place| sent.get(place)) {
        return Ok(Counted::TooMany(*oldest + TimeDelta::hours(WINDOW_HOURS)));
    }
    sqlx::query("INSERT INTO inquiry (id, tenant_id, address_hash, key_hash, created_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(id)
        .bind(tenant)
        .bind(sender.0.as_slice())
        .bind(key)
        .bind(now)
        .execute(connection)
        .await?;
    Ok(Counted::Now)
}

/// Strikes an inquiry out that was not accepted after all.
///
/// # Errors
/// [`LedgerError`].
pub async fn strike_out(connection: &mut PgConnection, tenant: i32, id: Uuid) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM inquiry WHERE id = $1 AND tenant_id = $2").bind(id).bind(tenant).execute(connection).await?;
    Ok(())
}

/// Forgets inquiries that are not counted any more, up to 5,000.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let forgotten = sqlx::query(
        "DELETE FROM inquiry i
         USING (SELECT id FROM inquiry WHERE created_at < $1 ORDER BY created_at LIMIT 5000 FOR UPDATE SKIP LOCKED) old
         WHERE i.id = old.id",
    );
    Ok(forgotten.bind(now - TimeDelta::hours(WINDOW_HOURS)).execute(pool).await?.rows_affected())
}
