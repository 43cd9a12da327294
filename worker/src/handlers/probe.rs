//! `probe.run`: does what it is told, for drills, canaries, benchmarks and outside observers.
//!
//! What must stay true: whoever gave a `callback_url` hears `started` before the probe sleeps and `finished` after it, or the probe
//! has not succeeded; and a probe without one costs no more than a job must, since benchmarks run millions.

use std::{io::Write, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;
use shared::{
    config::ProbeCallbacks,
    job::{Failure, Interrupt, Success},
    kinds::{ProbeOutcome, ProbeRun},
    ledger::{LedgerError, effects::Intent},
    usage::settle,
};

use super::JobContext;

/// The code that an `exit` probe ends its process with: `EX_SOFTWARE` of BSD's `sysexits.h`.
const EXIT_CODE: i32 = 70;
/// An `allocate` probe's step.
const PIECE: usize = 16 * 1024 * 1024;
/// Where an `allocate` probe stops by itself, so that a mistaken one does not take a whole machine down: 4 GiB.
const MOST_PIECES: usize = 256;

/// Runs a probe.
pub(super) async fn run(payload: ProbeRun, context: JobContext) -> Result<Success, Interrupt> {
    let now = || context.services.clock.now();
    // A sign of life of this run, so each run gives it. It tells of this moment, not of the one in which its intent is in the ledger.
    tell(&payload, &context, "started", context.job.runs, now()).await?;
    if payload.sleep_ms > 0 {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(payload.sleep_ms)) => {}
            () = context.cancelled.cancelled() => return Err(Failure::transient("cancelled", "the probe was cancelled").into()),
        }
    }
    if let Some((metric, used)) = payload.meter.as_ref().and_then(|meter| Some((&meter.metric, meter.used?))) {
        let mut connection = context.services.pool.acquire().await.map_err(LedgerError::from)?;
        settle::used(&mut connection, context.job.id, metric, used).await?;
    }
    // The effect: once an attempt, however many runs a crash makes of it.
    tell(&payload, &context, "finished", i32::from(context.job.attempt), now()).await?;
    match payload.outcome {
        ProbeOutcome::Ok => Ok(Success::with(json!({ "slept_ms": payload.sleep_ms }))),
        ProbeOutcome::Retry => Err(Failure::transient("probe_retry", "the probe was told to fail in passing").into()),
        ProbeOutcome::Fail => Err(Failure::permanent("probe_failed", "the probe was told to fail").into()),
        ProbeOutcome::Panic => panic!("the probe was told to panic"),
        ProbeOutcome::Exit => {
            tracing::warn!(job = %context.job.id, "the probe was told to end this process");
            let _ = std::io::stdout().flush();
            std::process::exit(EXIT_CODE)
        }
        ProbeOutcome::Hang => std::future::pending().await,
        ProbeOutcome::Spin => loop {
            std::hint::spin_loop();
        },
        ProbeOutcome::Allocate => Ok(allocate().await?),
    }
}

/// Takes memory and writes to it, until the process is refused more and dies of it.
async fn allocate() -> Result<Success, Failure> {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    while taken.len() < MOST_PIECES {
        taken.push(vec![1; PIECE]);
        tokio::task::yield_now().await;
    }
    Err(Failure::permanent("probe_unlimited", format!("the probe took {} MiB and nothing stopped it", taken.len() * (PIECE >> 20))))
}

