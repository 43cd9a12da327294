//! Notifications to many: who is to be told, who has been, what was gathered, and what users say of it when something is about to be sent.
//!
//! What must stay true: a recipient is told once, for who tells a chunk takes it away in the transaction in which the inbox' rows, the
//! messages' jobs and the log are written; a digest is closed once, for who closes it takes it away likewise; what stays behind holds no
//! names. Everything is one statement for a whole chunk.

mod digest;
mod recipients;
mod wants;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor, PgPool, Row};
use uuid::Uuid;

pub use digest::{Closed, Item, MOST_ITEMS, close, gather};
pub use recipients::{InboxRow, Recipient, Unsent, log_unsent, recipients, write_inboxes};
pub use wants::{Wants, may_send, wants};

use super::LedgerError;
use crate::job::JobId;

/// How far a notification to many has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Recipients up to this one are known.
    pub after: String,
    /// All are.
    pub is_planned: bool,
    /// Chunks so far.
    pub chunks: i32,
}

/// Begins a notification, or goes on with it, and holds it: whoever else does the same waits.
///
/// # Errors
/// [`LedgerError`].
pub async fn hold(connection: &mut PgConnection, tenant: i32, trigger: JobId, now: DateTime<Utc>) -> Result<Planned, LedgerError> {
    sqlx::query(
        "INSERT INTO notification_trigger (id, tenant_id, created_at, changed_at) VALUES ($1, $2, $3, $3) ON CONFLICT (id) DO NOTHING",
    )
    .bind(trigger.0)
    .bind(tenant)
    .bind(now)
    .execute(&mut *connection)
    .await?;
    let row = sqlx::query("SELECT after, is_planned, chunks FROM notification_trigger WHERE id = $1 FOR UPDATE")
        .bind(trigger.0)
        .fetch_one(connection)
        .await?;
    Ok(Planned { after: row.try_get("after")?, is_planned: row.try_get("is_planned")?, chunks: row.try_get("chunks")? })
}

