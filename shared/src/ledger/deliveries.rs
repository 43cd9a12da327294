//! What became of each message on its way to a person (`delivery`): a row a mail, a row a device of a push.
//!
//! What must stay true: each message that is not sent says why; a row that is final is not tried again; what may have arrived stays listed
//! as unknown until it is known to have arrived, and as repeated when it may have done so twice; nothing in it is an address.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};
use utoipa::ToSchema;
use uuid::Uuid;

use super::LedgerError;
use crate::{job::JobId, mail::RecipientHash};

/// By which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Mail.
    Email,
    /// Web push.
    Push,
    /// The inbox in the product; here only where somebody wants nothing there.
    InApp,
}

impl Channel {
    /// Its word in rows.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Push => "push",
            Self::InApp => "in_app",
        }
    }
}

/// What is known of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Taken by the mail server, or by the push service.
    Sent,
    /// Not taken.
    NotSent,
    /// The answer did not come: it may have been taken.
    Unknown,
}

impl DeliveryState {
    /// Its word in rows.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Sent, Self::NotSent, Self::Unknown].into_iter().find(|state| state.word() == word)
    }
}

/// Whom a message is for.
#[derive(Debug, Clone)]
pub struct Addressed {
    /// By which way.
    pub channel: Channel,
    /// The subscription of a push; nil for a mail, and for a push without any device.
    pub device: Uuid,
    /// The user.
    pub owner: Option<String>,
    /// The mail's address.
    pub recipient: Option<RecipientHash>,
    /// The mail's category.
    pub category: Option<String>,
}

/// What an attempt came to.
#[derive(Debug, Clone, Default)]
pub struct Attempted {
    state: Option<DeliveryState>,
    why: Option<String>,
    detail: Option<String>,
    is_final: bool,
    repeated: bool,
    refused: bool,
}

impl Attempted {
    /// It was taken; `repeated`: perhaps not for the first time.
    #[must_use]
    pub fn sent(repeated: bool) -> Self {
        Self { state: Some(DeliveryState::Sent), is_final: true, repeated, ..Self::default() }
    }

    /// It was not taken, for a reason in a word and in words.
    #[must_use]
    pub fn not_sent(why: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { state: Some(DeliveryState::NotSent), why: Some(why.into()), detail: Some(detail.into()), ..Self::default() }
    }

    /// It may have been taken.
    #[must_use]
    pub fn unknown(why: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { state: Some(DeliveryState::Unknown), ..Self::not_sent(why, detail) }
    }

    /// Nothing more is tried.
    #[must_use]
    pub fn finally(self) -> Self {
        Self { is_final: true, ..self }
    }

    /// The same, where that is so.
    #[must_use]
    pub fn finally_if(self, is_final: bool) -> Self {
        Self { is_final, ..self }
    }

    /// It was refused for our standing, not for the message.
    #[must_use]
    pub fn refused(self) -> Self {
        Self { refused: true, ..self }
    }
}

/// The longest detail, in characters.
const DETAIL: usize = 500;

/// What is to be written down of a message.
#[derive(Debug, Clone)]
pub struct Noted {
    /// The row's id, if it is the first of this message.
    pub id: Uuid,
    /// The job.
    pub job: JobId,
    /// Whose product.
    pub tenant: i32,
    /// Whom it is for.
    pub to: Addressed,
    /// What the attempt came to.
    pub attempted: Attempted,
    /// The effect's key and what the outside answered, of a message that was taken: written down in the same statement.
    pub receipt: Option<(String, Value)>,
}

