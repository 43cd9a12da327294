//! The keys that users bring (R45), as they stand in Postgres: sealed, with what is known of each.
//!
//! What must stay true: a key that was not found good by its provider opens nothing ([`active`]); what was found of one key says nothing of
//! the one that took its place (`version`); nobody has keys checked more often than [`MOST`] times in [`WINDOW`], however requests race.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};
use uuid::Uuid;

use super::{LedgerError, people};
use crate::byok::Vendor;

/// How often a user may have keys checked, saving and testing together (R45).
pub const MOST: i64 = 5;

/// In which time.
pub const WINDOW: TimeDelta = TimeDelta::hours(1);

/// The longest words of a provider that are kept, in characters.
const LONGEST_REASON: usize = 300;

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its provider has not said anything of it yet; it is not used.
    Unchecked,
    /// Its provider takes it.
    Active,
    /// Its provider does not.
    Invalid,
}

impl Status {
    const fn code(self) -> i16 {
        match self {
            Self::Unchecked => 0,
            Self::Active => 1,
            Self::Invalid => 2,
        }
    }

    const fn of_code(code: i16) -> Self {
        match code {
            1 => Self::Active,
            2 => Self::Invalid,
            _ => Self::Unchecked,
        }
    }
}

/// A key, as its user may see it.
#[derive(Debug, Clone)]
pub struct OwnKey {
    /// Of which provider; a word, for a newer program may know more of them.
    pub provider: String,
    /// Its row.
    pub id: Uuid,
    /// Which key of that row.
    pub version: i32,
    /// Its last four characters.
    pub last_four: String,
    /// What is known of it.
    pub status: Status,
    /// What its provider said, where it is invalid.
    pub reason: Option<String>,
    /// When its provider was asked last.
    pub checked_at: Option<DateTime<Utc>>,
    /// When it was put here.
    pub updated_at: DateTime<Utc>,
}

