//! Who is suspended or banned: one row a user, and a job that ends a suspension at its moment.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{ModerationAction, store};
use crate::{
    job::JobId,
    kinds::SuspensionEnd,
    ledger::{LedgerError, change, insert::NewJob},
};

/// A user's standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is held against them.
    Active,
    /// Suspended.
    Suspended {
        /// Since when.
        since: DateTime<Utc>,
        /// Until when.
        until: DateTime<Utc>,
    },
    /// Suspended for good.
    Banned {
        /// Since when.
        since: DateTime<Utc>,
    },
}

/// How somebody stands at a moment. A suspension is over when its time is, also where its job has not come to it yet.
///
/// # Errors
/// [`LedgerError`].
pub async fn standing(connection: &mut PgConnection, tenant: i32, user: &str, now: DateTime<Utc>) -> Result<Standing, LedgerError> {
    let row = sqlx::query("SELECT since, until FROM suspension WHERE tenant_id = $1 AND user_id = $2")
        .bind(tenant)
        .bind(user)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(Standing::Active) };
    let (since, until): (DateTime<Utc>, Option<DateTime<Utc>>) = (row.try_get("since")?, row.try_get("until")?);
    Ok(match until {
        None => Standing::Banned { since },
        Some(until) if until > now => Standing::Suspended { since, until },
        Some(_) => Standing::Active,
    })
}

/// Suspends somebody until a moment, in the place of what was there; `job` ends it.
///
/// # Errors
/// [`LedgerError`].
pub async fn suspend(
    connection: &mut PgConnection,
    (tenant, user): (i32, &str),
    action: Uuid,
    (until, job): (DateTime<Utc>, JobId),
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    replace(connection, (tenant, user), action, Some((until, job)), now).await?;
    let end = NewJob::of(job, tenant, &SuspensionEnd { suspension: action }, now).due_at(until);
    let end = NewJob { subject: Some(user.to_owned()), ..end };
    store(connection, end, now).await
}

/// Bans somebody, in the place of what was there.
///
/// # Errors
/// [`LedgerError`].
pub async fn ban(connection: &mut PgConnection, (tenant, user): (i32, &str), action: Uuid, now: DateTime<Utc>) -> Result<(), LedgerError> {
    replace(connection, (tenant, user), action, None, now).await
}

async fn replace(
    connection: &mut PgConnection,
    (tenant, user): (i32, &str),
    action: Uuid,
    end: Option<(DateTime<Utc>, JobId)>,
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    // The user's name is held, so there is nobody between the two.
    drop_row(connection, tenant, user, now).await?;
    sqlx::query("INSERT INTO suspension (tenant_id, user_id, action_id, until, job_id, since) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(tenant)
        .bind(user)
        .bind(action)
        .bind(end.map(|(until, _)| until))
        .bind(end.map(|(_, job)| job.0))
        .bind(now)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes back a suspension or ban; answers whether there was one at this moment.
///
/// # Errors
/// [`LedgerError`].
pub async fn lift(connection: &mut PgConnection, tenant: i32, user: &str, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    let until = drop_row(connection, tenant, user, now).await?;
    Ok(until.is_some_and(|until| until.is_none_or(|until| until > now)))
}

/// Removes a user's row and cancels the job that would have ended it; answers until when it was, if there was one.
async fn drop_row(
    connection: &mut PgConnection,
    tenant: i32,
    user: &str,
    now: DateTime<Utc>,
) -> Result<Option<Option<DateTime<Utc>>>, LedgerError> {
    let row = sqlx::query("DELETE FROM suspension WHERE tenant_id = $1 AND user_id = $2 RETURNING until, job_id")
        .bind(tenant)
        .bind(user)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    if let Some(job) = row.try_get::<Option<Uuid>, _>("job_id")? {
        // One that runs at this moment, or moves to its queue, comes after us and finds nothing of its own.
        change::cancel(connection, tenant, JobId(job), now).await?;
    }
    Ok(Some(row.try_get("until")?))
}

/// What a job that ends a suspension finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It has ended now; whose it was.
    Now(String),
    /// Its time is not over.
    NotBefore(DateTime<Utc>),
    /// It was lifted, another one took its place, or its user is being erased.
    Gone,
}

/// Ends a suspension whose time is over, in the caller's transaction, and keeps that in its user's history under `id`.
///
/// # Errors
/// [`LedgerError`].
pub async fn end(connection: &mut PgConnection, tenant: i32, suspension: Uuid, id: Uuid, now: DateTime<Utc>) -> Result<Ended, LedgerError> {
    let row = sqlx::query(
        "SELECT s.user_id, s.until FROM suspension s
         WHERE s.action_id = $2 AND s.tenant_id = $1 AND s.until IS NOT NULL
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = s.tenant_id AND e.user_id = s.user_id)
         FOR UPDATE OF s",
    )
    .bind(tenant)
    .bind(suspension)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(Ended::Gone) };
    let (user, until): (String, DateTime<Utc>) = (row.try_get("user_id")?, row.try_get("until")?);
    if until > now {
        return Ok(Ended::NotBefore(until));
    }
    sqlx::query("DELETE FROM suspension WHERE action_id = $1").bind(suspension).execute(&mut *connection).await?;
    sqlx::query("INSERT INTO moderation_action (id, tenant_id, user_id, action, body_hash, created_at) VALUES ($1, $2, $3, $4, '', $5)")
        .bind(id)
        .bind(tenant)
        .bind(&user)
        .bind(ModerationAction::End.word())
        .bind(now)
        .execute(connection)
        .await?;
    Ok(Ended::Now(user))
}
