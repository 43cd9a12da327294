//! API keys, by which a product's backend calls (R52): `pk_` and 32 random characters, shown once when made, stored as a
//! hash with the last four characters, limited by scopes and an expiry, revocable.

use std::{collections::BTreeSet, fmt, str::FromStr};

use aws_lc_rs::digest;
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, Row, postgres::PgRow};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{clock::Clock, ledger::LedgerError, random};

/// What every key begins with, so that scanners of repositories and logs can tell one.
pub const PREFIX: &str = "pk_";

/// The random characters behind it: 190 bits, so there is nothing to guess and a fast hash keeps it.
const RANDOM_CHARACTERS: usize = 32;

/// How long a key lives unless told otherwise, in days (R52).
pub const DEFAULT_LIFE_DAYS: u32 = 90;

/// The longest a key may be made to live, in days: ten years.
pub const LONGEST_LIFE_DAYS: u32 = 3_650;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// Everything, also what is added later.
    #[serde(rename = "*")]
    All,
    /// Read jobs.
    #[serde(rename = "jobs:read")]
    JobsRead,
    /// Create, cancel and retry jobs.
    #[serde(rename = "jobs:write")]
    JobsWrite,
    /// Read exports and download their files.
    #[serde(rename = "exports:read")]
    ExportsRead,
    /// Create exports.
    #[serde(rename = "exports:write")]
    ExportsWrite,
    /// Read schedules and what became of their ticks.
    #[serde(rename = "schedules:read")]
    SchedulesRead,
    /// Create, change, pause, run and delete schedules.
    #[serde(rename = "schedules:write")]
    SchedulesWrite,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 7] =
        [Self::All, Self::JobsRead, Self::JobsWrite, Self::ExportsRead, Self::ExportsWrite, Self::SchedulesRead, Self::SchedulesWrite];

    /// Its word in commands, rows and answers.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::All => "*",
            Self::JobsRead => "jobs:read",
            Self::JobsWrite => "jobs:write",
            Self::ExportsRead => "exports:read",
            Self::ExportsWrite => "exports:write",
            Self::SchedulesRead => "schedules:read",
            Self::SchedulesWrite => "schedules:write",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// There is no scope of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no scope `{0}`; there are {words}", words = Scope::ALL.map(Scope::word).join(", "))]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(word: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.word() == word).ok_or_else(|| UnknownScope(word.to_owned()))
    }
}

/// The scopes of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// Whether a key with these may do that.
    #[must_use]
    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&Scope::All) || self.0.contains(&scope)
    }

    /// Whether these allow nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From stored words. A word that this program does not know allows nothing, and a newer program's scope must not make
    /// a key useless here.
    #[must_use]
    pub fn from_words(words: &[String]) -> Self {
        Self(words.iter().filter_map(|word| word.parse().ok()).collect())
    }

    /// As stored words.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        self.0.iter().map(|scope| scope.word().to_owned()).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().collect())
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(","))
    }
}

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
    fn scopes_lead_back_and_all_allows_all() {
        for scope in Scope::ALL {
            assert_eq!(scope.word().parse(), Ok(scope));
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.word());
            assert!(Scopes::from_iter([Scope::All]).allow(scope));
        }
        let scopes = Scopes::from_words(&["jobs:read".into(), "console:all".into()]);
        assert!(scopes.allow(Scope::JobsRead) && !scopes.allow(Scope::JobsWrite) && !scopes.allow(Scope::All));
        assert!(!Scopes::default().allow(Scope::JobsRead));
        assert_eq!(
            "jobs".parse::<Scope>().unwrap_err().to_string(),
            "there is no scope `jobs`; there are *, jobs:read, jobs:write, exports:read, exports:write, schedules:read, schedules:write"
        );
    }

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
