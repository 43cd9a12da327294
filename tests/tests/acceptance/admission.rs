//! What a product lets in: how much may wait, which kinds are on for whom, whether batches are.

use std::collections::BTreeSet;

use acceptance::{World, probe, until};
use sandbox::Launch;
use serde_json::{Value, json};

#[tokio::test]
async fn over_its_backlog_a_tenant_is_told_when_to_come_again_and_nobody_else_is() {
    let world = World::start_with(Launch::new().env("OFFSTAGE_BACKLOG", "100000")).await;
    let client = world.tenant_of("hooli", "[tenant]\nname = \"hooli\"\n[limits]\nbacklog = 20\n").await;
    let later = || {
        let mut body = probe(&json!({}));
        body["run_at"] = json!("2027-06-01T00:00:00Z");
        body
    };
    let mut keyed = later();
    keyed["idempotency_key"] = json!("k");
    let mut only = later();
    only["unique"] = json!({"key": "u"});
    let first = client.create_id(&keyed).await;
    let unique = client.create_id(&only).await;
    for _ in 2..20 {
        // What is let in while the backlog is counted counts twice until the next count: refused for a moment, never too many.
        until("there is room", async || match client.post("/v1/jobs", &later()).await {
            answer if answer.status == 202 => Ok(()),
            answer => Err(answer.text()),
        })
        .await;
    }
    let full = client.post("/v1/jobs", &later()).await;
    let problem = full.problem(429, "backlog_full");
    assert!(full.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{:?}", full.headers);
    assert!(problem["detail"].as_str().unwrap().contains("20"), "it names the limit: {problem}");
    // Whoever repeats a request gets its job; batches count as a whole; others are not concerned.
    for (body, id, by) in [(&keyed, &first, "idempotency_key"), (&only, &unique, "unique")] {
        let again = client.post("/v1/jobs", body).await.expect(200);
        assert_eq!(again["duplicate"], json!({"of": id, "by": by}), "{again}");
    }
    client.post("/v1/jobs/batch", &json!({"jobs": [later()]})).await.problem(429, "backlog_full");
    world.client.create(&later()).await;
    // Room is noticed by itself.
    client.post_nothing(&format!("/v1/jobs/{first}/cancel")).await.expect(200);
    client.post_nothing(&format!("/v1/jobs/{unique}/cancel")).await.expect(200);
    client.post("/v1/jobs/batch", &json!({"jobs": [later(), later(), later()]})).await.problem(429, "backlog_full");
    until("there is room for two", async || match client.post("/v1/jobs/batch", &json!({"jobs": [later(), later()]})).await {
        answer if answer.status == 202 => Ok(()),
        answer => Err(answer.text()),
    })
    .await;
    assert_eq!(world.number("SELECT count(*) FROM job_waiting w JOIN tenant t ON t.id = w.tenant_id WHERE t.name = 'hooli'").await, 20);
}

#[tokio::test]
async fn what_comes_back_to_wait_counts_too_and_what_never_fits_is_told_so() {
    let (world, _worker) = World::with_worker().await;
    let client = world.tenant_of("hooli", "[tenant]\nname = \"hooli\"\n[limits]\nbacklog = 20\n").await;
    client.pause("analytics").await;
    // A batch that can never fit is told so, and not to come again.
    let batch = json!({"jobs": vec![probe(&json!({})); 21]});
    let refused = client.post("/v1/jobs/batch", &batch).await;
    refused.problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/jobs"]);
    // Its workers put back what they get of a paused queue: none of it waits yet when it is let in.
    until("it is full", async || match client.post("/v1/jobs", &probe(&json!({}))).await {
        answer if answer.status == 429 => Ok(()),
        answer => Err(answer.expect(202)),
    })
    .await;
}

#[tokio::test]
async fn a_kind_is_on_for_a_tenant_or_for_a_share_of_its_users() {
    let world = World::start().await;
    let of = async |share: &str| {
        let manifest = format!("[tenant]\nname = \"hooli\"\n[kinds.\"probe.run\"]\n{share}\n[limits]\nbatches = false\n");
        world.tenant_of("hooli", &manifest).await
    };
    let client = of("share = 30").await;
    let users: Vec<String> = (0..60).map(|user| format!("user-{user}")).collect();
    let mut on = BTreeSet::new();
    for user in &users {
        let answer = client.acting_for(user).post("/v1/jobs", &probe(&json!({}))).await;
        match answer.status {
            202 => _ = on.insert(user.clone()),
            _ => _ = answer.problem(403, "kind_not_enabled"),
        }
    }
    assert!((5..=35).contains(&on.len()), "{}", on.len());
    client.create(&probe(&json!({}))).await;
    let off = users.iter().find(|user| !on.contains(*user)).unwrap();
    // Nor by the way of another job, or of an owner that a backend names; what was accepted before still is.
    let chained = json!({"kind": "export.create", "payload": {}, "then": [{"kind": "probe.run", "payload": {}}]});
    let refused: Value = client.acting_for(off).post("/v1/jobs", &chained).await.json();
    assert!(refused["errors"].to_string().contains("/then/0/kind"), "{refused}");
    let mut named = probe(&json!({}));
    named["owner"] = json!(off);
    client.post("/v1/jobs", &named).await.problem(403, "kind_not_enabled");
    let someone = on.first().unwrap();
    let mut keyed = probe(&json!({}));
    keyed["idempotency_key"] = json!("k");
    let first = client.acting_for(someone).create_id(&keyed).await;
    client.post("/v1/jobs/batch", &json!({"jobs": [probe(&json!({}))]})).await.problem(403, "batches_not_enabled");

    let client = of("enabled = false").await;
    until("the manifest is in force", async || match client.post("/v1/jobs", &probe(&json!({}))).await {
        answer if answer.status == 403 => Ok(()),
        answer => Err(answer.text()),
    })
    .await;
    client.acting_for(someone).post("/v1/jobs", &probe(&json!({}))).await.problem(403, "kind_not_enabled");
    assert_eq!(client.acting_for(someone).post("/v1/jobs", &keyed).await.expect(200)["id"], first.as_str());

    let wrong = "[tenant]\nname = \"hooli\"\n[kinds.\"probe.run\"]\nshare = 101\nplans = [\"pro\"]\n[kinds.\"no.such\"]\nenabled = true\n[limits]\nbacklog = 0\n";
    let path = world.sandbox.directory().join("wrong.toml");
    std::fs::write(&path, wrong).unwrap();
    let said = world.sandbox.apply_tenant(&path).await.unwrap_err().to_string();
    for part in ["101", "users are not assigned to plans", "there is no kind `no.such`", "limits.backlog"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
