//! `api metric …`: what is counted of a tenant's events, repaired.

use chrono::NaiveDate;
use clap::Subcommand;
use shared::{
    job::JobId,
    kinds::{Kind, MetricRebuild},
    ledger::insert::{NewJob, insert_within},
    tenant::{TenantError, Tenants},
};

use super::{CommandError, Owner, say};

#[derive(Debug, Subcommand)]
pub(super) enum MetricCommand {
    /// Count whole UTC days of a metric anew from raw events, by a job: the same that `POST /v1/analytics/{metric}/rebuild` makes, and that a
    /// new metric gets by itself. Reading and sending go on. Prints the job's id.
    Rebuild {
        /// The tenant.
        tenant: String,
        /// The metric, as its manifest names it.
        metric: String,
        /// The first UTC day; the first that has events when absent.
        #[arg(long)]
        from: Option<NaiveDate>,
        /// The last UTC day; the last that has events when absent.
        #[arg(long)]
        to: Option<NaiveDate>,
    },
}

impl MetricCommand {
    pub(super) async fn run(self, owner: &Owner) -> Result<(), CommandError> {
        let Self::Rebuild { tenant: name, metric, from, to } = self;
        let id = owner.tenant(&name).await?;
        let tenant = Tenants::new(owner.pool.clone()).get(id).await.map_err(|error| match error {
            TenantError::Ledger(error) => CommandError::Ledger(error),
            error @ TenantError::Manifest { .. } => CommandError::Argument(error.to_string()),
        })?;
        let tenant = tenant.ok_or(CommandError::NoTenant(name))?;
        let payload = MetricRebuild { metric, from, to };
        let wrong: Vec<String> = payload
            .violations()
            .into_iter()
            .chain(payload.violations_for(&tenant.manifest, None))
            .map(|violation| format!("{} {}", violation.pointer.trim_start_matches('/'), violation.detail))
            .collect();
        if !wrong.is_empty() {
            return Err(CommandError::Argument(wrong.join("; ")));
        }
        let now = owner.clock.now();
        let job = JobId(owner.clock.new_id());
        let mut connection = owner.pool.acquire().await.map_err(shared::ledger::LedgerError::from)?;
        insert_within(&mut connection, now, &[NewJob::of(job, id, &payload, now)]).await?;
        say(job);
        Ok(())
    }
}
