//! `completion.notify`: tells whoever asked how a job ended, by a signed POST of the job's view.
//!
//! What must stay true: what is told is the end that this job was made for, also when the job has been run again since; each try has the
//! same id, so that a receiver can tell repeats; and no try goes where the manifest, as it is now, does not let it.

use bytes::Bytes;
use serde_json::json;
use shared::{
    job::{Failure, Interrupt, Reason, Success},
    kinds::{CompletionNotify, Registry},
    ledger::{LedgerError, effects::Intent, find},
    status::{Job, Reader},
};

use super::{JobContext, export};
use crate::clients::webhook::Delivery;

/// The effect's key in the ledger.
const EFFECT: &str = "completion";

/// Delivers a completion.
pub(super) async fn run(payload: CompletionNotify, context: JobContext) -> Result<Success, Interrupt> {
    let tenant = export::tenant(&context).await?;
    let not_allowed = |why: String| Failure::permanent("completion_not_allowed", format!("`completion_url` {why}"));
    let Some(completion) = &tenant.manifest.completion else {
        return Err(not_allowed("goes nowhere: the product's manifest has no [completion] any more".to_owned()).into());
    };
    let destination = completion.destination(&payload.url).map_err(not_allowed)?;
    let Some(body) = body(&payload, &context).await? else {
        return Err(Failure::permanent("job_gone", "the job was removed before its end could be told").into());
    };
    let host = destination.url.host_str().unwrap_or_default().to_owned();
    let id = format!("{}-{}", payload.job, payload.version);
    if let Intent::Done { receipt } = context.intend_outward(EFFECT, &json!({ "host": host, "webhook_id": id })).await? {
        return Ok(Success::with(receipt));
    }
    let timestamp = context.services.clock.now().timestamp();
    let delivery = Delivery { id: &id, timestamp, body };
    let delivered = context.services.clients.webhook.deliver(&destination, &completion.secret_env, &delivery).await;
    let outcome = if delivered.is_ok() { "delivered" } else { "not_delivered" };
    metrics::counter!("offstage_completions_total", "outcome" => outcome).increment(1);
    match delivered {
        Ok(status) => {
            let receipt = json!({ "status": status.as_u16(), "webhook_id": id });
            context.receipt(EFFECT, &receipt).await?;
            Ok(Success::with(receipt))
        }
        Err(error) if error.may_have_arrived() => {
            context.unknown(EFFECT).await?;
            Err(error.into())
        }
        Err(error) => {
            context.forget_effect(EFFECT).await?;
            Err(error.into())
        }
    }
}

/// The job as it ended: its view, without its payload. The same at each try.
async fn body(payload: &CompletionNotify, context: &JobContext) -> Result<Option<Bytes>, Failure> {
    let mut connection = context.services.pool.acquire().await.map_err(LedgerError::from)?;
    let tenant = context.job.tenant;
    let Some(mut job) = find::job(&mut connection, tenant, None, payload.job).await? else { return Ok(None) };
    if job.version != payload.version {
        // It was run again since.
        let runs = find::attempts(&mut connection, tenant, payload.job).await?;
        let last = runs.into_iter().find(|run| run.finished_at <= payload.ended_at);
        job.state = payload.state;
        job.reason = Reason::None;
        job.version = payload.version;
        job.finished_at = Some(payload.ended_at);
        job.started_at = last.as_ref().map(|run| run.started_at);
        job.attempt = last.as_ref().map_or(0, |run| run.attempt);
        job.error = last.and_then(|run| run.error).filter(|_| payload.state == shared::job::State::Failed);
        (job.result, job.progress_done, job.progress_total, job.cancel_requested) = (None, None, None, false);
    }
    job.payload = None;
    let kinds = Registry::new(context.services.probe.enabled);
    let view = Job::of(job, None, &kinds, payload.ended_at, Reader::Backend);
    // A view is strings and numbers: nothing in it that JSON can't hold.
    Ok(Some(serde_json::to_vec(&view).unwrap_or_default().into()))
}
