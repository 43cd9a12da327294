//! Who may ask for what, how often, and what a manifest brings.

use std::collections::BTreeSet;

use acceptance::{World, id_of};
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};

use super::{community, refreshed, repository, statistic, wished};

#[tokio::test]
async fn wishes_join_what_is_on_its_way_and_are_limited() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    // Nobody works yet: all who wish get one job.
    let first = wished(&client, "tools").await;
    let racing = futures_util::future::join_all((0..20).map(|_| client.post_nothing("/v1/stats/tools/refresh"))).await;
    assert!(racing.iter().all(|answer| id_of(&answer.expect(200)) == first));
    let worker = world.start_worker(clock.launch()).await;
    client.succeeded(&first).await;
    for _ in 1..12 {
        clock.advance(TimeDelta::seconds(10));
        client.succeeded(&wished(&client, "tools").await).await;
    }
    let refused = client.post_nothing("/v1/stats/tools/refresh").await;
    refused.problem(429, "refresh_limit_exceeded");
    assert_eq!(refused.header("retry-after"), (3_600 - 110).to_string());
    // Before the hour is over, behind which the clock has it refreshed too.
    let calls = world.sandbox.vendors.calls("github");
    assert_eq!(calls.iter().filter(|call| call.path == "/repos/acme/tools").count(), 12, "one a job");
    // Of each statistic for itself, and of an hour.
    client.succeeded(&wished(&client, "open").await).await;
    clock.advance(TimeDelta::hours(1));
    client.succeeded(&wished(&client, "tools").await).await;

    client.post_nothing("/v1/stats/other/refresh").await.problem(404, "statistic_not_found");
    client.get("/v1/stats/other").await.problem(404, "statistic_not_found");
    client.get("/v1/stats/other/history").await.problem(404, "statistic_not_found");
    client.acting_for("ada").get("/v1/stats").await.problem(403, "backend_only");
    client.acting_for("ada").post_nothing("/v1/stats/tools/refresh").await.problem(403, "backend_only");
    world.client.get("/v1/stats/tools").await.problem(404, "statistic_not_found");
    assert_eq!(world.client.get("/v1/stats").await.expect(200)["items"], json!([]));
    // Figures of it all.
    let ages = world.figure(&worker, "offstage_vendor_calls_total", &["vendor=\"github\""]).await;
    assert!(ages >= 14.0, "{ages}");
}

#[tokio::test]
async fn a_refresh_is_asked_for_by_its_own_door_alone() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    let refresh = json!({"kind": "stats.refresh", "payload": {"source": "tools"}});
    let hourly = |job: &Value| {
        let mut hourly = job.clone();
        hourly["name"] = json!("often");
        hourly["every_seconds"] = json!(3_600);
        hourly
    };
    let followed_by = |then: &Value| json!({"kind": "probe.run", "payload": {}, "then": [then]});
    for (path, body, at) in [
        ("/v1/jobs", refresh.clone(), "/kind"),
        ("/v1/jobs", followed_by(&refresh), "/then/0/kind"),
        ("/v1/jobs", followed_by(&followed_by(&refresh)), "/then/0/then/0/kind"),
        ("/v1/jobs/batch", json!({"jobs": [followed_by(&json!({"kind": "probe.run", "payload": {}})), refresh]}), "/jobs/1/kind"),
        ("/v1/jobs/batch", json!({"jobs": [followed_by(&refresh)]}), "/jobs/0/then/0/kind"),
        ("/v1/jobs/batch", json!({"jobs": [{"kind": "probe.run", "payload": {}}], "then": [refresh]}), "/then/0/kind"),
        ("/v1/schedules", hourly(&refresh), "/kind"),
    ] {
        let refused = client.post(path, &body).await;
        refused.problem(422, "validation_failed");
        assert_eq!(refused.pointers(), [at], "{path} {body}");
        assert!(refused.text().contains("POST /v1/stats/{source}/refresh"), "{}", refused.text());
    }
    let partly = client.post("/v1/jobs/batch", &json!({"mode": "per_item", "jobs": [refresh, {"kind": "probe.run", "payload": {}}]})).await;
    assert!(partly.expect(202)["items"][0].to_string().contains("POST /v1/stats/{source}/refresh"), "{}", partly.text());

    // Nor by changing or running a schedule: the manifest's comes round by the clock, and is no door.
    let mine = client.post("/v1/schedules", &hourly(&json!({"kind": "probe.run", "payload": {}}))).await.expect(201);
    let mine = format!("/v1/schedules/{}", mine["id"].as_str().unwrap());
    let changed = client.send(client.request(Method::PATCH, &mine).json(&refresh)).await;
    changed.problem(422, "validation_failed");
    assert_eq!(changed.pointers(), ["/kind"]);
    let listed = client.get("/v1/schedules?limit=200").await.expect(200);
    let declared = listed["items"].as_array().unwrap().iter().find(|schedule| schedule["name"] == "stats.tools").unwrap();
    let run = client.post_nothing(&format!("/v1/schedules/{}/run", declared["id"].as_str().unwrap())).await;
    run.problem(422, "validation_failed");
    assert!(run.text().contains("POST /v1/stats/{source}/refresh"), "{}", run.text());
    assert_eq!(world.number("SELECT count(*) FROM job WHERE kind = 'stats.refresh'").await, 0);

    // Nor by one that was kept when that was allowed: its ticks say why they make no job.
    world
        .execute(
            "UPDATE schedule SET kind = 'stats.refresh',
                    definition = definition || '{\"kind\": \"stats.refresh\", \"payload\": {\"source\": \"tools\"}}' WHERE name = 'often'",
        )
        .await;
    world.start_worker(clock.launch()).await;
    clock.advance(TimeDelta::minutes(76));
    acceptance::until("its tick says where to ask", async || {
        let history = client.get(&format!("{mine}/history")).await.expect(200);
        let detail = history["items"][0]["detail"].as_str().unwrap_or_default().to_owned();
        if detail.contains("POST /v1/stats/{source}/refresh") { Ok(()) } else { Err(history) }
    })
    .await;
    let jobs = client.get("/v1/jobs?limit=200&kind=stats.refresh").await.expect(200);
    assert!(jobs["items"].as_array().unwrap().iter().all(|job| job["schedule"]["name"] != "often"), "{jobs}");
}