/// Writes recipients down, by chunks that begin with the number `first`, each with the job that will tell it; they are in the order of their
/// ids.
///
/// # Errors
/// [`LedgerError`].
pub async fn plan(
    connection: &mut PgConnection,
    tenant: i32,
    trigger: JobId,
    first: i32,
    chunks: &[(JobId, &[String])],
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    let mut numbers = Vec::new();
    let mut users = Vec::new();
    for (number, (_, chunk)) in (first..).zip(chunks) {
        numbers.extend(std::iter::repeat_n(number, chunk.len()));
        users.extend(chunk.iter().map(String::as_str));
    }
    sqlx::query(
        "INSERT INTO notification_chunk (trigger_id, chunk, tenant_id, job_id, recipients)
         SELECT $1, $2 + c.place - 1, $3, c.job_id, c.recipients
         FROM unnest($4::uuid[], $5::integer[]) WITH ORDINALITY AS c (job_id, recipients, place)",
    )
    .bind(trigger.0)
    .bind(first)
    .bind(tenant)
    .bind(chunks.iter().map(|(job, _)| job.0).collect::<Vec<_>>())
    .bind(chunks.iter().map(|(_, users)| i32::try_from(users.len()).unwrap_or(i32::MAX)).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "WITH recipients AS (
            INSERT INTO notification_recipient (trigger_id, chunk, user_id, tenant_id)
            SELECT $1, r.chunk, r.user_id, $2 FROM unnest($3::integer[], $4::text[]) AS r (chunk, user_id)
         )
         UPDATE notification_trigger SET after = $5, chunks = chunks + $6, recipients = recipients + $7, changed_at = $8 WHERE id = $1",
    )
    .bind(trigger.0)
    .bind(tenant)
    .bind(&numbers)
    .bind(&users)
    .bind(users.last().copied().unwrap_or_default())
    .bind(i32::try_from(chunks.len()).unwrap_or(i32::MAX))
    .bind(i32::try_from(users.len()).unwrap_or(i32::MAX))
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that all recipients are known; `more` of them were told without having been written down.
///
/// # Errors
/// [`LedgerError`].
pub async fn planned(connection: &mut PgConnection, trigger: JobId, more: usize, now: DateTime<Utc>) -> Result<(), LedgerError> {
    sqlx::query(
        "UPDATE notification_trigger SET after = '', is_planned = true, recipients = recipients + $2, changed_at = $3 WHERE id = $1",
    )
    .bind(trigger.0)
    .bind(i32::try_from(more).unwrap_or(i32::MAX))
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Strikes a list of recipients out of what was asked for, once they are known: nobody would look for them there who is to be erased.
///
/// # Errors
/// [`LedgerError`].
pub async fn strike_names_out(connection: &mut PgConnection, trigger: JobId) -> Result<(), LedgerError> {
    sqlx::query("UPDATE job SET payload = jsonb_set(payload, '{to,users}', '[]') WHERE id = $1 AND payload #> '{to,users}' IS NOT NULL")
        .bind(trigger.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// A chunk as it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Who is to be told.
    pub recipients: Vec<String>,
    /// How many were counted when it was planned: those who were erased since then are nowhere any more.
    pub planned: u64,
}

/// Takes a chunk: nobody else gets any of it, once the transaction is committed. `None` where it was taken before.
///
/// # Errors
/// [`LedgerError`].
pub async fn take(connection: &mut PgConnection, trigger: JobId, chunk: i32) -> Result<Option<Taken>, LedgerError> {
    let planned: Option<i32> =
        sqlx::query_scalar("DELETE FROM notification_chunk WHERE trigger_id = $1 AND chunk = $2 RETURNING recipients")
            .bind(trigger.0)
            .bind(chunk)
            .fetch_optional(&mut *connection)
            .await?;
    let taken = sqlx::query_scalar("DELETE FROM notification_recipient WHERE trigger_id = $1 AND chunk = $2 RETURNING user_id");
    let recipients: Vec<String> = taken.bind(trigger.0).bind(chunk).fetch_all(connection).await?;
    Ok(match planned {
        Some(planned) => Some(Taken { recipients, planned: u64::try_from(planned).unwrap_or_default() }),
        // Planned by the release before, which counted nothing.
        None if !recipients.is_empty() => Some(Taken { planned: recipients.len() as u64, recipients }),
        None => None,
    })
}

/// What was asked for, as its job has it: the payload and the priority's code; `None` once it is gone.
///
/// # Errors
/// [`LedgerError`].
pub async fn asked(connection: &mut PgConnection, tenant: i32, trigger: JobId) -> Result<Option<(String, i16)>, LedgerError> {
    let asked = sqlx::query_as("SELECT payload::text, priority FROM job WHERE id = $1 AND tenant_id = $2");
    Ok(asked.bind(trigger.0).bind(tenant).fetch_optional(connection).await?)
}

/// What telling some recipients came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Recipients.
    pub told: u64,
    /// Rows in inboxes.
    pub in_app: u64,
    /// Jobs that push.
    pub pushes: u64,
    /// Jobs that mail.
    pub emails: u64,
    /// Put into a digest.
    pub gathered: u64,
}

/// Adds to what a notification has come to. The last statement of a chunk's transaction: all chunks change this row.
///
/// # Errors
/// [`LedgerError`].
pub async fn count(connection: &mut PgConnection, trigger: JobId, counted: Counted, now: DateTime<Utc>) -> Result<(), LedgerError> {
    let number = |number: u64| i32::try_from(number).unwrap_or(i32::MAX);
    sqlx::query(
        "UPDATE notification_trigger SET told = told + $2, in_app = in_app + $3, pushes = pushes + $4, emails = emails + $5,
             gathered = gathered + $6, changed_at = $7
         WHERE id = $1",
    )
    .bind(trigger.0)
    .bind(number(counted.told))
    .bind(number(counted.in_app))
    .bind(number(counted.pushes))
    .bind(number(counted.emails))
    .bind(number(counted.gathered))
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// A notification as its product sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Whether all recipients are known.
    pub is_planned: bool,
    /// Recipients known.
    pub recipients: i32,
    /// Of these, told.
    pub told: i32,
    /// Rows in inboxes.
    pub in_app: i32,
    /// Jobs that push.
    pub pushes: i32,
    /// Jobs that mail.
    pub emails: i32,
    /// Put into a digest.
    pub gathered: i32,
    /// Not told, by jobs that ended without telling them; who tries those again tells them.
    pub not_told: i32,
    /// One of those jobs.
    pub ended: Option<JobId>,
    /// Why it ended, where it failed; as the ledger stores it.
    pub error: Option<Value>,
}

/// How far a notification has come; `None` where nothing has begun.
///
/// # Errors
/// [`LedgerError`].
pub async fn standing(connection: &mut PgConnection, tenant: i32, trigger: JobId) -> Result<Option<Standing>, LedgerError> {
    let row = sqlx::query(
        // A job that is gone (somebody discarded it) tells nobody either: what it told would have been taken away.
        "SELECT t.is_planned, t.recipients, t.told, t.in_app, t.pushes, t.emails, t.gathered, u.not_told, u.ended,
                (SELECT a.error FROM job_attempt a WHERE a.job_id = u.ended ORDER BY a.run DESC LIMIT 1) AS error
         FROM notification_trigger t CROSS JOIN LATERAL (
            SELECT coalesce(sum(c.recipients), 0)::integer AS not_told, (array_agg(c.job_id ORDER BY c.chunk))[1] AS ended
            FROM notification_chunk c LEFT JOIN job_state s ON s.job_id = c.job_id
            WHERE c.trigger_id = t.id AND (s.job_id IS NULL OR s.state >= 3)
         ) u
         WHERE t.id = $1 AND t.tenant_id = $2",
    )
    .bind(trigger.0)
    .bind(tenant)
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(Standing {
            is_planned: row.try_get("is_planned")?,
            recipients: row.try_get("recipients")?,
            told: row.try_get("told")?,
            in_app: row.try_get("in_app")?,
            pushes: row.try_get("pushes")?,
            emails: row.try_get("emails")?,
            gathered: row.try_get("gathered")?,
            not_told: row.try_get("not_told")?,
            ended: row.try_get::<Option<Uuid>, _>("ended")?.map(JobId),
            error: row.try_get("error")?,
        })
    })
    .transpose()
}