/// Calls back through the effect ledger that a phase was reached, and when; `time` tells the calls of one phase apart.
async fn tell(payload: &ProbeRun, context: &JobContext, phase: &str, time: i32, at: DateTime<Utc>) -> Result<(), Interrupt> {
    let Some(url) = &payload.callback_url else { return Ok(()) };
    if context.services.probe.callbacks != ProbeCallbacks::Loopback {
        let message = "this worker makes no callbacks; start it with OFFSTAGE_PROBE_CALLBACKS=loopback";
        return Err(Failure::permanent("callback_not_allowed", message).into());
    }
    let effect = format!("callback:{phase}:{time}");
    if let Intent::Done { .. } = context.intend_outward(&effect, &json!({ "url": url })).await? {
        return Ok(());
    }
    let told = json!({
        "job_id": context.job.id,
        "attempt": context.job.attempt,
        "phase": phase,
        "at": at.to_rfc3339_opts(SecondsFormat::Micros, true),
    });
    match context.services.clients.callback.post(url, &told).await {
        Ok(status) => Ok(context.receipt(&effect, &json!({ "status": status.as_u16() })).await?),
        Err(error) if error.may_have_arrived() => {
            context.unknown(&effect).await?;
            Err(error.into())
        }
        Err(error) => {
            context.forget_effect(&effect).await?;
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use serde_json::Value;
    use shared::job::FailureClass;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
    };

    use super::*;
    use crate::handlers::workbench::Workbench;

    const MANIFEST: &str = "[tenant]\nname = \"acme\"\n";

    /// Answers every call with a status, or hangs up on it without one, and gives the bodies out with the time they came.
    async fn observer(status: Option<&'static str>) -> (String, mpsc::UnboundedReceiver<(Instant, Value)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/seen", listener.local_addr().unwrap());
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut request, mut piece) = (Vec::new(), [0; 1024]);
                while !request.ends_with(b"}") {
                    match stream.read(&mut piece).await {
                        Ok(read) if read > 0 => request.extend_from_slice(&piece[..read]),
                        _ => break,
                    }
                }
                let body = request.split(|byte| *byte == b'\n').next_back().unwrap();
                let _ = sender.send((Instant::now(), serde_json::from_slice(body).unwrap()));
                if let Some(status) = status {
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        (url, receiver)
    }

    /// The failure of a run that was not interrupted otherwise.
    fn failure(ended: Result<Success, Interrupt>) -> Failure {
        match ended {
            Err(Interrupt::Failed(failure)) => failure,
            other => panic!("no failure: {other:?}"),
        }
    }

    fn phases(heard: &mut mpsc::UnboundedReceiver<(Instant, Value)>) -> Vec<String> {
        std::iter::from_fn(|| heard.try_recv().ok()).map(|(_, body)| body["phase"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn outcomes_are_as_told() {
        let bench = Workbench::start(MANIFEST).await;
        let told = async |outcome| {
            let probe = ProbeRun { outcome, sleep_ms: 3, ..ProbeRun::default() };
            let context = bench.claimed(&probe, None).await;
            tokio::spawn(run(probe, context)).await
        };
        let success = told(ProbeOutcome::Ok).await.unwrap().unwrap();
        assert_eq!(success.result, Some(json!({ "slept_ms": 3 })));
        let failed = failure(told(ProbeOutcome::Retry).await.unwrap());
        assert_eq!((failed.class, failed.code), (FailureClass::Transient, "probe_retry"));
        let failed = failure(told(ProbeOutcome::Fail).await.unwrap());
        assert_eq!((failed.class, failed.code), (FailureClass::Permanent, "probe_failed"));
        assert!(told(ProbeOutcome::Panic).await.unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn observers_hear_of_the_start_and_the_finish() {
        let bench = Workbench::start(MANIFEST).await;
        let (url, mut heard) = observer(Some("200 OK")).await;
        let probe = ProbeRun { outcome: ProbeOutcome::Fail, sleep_ms: 50, callback_url: Some(url), ..ProbeRun::default() };
        let context = bench.claimed(&probe, None).await;
        assert_eq!(failure(run(probe, context.clone()).await).code, "probe_failed", "the outcome comes after the callbacks");
        let (started, first) = heard.recv().await.unwrap();
        let (finished, second) = heard.recv().await.unwrap();
        assert!(finished - started >= Duration::from_millis(50));
        let told = |phase| json!({ "job_id": context.job.id, "attempt": 1, "phase": phase, "at": "2026-11-20T12:00:00.000000Z" });
        assert_eq!((first, second), (told("started"), told("finished")));
        assert!(heard.try_recv().is_err());
        let done = |key: &str| (key.to_owned(), 1);
        assert_eq!(bench.effects(context.job.id).await, [done("callback:finished:1"), done("callback:started:1")]);
    }

    #[tokio::test]
    async fn a_rerun_does_not_repeat_what_has_a_receipt_and_says_what_it_can_not_know() {
        let bench = Workbench::start(MANIFEST).await;
        let (url, mut heard) = observer(Some("200 OK")).await;
        let probe = ProbeRun { callback_url: Some(url), ..ProbeRun::default() };
        let context = bench.claimed(&probe, None).await;
        run(probe.clone(), context.clone()).await.unwrap();
        assert_eq!(phases(&mut heard), ["started", "finished"]);

        // The process died before its outcome was settled: the attempt is the same, and so is what it did.
        let rerun = bench.taken_over(&context).await;
        run(probe.clone(), rerun.clone()).await.unwrap();
        assert_eq!(phases(&mut heard), ["started"], "a sign of life of the second run; the finish was told");

        // It died between the call and its receipt: whether it was heard nobody knows, so it is told again and listed.
        sqlx::query("UPDATE effect SET receipt = NULL, state = 0 WHERE key = 'callback:finished:1'")
            .execute(&bench.services.pool)
            .await
            .unwrap();
        let third = bench.taken_over(&rerun).await;
        run(probe.clone(), third.clone()).await.unwrap();
        assert_eq!(phases(&mut heard), ["started", "finished"]);
        let unknown = ("callback:finished:1".to_owned(), 2);
        assert!(bench.effects(third.job.id).await.contains(&unknown), "listed for good, a receipt notwithstanding");
        // With its receipt it is not told a third time.
        let fourth = bench.taken_over(&third).await;
        run(probe.clone(), fourth.clone()).await.unwrap();
        assert_eq!(phases(&mut heard), ["started"]);

        // A run whose claim is gone does nothing outside.
        assert_eq!(failure(run(probe, context).await).code, "claim_lost");
        assert_eq!(phases(&mut heard), [""; 0]);
    }

    #[tokio::test]
    async fn a_probe_that_is_not_heard_has_not_run() {
        let mut bench = Workbench::start(MANIFEST).await;
        let (url, _heard) = observer(Some("500 Internal Server Error")).await;
        let probe = ProbeRun { callback_url: Some(url), ..ProbeRun::default() };
        Arc::get_mut(&mut bench.services).unwrap().probe.callbacks = ProbeCallbacks::Off;
        let context = bench.claimed(&probe, None).await;
        let failed = failure(run(probe.clone(), context).await);
        assert_eq!((failed.class, failed.code), (FailureClass::Permanent, "callback_not_allowed"));

        Arc::get_mut(&mut bench.services).unwrap().probe.callbacks = ProbeCallbacks::Loopback;
        let context = bench.claimed(&probe, None).await;
        let failed = failure(run(probe, context.clone()).await);
        assert_eq!((failed.class, failed.code), (FailureClass::Transient, "callback_failed"));
        assert_eq!(bench.effects(context.job.id).await, [], "it said no, so nothing happened");

        let (deaf, _heard) = observer(None).await;
        let unheard = ProbeRun { callback_url: Some(deaf), ..ProbeRun::default() };
        let context = bench.claimed(&unheard, None).await;
        assert_eq!(failure(run(unheard, context.clone()).await).code, "callback_failed");
        assert_eq!(bench.effects(context.job.id).await, [("callback:started:1".to_owned(), 2)], "sent, and the answer did not come");

        let elsewhere = ProbeRun { callback_url: Some("http://192.0.2.1/".into()), ..ProbeRun::default() };
        let context = bench.claimed(&elsewhere, None).await;
        let failed = failure(run(elsewhere, context).await);
        assert_eq!((failed.class, failed.code), (FailureClass::Permanent, "callback_not_allowed"));
    }

    #[tokio::test]
    async fn a_cancelled_probe_stops_sleeping_and_a_hanging_one_does_not_listen() {
        let bench = Workbench::start(MANIFEST).await;
        let probe = ProbeRun { sleep_ms: 3_600_000, ..ProbeRun::default() };
        let context = bench.claimed(&probe, None).await;
        let running = tokio::spawn(run(probe, context.clone()));
        context.cancelled.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), running).await.expect("it stops").unwrap();
        assert_eq!(failure(ended).code, "cancelled");

        let probe = ProbeRun { outcome: ProbeOutcome::Hang, ..ProbeRun::default() };
        let context = bench.claimed(&probe, None).await;
        context.cancelled.cancel();
        assert!(tokio::time::timeout(Duration::from_millis(100), run(probe, context)).await.is_err());
    }
}