fn own_key(row: &PgRow) -> Result<OwnKey, LedgerError> {
    Ok(OwnKey {
        provider: row.try_get("provider")?,
        id: row.try_get("id")?,
        version: row.try_get("version")?,
        last_four: row.try_get("last_four")?,
        status: Status::of_code(row.try_get("status")?),
        reason: row.try_get("reason")?,
        checked_at: row.try_get("checked_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

/// What came of counting a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// It may be made.
    Now,
    /// There have been enough; the next one may be made then.
    TooMany(DateTime<Utc>),
    /// The user is being erased.
    Gone,
}

/// Counts a check under `id`, in the caller's transaction, which holds the user from here on.
///
/// # Errors
/// [`LedgerError`].
pub async fn count(
    connection: &mut PgConnection,
    (tenant, user): (i32, &str),
    id: Uuid,
    now: DateTime<Utc>,
) -> Result<Counted, LedgerError> {
    // One after the other, for one user: a count can't be locked.
    if !people::are_here(connection, tenant, vec![user]).await? {
        return Ok(Counted::Gone);
    }
    let checks: Vec<DateTime<Utc>> = sqlx::query_scalar(
        "SELECT checked_at FROM own_key_check WHERE tenant_id = $1 AND user_id = $2 AND checked_at > $3 ORDER BY checked_at DESC LIMIT $4",
    )
    .bind(tenant)
    .bind(user)
    .bind(now - WINDOW)
    .bind(MOST)
    .fetch_all(&mut *connection)
    .await?;
    if let Some(oldest) = usize::try_from(MOST - 1).ok().and_then(|place| checks.get(place)) {
        return Ok(Counted::TooMany(*oldest + WINDOW));
    }
    sqlx::query("INSERT INTO own_key_check (id, tenant_id, user_id, checked_at) VALUES ($1, $2, $3, $4)")
        .bind(id)
        .bind(tenant)
        .bind(user)
        .bind(now)
        .execute(connection)
        .await?;
    Ok(Counted::Now)
}

/// A key that is put.
#[derive(Debug, Clone, Copy)]
pub struct NewKey<'a> {
    /// The row's id, should there be none yet.
    pub id: Uuid,
    /// Whose product.
    pub tenant: i32,
    /// Whose key.
    pub user: &'a str,
    /// Of which provider.
    pub vendor: Vendor,
    /// The key, sealed.
    pub sealed: &'a [u8],
    /// By which version of the installation's key.
    pub wrapped_by: u8,
    /// Its last four characters.
    pub last_four: &'a str,
}

/// Puts a key in the place of another, or where there was none; it is not used before it was checked. In the transaction of [`count`].
///
/// # Errors
/// [`LedgerError`].
pub async fn put(connection: &mut PgConnection, new: &NewKey<'_>, now: DateTime<Utc>) -> Result<OwnKey, LedgerError> {
    let row = sqlx::query(
        "INSERT INTO own_key AS k (tenant_id, user_id, provider, id, version, sealed, wrapped_by, last_four, status, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 1, $5, $6, $7, 0, $8, $8)
         ON CONFLICT (tenant_id, user_id, provider) DO UPDATE SET
            version = k.version + 1, sealed = excluded.sealed, wrapped_by = excluded.wrapped_by, last_four = excluded.last_four, status = 0,
            reason = NULL, checked_at = NULL, updated_at = excluded.updated_at
         RETURNING provider, id, version, last_four, status, reason, checked_at, updated_at",
    )
    .bind(new.tenant)
    .bind(new.user)
    .bind(new.vendor.word())
    .bind(new.id)
    .bind(new.sealed)
    .bind(i16::from(new.wrapped_by))
    .bind(new.last_four)
    .bind(now)
    .fetch_one(connection)
    .await?;
    own_key(&row)
}

/// A user's keys.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(connection: &mut PgConnection, tenant: i32, user: &str) -> Result<Vec<OwnKey>, LedgerError> {
    sqlx::query(
        "SELECT provider, id, version, last_four, status, reason, checked_at, updated_at FROM own_key
         WHERE tenant_id = $1 AND user_id = $2 ORDER BY provider LIMIT 100",
    )
    .bind(tenant)
    .bind(user)
    .fetch_all(connection)
    .await?
    .iter()
    .map(own_key)
    .collect()
}

/// A user's key for a provider.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(connection: &mut PgConnection, tenant: i32, user: &str, vendor: Vendor) -> Result<Option<OwnKey>, LedgerError> {
    sqlx::query(
        "SELECT provider, id, version, last_four, status, reason, checked_at, updated_at FROM own_key
         WHERE tenant_id = $1 AND user_id = $2 AND provider = $3",
    )
    .bind(tenant)
    .bind(user)
    .bind(vendor.word())
    .fetch_optional(connection)
    .await?
    .as_ref()
    .map(own_key)
    .transpose()
}

/// Forgets a key, and remembers that there was one: jobs that were accepted meanwhile are not done at the product's expense. False where there
/// was none.
///
/// # Errors
/// [`LedgerError`].
pub async fn delete(
    connection: &mut PgConnection,
    tenant: i32,
    user: &str,
    vendor: Vendor,
    now: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    let deleted = sqlx::query(
        "WITH gone AS (
            DELETE FROM own_key WHERE tenant_id = $1 AND user_id = $2 AND provider = $3 RETURNING created_at
         )
         INSERT INTO own_key_deletion (tenant_id, user_id, provider, created_at, deleted_at) SELECT $1, $2, $3, created_at, $4 FROM gone",
    );
    Ok(deleted.bind(tenant).bind(user).bind(vendor.word()).bind(now).execute(connection).await?.rows_affected() == 1)
}

/// A key to be used, sealed.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// Its row.
    pub id: Uuid,
    /// Which key of that row.
    pub version: i32,
    /// The key.
    pub sealed: Vec<u8>,
    /// What is known of it.
    pub status: Status,
}

/// A user's key for a provider, whatever is known of it: to be checked.
///
/// # Errors
/// [`LedgerError`].
pub async fn sealed(pool: &PgPool, tenant: i32, user: &str, vendor: Vendor) -> Result<Option<Sealed>, LedgerError> {
    let row = sqlx::query("SELECT id, version, sealed, status FROM own_key WHERE tenant_id = $1 AND user_id = $2 AND provider = $3")
        .bind(tenant)
        .bind(user)
        .bind(vendor.word())
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Sealed {
        id: row.try_get("id")?,
        version: row.try_get("version")?,
        sealed: row.try_get("sealed")?,
        status: Status::of_code(row.try_get("status")?),
    }))
}

