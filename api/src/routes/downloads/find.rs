//! Pages as the ledger has them, found by nothing but the hash of their token.

use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use shared::ledger::LedgerError;
use sqlx::{FromRow, PgPool};

/// The SHA-256 of a token: the token itself is in no statement, and so in no log of the database.
#[derive(Debug)]
pub struct TokenHash(Vec<u8>);

impl TokenHash {
    pub fn of(token: &str) -> Self {
        Self(digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec())
    }
}

/// What a page shows, and where its file stands.
#[derive(Debug, FromRow)]
pub struct FoundPage {
    pub product: String,
    pub object_key: String,
    pub file_name: String,
    pub content_type: String,
    pub bytes: i64,
    pub sha256: Vec<u8>,
    pub completed_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub removed_at: Option<DateTime<Utc>>,
    pub deleted_at: Option<DateTime<Utc>>,
}

impl FoundPage {
    /// Whether the file can be downloaded.
    pub fn is_there(&self, now: DateTime<Utc>) -> bool {
        self.deleted_at.is_none() && self.removed_at.is_none() && self.expires_at > now
    }
}

/// The page of a token. Whose it is is known only then, so no row-level security could help here: the function tells of one page
/// to whoever has its token.
pub async fn page(pool: &PgPool, hash: &TokenHash) -> Result<Option<FoundPage>, LedgerError> {
    Ok(sqlx::query_as("SELECT * FROM find_file_page($1)").bind(&hash.0).fetch_optional(pool).await?)
}

/// Counts a download. False where the file or its page has gone meanwhile.
pub async fn count_download(pool: &PgPool, hash: &TokenHash, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    Ok(sqlx::query_scalar("SELECT count_page_download($1, $2)").bind(&hash.0).bind(now).fetch_one(pool).await?)
}
