//! Outward effects switched off: nothing is done outside, nothing is lost, and it goes on.

use acceptance::{Callbacks, PATIENCE, World, probe, until};
use serde_json::{Value, json};

async fn switch(world: &World, arguments: &[&str]) -> String {
    let output = world.sandbox.run_api(["switch"].iter().chain(arguments).copied()).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The time that a worker takes at most to have heard of a switch is not the test's to know: a job that must wait tells.
async fn held(world: &World, id: &str) -> Value {
    world.client.wait_for(id, "held", |job| job["reason"] == "switched_off").await
}

#[tokio::test]
async fn what_would_reach_outside_waits_for_the_switch_and_nothing_else_does() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let callbacks = Callbacks::listen().await;
    let calling = probe(&json!({"callback_url": callbacks.url()}));
    for (off, other) in [
        (&["--by", "ops", "--reason", "restored a backup"][..], None),
        (&["--by", "ops", "--reason", "a bad template", "--tenant", "acme"], Some("globex")),
        (&["--by", "ops", "--reason", "a bad release", "--kind", "probe.run"], None),
    ] {
        let scope: Vec<&str> = off.iter().skip(4).copied().collect();
        let said = switch(&world, &[&["off"], off].concat()).await;
        assert!(said.contains("are off"), "{said}");
        let said = switch(&world, &[&["off"], off].concat()).await;
        assert!(said.contains("were off before"), "{said}");
        let before = callbacks.calls().len();
        // A worker that has not heard of it yet may still call; from the first one held on, none does.
        loop {
            let id = client.create_id(&calling).await;
            let job = client.wait_for(&id, "held or done", |job| job["reason"] == "switched_off" || job["state"] == "succeeded").await;
            if job["reason"] == "switched_off" {
                break;
            }
        }
        let begun = callbacks.calls().len();
        let mut waiting = Vec::new();
        for _ in 0..5 {
            waiting.push(client.create_id(&calling).await);
        }
        for id in &waiting {
            let job = held(&world, id).await;
            assert_eq!((job["state"].as_str(), job["attempt"].as_i64()), (Some("waiting"), Some(0)), "no attempt is used: {job}");
            assert!(job["explanation"].as_str().unwrap().contains("switched off"), "it says so: {job}");
        }
        // What reaches nobody outside goes on, and another tenant's where the switch names one.
        client.succeeded(&client.create_id(&probe(&json!({}))).await).await;
        assert_eq!(callbacks.calls().len(), begun, "nobody was called since");
        if let Some(other) = other {
            let other = world.tenant(other).await;
            other.succeeded(&other.create_id(&calling).await).await;
        }
        until("the figure tells how many wait", async || {
            match world.figure(&worker, "offstage_queue_switched_off_jobs", &["queue=\"analytics\""]).await {
                waiting if waiting > 5.5 => Ok(()),
                other => Err(other),
            }
        })
        .await;
        let listed: Value = serde_json::from_str(&switch(&world, &["list", "--json"]).await).unwrap();
        let listed = listed.as_array().unwrap();
        assert_eq!((listed.len(), &listed[0]["off_by"], &listed[0]["reason"]), (1, &json!("ops"), &json!(off[3])), "{listed:?}");

        // One that was cancelled meanwhile stays so.
        let cancelled = waiting.pop().unwrap();
        client.post_nothing(&format!("/v1/jobs/{cancelled}/cancel")).await.expect(200);
        let said = switch(&world, &[&["on", "--by", "ops"], scope.as_slice()].concat()).await;
        assert!(said.contains("on again"), "{said}");
        for id in &waiting {
            let job = client.succeeded(id).await;
            assert_eq!(job["attempt"], 1, "{job}");
        }
        assert_eq!(client.job(&cancelled).await["state"], "cancelled");
        let said = switch(&world, &[&["on", "--by", "ops"], scope.as_slice()].concat()).await;
        assert!(said.contains("was not off"), "{said}");
        callbacks.wait_for(PATIENCE, "finished", None, before / 2 + 5).await;
    }
    // Who did what and why can be read later.
    let all: Value = serde_json::from_str(&switch(&world, &["list", "--all", "--json"]).await).unwrap();
    let reasons: Vec<_> = all.as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["a bad release", "a bad template", "restored a backup"]);
    assert!(all.as_array().unwrap().iter().all(|one| one["on_by"] == "ops" && one["on_at"].is_string()), "{all}");
    assert_eq!(world.number("SELECT count(*) FROM job_held").await, 0);
}

#[tokio::test]
async fn a_switch_names_what_there_is() {
    let world = World::start().await;
    for wrong in [
        &["switch", "off", "--by", "ops", "--reason", "x", "--tenant", "nobody"][..],
        &["switch", "off", "--by", "ops", "--reason", "x", "--kind", "no.kind"],
        &["switch", "off", "--by", "ops", "--reason", " "],
        &["switch", "off", "--by", "ops"],
    ] {
        assert!(world.sandbox.run_api(wrong.to_vec()).await.is_err(), "{wrong:?}");
    }
    assert_eq!(world.number("SELECT count(*) FROM outward_switch").await, 0);
}
