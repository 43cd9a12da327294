//! The `offstage` command, as cron and scripts use it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use acceptance::{World, probe};
use chrono::TimeDelta;
use serde_json::{Value, json};
use tokio::process::Command;

/// What a call came to.
#[derive(Debug)]
struct Called {
    code: i32,
    out: String,
    err: String,
}

impl Called {
    #[track_caller]
    fn expect(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        self.out.trim_end()
    }

    fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }
}

/// The built program, beside the others.
fn program() -> PathBuf {
    let us = std::env::current_exe().unwrap();
    us.ancestors().map(|directory| directory.join("offstage")).find(|path| path.is_file()).expect("cargo build --bins")
}

async fn call(url: &str, key: &str, arguments: &[&str]) -> Called {
    let mut command = Command::new(program());
    command.args(arguments).env_clear().env("OFFSTAGE_URL", url).env("OFFSTAGE_KEY", key);
    let called = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(120), called).await.expect("it ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let called = Called { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) };
    assert!(key.len() < 10 || !(called.out.contains(key) || called.err.contains(key)), "the key is shown: {called:?}");
    called
}

#[tokio::test]
async fn jobs_are_asked_for_and_followed_from_scripts() {
    let (world, _worker) = World::with_worker().await;
    let (url, key) = (world.api.url(), world.client.key().to_owned());
    let offstage = async |arguments: &[&str]| call(&url, &key, arguments).await;

    // Asked for, once for a key, and waited for.
    let made = offstage(&["jobs", "create", "probe.run", "--payload", r#"{"sleep_ms": 5}"#, "--key", "nightly-1", "--owner", "ada"]).await;
    let id = made.expect(0).to_owned();
    let again = offstage(&["jobs", "create", "probe.run", "--payload", r#"{"sleep_ms": 5}"#, "--key", "nightly-1", "--owner", "ada"]).await;
    assert_eq!(again.expect(0), id);
    let waited = offstage(&["jobs", "create", "probe.run", "--payload", r#"{"sleep_ms": 200}"#, "--wait", "--json"]).await;
    waited.expect(0);
    assert_eq!((waited.lines().len(), waited.lines()[0]["result"].clone()), (1, json!({"slept_ms": 200})));
    let failed = offstage(&["jobs", "create", "probe.run", "--payload", r#"{"outcome": "fail"}"#, "--wait"]).await;
    assert!(failed.expect(1).contains("failed") && failed.out.contains("probe_failed"), "{failed:?}");
    let file = world.sandbox.directory().join("payload.json");
    std::fs::write(&file, r#"{"sleep_ms": 7}"#).unwrap();
    let from_file = offstage(&["jobs", "create", "probe.run", "--payload", &format!("@{}", file.display()), "--wait", "--json"]).await;
    from_file.expect(0);
    assert_eq!(from_file.lines()[0]["result"]["slept_ms"], 7);

    // Followed: a line of JSON at each change.
    let slow = world.client.create_id(&probe(&json!({"sleep_ms": 700}))).await;
    let followed = offstage(&["jobs", "follow", &slow]).await;
    followed.expect(0);
    assert_eq!(followed.lines().last().unwrap()["state"], "succeeded");
    assert_eq!(offstage(&["jobs", "follow", &slow]).await.lines().len(), 1, "one that has ended is told at once");
    let later = (world.now().await + TimeDelta::hours(1)).to_rfc3339();
    let planned = offstage(&["jobs", "create", "probe.run", "--run-at", &later]).await.expect(0).to_owned();
    offstage(&["jobs", "follow", &planned, "--timeout", "1"]).await.expect(5);
    assert!(offstage(&["jobs", "explain", &planned]).await.expect(0).contains("not_due"));
    assert!(offstage(&["jobs", "cancel", &planned]).await.expect(0).contains("cancelled"));
    offstage(&["jobs", "follow", &planned]).await.expect(1);
    assert!(offstage(&["jobs", "retry", &planned]).await.expect(0).contains("waiting"));

    // Found again.
    let shown: Value = serde_json::from_str(offstage(&["jobs", "get", &id, "--attempts"]).await.expect(0)).unwrap();
    assert_eq!((shown["owner"].as_str(), shown["attempts"].as_array().map(Vec::len)), (Some("ada"), Some(1)));
    let failures = offstage(&["jobs", "ls", "--state", "failed", "--json"]).await;
    assert_eq!((failures.code, failures.lines().len()), (0, 1));
    let two = offstage(&["jobs", "ls", "--limit", "2"]).await;
    assert_eq!(two.expect(0).lines().count(), 2);
    let cursor = two.err.trim_end().rsplit(' ').next().unwrap().to_owned();
    let rest = offstage(&["jobs", "ls", "--limit", "500", "--cursor", &cursor, "--json"]).await;
    let left = i64::try_from(rest.lines().len()).unwrap();
    assert_eq!(left, world.number("SELECT count(*) FROM job").await - 2);
    assert_eq!(offstage(&["--as", "ada", "jobs", "ls", "--json"]).await.lines().len(), 1, "hers alone");

    // Queues.
    assert!(offstage(&["queues", "pause", "media", "--reason", "a look"]).await.expect(0).contains("a look"));
    assert!(offstage(&["queues", "ls"]).await.expect(0).contains("paused"));
    assert!(!offstage(&["queues", "resume", "media"]).await.expect(0).contains("paused"));
}

#[tokio::test]
async fn exit_codes_tell_scripts_what_happened() {
    let world = World::start().await;
    let (url, key) = (world.api.url(), world.client.key().to_owned());
    for (arguments, code, says) in [
        (&["jobs"][..], 2, "Usage"),
        (&["jobs", "create", "probe.run", "--payload", "{"], 2, "not JSON"),
        (&["jobs", "create", "probe.run", "--payload", "@/nowhere"], 2, "/nowhere"),
        (&["jobs", "create", "no.kind"], 2, "there is no kind"),
        (&["jobs", "create", "probe.run", "--priority", "urgent"], 2, "high"),
        (&["jobs", "get", "01a00000-0000-7000-8000-000000000000"], 4, "job_not_found"),
        (&["jobs", "follow", "../queues"], 4, "job_not_found"),
        (&["queues", "pause", "nothing"], 4, "no such queue"),
    ] {
        let called = call(&url, &key, arguments).await;
        called.expect(code);
        assert!(called.err.contains(says), "{arguments:?}: {called:?}");
    }
    call(&url, "pk_00000000000000000000000000000000", &["jobs", "ls"]).await.expect(4);
    call(&url, "", &["jobs", "ls"]).await.expect(2);
    call("nonsense", &key, &["jobs", "ls"]).await.expect(2);

    // Tried again while the API is away, under one key: made once.
    world.api.terminate().await.unwrap();
    world.api.wait_exit(Duration::from_secs(60)).await.unwrap();
    let away = call(&url, &key, &["jobs", "ls"]).await;
    away.expect(3);
    assert!(away.err.contains("did not answer"), "{away:?}");
    assert!(Path::new(&program()).exists());
}
