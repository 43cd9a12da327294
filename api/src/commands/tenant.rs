//! `api tenant …`.

use std::path::PathBuf;

use clap::Subcommand;
use shared::tenant::{self, Manifest};

use super::{CommandError, Owner, complain, say};

#[derive(Debug, Subcommand)]
pub(super) enum TenantCommand {
    /// Make a tenant what its manifest says. Applying the same manifest again changes nothing.
    Apply {
        /// The manifest, a tenant.toml.
        file: PathBuf,
        /// Only show what would change.
        #[arg(long)]
        dry_run: bool,
    },
}

impl TenantCommand {
    pub(super) async fn run(self, owner: &Owner) -> Result<(), CommandError> {
        let Self::Apply { file, dry_run } = self;
        let text = std::fs::read_to_string(&file).map_err(|source| CommandError::File { path: file.clone(), source })?;
        let manifest = Manifest::from_toml(&text).map_err(|source| CommandError::Manifest { path: file, source })?;
        let applied = tenant::apply(&owner.pool, &manifest, owner.clock.now(), dry_run).await?;
        let name = &manifest.name;
        let done = match (applied.created, applied.changes.is_empty(), dry_run) {
            (true, _, false) => "created",
            (true, _, true) => "would be created",
            (false, true, _) => "is as the manifest says: nothing to change",
            (false, false, false) => "changed",
            (false, false, true) => "would change",
        };
        say(format!("tenant {name} {done}"));
        for change in &applied.changes {
            say(format!("  {change}"));
        }
        if let Some((old, new)) = &applied.zones {
            complain(&format!(
                "warning: days and months begin by the clocks of {new} and no more of {old}: usage is counted in new periods, from zero, until \
                 the zone is changed back (docs/usage.md, \"Periods\")"
            ));
        }
        Ok(())
    }
}
