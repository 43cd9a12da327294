//! Whom no mail is sent to any more (`suppression`), by the hash of the address ([`RecipientKey`](crate::mail::RecipientKey)).
//!
//! What must stay true: it is asked when a mail is about to be sent, not when it is asked for, so that whoever unsubscribes meanwhile is
//! heard; writing the same twice changes nothing, since providers and mail programs say things more than once.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor, Row, postgres::PgRow};
use utoipa::ToSchema;
use uuid::Uuid;

use super::LedgerError;
use crate::{mail::RecipientHash, queue::Queue};

/// Why somebody gets no mail any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SuppressionReason {
    /// There is no such mailbox.
    Bounce,
    /// They called it spam.
    Complaint,
    /// They asked for it.
    Unsubscribe,
    /// The product says so.
    Manual,
}

impl SuppressionReason {
    /// Its word in rows and answers.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bounce => "bounce",
            Self::Complaint => "complaint",
            Self::Unsubscribe => "unsubscribe",
            Self::Manual => "manual",
        }
    }

    fn from_word(word: String) -> Result<Self, LedgerError> {
        let all = [Self::Bounce, Self::Complaint, Self::Unsubscribe, Self::Manual];
        all.into_iter().find(|reason| reason.word() == word).ok_or(LedgerError::Unknown { what: "reason of a suppression", value: word })
    }
}

/// A suppression to be.
#[derive(Debug, Clone, Copy)]
pub struct NewSuppression<'a> {
    /// Whose product.
    pub tenant: i32,
    /// Whom.
    pub recipient: RecipientHash,
    /// Of what mail; of all when `None`.
    pub category: Option<&'a str>,
    /// Why.
    pub reason: SuppressionReason,
    /// What was said, without addresses.
    pub detail: Option<&'a str>,
}

/// A suppression as it stands.
#[derive(Debug, Clone)]
pub struct FoundSuppression {
    /// Its id, by which it is lifted.
    pub id: Uuid,
    /// Of what mail; of all when `None`.
    pub category: Option<String>,
    /// Why.
    pub reason: SuppressionReason,
    /// What was said.
    pub detail: Option<String>,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

fn found(row: &PgRow) -> Result<FoundSuppression, LedgerError> {
    Ok(FoundSuppression {
        id: row.try_get("id")?,
        category: Some(row.try_get("category")?).filter(|category: &String| !category.is_empty()),
        reason: SuppressionReason::from_word(row.try_get("reason")?)?,
        detail: row.try_get("detail")?,
        created_at: row.try_get("created_at")?,
    })
}

/// Writes one down under `id`. Where there is one for the same mail already it stays, and this answers false; but a complaint becomes its
/// reason: who lifts it has to know.
///
/// # Errors
/// [`LedgerError`].
pub async fn add(executor: impl PgExecutor<'_>, id: Uuid, new: &NewSuppression<'_>, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    let added: Option<bool> = sqlx::query_scalar(
        "INSERT INTO suppression (id, tenant_id, address_hash, category, reason, detail, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (tenant_id, address_hash, category) DO UPDATE SET reason = excluded.reason, detail = excluded.detail
         WHERE excluded.reason = 'complaint' AND suppression.reason <> 'complaint'
         RETURNING xmax = 0",
    )
    .bind(id)
    .bind(new.tenant)
    .bind(new.recipient.0.as_slice())
    .bind(new.category.unwrap_or_default())
    .bind(new.reason.word())
    .bind(new.detail)
    .bind(now)
    .fetch_optional(executor)
    .await?;
    Ok(added == Some(true))
}

/// What keeps a mail from being sent now.
#[derive(Debug, Clone)]
pub enum Obstacle {
    /// Its kind is paused for its product: it waits.
    Paused,
    /// Its recipient wants none: it is not sent.
    Suppressed(FoundSuppression),
}

/// What keeps mail of a category from somebody, asked when it is about to be sent: a pause, the suppression of all mail, that of the
/// category. A worker hears of a pause within a second; here it is known at once, so that a server that refuses us is not asked by all.
///
/// # Errors
/// [`LedgerError`].
pub async fn obstacle(
    executor: impl PgExecutor<'_>,
    (tenant, queue, kind): (i32, Queue, &str),
    recipient: RecipientHash,
    category: &str,
) -> Result<Option<Obstacle>, LedgerError> {
    let row = sqlx::query(
        "SELECT is_paused($1, $2, $3) AS paused, s.* FROM (SELECT 1) AS one LEFT JOIN LATERAL (
            SELECT id, category, reason, detail, created_at FROM suppression
            WHERE tenant_id = $1 AND address_hash = $4 AND category IN ('', $5) ORDER BY category LIMIT 1
         ) s ON true",
    )
    .bind(tenant)
    .bind(queue.name())
    .bind(kind)
    .bind(recipient.0.as_slice())
    .bind(category)
    .fetch_one(executor)
    .await?;
    let id: Option<Uuid> = row.try_get("id")?;
    Ok(match id {
        _ if row.try_get("paused")? => Some(Obstacle::Paused),
        Some(_) => Some(Obstacle::Suppressed(found(&row)?)),
        None => None,
    })
}

/// The most suppressions of one address that are shown: one a category, and a product has not so many.
const MOST: i64 = 1_000;

/// All suppressions of somebody.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_recipient(
    connection: &mut PgConnection,
    tenant: i32,
    recipient: RecipientHash,
) -> Result<Vec<FoundSuppression>, LedgerError> {
    let rows = sqlx::query(
        "SELECT id, category, reason, detail, created_at FROM suppression WHERE tenant_id = $1 AND address_hash = $2 ORDER BY category LIMIT $3",
    )
    .bind(tenant)
    .bind(recipient.0.as_slice())
    .bind(MOST)
    .fetch_all(connection)
    .await?;
    rows.iter().map(found).collect()
}

/// Lifts one. Answers false where there is none of that id.
///
/// # Errors
/// [`LedgerError`].
pub async fn lift(connection: &mut PgConnection, tenant: i32, id: Uuid) -> Result<bool, LedgerError> {
    let lifted = sqlx::query("DELETE FROM suppression WHERE tenant_id = $1 AND id = $2").bind(tenant).bind(id).execute(connection).await?;
    Ok(lifted.rows_affected() == 1)
}