#[tokio::test]
async fn a_manifest_brings_schedules_and_takes_them_away() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    let names = async || {
        let found = client.get("/v1/schedules?limit=200").await.expect(200);
        let mut names: Vec<_> = found["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names().await, ["stats.any", "stats.chat", "stats.makers", "stats.model", "stats.open", "stats.tools"]);
    world.start_worker(clock.launch()).await;
    // An hour, and a quarter of one in which they are spread.
    clock.advance(TimeDelta::minutes(76));
    // Made by the clock, at moments of their own, before anybody reads: who reads would have them measured.
    acceptance::until("each schedule has come round", async || {
        let jobs = client.get("/v1/jobs?limit=200").await.expect(200);
        let by_clock: Vec<_> = jobs["items"].as_array().unwrap().iter().filter(|job| job["schedule"]["name"].is_string()).collect();
        let each = |of: fn(&Value) -> String| by_clock.iter().map(|job| of(job)).collect::<BTreeSet<_>>().len();
        // Two of six may fall on one second.
        let is_spread = each(|job| job["run_at"].to_string()) > 3;
        if is_spread && each(|job| job["schedule"]["name"].to_string()) == 6 { Ok(()) } else { Err(jobs) }
    })
    .await;
    for source in ["any", "chat", "makers", "model", "open", "tools"] {
        super::measured(&client, source).await;
    }
    world.tenant_of("community", "[tenant]\nname = \"community\"\n").await;
    assert!(names().await.is_empty());
    acceptance::until("the manifest is heard of", async || {
        let answer = client.get("/v1/stats/tools").await;
        if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

#[tokio::test]
async fn a_jump_is_flagged_and_a_person_can_believe_it() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    world.start_worker(clock.launch()).await;
    refreshed(&client, "tools").await;
    let vendors = &world.sandbox.vendors;
    for wrong in [0, 5, 499, 2_001, 4_000_000] {
        vendors.put("/github/repos/acme/tools", &repository(wrong));
        clock.advance(TimeDelta::minutes(1));
        assert_eq!(refreshed(&client, "tools").await["outcome"], "flagged", "{wrong}");
        let found = statistic(&client, "tools").await;
        assert_eq!((&found["figures"]["members"], &found["flagged"]["figures"]["members"]), (&json!(1_000), &json!(wrong)));
        assert!(found["flagged"]["why"].as_str().unwrap().contains("members"));
    }
    assert_eq!(world.number("SELECT count(*) FROM statistic_reading WHERE source = 'tools'").await, 1, "not stored");
    // It is no answer of 304 that would make the old ones good again.
    assert_eq!(refreshed(&client, "tools").await["outcome"], "flagged");
    let flagged = statistic(&client, "tools").await["flagged"].clone();
    let accept = async |at: &Value| client.post("/v1/stats/tools/accept", &json!({"flagged_at": at})).await;
    accept(&json!("2026-01-01T00:00:00Z")).await.problem(409, "reading_not_flagged");
    accept(&json!("yesterday")).await.problem(422, "validation_failed");
    let accepted = accept(&flagged["at"]).await.expect(200);
    assert_eq!((&accepted["figures"]["members"], &accepted["flagged"]), (&json!(4_000_000), &json!(null)));
    accept(&flagged["at"]).await.problem(409, "reading_not_flagged");
    let history = client.get("/v1/stats/tools/history").await.expect(200);
    assert_eq!((&history["items"][0]["accepted"], &history["items"][1]["accepted"]), (&json!(true), &json!(false)));
    clock.advance(TimeDelta::minutes(1));
    vendors.put("/github/repos/acme/tools", &repository(4_000_100));
    assert_eq!(refreshed(&client, "tools").await["outcome"], "measured");
    // What is expected to move may.
    vendors.put("/discord/invites/acme", &json!({"approximate_member_count": 2_010, "approximate_presence_count": 1}));
    refreshed(&client, "chat").await;
    vendors.put("/discord/invites/acme", &json!({"approximate_member_count": 2_020, "approximate_presence_count": 1_999}));
    assert_eq!(refreshed(&client, "chat").await["outcome"], "measured");
}
