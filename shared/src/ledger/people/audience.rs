//! Whom something is told: all of a role, all who follow somebody, a list. Read page by page in the order of the users' ids, so that
//! 100,000 recipients are a hundred short reads, each going on behind the last id of the one before.
//!
//! What must stay true: a page holds users who are here at that moment; who comes between two pages may be missed, and nobody is read
//! twice by one reader.

use sqlx::PgConnection;

use super::keep::{EndUser, found, user_columns};
use crate::ledger::LedgerError;

/// The most that one page holds, whatever is asked for.
pub const MOST: i64 = 5_000;

/// The ids of users who have a role, after `after` in their order, at most `limit`.
///
/// # Errors
/// [`LedgerError`].
pub async fn users_with_role(
    connection: &mut PgConnection,
    tenant: i32,
    role: &str,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<String>, LedgerError> {
    // Asked for by ranges of one and by the index's own order, as lists are (`crate::ledger::find`).
    let ids = sqlx::query_scalar(
        "SELECT r.user_id FROM end_user_role r
         WHERE r.tenant_id = $1 AND r.role >= $2 AND r.role <= $2 AND r.user_id > $3 ORDER BY r.tenant_id, r.role, r.user_id LIMIT $4",
    );
    Ok(ids.bind(tenant).bind(role).bind(after.unwrap_or_default()).bind(limit.min(MOST)).fetch_all(connection).await?)
}

/// The ids of users who follow a user, after `after` in their order, at most `limit`.
///
/// # Errors
/// [`LedgerError`].
pub async fn followers_of(
    connection: &mut PgConnection,
    tenant: i32,
    user: &str,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<String>, LedgerError> {
    // Who is being erased still stands in `follow` for a while. Nobody follows whom they can't be told of.
    let ids = sqlx::query_scalar(
        "SELECT f.follower FROM follow f JOIN end_user u ON u.tenant_id = f.tenant_id AND u.id = f.follower
         WHERE f.tenant_id = $1 AND f.followed >= $2 AND f.followed <= $2 AND f.follower > $3
         ORDER BY f.tenant_id, f.followed, f.follower LIMIT $4",
    );
    Ok(ids.bind(tenant).bind(user).bind(after.unwrap_or_default()).bind(limit.min(MOST)).fetch_all(connection).await?)
}

/// Those of a list who are here, in the order of their ids, each once; of the first [`MOST`] of it.
///
/// # Errors
/// [`LedgerError`].
pub async fn users_by_id(connection: &mut PgConnection, tenant: i32, ids: &[String]) -> Result<Vec<EndUser>, LedgerError> {
    let most = usize::try_from(MOST).unwrap_or(usize::MAX);
    let rows =
        sqlx::query(concat!("SELECT ", user_columns!(), " FROM end_user u WHERE u.tenant_id = $1 AND u.id = ANY ($2) ORDER BY u.id"))
            .bind(tenant)
            .bind(ids.get(..most).unwrap_or(ids))
            .fetch_all(connection)
            .await?;
    rows.iter().map(found).collect()
}
