//! Inboxes: what end users were told in the product, read and marked (R20, R21). Written elsewhere, in the transaction of what they
//! tell of (`crate::notification`).
//!
//! What must stay true: the number of unread ones is counted, never kept, in the statement that reads the page, so the two agree and
//! nothing can drift; marks are set once and stay; whoever marks or reads names the owner, so nobody reaches another's.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};
use utoipa::ToSchema;
use uuid::Uuid;

use super::LedgerError;

/// The most of an inbox that a listener who comes back is told one by one.
pub const RECENT: i64 = 200;

/// Notifications that one statement marks.
const MARKED_TOGETHER: i64 = 5_000;

/// A notification, as its owner sees it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Notification {
    /// Its id.
    pub id: Uuid,
    /// What it is about: `like`, `follow`, `share`, `comment`, `mention`, `system`, or a type of the product's own.
    #[serde(rename = "type")]
    #[schema(example = "system")]
    pub sort: String,
    /// The title, at most 255 characters.
    pub title: String,
    /// The message.
    pub message: String,
    /// For programs, such as the id of the export it tells of.
    #[schema(value_type = Object)]
    pub data: Value,
    /// When it was read; `null` while it is new.
    #[schema(required)]
    pub read_at: Option<DateTime<Utc>>,
    /// When it was clicked.
    #[schema(required)]
    pub clicked_at: Option<DateTime<Utc>>,
    /// When it was put away: lists leave it out from then on.
    #[schema(required)]
    pub archived_at: Option<DateTime<Utc>>,
    /// When its owner was told.
    pub created_at: DateTime<Utc>,
}

/// The columns that [`Notification`] reads.
macro_rules! columns {
    () => {
        "id, type, title, message, data, read_at, clicked_at, archived_at, created_at"
    };
}

fn found(row: &PgRow) -> Result<Notification, LedgerError> {
    Ok(Notification {
        id: row.try_get("id")?,
        sort: row.try_get("type")?,
        title: row.try_get("title")?,
        message: row.try_get("message")?,
        data: row.try_get("data")?,
        read_at: row.try_get("read_at")?,
        clicked_at: row.try_get("clicked_at")?,
        archived_at: row.try_get("archived_at")?,
        created_at: row.try_get("created_at")?,
    })
}

/// How many of an owner's are unread: not read, and not put away.
macro_rules! unread {
    () => {
        "(SELECT count(*) FROM notification WHERE tenant_id = $1 AND owner = $2 AND read_at IS NULL AND archived_at IS NULL)"
    };
}

/// A page of an owner's inbox, newest first, without what was put away: at most `limit` behind the first `offset`; and how many are
/// unread, as of the same moment.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(
    connection: &mut PgConnection,
    tenant: i32,
    owner: &str,
    unread_only: bool,
    limit: i64,
    offset: i64,
) -> Result<(Vec<Notification>, i64), LedgerError> {
    let query = if unread_only {
        sqlx::query(concat!(
            "SELECT p.*, ",
            unread!(),
            " AS unread FROM (SELECT 1) AS one LEFT JOIN LATERAL (SELECT ",
            columns!(),
            " FROM notification WHERE tenant_id = $1 AND owner = $2 AND read_at IS NULL AND archived_at IS NULL
              ORDER BY created_at DESC, id DESC LIMIT $3 OFFSET $4) AS p ON true ORDER BY p.created_at DESC, p.id DESC"
        ))
    } else {
        sqlx::query(concat!(
            "SELECT p.*, ",
            unread!(),
            " AS unread FROM (SELECT 1) AS one LEFT JOIN LATERAL (SELECT ",
            columns!(),
            " FROM notification WHERE tenant_id = $1 AND owner = $2 AND archived_at IS NULL
              ORDER BY created_at DESC, id DESC LIMIT $3 OFFSET $4) AS p ON true ORDER BY p.created_at DESC, p.id DESC"
        ))
    };
    let rows = query.bind(tenant).bind(owner).bind(limit).bind(offset).fetch_all(connection).await?;
    let unread = rows.first().map_or(Ok(0), |row| row.try_get("unread"))?;
    let mut items = Vec::with_capacity(rows.len());
    for row in &rows {
        // An empty page is one row of nothing.
        if row.try_get::<Option<Uuid>, _>("id")?.is_some() {
            items.push(found(row)?);
        }
    }
    Ok((items, unread))
}

/// How many of an owner's are unread.
///
/// # Errors
/// [`LedgerError`].
pub async fn unread(connection: &mut PgConnection, tenant: i32, owner: &str) -> Result<i64, LedgerError> {
    Ok(sqlx::query_scalar(concat!("SELECT ", unread!())).bind(tenant).bind(owner).fetch_one(connection).await?)
}

/// What an owner did with a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// They read it.
    Read,
    /// They clicked it, and have read it then.
    Clicked,
    /// They put it away.
    Archived,
}

