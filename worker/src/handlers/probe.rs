//! `probe.run`: does what it is told, for drills, canaries, benchmarks and outside observers.
//!
//! What must stay true: whoever gave a `callback_url` hears `started` before the probe sleeps and `finished` after it, or the probe
//! has not succeeded; and a probe without one costs no more than a job must, since benchmarks run millions.

use std::{io::Write, time::Duration};

use chrono::SecondsFormat;
use serde_json::json;
use shared::{
    config::ProbeCallbacks,
    job::{Failure, Success},
    kinds::{ProbeOutcome, ProbeRun},
};

use super::JobContext;

/// The code that an `exit` probe ends its process with: `EX_SOFTWARE` of BSD's `sysexits.h`.
const EXIT_CODE: i32 = 70;

/// Runs a probe.
pub(super) async fn run(payload: ProbeRun, context: JobContext) -> Result<Success, Failure> {
    tell(&payload, &context, "started").await?;
    if payload.sleep_ms > 0 {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(payload.sleep_ms)) => {}
            () = context.cancelled.cancelled() => return Err(Failure::transient("cancelled", "the probe was cancelled")),
        }
    }
    tell(&payload, &context, "finished").await?;
    match payload.outcome {
        ProbeOutcome::Ok => Ok(Success::with(json!({ "slept_ms": payload.sleep_ms }))),
        ProbeOutcome::Retry => Err(Failure::transient("probe_retry", "the probe was told to fail in passing")),
        ProbeOutcome::Fail => Err(Failure::permanent("probe_failed", "the probe was told to fail")),
        ProbeOutcome::Panic => panic!("the probe was told to panic"),
        ProbeOutcome::Exit => {
            tracing::warn!(job = %context.job.id, "the probe was told to end this process");
            let _ = std::io::stdout().flush();
            std::process::exit(EXIT_CODE)
        }
    }
}

async fn tell(payload: &ProbeRun, context: &JobContext, phase: &str) -> Result<(), Failure> {
    let Some(url) = &payload.callback_url else { return Ok(()) };
    if context.services.probe.callbacks != ProbeCallbacks::Loopback {
        let message = "this worker makes no callbacks; start it with OFFSTAGE_PROBE_CALLBACKS=loopback";
        return Err(Failure::permanent("callback_not_allowed", message));
    }
    let told = json!({
        "job_id": context.job.id,
        "attempt": context.job.attempt,
        "phase": phase,
        "at": context.services.clock.now().to_rfc3339_opts(SecondsFormat::Micros, true),
    });
    Ok(context.services.clients.callback.post(url, &told).await?)
}
