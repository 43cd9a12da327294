//! Before a metered job runs: it has a reservation, or it does not run.
//!
//! Who asked for a job by a door reserved with it. What the house made (what follows a job, a schedule's tick), and what was redriven with
//! many others, reserves here, for nobody was there who could have been told that there is no room.

use shared::{
    job::{Failure, Outcome},
    ledger::claim::ClaimedJob,
    tenant::TenantError,
    usage::reserve::{Ensured, ensure},
};

use super::Engine;

/// Why a job may not run; `None` where it may.
pub(super) async fn stop(engine: &Engine, job: &ClaimedJob) -> Option<Outcome> {
    if !job.options.as_ref().is_some_and(|options| options.metered) {
        return None;
    }
    match reserved(engine, job).await {
        Ok(Ensured::Yes) => None,
        Ok(Ensured::No(refused)) => {
            metrics::counter!("offstage_usage_refused_total", "metric" => refused.metric.clone(), "period" => refused.period.word())
                .increment(1);
            Some(Outcome::Failed(Failure::permanent("USAGE_LIMIT_EXCEEDED", format!("it did not run: {refused}"))))
        }
        Err(error) => Some(Outcome::Failed(error)),
    }
}

async fn reserved(engine: &Engine, job: &ClaimedJob) -> Result<Ensured, Failure> {
    let services = &engine.services;
    let tenant = services.tenants.get(job.tenant).await.map_err(|error| match error {
        TenantError::Ledger(error) => Failure::from(error),
        error @ TenantError::Manifest { .. } => {
            Failure::transient("tenant_unreadable", "the product's manifest can't be read").caused_by(&error)
        }
    })?;
    // Its tenant is not there any more: its handler says so in its own words.
    let Some(tenant) = tenant else { return Ok(Ensured::Yes) };
    let Some(kind) = engine.kinds.find(&job.kind) else { return Ok(Ensured::Yes) };
    let owner = job.owner.as_deref();
    let charges = (kind.charges)(&job.payload, &tenant.manifest, owner, services.clock.now());
    let (whose, now) = ((job.id, job.tenant, owner), services.clock.now());
    Ok(ensure(&services.pool, &tenant.manifest, whose, &charges, job.runs <= 1, now).await?)
}
