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

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use secrecy::SecretString;
    use serde_json::Value;
    use shared::{
        clock::Clock,
        config::{Probe, Sources, Variables, WorkerConfig},
        job::{FailureClass, JobId, Priority},
        kinds::Kind,
        ledger::{self, Sessions, claim::ClaimedJob},
        tenant::Tenants,
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{clients::Clients, handlers::Services};

    /// A probe's context; it needs none of the services, so none is there.
    fn context(callbacks: ProbeCallbacks) -> JobContext {
        let nowhere = SecretString::from("postgres://nobody:x@127.0.0.1:1/nowhere");
        let variables = Variables::from_iter([
            ("OFFSTAGE_ENGINE_DATABASE_URL", "postgres://nobody:x@127.0.0.1:1/nowhere"),
            ("OFFSTAGE_REDIS_URL", "redis://127.0.0.1:1"),
            ("OFFSTAGE_S3_ENDPOINT", "http://127.0.0.1:1"),
            ("OFFSTAGE_S3_BUCKET", "files"),
            ("OFFSTAGE_S3_ACCESS_KEY_ID", "id"),
            ("OFFSTAGE_S3_SECRET_ACCESS_KEY", "secret"),
        ]);
        let clock = Clock::at("2026-11-20T12:00:00.5Z".parse().unwrap());
        let pool = ledger::pool("OFFSTAGE_ENGINE_DATABASE_URL", &nowhere, Sessions::Engine, 1).unwrap();
        let job = ClaimedJob {
            id: JobId(clock.new_id()),
            token: 1,
            tenant: 1,
            owner: None,
            kind: ProbeRun::NAME.into(),
            queue: ProbeRun::QUEUE,
            priority: Priority::Normal,
            payload: "{}".into(),
            created_at: clock.now(),
            run_at: clock.now(),
            start_by: None,
            started_at: clock.now(),
            attempt: 2,
            attempts_allowed: 3,
            runs: 2,
            crashes: 0,
            counted_from: clock.now(),
            snoozes: 0,
            snoozed: Duration::ZERO,
        };
        let services = Services {
            pool: pool.clone(),
            clock,
            tenants: Tenants::new(pool),
            clients: Clients::new(&WorkerConfig::read(&variables, None).unwrap()),
            sources: Sources::default(),
            probe: Probe { enabled: true, callbacks },
        };
        JobContext { job: Arc::new(job), services: Arc::new(services), cancelled: CancellationToken::new() }
    }

    /// Answers every call with a status, and gives the bodies out with the time they came.
    async fn observer(status: &'static str) -> (String, mpsc::UnboundedReceiver<(Instant, Value)>) {
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
                let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes()).await;
            }
        });
        (url, receiver)
    }

    #[tokio::test]
    async fn outcomes_are_as_told() {
        let told = |outcome| ProbeRun { outcome, sleep_ms: 3, ..ProbeRun::default() };
        let success = run(told(ProbeOutcome::Ok), context(ProbeCallbacks::Off)).await.unwrap();
        assert_eq!(success.result, Some(json!({ "slept_ms": 3 })));
        let failure = run(told(ProbeOutcome::Retry), context(ProbeCallbacks::Off)).await.unwrap_err();
        assert_eq!((failure.class, failure.code), (FailureClass::Transient, "probe_retry"));
        let failure = run(told(ProbeOutcome::Fail), context(ProbeCallbacks::Off)).await.unwrap_err();
        assert_eq!((failure.class, failure.code), (FailureClass::Permanent, "probe_failed"));
        let ended = tokio::spawn(run(told(ProbeOutcome::Panic), context(ProbeCallbacks::Off))).await;
        assert!(ended.unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn observers_hear_of_the_start_and_the_finish() {
        let (url, mut heard) = observer("200 OK").await;
        let context = context(ProbeCallbacks::Loopback);
        let probe = ProbeRun { outcome: ProbeOutcome::Fail, sleep_ms: 50, callback_url: Some(url), ..ProbeRun::default() };
        assert_eq!(run(probe, context.clone()).await.unwrap_err().code, "probe_failed", "the outcome comes after the callbacks");
        let (started, first) = heard.recv().await.unwrap();
        let (finished, second) = heard.recv().await.unwrap();
        assert!(finished - started >= Duration::from_millis(50));
        let told = |phase| json!({ "job_id": context.job.id, "attempt": 2, "phase": phase, "at": "2026-11-20T12:00:00.500000Z" });
        assert_eq!((first, second), (told("started"), told("finished")));
        assert!(heard.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_probe_that_is_not_heard_has_not_run() {
        let (url, _heard) = observer("500 Internal Server Error").await;
        let probe = ProbeRun { callback_url: Some(url.clone()), ..ProbeRun::default() };
        let failure = run(probe, context(ProbeCallbacks::Loopback)).await.unwrap_err();
        assert_eq!((failure.class, failure.code), (FailureClass::Transient, "callback_failed"));

        for (url, callbacks) in [(url, ProbeCallbacks::Off), ("http://192.0.2.1/".into(), ProbeCallbacks::Loopback)] {
            let probe = ProbeRun { callback_url: Some(url), ..ProbeRun::default() };
            let failure = run(probe, context(callbacks)).await.unwrap_err();
            assert_eq!((failure.class, failure.code), (FailureClass::Permanent, "callback_not_allowed"));
        }
    }

    #[tokio::test]
    async fn a_cancelled_probe_stops_sleeping() {
        let context = context(ProbeCallbacks::Off);
        let running = tokio::spawn(run(ProbeRun { sleep_ms: 3_600_000, ..ProbeRun::default() }, context.clone()));
        context.cancelled.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), running).await.expect("it stops").unwrap();
        assert_eq!(ended.unwrap_err().code, "cancelled");
    }
}
