//! Schedules that a product's manifest declares.

use acceptance::id_of;
use reqwest::Method;
use serde_json::{Value, json};

use super::Planned;

const TENANT: &str = "[tenant]\nname = \"acme\"\n";

async fn apply(planned: &Planned, sections: &str, arguments: &[&str]) -> Result<String, String> {
    let path = planned.world.sandbox.directory().join("declared.toml");
    std::fs::write(&path, format!("{TENANT}{sections}")).unwrap();
    let path = path.display().to_string();
    let done = planned.world.sandbox.run_api(["tenant", "apply", path.as_str()].iter().chain(arguments).copied()).await;
    done.map(|output| String::from_utf8(output.stdout).unwrap()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn what_is_declared_is_made_changed_and_removed_with_the_manifest() {
    let planned = Planned::at("2025-06-01T12:00:00Z").await;
    let client = planned.client();
    let own = planned.create(&json!({"name": "own", "kind": "probe.run", "cron": "@daily"})).await;
    let declared = "[schedules.nightly]\nkind = \"probe.run\"\ncron = \"30 2 * * *\"\ntime_zone = \"Europe/Berlin\"\npayload = { sleep_ms = 1 }\n\
                    [schedules.often]\nkind = \"probe.run\"\nevery_seconds = 600\nstarts_at = 2025-01-01T00:00:00Z\n";
    let said = apply(&planned, declared, &["--dry-run"]).await.unwrap();
    assert!(said.contains("would change") && said.contains("+ schedule nightly") && said.contains("+ schedule often"), "{said}");
    assert_eq!(planned.world.number("SELECT count(*) FROM schedule").await, 1);
    apply(&planned, declared, &[]).await.unwrap();
    assert!(apply(&planned, declared, &[]).await.unwrap().contains("nothing to change"));
    let all = client.get("/v1/schedules").await.expect(200);
    let of = |name: &str| {
        all["items"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}: {all}")).clone()
    };
    let nightly = of("nightly");
    assert_eq!(
        (&nightly["source"], &nightly["time_zone"], &of("own")["source"]),
        (&json!("manifest"), &json!("Europe/Berlin"), &json!("api"))
    );

    // It changes with the manifest and nowhere else; pausing and running it is for those on duty.
    let id = id_of(&nightly);
    let path = format!("/v1/schedules/{id}");
    client.send(client.request(Method::PATCH, &path).json(&json!({"cron": "@daily"}))).await.problem(409, "schedule_declared");
    client.send(client.request(Method::DELETE, &path)).await.problem(409, "schedule_declared");
    client.post_nothing(&format!("{path}/pause")).await.expect(200);
    client.post_nothing(&format!("{path}/run")).await.expect(202);

    let changed = declared.replace("30 2", "45 2");
    let said = apply(&planned, &changed, &[]).await.unwrap();
    assert!(said.contains("~ schedule nightly (cron)"), "{said}");
    let now = planned.schedule(&id).await;
    assert_eq!(
        (&now["cron"], &now["version"], now["paused"].is_object(), &now["next_due_at"]),
        (&json!("45 2 * * *"), &json!(3), true, &Value::Null),
        "a pause outlasts a change"
    );

    let said = apply(&planned, "", &[]).await.unwrap();
    assert!(said.contains("- schedule nightly") && said.contains("- schedule often"), "{said}");
    client.get(&path).await.problem(404, "schedule_not_found");
    assert_eq!(planned.schedule(&own).await["name"], "own", "what was made over the API is left alone");
}

#[tokio::test]
async fn a_wrong_declaration_is_refused_with_its_line() {
    let planned = Planned::at("2025-06-01T12:00:00Z").await;
    planned.create(&json!({"name": "own", "kind": "probe.run", "cron": "@daily"})).await;
    for (sections, expected) in [
        ("[schedules.a]\nkind = \"probe.run\"\ncron = \"99 * * * *\"\n", &["line 5", "schedules.a.cron", "is not a cron expression"][..]),
        (
            "[schedules.a]\nkind = \"probe.run\"\ncron = \"@daily\"\npayload = { sleep_ms = \"x\" }\n",
            &["line 6", "schedules.a.payload.sleep_ms"],
        ),
        (
            "[schedules.a]\nkind = \"export.create\"\ncron = \"@daily\"\npayload = { dataset = \"none\", format = \"csv\" }\n",
            &["line 6", "schedules.a.payload.dataset"],
        ),
        (
            "[schedules.a]\nkind = \"probe.run\"\ncron = \"@daily\"\noverlaps = \"skip\"\n",
            &["line 6", "schedules.a.overlaps", "is not part of a schedule"],
        ),
        ("[schedules.\"A b\"]\nkind = \"probe.run\"\ncron = \"@daily\"\n", &["line 3", "must begin with a lower-case letter"]),
        ("[schedules.a]\nkind = \"no.kind\"\ncron = \"@daily\"\n", &["line 4", "schedules.a.kind"]),
        ("[schedules.a]\ncron = \"@daily\"\n", &["schedules.a.kind", "is missing"]),
        ("[schedules.own]\nkind = \"probe.run\"\ncron = \"@daily\"\n", &["schedules.own", "made over the API"]),
    ] {
        let said = apply(&planned, sections, &["--dry-run"]).await.unwrap_err();
        assert!(expected.iter().all(|part| said.contains(part)), "{sections}: {said}");
        apply(&planned, sections, &[]).await.unwrap_err();
    }
    assert_eq!(planned.world.number("SELECT count(*) FROM schedule").await, 1);
}

#[tokio::test]
async fn a_tick_that_the_product_does_not_take_any_more_is_refused_and_says_why() {
    let planned = Planned::at("2025-06-01T12:00:00Z").await;
    let _worker = planned.worker().await;
    let client = planned.client();
    let id = planned.create(&json!({"name": "own", "kind": "probe.run", "cron": "* * * * *", "notify_after_failures": 1})).await;
    apply(&planned, "[kinds.\"probe.run\"]\nenabled = false\n", &[]).await.unwrap();
    let run = format!("/v1/schedules/{id}/run");
    acceptance::until("the API knows it", async || match client.post_nothing(&run).await {
        answer if answer.status == 422 => Ok(answer.problem(422, "validation_failed")),
        answer => Err(answer.text()),
    })
    .await;
    let wished = planned.history(&id).await.len();
    // A worker may know what the manifest says a moment later.
    let ticks = acceptance::until("a tick is refused", async || {
        planned.clock.advance(chrono::TimeDelta::minutes(1));
        let due = planned.clock.now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let ticks =
            planned.ticked(&id, "the tick was handled", |ticks| ticks.last().is_some_and(|tick| tick["due_at"] == due.as_str())).await;
        if ticks.last().unwrap()["outcome"] == "refused" { Ok(ticks) } else { Err(ticks) }
    })
    .await;
    let refused = ticks.last().unwrap();
    assert!(refused["detail"].as_str().unwrap().contains("switched the kind `probe.run` off") && refused["job_id"].is_null(), "{refused}");
    assert_eq!(planned.world.number("SELECT count(*) FROM notification WHERE owner = '' AND data ->> 'trouble' = 'failing'").await, 1);
    assert!(ticks.len() > wished, "{ticks:?}");
}
