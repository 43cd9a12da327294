//! What users pay themselves: a call by a key that a user brought costs the product nothing, so nothing is reserved for it.
//!
//! What must stay true: what was accepted so is never done at the product's expense. Whoever makes the call sees to that (the worker's
//! `handlers::ai::credential`): a user who has a key, or had one when they asked, calls by it or not at all.

use sqlx::PgConnection;

use super::Charge;
use crate::ledger::LedgerError;

/// What is charged of what some jobs of tenants and users may use, in their order: without what the users' own keys pay.
///
/// # Errors
/// [`LedgerError`].
pub(super) async fn without(
    connection: &mut PgConnection,
    jobs: &[(i32, Option<&str>, &[Charge])],
) -> Result<Vec<Vec<Charge>>, LedgerError> {
    let mut asked = Vec::new();
    for (place, (tenant, owner, charges)) in jobs.iter().enumerate() {
        let vendor = charges.iter().find_map(|charge| charge.unless_own_key);
        if let (Some(vendor), Some(owner)) = (vendor, owner) {
            asked.push((place, *tenant, *owner, vendor.word()));
        }
    }
    let mut has_key = vec![false; jobs.len()];
    // Most have none to look for.
    if !asked.is_empty() {
        let found: Vec<bool> = sqlx::query_scalar("SELECT has_key FROM have_own_keys($1, $2, $3)")
            .bind(asked.iter().map(|(_, tenant, ..)| *tenant).collect::<Vec<_>>())
            .bind(asked.iter().map(|(_, _, owner, _)| *owner).collect::<Vec<_>>())
            .bind(asked.iter().map(|(.., vendor)| *vendor).collect::<Vec<_>>())
            .fetch_all(connection)
            .await?;
        for ((place, ..), found) in asked.iter().zip(found) {
            if let Some(has_key) = has_key.get_mut(*place) {
                *has_key = found;
            }
        }
    }
    let of_job = |((_, _, charges), has_key): (&(i32, Option<&str>, &[Charge]), bool)| {
        charges.iter().filter(|charge| !(has_key && charge.unless_own_key.is_some())).cloned().collect()
    };
    Ok(jobs.iter().zip(has_key).map(of_job).collect())
}
