//! Recipients of a chunk: what is known of them, their inboxes, and the log of what there is no job for.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::{
    job::JobId,
    ledger::{LedgerError, deliveries::Channel},
};

/// Somebody who is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The user.
    pub id: String,
    /// Where mail reaches them.
    pub email: Option<String>,
    /// What they are called.
    pub name: Option<String>,
    /// Their language.
    pub locale: Option<String>,
    /// Whether there is a browser to push to.
    pub has_browser: bool,
    /// What they said of the inbox, of this category.
    pub in_app: Option<bool>,
    /// Of pushes.
    pub push: Option<bool>,
    /// Of mail.
    pub mail: Option<bool>,
}

/// What is known of users, in the order of their ids; who is being erased is left out. Who is not known can be told in the inbox.
///
/// # Errors
/// [`LedgerError`].
pub async fn recipients(
    connection: &mut PgConnection,
    tenant: i32,
    users: &[String],
    category: &str,
    now: DateTime<Utc>,
) -> Result<Vec<Recipient>, LedgerError> {
    let rows = sqlx::query(
        "SELECT w.id, u.email, u.name, u.locale, p.in_app, p.push, p.mail,
                EXISTS (SELECT FROM push_subscription b
                        WHERE b.tenant_id = $1 AND b.owner = w.id AND (b.expires_at IS NULL OR b.expires_at > $4)) AS has_browser
         FROM unnest($2::text[]) AS w (id)
         LEFT JOIN end_user u ON u.tenant_id = $1 AND u.id = w.id
         LEFT JOIN preference p ON p.tenant_id = $1 AND p.user_id = w.id AND p.category = $3
         WHERE NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = $1 AND e.user_id = w.id)
         ORDER BY w.id",
    )
    .bind(tenant)
    .bind(users)
    .bind(category)
    .bind(now)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Recipient {
                id: row.try_get("id")?,
                email: row.try_get("email")?,
                name: row.try_get("name")?,
                locale: row.try_get("locale")?,
                has_browser: row.try_get("has_browser")?,
                in_app: row.try_get("in_app")?,
                push: row.try_get("push")?,
                mail: row.try_get("mail")?,
            })
        })
        .collect()
}

/// A row of an inbox.
#[derive(Debug, Clone, PartialEq)]
pub struct InboxRow {
    /// Its id.
    pub id: Uuid,
    /// Whose inbox.
    pub owner: String,
    /// The title.
    pub title: String,
    /// The message.
    pub message: String,
    /// For programs.
    pub data: Value,
}

/// Writes rows of inboxes, one a recipient: who has one of this notification keeps that. Answers how many are new.
///
/// # Errors
/// [`LedgerError`].
pub async fn write_inboxes(
    connection: &mut PgConnection,
    (tenant, trigger, sort): (i32, JobId, &str),
    rows: &[InboxRow],
    now: DateTime<Utc>,
) -> Result<u64, LedgerError> {
    if rows.is_empty() {
        return Ok(0);
    }
    let written = sqlx::query(
        "INSERT INTO notification (id, tenant_id, trigger_id, owner, type, title, message, data, created_at)
         SELECT r.id, $1, $2, r.owner, $3, r.title, r.message, r.data::jsonb, $4
         FROM unnest($5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[]) AS r (id, owner, title, message, data)
         ON CONFLICT (trigger_id, owner) WHERE trigger_id IS NOT NULL DO NOTHING",
    )
    .bind(tenant)
    .bind(trigger.0)
    .bind(sort)
    .bind(now)
    .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.owner.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.title.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.message.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.data.to_string()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(written.rows_affected())
}

/// A message for which there is no job, since it can't be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsent {
    /// The log's row.
    pub id: Uuid,
    /// Whose message.
    pub owner: String,
    /// By which way it would have gone.
    pub channel: Channel,
    /// Why it does not, in a word.
    pub why: &'static str,
    /// And in words.
    pub detail: String,
}

/// Logs messages that are not sent.
///
/// # Errors
/// [`LedgerError`].
pub async fn log_unsent(
    connection: &mut PgConnection,
    (tenant, trigger, category): (i32, JobId, &str),
    unsent: &[Unsent],
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    if unsent.is_empty() {
        return Ok(());
    }
    // The row's own id stands in the place of a device: a job has many such rows.
    sqlx::query(
        "INSERT INTO delivery (id, tenant_id, job_id, channel, device, owner, category, state, why, detail, is_final, created_at, changed_at)
         SELECT r.id, $1, $2, r.channel, r.id, r.owner, $3, 'not_sent', r.why, r.detail, true, $4, $4
         FROM unnest($5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[]) AS r (id, owner, channel, why, detail)",
    )
    .bind(tenant)
    .bind(trigger.0)
    .bind(category)
    .bind(now)
    .bind(unsent.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind(unsent.iter().map(|row| row.owner.as_str()).collect::<Vec<_>>())
    .bind(unsent.iter().map(|row| row.channel.word()).collect::<Vec<_>>())
    .bind(unsent.iter().map(|row| row.why).collect::<Vec<_>>())
    .bind(unsent.iter().map(|row| row.detail.as_str()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
