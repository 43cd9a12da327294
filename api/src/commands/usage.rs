//! `api usage check`: whether the books of metering balance.

use clap::Subcommand;
use shared::usage::read::{self, Checked};

use super::{CommandError, Owner, say};

#[derive(Debug, Subcommand)]
pub(super) enum UsageCommand {
    /// Add up all reservations and charges and compare them with the counters, at one moment. Reads all of them.
    Check,
}

impl UsageCommand {
    pub(super) async fn run(self, owner: &Owner) -> Result<(), CommandError> {
        let Self::Check = self;
        let checked = read::check(&owner.pool).await?;
        let Checked { counters, reservations, outlived, unreserved, drift } = &checked;
        say(format!("{counters} counters, {reservations} reservations"));
        if *outlived > 0 {
            say(format!("{outlived} have outlived their jobs; a worker ends them within a minute"));
        }
        for job in unreserved {
            say(format!("job {job} is metered and has no reservation"));
        }
        for one in drift {
            let whose = if one.scope.is_empty() { "the product".to_owned() } else { format!("user `{}`", one.scope) };
            say(format!(
                "tenant {}, {whose}, `{}`, period {} from {}: {} counted, {} reserved and charged",
                one.tenant,
                one.metric,
                one.period,
                one.starts_at.format("%FT%TZ"),
                one.counted,
                one.held
            ));
        }
        say(if drift.is_empty() { "drift: none".to_owned() } else { format!("drift: {} counters are wrong", drift.len()) });
        if checked.is_right() { Ok(()) } else { Err(CommandError::OutOfBalance) }
    }
}
