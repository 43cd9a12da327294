//! Programs under supervision. The stand-ins here are scripts: what is tested is the supervisor, not the product.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use sandbox::{Error, Event, Launch, Options, Sandbox};

const PATIENCE: Duration = Duration::from_secs(30);

/// Answers `/health/ready`, says what it was given, and stays deaf to SIGTERM when told to.
const READY: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, sys
print("arguments", sys.argv[1:], "variables", sorted(name for name in os.environ if name.startswith("OFFSTAGE_")), flush=True)
if os.environ.get("DEAF"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
host, port = os.environ["OFFSTAGE_WORKER_LISTEN"].split(":")
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"#;

const BROKEN: &str = "#!/bin/sh\necho 'no such setting: sense'\nexit 3\n";

/// A sandbox whose `worker` is `READY` and whose `api` is `BROKEN`.
async fn world(name: &str) -> (Sandbox, Scripts) {
    let directory = std::env::temp_dir().join(format!("offstage-scripts-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for (program, text) in [("worker", READY), ("api", BROKEN)] {
        let path = directory.join(program);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let scripts = Scripts(directory);
    let world = Sandbox::start(Options::test().without_migrations().programs(&scripts.0)).await.unwrap();
    (world, scripts)
}

struct Scripts(PathBuf);

impl Drop for Scripts {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_program_that_dies_comes_back_at_its_address_unless_it_is_told_not_to() {
    let (world, _scripts) = world("dies").await;
    let mut events = world.events();
    let worker = world.worker().await.unwrap();
    let (pid, url) = (worker.pid().unwrap(), worker.url());

    let exit = worker.kill9().await.unwrap().unwrap();
    assert_eq!((exit.pid, exit.signal, exit.code), (pid, Some(9), None));
    worker.wait_ready(PATIENCE).await.unwrap();
    assert_ne!(worker.pid().unwrap(), pid);
    assert_eq!((worker.url(), worker.starts()), (url, 2));
    let seen = [events.recv().await.unwrap(), events.recv().await.unwrap()];
    assert!(matches!(&seen[0], Event::Died { name, again_in: Some(_), in_a_row: 1, .. } if name == "worker-1"), "{seen:?}");
    assert!(matches!(&seen[1], Event::Restarted { name, .. } if name == "worker-1"), "{seen:?}");

    worker.set_restart(false).await.unwrap();
    worker.kill9().await.unwrap();
    assert!(matches!(events.recv().await.unwrap(), Event::Died { again_in: None, .. }));
    assert_eq!(worker.pid(), None);
    worker.start().await.unwrap();
    worker.wait_ready(PATIENCE).await.unwrap();
    assert_eq!(worker.exits().len(), 2);
}

#[tokio::test]
async fn a_program_gets_its_own_settings_and_no_others() {
    let (world, _scripts) = world("settings").await;
    let worker = world.start_worker(Launch::new().arg("--queues").arg("exports").env("OFFSTAGE_PROBE", "off")).await.unwrap();
    let log = worker.log();
    assert!(log.contains("arguments ['--queues', 'exports']"), "{log}");
    assert!(log.contains("'OFFSTAGE_ENGINE_DATABASE_URL'") && log.contains("'OFFSTAGE_S3_BUCKET'"), "{log}");
    assert!(!log.contains("'OFFSTAGE_DATABASE_URL'") && !log.contains("'OFFSTAGE_API_DATABASE_URL'"), "{log}");
}

#[tokio::test]
async fn a_stop_is_asked_for_and_then_enforced() {
    let (world, _scripts) = world("stop").await;
    let polite = world.worker().await.unwrap();
    assert_eq!(polite.stop().await.unwrap().unwrap().signal, Some(15));
    assert_eq!(polite.stop().await.unwrap(), None, "it does not run any more");

    let deaf = world.start_worker(Launch::new().env("DEAF", "1")).await.unwrap();
    assert_eq!(deaf.stop_within(Duration::from_millis(200)).await.unwrap().unwrap().signal, Some(9));
    let paused = world.worker().await.unwrap();
    paused.pause().await.unwrap();
    assert!(paused.wait_ready(Duration::from_millis(500)).await.is_err(), "it stands still");
    paused.resume().await.unwrap();
    paused.wait_ready(PATIENCE).await.unwrap();
    paused.pause().await.unwrap();
    assert_eq!(paused.stop().await.unwrap().unwrap().signal, Some(15), "woken to end");
    assert_eq!(world.processes().iter().map(|process| process.name().to_owned()).collect::<Vec<_>>(), ["worker-1", "worker-2", "worker-3"]);
}

#[tokio::test]
async fn a_program_that_does_not_come_up_is_shown_with_its_log() {
    let (world, _scripts) = world("broken").await;
    let error = world.start_api(Launch::new().once()).await.unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }));
    let message = error.to_string();
    assert!(message.contains("api-1 is not ready: it ended with exit code 3"), "{message}");
    assert!(message.contains("no such setting: sense"), "{message}");

    // Who begins to wait after its end does not wait for ever.
    let error = world.processes()[0].wait_ready(PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("api-1 is not ready: it ended with exit code 3"), "{error}");

    // One that is started again and again is given up on as well.
    let error = world.api().await.unwrap_err().to_string();
    assert!(error.contains("api-2 is not ready: it ended with exit code 3"), "{error}");

    let error = world.run_api(["key", "list"]).await.unwrap_err().to_string();
    assert!(error.contains("`api key list` ended with exit status: 3") && error.contains("no such setting"), "{error}");
}
