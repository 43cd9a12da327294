//! Reports on content: added by whoever saw it, listed for moderators.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, QueryBuilder, Row, postgres::PgRow};
use uuid::Uuid;

use super::{ReportReason, ReportStatus};
use crate::{
    content::Content,
    ledger::{LedgerError, people, repeat::Repeat},
};

/// A report about to be kept.
#[derive(Debug, Clone, Copy)]
pub struct NewReport<'a> {
    /// Its id.
    pub id: Uuid,
    /// Who reports; `None` for the product itself.
    pub reporter: Option<&'a str>,
    /// Whose content it is, where that is known.
    pub user: Option<&'a str>,
    /// What is reported.
    pub content: &'a Content,
    /// Why.
    pub reason: ReportReason,
    /// The reporter's words.
    pub details: Option<&'a str>,
    /// Of the reporter and the idempotency key, if there is one.
    pub key: Option<[u8; 32]>,
    /// Of what is asked for.
    pub body: [u8; 32],
}

/// A report as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundReport {
    /// Its id.
    pub id: Uuid,
    /// Who reported; `None` for the product itself, or somebody who is gone.
    pub reporter: Option<String>,
    /// Whose content it is.
    pub user: Option<String>,
    /// What was reported.
    pub content: Content,
    /// Why.
    pub reason: ReportReason,
    /// The reporter's words.
    pub details: Option<String>,
    /// How far it is.
    pub status: ReportStatus,
    /// When it came.
    pub created_at: DateTime<Utc>,
    /// When its status last changed.
    pub changed_at: DateTime<Utc>,
}

/// What [`FoundReport`] reads. Of a reporter who is being erased nothing is shown; the report stays, for it is about somebody else.
const COLUMNS: &str = "r.id, r.user_id, r.content_type, r.content_id, r.reason, r.status, r.created_at, r.changed_at,
    CASE WHEN g.user_id IS NULL THEN r.reporter END AS reporter, CASE WHEN g.user_id IS NULL THEN r.details END AS details
    FROM report r LEFT JOIN erasure g ON g.tenant_id = r.tenant_id AND g.user_id = r.reporter";

fn found(row: &PgRow) -> Result<FoundReport, LedgerError> {
    Ok(FoundReport {
        id: row.try_get("id")?,
        reporter: row.try_get("reporter")?,
        user: row.try_get("user_id")?,
        content: Content { sort: row.try_get("content_type")?, id: row.try_get("content_id")? },
        reason: ReportReason::from_word(row.try_get("reason")?)?,
        details: row.try_get("details")?,
        status: ReportStatus::from_word(row.try_get("status")?)?,
        created_at: row.try_get("created_at")?,
        changed_at: row.try_get("changed_at")?,
    })
}

/// Keeps a report, in the caller's transaction; `None` where its reporter, or whose content it is, is being erased.
///
/// # Errors
/// [`LedgerError`].
pub async fn add(
    connection: &mut PgConnection,
    tenant: i32,
    report: &NewReport<'_>,
    now: DateTime<Utc>,
) -> Result<Option<Repeat>, LedgerError> {
    if !people::are_here(connection, tenant, [report.reporter, report.user].into_iter().flatten().collect()).await? {
        return Ok(None);
    }
    let added = sqlx::query(
        "INSERT INTO report (id, tenant_id, reporter, user_id, content_type, content_id, reason, details, status, key_hash, body_hash,
                             created_at, changed_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'pending', $9, $10, $11, $11)
         ON CONFLICT (tenant_id, key_hash) WHERE key_hash IS NOT NULL DO NOTHING",
    )
    .bind(report.id)
    .bind(tenant)
    .bind(report.reporter)
    .bind(report.user)
    .bind(&report.content.sort)
    .bind(&report.content.id)
    .bind(report.reason.word())
    .bind(report.details)
    .bind(report.key.map(|key| key.to_vec()))
    .bind(report.body.as_slice())
    .bind(now)
    .execute(&mut *connection)
    .await?;
    if added.rows_affected() == 1 {
        return Ok(Some(Repeat::New));
    }
    let held = sqlx::query_as("SELECT id, body_hash FROM report WHERE tenant_id = $1 AND key_hash = $2")
        .bind(tenant)
        .bind(report.key.map(|key| key.to_vec()))
        .fetch_optional(connection)
        .await?;
    // Not to be seen: it is about somebody who is being erased.
    Ok(held.map(|held| Repeat::by(held, report.body)))
}

/// One report.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(connection: &mut PgConnection, tenant: i32, id: Uuid) -> Result<Option<FoundReport>, LedgerError> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(COLUMNS).push(" WHERE r.id = ").push_bind(id).push(" AND r.tenant_id = ").push_bind(tenant);
    query.build().fetch_optional(connection).await?.as_ref().map(found).transpose()
}

/// Which reports to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Listed<'a> {
    /// Only those of this status.
    pub status: Option<ReportStatus>,
    /// Only those on this user's content.
    pub user: Option<&'a str>,
    /// Only those that came before this one.
    pub after: Option<Uuid>,
}

/// A page of reports, newest first: by the index of what is asked for, in its own order.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(connection: &mut PgConnection, tenant: i32, listed: Listed<'_>, limit: i64) -> Result<Vec<FoundReport>, LedgerError> {
    let mut query = QueryBuilder::new("SELECT ");
    let below = listed.after.unwrap_or(Uuid::max());
    query.push(COLUMNS).push(" WHERE ");
    // By a range of the index and by its own order, so that no other one looks as good (see `crate::ledger::find`).
    match (listed.user, listed.status) {
        (Some(user), status) => {
            query.push("r.tenant_id = ").push_bind(tenant).push(" AND r.user_id >= ").push_bind(user);
            query.push(" AND (r.user_id, r.id) < (").push_bind(user).push(", ").push_bind(below).push(")");
            if let Some(status) = status {
                query.push(" AND r.status = ").push_bind(status.word());
            }
            query.push(" ORDER BY r.tenant_id DESC, r.user_id DESC, r.id DESC");
        }
        (None, Some(status)) => {
            query.push("r.tenant_id = ").push_bind(tenant).push(" AND r.status >= ").push_bind(status.word());
            query.push(" AND (r.status, r.id) < (").push_bind(status.word()).push(", ").push_bind(below).push(")");
            query.push(" ORDER BY r.tenant_id DESC, r.status DESC, r.id DESC");
        }
        (None, None) => {
            query.push("r.tenant_id >= ").push_bind(tenant);
            query.push(" AND (r.tenant_id, r.id) < (").push_bind(tenant).push(", ").push_bind(below).push(")");
            query.push(" ORDER BY r.tenant_id DESC, r.id DESC");
        }
    }
    query.push(" LIMIT ").push_bind(limit);
    query.build().persistent(false).fetch_all(connection).await?.iter().map(found).collect()
}

/// Sets what a report is now.
///
/// # Errors
/// [`LedgerError`].
pub async fn change_status(
    connection: &mut PgConnection,
    tenant: i32,
    id: Uuid,
    status: ReportStatus,
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    sqlx::query("UPDATE report SET status = $3, changed_at = $4 WHERE id = $2 AND tenant_id = $1")
        .bind(tenant)
        .bind(id)
        .bind(status.word())
        .bind(now)
        .execute(connection)
        .await?;
    Ok(())
}
