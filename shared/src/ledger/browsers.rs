//! Browsers that can be pushed to (`push_subscription`).
//!
//! What must stay true: an endpoint is one browser's, and belongs to the user who registered it last; a browser goes when its push service
//! says so, when its user logs out, or when the user has too many; no endpoint is in an answer or a log.

use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};
use url::Url;
use uuid::Uuid;

use super::{LedgerError, people};
use crate::push::{KeyId, Subscription};

/// The most browsers of one user; the one that was registered longest ago gives way.
pub const MOST_OF_USER: i64 = 20;

/// A browser to be registered.
#[derive(Debug, Clone, Copy)]
pub struct NewBrowser<'a> {
    /// Its id, unless it is known already.
    pub id: Uuid,
    /// Whose product.
    pub tenant: i32,
    /// Whose browser.
    pub owner: &'a str,
    /// What it gave.
    pub subscription: &'a Subscription,
    /// By which of our keys it subscribed.
    pub key: &'a KeyId,
    /// When it says that its subscription ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// Its endpoint before, which leads nowhere any more.
    pub replaces: Option<&'a str>,
}

/// A browser to push to.
#[derive(Debug, Clone)]
pub struct FoundBrowser {
    /// Its id.
    pub id: Uuid,
    /// Where it is.
    pub subscription: Subscription,
    /// By which of our keys it subscribed.
    pub key: KeyId,
}

/// Of an endpoint as URLs are written, which a browser need not do.
fn hash(endpoint: &str) -> Vec<u8> {
    let endpoint = Url::parse(endpoint).map_or_else(|_| endpoint.to_owned(), String::from);
    digest::digest(&digest::SHA256, endpoint.as_bytes()).as_ref().to_vec()
}

/// Registers a browser: anew, once more, or for another user than before, who has it no more; its id. With `replaces` the browser of that
/// endpoint, if it is the same user's, goes on under the new one. `None` where a user of that name is being erased.
///
/// # Errors
/// [`LedgerError`].
pub async fn register(connection: &mut PgConnection, new: &NewBrowser<'_>, now: DateTime<Utc>) -> Result<Option<Uuid>, LedgerError> {
    if !people::are_here(connection, new.tenant, vec![new.owner]).await? {
        return Ok(None);
    }
    let endpoint = new.subscription.endpoint().as_str();
    let hashed = hash(endpoint);
    if let Some(before) = new.replaces.map(hash).filter(|before| *before != hashed) {
        // The new endpoint may be there already, if this is said twice.
        sqlx::query(
            "WITH before AS (SELECT id FROM push_subscription WHERE tenant_id = $1 AND endpoint_hash = $2 AND owner = $3 FOR UPDATE),
                  gone AS (DELETE FROM push_subscription p USING before b
                           WHERE p.id = b.id AND EXISTS (SELECT FROM push_subscription WHERE tenant_id = $1 AND endpoint_hash = $4))
             UPDATE push_subscription p SET endpoint_hash = $4 FROM before b
             WHERE p.id = b.id AND NOT EXISTS (SELECT FROM push_subscription WHERE tenant_id = $1 AND endpoint_hash = $4)",
        )
        .bind(new.tenant)
        .bind(before)
        .bind(new.owner)
        .bind(&hashed)
        .execute(&mut *connection)
        .await?;
    }
    // Another user's is another browser as far as jobs can tell: it gets another id, so that nothing that is under way to the one before
    // is counted as the other's.
    let id: Uuid = sqlx::query_scalar(
        "INSERT INTO push_subscription AS p (id, tenant_id, owner, endpoint_hash, endpoint, p256dh, auth, key_id, created_at, registered_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10)
         ON CONFLICT (tenant_id, endpoint_hash) DO UPDATE
         SET id = CASE WHEN p.owner = excluded.owner THEN p.id ELSE excluded.id END,
             created_at = CASE WHEN p.owner = excluded.owner THEN p.created_at ELSE excluded.created_at END,
             last_state = CASE WHEN p.owner = excluded.owner THEN p.last_state END,
             last_why = CASE WHEN p.owner = excluded.owner THEN p.last_why END,
             last_at = CASE WHEN p.owner = excluded.owner THEN p.last_at END,
             owner = excluded.owner, endpoint = excluded.endpoint, p256dh = excluded.p256dh, auth = excluded.auth, key_id = excluded.key_id,
             registered_at = excluded.registered_at, expires_at = excluded.expires_at
         RETURNING id",
    )
    .bind(new.id)
    .bind(new.tenant)
    .bind(new.owner)
    .bind(&hashed)
    .bind(endpoint)
    .bind(new.subscription.p256dh().as_slice())
    .bind(new.subscription.auth().as_slice())
    .bind(new.key.as_str())
    .bind(now)
    .bind(new.expires_at)
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query(
        "DELETE FROM push_subscription WHERE tenant_id = $1 AND owner = $2 AND id <> $3 AND id NOT IN (
            SELECT id FROM push_subscription WHERE tenant_id = $1 AND owner = $2 AND id <> $3 ORDER BY registered_at DESC, id DESC LIMIT $4 - 1
         )",
    )
    .bind(new.tenant)
    .bind(new.owner)
    .bind(id)
    .bind(MOST_OF_USER)
    .execute(connection)
    .await?;
    Ok(Some(id))
}

/// Forgets a browser of a user by its endpoint. Answers false where the user has none of it.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(connection: &mut PgConnection, tenant: i32, owner: &str, endpoint: &str) -> Result<bool, LedgerError> {
    let gone = sqlx::query("DELETE FROM push_subscription WHERE tenant_id = $1 AND endpoint_hash = $2 AND owner = $3")
        .bind(tenant)
        .bind(hash(endpoint))
        .bind(owner)
        .execute(connection)
        .await?;
    Ok(gone.rows_affected() == 1)
}

/// A user's browsers whose time is not over.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_user(pool: &PgPool, tenant: i32, owner: &str, now: DateTime<Utc>) -> Result<Vec<FoundBrowser>, LedgerError> {
    let rows = sqlx::query(
        "SELECT id, endpoint, p256dh, auth, key_id FROM push_subscription
         WHERE tenant_id = $1 AND owner = $2 AND (expires_at IS NULL OR expires_at > $3) ORDER BY registered_at DESC, id LIMIT $4",
    )
    .bind(tenant)
    .bind(owner)
    .bind(now)
    .bind(MOST_OF_USER)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let (endpoint, p256dh, auth): (String, Vec<u8>, Vec<u8>) =
                (row.try_get("endpoint")?, row.try_get("p256dh")?, row.try_get("auth")?);
            let id: Uuid = row.try_get("id")?;
            let subscription = Subscription::kept(&endpoint, &p256dh, &auth);
            let subscription = subscription
                .map_err(|_| LedgerError::Unknown { what: "a push subscription that can't be read, id", value: id.to_string() })?;
            Ok(FoundBrowser { id, subscription, key: KeyId::from_kept(row.try_get::<String, _>("key_id")?) })
        })
        .collect()
}

/// Removes a browser whose push service says that it is gone, unless it was registered anew under another endpoint meanwhile.
///
/// # Errors
/// [`LedgerError`].
pub async fn remove(pool: &PgPool, browser: &FoundBrowser) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM push_subscription WHERE id = $1 AND endpoint_hash = $2")
        .bind(browser.id)
        .bind(hash(browser.subscription.endpoint().as_str()))
        .execute(pool)
        .await?;
    Ok(())
}
