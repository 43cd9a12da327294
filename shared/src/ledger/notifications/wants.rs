//! What users want, asked when something is about to be sent; and how much they were sent lately (`notification_sending`).

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgPool, Row};

use crate::{
    job::JobId,
    ledger::{LedgerError, deliveries::Channel},
    people::{Minute, QuietHours},
};

/// What a user says of messages, read when one is about to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    /// Their switch for all pushes.
    pub push_on: bool,
    /// And for all mail.
    pub mail_on: bool,
    /// What they said of pushes of the category.
    pub push: Option<bool>,
    /// And of mail.
    pub mail: Option<bool>,
    /// Their zone.
    pub time_zone: Option<String>,
    /// When they want to be left alone.
    pub quiet_hours: Option<QuietHours>,
}

/// What a user says of a category.
///
/// # Errors
/// [`LedgerError`].
pub async fn wants(pool: &PgPool, tenant: i32, user: &str, category: &str) -> Result<Wants, LedgerError> {
    let row = sqlx::query(
        "SELECT coalesce(u.push, true) AS push_on, coalesce(u.mail, true) AS mail_on, u.time_zone, p.push, p.mail, q.begins, q.ends
         FROM (SELECT 1) AS one
         LEFT JOIN end_user u ON u.tenant_id = $1 AND u.id = $2
         LEFT JOIN preference p ON p.tenant_id = $1 AND p.user_id = $2 AND p.category = $3
         LEFT JOIN quiet_hours q ON q.tenant_id = $1 AND q.user_id = $2",
    )
    .bind(tenant)
    .bind(user)
    .bind(category)
    .fetch_one(pool)
    .await?;
    let minute = |minutes: Option<i16>| minutes.and_then(Minute::new);
    let quiet = minute(row.try_get("begins")?).zip(minute(row.try_get("ends")?));
    Ok(Wants {
        push_on: row.try_get("push_on")?,
        mail_on: row.try_get("mail_on")?,
        push: row.try_get("push")?,
        mail: row.try_get("mail")?,
        time_zone: row.try_get("time_zone")?,
        quiet_hours: quiet.map(|(from, to)| QuietHours { from, to }),
    })
}

/// Whether one more message of a type may be sent to a user, where no more than `most` may in a window; it is counted then. A job counts
/// once, however often it asks.
///
/// # Errors
/// [`LedgerError`].
pub async fn may_send(
    pool: &PgPool,
    (tenant, user, sort, channel): (i32, &str, &str, Channel),
    job: JobId,
    (most, window): (u32, TimeDelta),
    now: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    let mut transaction = pool.begin().await?;
    // One after the other, for one user and type: a count can't be locked.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended(concat_ws(E'\\x1f', 'throttle', $1::text, $2, $3, $4), 0))")
        .bind(tenant)
        .bind(user)
        .bind(sort)
        .bind(channel.word())
        .execute(&mut *transaction)
        .await?;
    let sent: bool = sqlx::query_scalar(
        "WITH sending AS (
            INSERT INTO notification_sending (job_id, tenant_id, user_id, type, channel, at)
            SELECT $1, $2, $3, $4, $5, $6
            WHERE (SELECT count(*) FROM notification_sending
                   WHERE tenant_id = $2 AND user_id = $3 AND type = $4 AND channel = $5 AND at > $7 AND job_id <> $1) < $8
            ON CONFLICT (job_id) DO NOTHING RETURNING 1
         )
         SELECT EXISTS (SELECT FROM sending) OR EXISTS (SELECT FROM notification_sending WHERE job_id = $1)",
    )
    .bind(job.0)
    .bind(tenant)
    .bind(user)
    .bind(sort)
    .bind(channel.word())
    .bind(now)
    .bind(now - window)
    .bind(i64::from(most))
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(sent)
}
