//! API keys, by which a product's backend calls (R52): `pk_` and 32 random characters, shown once when made, stored as a
//! hash with the last four characters, limited by scopes and an expiry, revocable.

mod scopes;

use aws_lc_rs::digest;
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sqlx::{PgPool, Row, postgres::PgRow};
use uuid::Uuid;

pub use scopes::{Scope, Scopes, UnknownScope};

use crate::{clock::Clock, ledger::LedgerError, random};

/// What every key begins with, so that scanners of repositories and logs can tell one.
pub const PREFIX: &str = "pk_";

/// The random characters behind it: 190 bits, so there is nothing to guess and a fast hash keeps it.
const RANDOM_CHARACTERS: usize = 32;

/// How long a key lives unless told otherwise, in days (R52).
pub const DEFAULT_LIFE_DAYS: u32 = 90;

/// The longest a key may be made to live, in days: ten years.
pub const LONGEST_LIFE_DAYS: u32 = 3_650;

/// SHA-256 of a whole key: what is stored, and what a caller is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// The hash of a presented key; `None` for what can't be one by its form, which needs no look at the database.
    #[must_use]
    pub fn of(presented: &str) -> Option<Self> {
        let random = presented.strip_prefix(PREFIX)?;
        let well_formed = random.len() == RANDOM_CHARACTERS && random.bytes().all(|byte| byte.is_ascii_alphanumeric());
        well_formed.then(|| {
            let mut hash = [0; 32];
            hash.copy_from_slice(digest::digest(&digest::SHA256, presented.as_bytes()).as_ref());
            Self(hash)
        })
    }
}

/// A key just made: the only moment at which it is known.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its id, by which it is listed and revoked.
    pub id: Uuid,
    /// The key itself.
    pub key: SecretString,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// Makes a key for a tenant, as the database's owner. `life_days` beyond [`LONGEST_LIFE_DAYS`] is cut to that.
///
/// # Errors
/// [`LedgerError`].
pub async fn create(pool: &PgPool, clock: &Clock, tenant: i32, name: &str, scopes: &Scopes, life_days: u32) -> Result<NewKey, LedgerError> {
    let text = format!("{PREFIX}{}", random::base62(RANDOM_CHARACTERS));
    let hash = KeyHash::of(&text).map(|hash| hash.0).unwrap_or_default();
    let last_four = text.get(text.len() - 4..).unwrap_or_default();
    let now = clock.now();
    let expires_at = now + TimeDelta::days(life_days.min(LONGEST_LIFE_DAYS).into());
    let id = clock.new_id();
    sqlx::query(
        "INSERT INTO api_key (id, tenant_id, name, hash, last_four, scopes, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(id)
    .bind(tenant)
    .bind(name)
    .bind(hash.as_slice())
    .bind(last_four)
    .bind(scopes.words())
    .bind(now)
    .bind(expires_at)
    .execute(pool)
    .await?;
    Ok(NewKey { id, key: text.into(), expires_at })
}

impl NewKey {
    /// The key as text, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        self.key.expose_secret()
    }
}

/// A key as it is listed: never the key itself.
#[derive(Clone, Debug, Serialize)]
pub struct ListedKey {
    /// Its id.
    pub id: Uuid,
    /// What it was named.
    pub name: String,
    /// Its last four characters.
    pub last_four: String,
    /// What it may do, as stored: also words that this program does not know.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A tenant's keys, newest first, as the database's owner. At most 1,000.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(pool: &PgPool, tenant: i32) -> Result<Vec<ListedKey>, LedgerError> {
    let rows = sqlx::query(
        "SELECT id, name, last_four, scopes, created_at, expires_at, revoked_at, last_used_at
         FROM api_key WHERE tenant_id = $1 ORDER BY id DESC LIMIT 1000",
    )
    .bind(tenant)
    .fetch_all(pool)
    .await?;
    let listed = |row: PgRow| -> Result<ListedKey, sqlx::Error> {
        Ok(ListedKey {
            id: row.try_get(0)?,
            name: row.try_get(1)?,
            last_four: row.try_get(2)?,
            scopes: row.try_get(3)?,
            created_at: row.try_get(4)?,
            expires_at: row.try_get(5)?,
            revoked_at: row.try_get(6)?,
            last_used_at: row.try_get(7)?,
        })
    };
    Ok(rows.into_iter().map(listed).collect::<Result<_, _>>()?)
}

/// What revoking a key found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// It worked until now.
    Now,
    /// It was revoked before, then.
    Before(DateTime<Utc>),
    /// There is no such key.
    Unknown,
}

/// Revokes a key, as the database's owner. API processes refuse it within five seconds.
///
/// # Errors
/// [`LedgerError`].
pub async fn revoke(pool: &PgPool, id: Uuid, now: DateTime<Utc>) -> Result<Revoked, LedgerError> {
    // The row's state before the update tells who was first.
    let before: Option<Option<DateTime<Utc>>> = sqlx::query_scalar(
        "WITH before AS (SELECT id, revoked_at FROM api_key WHERE id = $1 FOR UPDATE)
         UPDATE api_key k SET revoked_at = coalesce(before.revoked_at, $2) FROM before WHERE k.id = before.id
         RETURNING before.revoked_at",
    )
    .bind(id)
    .bind(now)
    .fetch_optional(pool)
    .await?;
    Ok(match before {
        None => Revoked::Unknown,
        Some(None) => Revoked::Now,
        Some(Some(then)) => Revoked::Before(then),
    })
}

/// A key as the API finds it by its hash.
#[derive(Clone, Debug)]
pub struct FoundKey {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: i32,
    /// That tenant's name.
    pub tenant_name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Finds a key by its hash, as the API's role.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(pool: &PgPool, hash: KeyHash) -> Result<Option<FoundKey>, LedgerError> {
    let row = sqlx::query("SELECT key_id, tenant_id, tenant_name, scopes, expires_at, revoked_at FROM find_api_key($1)")
        .bind(hash.0.as_slice())
        .fetch_optional(pool)
        .await?;
    let found = |row: PgRow| -> Result<FoundKey, sqlx::Error> {
        Ok(FoundKey {
            id: row.try_get(0)?,
            tenant: row.try_get(1)?,
            tenant_name: row.try_get(2)?,
            scopes: Scopes::from_words(&row.try_get::<Vec<String>, _>(3)?),
            expires_at: row.try_get(4)?,
            revoked_at: row.try_get(5)?,
        })
    };
    Ok(row.map(found).transpose()?)
}

/// Notes that a key was used, as the API's role; writes at most once a minute.
///
/// # Errors
/// [`LedgerError`].
pub async fn touch(pool: &PgPool, id: Uuid, now: DateTime<Utc>) -> Result<(), LedgerError> {
    sqlx::query("SELECT touch_api_key($1, $2)").bind(id).bind(now).execute(pool).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_a_key_is_hashed() {
        let key = format!("pk_{}", "aB3".repeat(11).get(..32).unwrap());
        let hash = KeyHash::of(&key).unwrap();
        // printf 'pk_aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB' | sha256sum
        assert_eq!(hex::encode(hash.0), HASH_OF_SAMPLE);
        for not_a_key in [
            "",
            "pk_",
            &key[3..],
            &key[..34],
            &format!("{key}a"),
            &key.replace('a', "_"),
            &key.replace("pk_", "sk_"),
            "pk_éééééééééééééééé",
        ] {
            assert_eq!(KeyHash::of(not_a_key), None, "{not_a_key}");
        }
    }

    const HASH_OF_SAMPLE: &str = "1f1e420a169595b3989a3d2a86b0bbf4b377d0710047e080ece54fa53c5642f9";
}
