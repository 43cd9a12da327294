//! `summary.refresh`: a summary of the product's own database is brought up to date, never two at once.

use std::time::Duration;

use serde_json::json;
use shared::{
    job::{Failure, Interrupt, Success},
    kinds::SummaryRefresh,
    ledger::summaries,
};

use super::{JobContext, export};
use crate::clients::summary::{SummaryError, Wanted, refresh};

/// When to look again while another run refreshes it.
const BUSY_FOR: Duration = Duration::from_secs(5);

/// Refreshes a summary.
pub(super) async fn run(payload: SummaryRefresh, context: JobContext) -> Result<Success, Interrupt> {
    let tenant = export::tenant(&context).await?;
    let name = payload.summary.as_str();
    let undeclared = || Failure::permanent("summary_undeclared", format!("the product's manifest has no summary `{name}` any more"));
    let declared = tenant.manifest.summaries.get(name).ok_or_else(undeclared)?;
    let source = tenant.manifest.sources.get(&declared.source).ok_or_else(undeclared)?;
    let refreshed = declared.refreshed().ok_or_else(undeclared)?;
    let services = &context.services;
    let Some(url) = services.sources.url(&source.url_env) else {
        let message = format!("this worker has no address for source `{}`; set {} and start it again", declared.source, source.url_env);
        return Err(Failure::transient("source_address", message).into());
    };
    let lock = format!("offstage summary {}.{name}", tenant.name);
    let wanted =
        Wanted { lock: &lock, source: &declared.source, url, refreshed, within: Duration::from_secs(declared.timeout_seconds().into()) };
    summaries::started(&services.pool, tenant.id, name, context.job.id.0, services.clock.now()).await?;
    let done = refresh(wanted).await;
    let outcome = match &done {
        Ok(_) => "refreshed",
        Err(SummaryError::Busy) => "busy",
        Err(_) => "failed",
    };
    metrics::counter!("offstage_summary_refreshes_total", "outcome" => outcome).increment(1);
    let now = services.clock.now();
    match done {
        Ok(done) => {
            metrics::histogram!("offstage_summary_refresh_seconds").record(done.took.as_secs_f64());
            summaries::refreshed(&services.pool, tenant.id, name, done.took, done.concurrently, now).await?;
            let took = u64::try_from(done.took.as_millis()).unwrap_or(u64::MAX);
            Ok(Success::with(json!({ "took_ms": took, "concurrently": done.concurrently })))
        }
        Err(SummaryError::Busy) => Err(Interrupt::Snoozed(BUSY_FOR)),
        Err(error) => {
            let failure = Failure::from(error);
            summaries::failed(&services.pool, tenant.id, name, failure.code, &failure.message, now).await?;
            Err(failure.into())
        }
    }
}