/// Writes down what attempts came to, each in the place of what was known before, in one statement; with their effects' receipts, and at the
/// browsers that were pushed to. What is final stays as it is, and what may have arrived stays unknown until it is sent. No two may be
/// the same message.
///
/// # Errors
/// [`LedgerError`].
pub async fn note_all(connection: &mut PgConnection, all: &[Noted], now: DateTime<Utc>) -> Result<(), LedgerError> {
    let clean = |text: &String| text.replace('\0', "\u{fffd}").chars().take(DETAIL).collect::<String>();
    let state = |noted: &Noted| noted.attempted.state.unwrap_or(DeliveryState::NotSent).word();
    // Several may have gone to one browser: the last counts. In one order for all, so that two who note don't wait for each other crosswise.
    let browsers: BTreeMap<Uuid, &Noted> = all
        .iter()
        .filter(|noted| noted.to.channel == Channel::Push && !noted.to.device.is_nil())
        .map(|noted| (noted.to.device, noted))
        .collect();
    sqlx::query(
        "WITH told AS MATERIALIZED (
            SELECT * FROM unnest($1::uuid[], $2::integer[], $3::uuid[], $4::text[], $5::uuid[], $6::text[], $7::bytea[], $8::text[], $9::text[],
                                 $10::text[], $11::text[], $12::boolean[], $13::boolean[], $14::smallint[], $15::text[], $16::text[])
                AS t (id, tenant_id, job_id, channel, device, owner, address_hash, category, state, why, detail, is_final, repeated, refusals,
                      effect, receipt)
        ), receipts AS (
            -- What was listed as unknown stays so: it may have happened before as well.
            UPDATE effect e SET state = CASE e.state WHEN 2 THEN 2 ELSE 1 END, receipt = t.receipt::jsonb, finished_at = $17
            FROM told t WHERE e.job_id = ANY (ARRAY[t.job_id]) AND e.key = t.effect
        ), seen AS (
            UPDATE push_subscription p SET last_state = b.state, last_why = b.why, last_at = $17
            FROM unnest($18::uuid[], $19::text[], $20::text[]) AS b (id, state, why) WHERE p.id = ANY (ARRAY[b.id])
        )
        INSERT INTO delivery AS d (id, tenant_id, job_id, channel, device, owner, address_hash, category, state, why, detail, is_final, repeated,
                                   refusals, attempts, created_at, changed_at)
        SELECT id, tenant_id, job_id, channel, device, owner, address_hash, category, state, why, detail, is_final, repeated, refusals, 1, $17, $17
        FROM told
        ON CONFLICT (job_id, channel, device) DO UPDATE
        SET state = CASE WHEN d.state = 'unknown' AND excluded.state = 'not_sent' THEN 'unknown' ELSE excluded.state END,
            why = excluded.why, detail = excluded.detail, is_final = excluded.is_final,
            repeated = d.repeated OR excluded.repeated OR (d.state = 'unknown' AND excluded.state IN ('sent', 'unknown')),
            refusals = d.refusals + excluded.refusals, attempts = d.attempts + 1, changed_at = excluded.changed_at
        WHERE NOT (d.is_final AND d.state = 'sent')",
    )
    .bind(all.iter().map(|noted| noted.id).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.tenant).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.job.0).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.to.channel.word()).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.to.device).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.to.owner.as_deref()).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.to.recipient.map(|hash| hash.0.to_vec())).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.to.category.as_deref()).collect::<Vec<_>>())
    .bind(all.iter().map(state).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.attempted.why.as_deref()).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.attempted.detail.as_ref().map(clean)).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.attempted.is_final).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.attempted.repeated).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| i16::from(noted.attempted.refused)).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.receipt.as_ref().map(|(effect, _)| effect.as_str())).collect::<Vec<_>>())
    .bind(all.iter().map(|noted| noted.receipt.as_ref().map(|(_, receipt)| receipt.to_string())).collect::<Vec<_>>())
    .bind(now)
    .bind(browsers.keys().copied().collect::<Vec<_>>())
    .bind(browsers.values().map(|noted| state(noted)).collect::<Vec<_>>())
    .bind(browsers.values().map(|noted| noted.attempted.why.as_deref()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// How often a job's mail was refused for our standing so far.
///
/// # Errors
/// [`LedgerError`].
pub async fn refusals(pool: &PgPool, job: JobId) -> Result<i16, LedgerError> {
    let refusals: Option<i16> = sqlx::query_scalar("SELECT refusals FROM delivery WHERE job_id = $1 AND channel = 'email'")
        .bind(job.0)
        .fetch_optional(pool)
        .await?;
    Ok(refusals.unwrap_or(0))
}

/// The devices that a push is not sent to any more: they have it, or never will.
///
/// # Errors
/// [`LedgerError`].
pub async fn final_devices(pool: &PgPool, job: JobId) -> Result<Vec<(Uuid, DeliveryState)>, LedgerError> {
    let rows: Vec<(Uuid, String)> =
        sqlx::query_as("SELECT device, state FROM delivery WHERE job_id = $1 AND channel = 'push' AND is_final")
            .bind(job.0)
            .fetch_all(pool)
            .await?;
    Ok(rows.into_iter().filter_map(|(device, state)| Some((device, DeliveryState::from_word(&state)?))).collect())
}

/// Forgets that pushes of a job were final that were not sent: somebody asked for the job again.
///
/// # Errors
/// [`LedgerError`].
pub async fn reopen(pool: &PgPool, job: JobId) -> Result<(), LedgerError> {
    sqlx::query("UPDATE delivery SET is_final = false WHERE job_id = $1 AND channel = 'push' AND state <> 'sent' AND is_final")
        .bind(job.0)
        .execute(pool)
        .await?;
    Ok(())
}

/// Forgets that a push waited before it had any browser: from here on each has its own row.
///
/// # Errors
/// [`LedgerError`].
pub async fn waited(pool: &PgPool, job: JobId) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM delivery WHERE job_id = $1 AND channel = 'push' AND device = $2 AND NOT is_final")
        .bind(job.0)
        .bind(Uuid::nil())
        .execute(pool)
        .await?;
    Ok(())
}

/// A message as it stands.
#[derive(Debug, Clone)]
pub struct FoundDelivery {
    /// Its id.
    pub id: Uuid,
    /// Whose.
    pub job: JobId,
    /// By which way.
    pub channel: Channel,
    /// The subscription of a push.
    pub device: Option<Uuid>,
    /// The user.
    pub owner: Option<String>,
    /// The mail's category.
    pub category: Option<String>,
    /// What is known.
    pub state: DeliveryState,
    /// Why it was not sent, or is not known, in a word.
    pub why: Option<String>,
    /// The same in words.
    pub detail: Option<String>,
    /// Nothing more is tried.
    pub is_final: bool,
    /// It may have arrived more than once.
    pub repeated: bool,
    /// How often it was tried.
    pub attempts: i16,
    /// When it was tried first.
    pub created_at: DateTime<Utc>,
    /// When this was learnt.
    pub changed_at: DateTime<Utc>,
}

fn found(row: &PgRow) -> Result<FoundDelivery, LedgerError> {
    let (channel, state): (String, String) = (row.try_get("channel")?, row.try_get("state")?);
    let unknown = |what, value: &str| LedgerError::Unknown { what, value: value.to_owned() };
    let channels = [Channel::Email, Channel::Push, Channel::InApp];
    // Messages without a job of their own have their own id there.
    let id: Uuid = row.try_get("id")?;
    Ok(FoundDelivery {
        id,
        job: JobId(row.try_get("job_id")?),
        channel: channels.into_iter().find(|known| known.word() == channel).ok_or_else(|| unknown("channel", &channel))?,
        device: Some(row.try_get("device")?).filter(|device: &Uuid| !device.is_nil() && *device != id && channel == Channel::Push.word()),
        owner: row.try_get("owner")?,
        category: row.try_get("category")?,
        state: DeliveryState::from_word(&state).ok_or_else(|| unknown("state of a delivery", &state))?,
        why: row.try_get("why")?,
        detail: row.try_get("detail")?,
        is_final: row.try_get("is_final")?,
        repeated: row.try_get("repeated")?,
        attempts: row.try_get("attempts")?,
        created_at: row.try_get("created_at")?,
        changed_at: row.try_get("changed_at")?,
    })
}

/// What is not final by itself is so once its job has ended: nobody tries it again then.
const COLUMNS: &str = "d.id, d.job_id, d.channel, d.device, d.owner, d.category, d.state, d.why, d.detail, d.repeated, d.attempts, d.created_at, \
    d.changed_at, d.is_final OR NOT EXISTS (SELECT FROM job_state s WHERE s.job_id = d.job_id AND s.state < 3) AS is_final";

/// The messages of a job, oldest first; where `owner` is given, only that user's.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_job(
    connection: &mut PgConnection,
    tenant: i32,
    owner: Option<&str>,
    job: JobId,
) -> Result<Vec<FoundDelivery>, LedgerError> {
    let statement = format!(
        "SELECT {COLUMNS} FROM delivery d WHERE d.job_id = $1 AND d.tenant_id = $2 AND ($3::text IS NULL OR d.owner = $3) ORDER BY d.id LIMIT 1000"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(job.0).bind(tenant).bind(owner).fetch_all(connection).await?;
    rows.iter().map(found).collect()
}

/// A page of a user's messages, newest first.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_owner(
    connection: &mut PgConnection,
    tenant: i32,
    owner: &str,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<FoundDelivery>, LedgerError> {
    let statement =
        format!("SELECT {COLUMNS} FROM delivery d WHERE d.tenant_id = $1 AND d.owner = $2 AND d.id < $3 ORDER BY d.id DESC LIMIT $4");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(tenant)
        .bind(owner)
        .bind(after.unwrap_or(Uuid::max()))
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(found).collect()
}

/// How long a message is remembered, in days.
pub const KEPT_DAYS: i64 = 180;

/// Forgets messages that have had their time, up to 5,000.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let forgotten = sqlx::query(
        "DELETE FROM delivery d
         USING (SELECT id FROM delivery WHERE changed_at < $1 ORDER BY changed_at LIMIT 5000 FOR UPDATE SKIP LOCKED) old
         WHERE d.id = old.id",
    );
    Ok(forgotten.bind(now - chrono::TimeDelta::days(KEPT_DAYS)).execute(pool).await?.rows_affected())
}
