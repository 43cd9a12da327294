//! What moderators did: history, added to and never changed.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{ModerationAction, ReportStatus};
use crate::{
    content::Content,
    ledger::{LedgerError, people, repeat::Repeat},
};

/// Something that was done, about to be kept.
#[derive(Debug, Clone, Copy)]
pub struct NewAction<'a> {
    /// Its id.
    pub id: Uuid,
    /// The report it is about.
    pub report: Option<Uuid>,
    /// Whom it is about.
    pub user: Option<&'a str>,
    /// What content it is about.
    pub content: Option<&'a Content>,
    /// What was done; `None` where only the report's status changes.
    pub action: Option<ModerationAction>,
    /// What the report becomes.
    pub status: Option<ReportStatus>,
    /// Of a suspension: until when.
    pub until: Option<DateTime<Utc>>,
    /// The moderator's words.
    pub notes: Option<&'a str>,
    /// Who did it.
    pub moderator: Option<&'a str>,
    /// Of what it is about and the idempotency key, if there is one.
    pub key: Option<[u8; 32]>,
    /// Of what is asked for.
    pub body: [u8; 32],
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundAction {
    /// Its id.
    pub id: Uuid,
    /// The report it was about.
    pub report: Option<Uuid>,
    /// What content it was about.
    pub content: Option<Content>,
    /// What was done.
    pub action: Option<ModerationAction>,
    /// What the report became.
    pub status: Option<ReportStatus>,
    /// Of a suspension: until when.
    pub until: Option<DateTime<Utc>>,
    /// The moderator's words.
    pub notes: Option<String>,
    /// Who did it.
    pub moderator: Option<String>,
    /// When.
    pub created_at: DateTime<Utc>,
}

fn found(row: &PgRow) -> Result<FoundAction, LedgerError> {
    let (action, status): (Option<String>, Option<String>) = (row.try_get("action")?, row.try_get("status")?);
    Ok(FoundAction {
        id: row.try_get("id")?,
        report: row.try_get("report_id")?,
        content: Content::of(row.try_get("content_type")?, row.try_get("content_id")?),
        action: action.as_deref().map(ModerationAction::from_word).transpose()?,
        status: status.as_deref().map(ReportStatus::from_word).transpose()?,
        until: row.try_get("until")?,
        notes: row.try_get("notes")?,
        moderator: row.try_get("moderator")?,
        created_at: row.try_get("created_at")?,
    })
}

/// Keeps what was done, in the caller's transaction, before anything comes of it; `None` where whom it is about, or who did it, is being
/// erased.
///
/// # Errors
/// [`LedgerError`].
pub async fn act(
    connection: &mut PgConnection,
    tenant: i32,
    action: &NewAction<'_>,
    now: DateTime<Utc>,
) -> Result<Option<Repeat>, LedgerError> {
    if !people::are_here(connection, tenant, [action.user, action.moderator].into_iter().flatten().collect()).await? {
        return Ok(None);
    }
    let added = sqlx::query(
        "INSERT INTO moderation_action (id, tenant_id, report_id, user_id, content_type, content_id, action, status, until, notes,
                                        moderator, key_hash, body_hash, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (tenant_id, key_hash) WHERE key_hash IS NOT NULL DO NOTHING",
    )
    .bind(action.id)
    .bind(tenant)
    .bind(action.report)
    .bind(action.user)
    .bind(action.content.map(|content| content.sort.as_str()))
    .bind(action.content.map(|content| content.id.as_str()))
    .bind(action.action.map(ModerationAction::word))
    .bind(action.status.map(ReportStatus::word))
    .bind(action.until)
    .bind(action.notes)
    .bind(action.moderator)
    .bind(action.key.map(|key| key.to_vec()))
    .bind(action.body.as_slice())
    .bind(now)
    .execute(&mut *connection)
    .await?;
    if added.rows_affected() == 1 {
        return Ok(Some(Repeat::New));
    }
    let held = sqlx::query_as("SELECT id, body_hash FROM moderation_action WHERE tenant_id = $1 AND key_hash = $2")
        .bind(tenant)
        .bind(action.key.map(|key| key.to_vec()))
        .fetch_optional(connection)
        .await?;
    Ok(held.map(|held| Repeat::by(held, action.body)))
}

/// Whether the same was done before under this key: asked before what is asked for is looked at, since what was right then need not be now.
///
/// # Errors
/// [`LedgerError`].
pub async fn was_done(connection: &mut PgConnection, tenant: i32, key: Option<[u8; 32]>, body: [u8; 32]) -> Result<bool, LedgerError> {
    let Some(key) = key else { return Ok(false) };
    let done =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM moderation_action WHERE tenant_id = $1 AND key_hash = $2 AND body_hash = $3)");
    Ok(done.bind(tenant).bind(key.as_slice()).bind(body.as_slice()).fetch_one(connection).await?)
}

/// What [`FoundAction`] reads; of a moderator who is being erased not the name.
macro_rules! columns {
    () => {
        "SELECT m.id, m.report_id, m.content_type, m.content_id, m.action, m.status, m.until, m.notes, m.created_at,
                CASE WHEN g.user_id IS NULL THEN m.moderator END AS moderator
         FROM moderation_action m LEFT JOIN erasure g ON g.tenant_id = m.tenant_id AND g.user_id = m.moderator "
    };
}

/// What was done about a report, the latest first.
///
/// # Errors
/// [`LedgerError`].
pub async fn history_of_report(
    connection: &mut PgConnection,
    tenant: i32,
    report: Uuid,
    limit: i64,
) -> Result<Vec<FoundAction>, LedgerError> {
    let rows = sqlx::query(concat!(
        columns!(),
        "WHERE m.tenant_id = $1 AND m.report_id = $2 ORDER BY m.tenant_id DESC, m.report_id DESC, m.id DESC LIMIT $3"
    ));
    rows.persistent(false).bind(tenant).bind(report).bind(limit).fetch_all(connection).await?.iter().map(found).collect()
}

/// A page of what was done about a user, the latest first.
///
/// # Errors
/// [`LedgerError`].
pub async fn history_of_user(
    connection: &mut PgConnection,
    tenant: i32,
    user: &str,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<FoundAction>, LedgerError> {
    let rows = sqlx::query(concat!(
        columns!(),
        "WHERE m.tenant_id = $1 AND m.user_id = $2 AND m.id < $3 ORDER BY m.tenant_id DESC, m.user_id DESC, m.id DESC LIMIT $4"
    ));
    let rows = rows.persistent(false).bind(tenant).bind(user).bind(after.unwrap_or(Uuid::max())).bind(limit);
    rows.fetch_all(connection).await?.iter().map(found).collect()
}
