//! An S3 that misbehaves: each fault ends as the export's policy says, with a message that its owner understands, and leaves
//! nothing behind.

use std::time::Duration;

use acceptance::{Client, World, id_of, is_terminal, until};
use sandbox::{Fault, Launch, Rule};
use serde_json::{Value, json};

/// Longer than three attempts with their pauses and deadlines, on a machine that is busy.
const ENDED_WITHIN: Duration = Duration::from_secs(120);

/// One dataset a fault, since an object's key ends with its dataset's name. Each has some 100 kB but the last two.
const FAULTS: [&str; 8] = ["busy", "recovering", "hanging", "waking", "dropping", "denying", "slow", "patient"];

fn manifest() -> String {
    let rows = |name: &str| if name == "patient" { 100 } else { 1_600 };
    let dataset = |name: &&str| {
        format!(
            "[datasets.{name}]\nsource = \"main\"\naudience = \"users\"\nsql = \"SELECT repeat(md5(n::text), 2) AS content FROM generate_series(1, {}) AS n\"\n",
            rows(name)
        )
    };
    let datasets: String = FAULTS.iter().map(dataset).collect();
    format!("[tenant]\nname = \"hooli\"\n[sources.main]\nurl_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"\n{datasets}")
}

async fn ended(client: &Client, id: &str) -> (Value, Value) {
    let job = client.wait_for_within(ENDED_WITHIN, id, "at its end", is_terminal).await;
    (job, client.get(&format!("/v1/exports/{id}")).await.expect(200))
}

#[tokio::test]
async fn each_fault_of_the_store_ends_as_the_policy_says_and_says_what_it_was() {
    let world = World::start().await;
    let launch = Launch::new().env("OFFSTAGE_S3_CALL_SECONDS", "2").env("OFFSTAGE_CONCURRENCY", "exports=8");
    let _worker = world.start_worker(launch).await;
    let ada = world.tenant_of("hooli", &manifest()).await.acting_for("ada");
    let faults = world.sandbox.s3.faults();
    for (name, fault, times) in [
        ("busy", Fault::Status(503), None),
        // More than one attempt sends, less than three do.
        ("recovering", Fault::Status(503), Some(5)),
        ("hanging", Fault::Hang, None),
        ("waking", Fault::Hang, Some(1)),
        ("dropping", Fault::Drop { after_bytes: 1_000 }, None),
        ("denying", Fault::Status(403), None),
        // 100 kB take 10 s: slower than the 32 KiB/s that count as alive, so it is the deadline's.
        ("slow", Fault::Slow { bytes_per_second: 10_000 }, None),
        // 6 kB take less than a second.
        ("patient", Fault::Slow { bytes_per_second: 10_000 }, None),
    ] {
        let rule = Rule::from(fault).on("PutObject").path_contains(format!("/{name}.csv"));
        faults.add(match times {
            Some(times) => rule.times(times),
            None => rule,
        });
    }
    let mut exports = Vec::new();
    for name in FAULTS {
        let id = id_of(&ada.post("/v1/exports", &json!({"dataset": name, "format": "csv"})).await.expect(202));
        exports.push((name, id));
    }
    for (name, id) in &exports {
        let (job, export) = ended(&ada, id).await;
        // State, attempts, the word for programs, and what the sentence for people says.
        let (state, attempts, code, words) = match *name {
            "busy" => ("failed", 3, "storage_unavailable", "is not able to serve now"),
            "hanging" | "slow" => ("failed", 3, "storage_timeout", "did not finish writing a file within"),
            "dropping" => ("failed", 3, "storage_unreachable", "can't be reached"),
            "denying" => ("failed", 1, "storage_access_denied", "denied writing a file in the bucket `offstage`"),
            "recovering" | "waking" => ("completed", 2, "", ""),
            _ => ("completed", 1, "", ""),
        };
        assert_eq!((export["state"].as_str(), job["attempt"].as_i64()), (Some(state), Some(attempts)), "{name}: {export} {job}");
        let error = &export["error"];
        assert_eq!(error["code"].as_str().unwrap_or_default(), code, "{name}: {error}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{name}: {message}");
        assert!(!job.to_string().contains(world.sandbox.s3.credentials().1), "{name}: a secret in {job}");
    }
    faults.clear();
    // What was sent without an answer may stand for a moment; in the end there are the three files that are complete.
    until("only complete files are stored", async || {
        let s3 = &world.sandbox.s3;
        let stored = (s3.objects().unwrap().len(), s3.unfinished_uploads().unwrap().len());
        if stored == (3, 0) { Ok(()) } else { Err(stored) }
    })
    .await;
}