/// The page of an export's file, by which its owner gets it without a key: what opens it, and the file's name.
///
/// # Errors
/// [`LedgerError`].
pub async fn page_of(connection: impl PgExecutor<'_>, tenant: i32, export: JobId) -> Result<Option<String>, LedgerError> {
    let token: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT page_token FROM job_file WHERE job_id = $1 AND tenant_id = $2 AND page_token IS NOT NULL AND removed_at IS NULL",
    )
    .bind(export.0)
    .bind(tenant)
    .fetch_optional(connection)
    .await?;
    Ok(token.and_then(|token| String::from_utf8(token).ok()))
}

/// Forgets what has had its time: how far notifications came after as long as messages are remembered, sendings after the longest window of
/// a throttle. Up to 5,000 of each.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let triggers = sqlx::query(
        "DELETE FROM notification_trigger t
         USING (SELECT id FROM notification_trigger WHERE created_at < $1 ORDER BY created_at LIMIT 5000 FOR UPDATE SKIP LOCKED) old
         WHERE t.id = old.id",
    );
    let triggers = triggers.bind(now - TimeDelta::days(super::deliveries::KEPT_DAYS)).execute(pool).await?.rows_affected();
    // And whoever was never told: nobody can try that again any more.
    sqlx::query(
        "WITH old AS MATERIALIZED (
            SELECT c.trigger_id, c.chunk FROM notification_chunk c
            WHERE NOT EXISTS (SELECT FROM notification_trigger t WHERE t.id = c.trigger_id) LIMIT 5
         ), names AS (
            DELETE FROM notification_recipient r USING old o WHERE r.trigger_id = o.trigger_id AND r.chunk = o.chunk
         )
         DELETE FROM notification_chunk c USING old o WHERE c.trigger_id = o.trigger_id AND c.chunk = o.chunk",
    )
    .execute(pool)
    .await?;
    let sendings = sqlx::query(
        "DELETE FROM notification_sending s
         USING (SELECT job_id FROM notification_sending WHERE at < $1 ORDER BY at LIMIT 5000 FOR UPDATE SKIP LOCKED) old
         WHERE s.job_id = old.job_id",
    );
    Ok(triggers + sendings.bind(now - TimeDelta::days(8)).execute(pool).await?.rows_affected())
}
