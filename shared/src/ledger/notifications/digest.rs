//! Digests: what is gathered for a user until a window closes (`notification_digest`).

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::ledger::LedgerError;

/// The most items of a digest that are kept to be shown; the others are counted.
pub const MOST_ITEMS: i32 = 20;

/// What is put into somebody's digest.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The digest's id, if this opens one.
    pub digest: Uuid,
    /// Whose.
    pub user: String,
    /// What is shown of it.
    pub item: Value,
}

/// Puts items into their users' open digests, or opens one that closes at `closes_at`; answers which were opened, with their users.
///
/// # Errors
/// [`LedgerError`].
pub async fn gather(
    connection: &mut PgConnection,
    (tenant, sort, key): (i32, &str, &str),
    items: &[Item],
    now: DateTime<Utc>,
    closes_at: DateTime<Utc>,
) -> Result<Vec<(Uuid, String)>, LedgerError> {
    // In one order for all, so that two chunks don't wait for each other crosswise.
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "INSERT INTO notification_digest AS d (id, tenant_id, user_id, type, key, items, count, opened_at, closes_at)
         SELECT i.id, $1, i.user_id, $2, $3, jsonb_build_array(i.item::jsonb), 1, $4, $5
         FROM unnest($6::uuid[], $7::text[], $8::text[]) AS i (id, user_id, item) ORDER BY i.user_id COLLATE \"C\"
         ON CONFLICT (tenant_id, user_id, type, key) DO UPDATE
            SET count = d.count + 1, items = CASE WHEN jsonb_array_length(d.items) < $9 THEN d.items || excluded.items ELSE d.items END
         RETURNING d.id, d.user_id",
    )
    .bind(tenant)
    .bind(sort)
    .bind(key)
    .bind(now)
    .bind(closes_at)
    .bind(items.iter().map(|item| item.digest).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.user.as_str()).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.item.to_string()).collect::<Vec<_>>())
    .bind(MOST_ITEMS)
    .fetch_all(connection)
    .await?;
    let offered: HashSet<Uuid> = items.iter().map(|item| item.digest).collect();
    Ok(rows.into_iter().filter(|(id, _)| offered.contains(id)).collect())
}

/// A digest that was closed.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    /// Whose.
    pub user: String,
    /// Of what type.
    pub sort: String,
    /// What has it in common.
    pub key: String,
    /// The first of its items.
    pub items: Value,
    /// How many there are.
    pub count: i32,
}

/// Closes a digest: takes it away. `None` where that was done before.
///
/// # Errors
/// [`LedgerError`].
pub async fn close(connection: &mut PgConnection, tenant: i32, digest: Uuid) -> Result<Option<Closed>, LedgerError> {
    let row = sqlx::query("DELETE FROM notification_digest WHERE id = $1 AND tenant_id = $2 RETURNING user_id, type, key, items, count")
        .bind(digest)
        .bind(tenant)
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        Ok(Closed {
            user: row.try_get("user_id")?,
            sort: row.try_get("type")?,
            key: row.try_get("key")?,
            items: row.try_get("items")?,
            count: row.try_get("count")?,
        })
    })
    .transpose()
}