/// How long a deletion is remembered: a job that was accepted before it has run by then.
const DELETIONS_KEPT: TimeDelta = TimeDelta::days(400);

/// What a call for a user is to be made by.
#[derive(Debug, Clone)]
pub enum ForCall {
    /// The user's key, whatever is known of it.
    Own(Sealed),
    /// Nothing: the user had a key when their job was accepted, and has deleted it since.
    Deleted,
    /// The user has none, and had none then.
    None,
}

/// A user's key for a call of a job that was accepted at a time.
///
/// # Errors
/// [`LedgerError`].
pub async fn for_call(pool: &PgPool, tenant: i32, user: &str, vendor: Vendor, accepted_at: DateTime<Utc>) -> Result<ForCall, LedgerError> {
    // One look, since each call has it. A job knows its time to the millisecond.
    let row = sqlx::query(
        "SELECT k.id, k.version, k.sealed, k.status,
                EXISTS (SELECT FROM own_key_deletion d
                        WHERE d.tenant_id = $1 AND d.user_id = $2 AND d.provider = $3 AND d.deleted_at > $4
                          AND date_trunc('milliseconds', d.created_at) <= $4) AS deleted
         FROM (SELECT) AS one LEFT JOIN own_key k ON k.tenant_id = $1 AND k.user_id = $2 AND k.provider = $3",
    )
    .bind(tenant)
    .bind(user)
    .bind(vendor.word())
    .bind(accepted_at)
    .fetch_one(pool)
    .await?;
    let Some(id) = row.try_get::<Option<Uuid>, _>("id")? else {
        return Ok(if row.try_get("deleted")? { ForCall::Deleted } else { ForCall::None });
    };
    Ok(ForCall::Own(Sealed {
        id,
        version: row.try_get("version")?,
        sealed: row.try_get("sealed")?,
        status: Status::of_code(row.try_get("status")?),
    }))
}

/// A user's key for a provider that may be used: its provider took it.
///
/// # Errors
/// [`LedgerError`].
pub async fn active(pool: &PgPool, tenant: i32, user: &str, vendor: Vendor) -> Result<Option<Sealed>, LedgerError> {
    Ok(sealed(pool, tenant, user, vendor).await?.filter(|key| key.status == Status::Active))
}