/// Marks one of an owner's; `None` where they have none such. A mark that is there stays as it is.
///
/// # Errors
/// [`LedgerError`].
pub async fn mark(
    connection: &mut PgConnection,
    tenant: i32,
    owner: &str,
    id: Uuid,
    mark: Mark,
    now: DateTime<Utc>,
) -> Result<Option<Notification>, LedgerError> {
    let row = sqlx::query(concat!(
        "UPDATE notification
         SET read_at = CASE WHEN $5 THEN coalesce(read_at, $4) ELSE read_at END,
             clicked_at = CASE WHEN $6 THEN coalesce(clicked_at, $4) ELSE clicked_at END,
             archived_at = CASE WHEN $7 THEN coalesce(archived_at, $4) ELSE archived_at END
         WHERE id = $3 AND tenant_id = $1 AND owner = $2 RETURNING ",
        columns!()
    ))
    .bind(tenant)
    .bind(owner)
    .bind(id)
    .bind(now)
    .bind(matches!(mark, Mark::Read | Mark::Clicked))
    .bind(mark == Mark::Clicked)
    .bind(mark == Mark::Archived)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(found).transpose()
}

/// Marks those of some that are an owner's as read; answers how many were unread until now.
///
/// # Errors
/// [`LedgerError`].
pub async fn read_some(
    connection: &mut PgConnection,
    tenant: i32,
    owner: &str,
    ids: &[Uuid],
    now: DateTime<Utc>,
) -> Result<u64, LedgerError> {
    // In one order for all, so that two who mark the same don't wait for each other crosswise.
    let done = sqlx::query(
        "WITH marked AS MATERIALIZED (
            SELECT id FROM notification WHERE id = ANY ($3) AND tenant_id = $1 AND owner = $2 AND read_at IS NULL ORDER BY id FOR UPDATE
         )
         UPDATE notification n SET read_at = $4 FROM marked m WHERE n.id = m.id",
    );
    Ok(done.bind(tenant).bind(owner).bind(ids).bind(now).execute(connection).await?.rows_affected())
}

/// Marks a part of an owner's unread ones as read, some thousands; answers how many, and whether that was all.
///
/// # Errors
/// [`LedgerError`].
pub async fn read_all(connection: &mut PgConnection, tenant: i32, owner: &str, now: DateTime<Utc>) -> Result<(u64, bool), LedgerError> {
    let done = sqlx::query(
        "WITH marked AS MATERIALIZED (
            SELECT id FROM notification WHERE tenant_id = $1 AND owner = $2 AND read_at IS NULL AND archived_at IS NULL
            ORDER BY created_at DESC, id DESC LIMIT $3 FOR UPDATE
         )
         UPDATE notification n SET read_at = $4 FROM marked m WHERE n.id = m.id",
    );
    let marked = done.bind(tenant).bind(owner).bind(MARKED_TOGETHER).bind(now).execute(connection).await?.rows_affected();
    Ok((marked, i64::try_from(marked).is_ok_and(|marked| marked < MARKED_TOGETHER)))
}

/// A notification that a stream tells of.
#[derive(Debug, Clone)]
pub struct News {
    /// The product.
    pub tenant: i32,
    /// Whose.
    pub owner: String,
    /// The transaction that wrote it.
    pub position: i64,
    /// The notification.
    pub notification: Notification,
}

/// Every transaction up to this one has ended: nothing new comes at it or below.
///
/// # Errors
/// [`LedgerError`].
pub async fn settled_up_to(pool: &PgPool) -> Result<i64, LedgerError> {
    Ok(sqlx::query_scalar("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1").fetch_one(pool).await?)
}

/// What the users of some tenants were told by transactions after one, as far as it is visible; in the order of the transactions, at most
/// `limit`.
///
/// # Errors
/// [`LedgerError`].
pub async fn news(pool: &PgPool, after: i64, tenants: &[i32], limit: i32) -> Result<Vec<News>, LedgerError> {
    let rows = sqlx::query("SELECT * FROM notifications_after($1, $2, $3)").bind(after).bind(tenants).bind(limit).fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            Ok(News {
                tenant: row.try_get("tenant_id")?,
                owner: row.try_get("owner")?,
                position: row.try_get("position")?,
                notification: found(row)?,
            })
        })
        .collect()
}

/// Of an owner's newest [`RECENT`], those that were written by transactions after one, in the order of the transactions, with these; and
/// whether there may be more.
///
/// # Errors
/// [`LedgerError`].
pub async fn recent(
    connection: &mut PgConnection,
    tenant: i32,
    owner: &str,
    after: i64,
) -> Result<(Vec<(i64, Notification)>, bool), LedgerError> {
    let rows = sqlx::query(concat!(
        "SELECT position, ",
        columns!(),
        " FROM notification WHERE tenant_id = $1 AND owner = $2 ORDER BY created_at DESC, id DESC LIMIT $3"
    ))
    .bind(tenant)
    .bind(owner)
    .bind(RECENT)
    .fetch_all(connection)
    .await?;
    let mut newer = Vec::new();
    for row in &rows {
        let position: Option<i64> = row.try_get("position")?;
        if let Some(position) = position.filter(|position| *position > after) {
            newer.push((position, found(row)?));
        }
    }
    let more = i64::try_from(newer.len()).is_ok_and(|newer| newer >= RECENT);
    newer.sort_by_key(|(position, notification)| (*position, notification.id));
    Ok((newer, more))
}
