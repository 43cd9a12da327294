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
    let mut failed = unopened(owner, keys).await?;
    let (mut after, mut done) = (Uuid::nil(), 0);
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
        // Those of the newest version that don't open are among them: no other key can be taken out before they are seen to.
        return Err(CommandError::Argument(format!(
            "{done} wrapped by version {}; {failed} can't be opened, as said above",
            keys.current()
        )));
    }
    say(format!("{done} wrapped by version {}; none is left that another version wraps", keys.current()));
    Ok(())
}

/// How many of those that the newest version wraps its key does not open; each is named. Asked before anything is wrapped: another key of the
/// same version would otherwise wrap what no program opens.
async fn unopened(owner: &Owner, keys: &VaultKeys) -> Result<u64, CommandError> {
    let current = keys.current();
    let (mut after, mut opened, mut failed) = (Uuid::nil(), 0_u64, 0_u64);
    loop {
        let page = own_keys::wrapped_by(&owner.pool, current, after).await?;
        let Some(last) = page.last().map(|row| row.id) else { return Ok(failed) };
        after = last;
        for Wrapped { id, tenant, user, provider, sealed, .. } in &page {
            match keys.unwraps(&Binding { tenant: *tenant, user, provider }, sealed) {
                Ok(()) => opened += 1,
                Err(error) => {
                    failed += 1;
                    complain(&format!("the key {id} of tenant {tenant}: {error}"));
                }
            }
        }
        if opened == 0 {
            return Err(CommandError::Argument(format!(
                "the key of version {current} in OFFSTAGE_VAULT_KEYS does not open what version {current} wraps: none of the {failed} named \
                 above. It is another key than the one they were wrapped by. Nothing was changed; put that one back, or give the new one a \
                 version of its own before it"
            )));
        }
    }
}
