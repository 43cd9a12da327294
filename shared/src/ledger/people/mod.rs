//! End users in the ledger: kept by their product's backend, read page by page by whoever tells many of them something, and erased
//! without a trace ([`erase`]).
//!
//! What must stay true: lists are read by a key in its order, so a page costs the same however many there are; a name that is being
//! erased leads to nobody; these rows hold nothing that is looked at without a tenant.

pub mod audience;
pub mod erase;
pub mod keep;
pub mod preferences;

use sqlx::PgConnection;

pub use keep::{EndUser, Kept};

use super::LedgerError;

/// Holds a user's name to the transaction's end: who puts something of a user, and who asks for their erasure, take turns. So what two put
/// at a time is in the end what one of them said, as a whole, and nothing is put behind an erasure that has been asked for. The rows may not
/// be there, so it is the name that is held, beside "user", so that no other advisory lock is meant.
async fn hold(connection: &mut PgConnection, tenant: i32, user: &str) -> Result<(), LedgerError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('user'), hashtext($1::text || ' ' || $2))")
        .bind(tenant.to_string())
        .bind(user)
        .execute(connection)
        .await?;
    Ok(())
}

/// Holds the names of users, in one order for all, and answers whether none of them is being erased: what the transaction then writes of them
/// is found by an erasure that is asked for later.
pub(super) async fn are_here(connection: &mut PgConnection, tenant: i32, mut users: Vec<&str>) -> Result<bool, LedgerError> {
    users.sort_unstable();
    users.dedup();
    for user in users {
        hold(connection, tenant, user).await?;
        if is_being_erased(connection, tenant, user).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn is_being_erased(connection: &mut PgConnection, tenant: i32, user: &str) -> Result<bool, LedgerError> {
    let going = sqlx::query_scalar("SELECT EXISTS (SELECT FROM erasure WHERE tenant_id = $1 AND user_id = $2)");
    Ok(going.bind(tenant).bind(user).fetch_one(connection).await?)
}