/// Notes what a provider said of a key: `None` that it takes it. Where a key that was in use is not taken any more, its owner is told so, in
/// the same transaction. Answers false, and changes nothing, where another key took its place meanwhile.
///
/// # Errors
/// [`LedgerError`].
pub async fn checked(
    pool: &PgPool,
    (tenant, vendor): (i32, Vendor),
    (id, version): (Uuid, i32),
    refused: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool, LedgerError> {
    let reason = refused.map(|said| said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_REASON).collect::<String>());
    let status = if refused.is_some() { Status::Invalid } else { Status::Active };
    let mut transaction = pool.begin().await?;
    // The row as it was before, for who is told goes by that.
    let before = sqlx::query("SELECT user_id, status, last_four FROM own_key WHERE id = $1 AND version = $2 FOR UPDATE")
        .bind(id)
        .bind(version)
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(before) = before else { return Ok(false) };
    sqlx::query("UPDATE own_key SET status = $3, reason = $4, checked_at = $5 WHERE id = $1 AND version = $2")
        .bind(id)
        .bind(version)
        .bind(status.code())
        .bind(reason)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    if status == Status::Invalid && Status::of_code(before.try_get("status")?) == Status::Active {
        let (user, last_four): (String, String) = (before.try_get("user_id")?, before.try_get("last_four")?);
        let name = vendor.name();
        let message =
            format!("{name} does not take your key that ends in {last_four} any more. It is not used until you put in one that works.");
        sqlx::query(
            "INSERT INTO notification (tenant_id, owner, type, title, message, data, created_at) VALUES ($1, $2, 'system', $3, $4, $5, $6)",
        )
        .bind(tenant)
        .bind(user)
        .bind(format!("Your {name} key does not work any more"))
        .bind(message)
        .bind(json!({ "byok": vendor, "status": "invalid" }))
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// A key that another version of the installation's key wraps.
#[derive(Debug, Clone)]
pub struct Wrapped {
    /// Its row.
    pub id: Uuid,
    /// Which key of that row.
    pub version: i32,
    /// Whose product.
    pub tenant: i32,
    /// Whose key.
    pub user: String,
    /// Of which provider.
    pub provider: String,
    /// The key, sealed.
    pub sealed: Vec<u8>,
}

/// Rows of one page.
pub const PAGE: i64 = 500;

/// A page of the keys that are not wrapped by the version `current`, behind `after`.
///
/// # Errors
/// [`LedgerError`].
pub async fn wrapped_by_others(pool: &PgPool, current: u8, after: Uuid) -> Result<Vec<Wrapped>, LedgerError> {
    let page = sqlx::query(
        "SELECT id, version, tenant_id, user_id, provider, sealed FROM own_key WHERE wrapped_by <> $1 AND id > $2 ORDER BY id LIMIT $3",
    );
    wrapped(&page.bind(i16::from(current)).bind(after).bind(PAGE).fetch_all(pool).await?)
}

/// A page of the keys that are wrapped by the version `current`, behind `after`.
///
/// # Errors
/// [`LedgerError`].
pub async fn wrapped_by(pool: &PgPool, current: u8, after: Uuid) -> Result<Vec<Wrapped>, LedgerError> {
    let page = sqlx::query(
        "SELECT id, version, tenant_id, user_id, provider, sealed FROM own_key WHERE wrapped_by = $1 AND id > $2 ORDER BY id LIMIT $3",
    );
    wrapped(&page.bind(i16::from(current)).bind(after).bind(PAGE).fetch_all(pool).await?)
}

fn wrapped(rows: &[PgRow]) -> Result<Vec<Wrapped>, LedgerError> {
    rows.iter()
        .map(|row| {
            Ok(Wrapped {
                id: row.try_get("id")?,
                version: row.try_get("version")?,
                tenant: row.try_get("tenant_id")?,
                user: row.try_get("user_id")?,
                provider: row.try_get("provider")?,
                sealed: row.try_get("sealed")?,
            })
        })
        .collect()
}

/// Puts keys back that were wrapped anew (the row, its version, the seal), but those in whose place another was put meanwhile; how many.
///
/// # Errors
/// [`LedgerError`].
pub async fn rewrapped(pool: &PgPool, current: u8, rows: &[(Uuid, i32, Vec<u8>)]) -> Result<u64, LedgerError> {
    let ids: Vec<Uuid> = rows.iter().map(|(id, ..)| *id).collect();
    let versions: Vec<i32> = rows.iter().map(|(_, version, _)| *version).collect();
    let sealed: Vec<&[u8]> = rows.iter().map(|(.., sealed)| sealed.as_slice()).collect();
    let done = sqlx::query(
        "UPDATE own_key k SET sealed = n.sealed, wrapped_by = $4
         FROM unnest($1::uuid[], $2::integer[], $3::bytea[]) AS n (id, version, sealed) WHERE k.id = n.id AND k.version = n.version",
    )
    .bind(ids)
    .bind(versions)
    .bind(sealed)
    .bind(i16::from(current))
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Forgets checks that are not counted any more, up to 5,000.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget_checks(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let forgotten = sqlx::query(
        "DELETE FROM own_key_check c
         USING (SELECT id FROM own_key_check WHERE checked_at < $1 ORDER BY checked_at LIMIT 5000 FOR UPDATE SKIP LOCKED) old WHERE c.id = old.id",
    );
    Ok(forgotten.bind(now - WINDOW).execute(pool).await?.rows_affected())
}

/// Forgets deletions that no job can be older than; answers how many: call again until none.
///
/// # Errors
/// [`LedgerError`].
pub async fn forget_deletions(pool: &PgPool, now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let forgotten = sqlx::query(
        "DELETE FROM own_key_deletion d
         USING (SELECT tenant_id, user_id, provider, deleted_at FROM own_key_deletion WHERE deleted_at < $1 ORDER BY deleted_at LIMIT 5000
                FOR UPDATE SKIP LOCKED) old
         WHERE d.tenant_id = old.tenant_id AND d.user_id = old.user_id AND d.provider = old.provider AND d.deleted_at = old.deleted_at",
    );
    Ok(forgotten.bind(now - DELETIONS_KEPT).execute(pool).await?.rows_affected())
}
