//! `api vault rotate`: wraps the keys that users brought by the newest of the installation's keys.

use clap::Subcommand;
use shared::{
    ledger::own_keys::{self, Wrapped},
    vault::{Binding, VaultKeys},
};
use uuid::Uuid;

use super::{CommandError, Owner, complain, say};

#[derive(Debug, Subcommand)]
pub(super) enum VaultCommand {
    /// Wrap every key by the first of `OFFSTAGE_VAULT_KEYS`. May be cut off and run again at any time, while everything runs; when it says
    /// that none is left, the other keys can be taken out of the setting.
    Rotate,
}

impl VaultCommand {
    pub(super) async fn run(self, owner: &Owner) -> Result<(), CommandError> {
        let Self::Rotate = self;
        let Some(keys) = &owner.vault_keys else {
            return Err(CommandError::Argument("OFFSTAGE_VAULT_KEYS is not set: there is nothing to wrap by".into()));
        };
        rotate(owner, keys).await
    }
}

async fn rotate(owner: &Owner, keys: &VaultKeys) -> Result<(), CommandError> {
    let (mut after, mut done, mut failed) = (Uuid::nil(), 0, 0_u64);
    loop {
        let page = own_keys::wrapped_by_others(&owner.pool, keys.current(), after).await?;
        let Some(last) = page.last().map(|row| row.id) else { break };
        after = last;
        let mut anew = Vec::with_capacity(page.len());
        for Wrapped { id, version, tenant, user, provider, sealed } in &page {
            match keys.rewrap(&Binding { tenant: *tenant, user, provider }, sealed) {
                Ok(Some(sealed)) => anew.push((*id, *version, sealed)),
                // Its row says another version than it holds; to write it down is all there is to do.
                Ok(None) => anew.push((*id, *version, sealed.clone())),
                Err(error) => {
                    failed += 1;
                    complain(&format!("the key {id} of tenant {tenant}: {error}"));
                }
            }
        }
        done += own_keys::rewrapped(&owner.pool, keys.current(), &anew).await?;
        complain(&format!("{done} wrapped by version {}", keys.current()));
    }
    if failed > 0 {
        return Err(CommandError::Argument(format!(
            "{done} wrapped by version {}; {failed} can't be opened, as said above",
            keys.current()
        )));
    }
    say(format!("{done} wrapped by version {}; none is left that another version wraps", keys.current()));
    Ok(())
}
