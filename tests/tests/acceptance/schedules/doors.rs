//! Kept, shown, changed, paused, previewed, removed: no worker is needed for that.

use acceptance::{Client, id_of};
use reqwest::Method;
use serde_json::{Value, json};

use super::Planned;

async fn patch(client: &Client, id: &str, body: &Value) -> acceptance::Answer {
    client.send(client.request(Method::PATCH, &format!("/v1/schedules/{id}")).json(body)).await
}

#[tokio::test]
async fn a_schedule_is_kept_shown_changed_and_removed() {
    let planned = Planned::at("2025-03-28T12:00:00Z").await;
    let client = planned.client();
    let nightly = json!({
        "name": "nightly", "kind": "probe.run", "payload": {"sleep_ms": 1}, "owner": "ada", "cron": "30 2 * * *",
        "time_zone": "europe/berlin", "jitter_seconds": 600, "overlap": "skip", "start_by_seconds": 3600
    });
    let answer = client.post("/v1/schedules", &nightly).await;
    let made = answer.expect(201);
    let id = id_of(&made);
    assert_eq!(answer.header("location"), format!("/v1/schedules/{id}"));
    assert_eq!(
        (&made["source"], &made["version"], &made["missed"], &made["priority"]),
        (&json!("api"), &json!(1), &json!("latest"), &json!("normal"))
    );
    assert_eq!((&made["next_due_at"], &made["next_due_local"]), (&json!("2025-03-29T01:30:00Z"), &json!("2025-03-29T02:30:00+01:00")));
    assert_eq!((planned.schedule(&id).await, &made["payload"]), (made.clone(), &json!({"sleep_ms": 1})));

    // The clock skips half past two on the thirtieth.
    let preview = client.get(&format!("/v1/schedules/{id}/preview")).await.expect(200);
    let local: Vec<_> = preview["items"].as_array().unwrap().iter().map(|one| one["due_local"].as_str().unwrap()).collect();
    assert_eq!(
        (local.len(), &local[..3]),
        (10, &["2025-03-29T02:30:00+01:00", "2025-03-30T03:00:00+02:00", "2025-03-31T02:30:00+02:00"][..])
    );
    let again = client.get(&format!("/v1/schedules/{id}/preview")).await.expect(200);
    assert_eq!(preview, again, "the jitter is each tick's own");
    assert!(preview["items"].as_array().unwrap().iter().any(|one| one["run_at"] != one["due_at"]), "{preview}");

    client.post("/v1/schedules", &nightly).await.problem(409, "schedule_name_taken");
    let other = planned
        .create(&json!({"name": "every_hour", "kind": "probe.run", "every_seconds": 3600, "starts_at": "2025-03-28T12:15:00Z"}))
        .await;
    let listed = client.get("/v1/schedules").await.expect(200);
    let names: Vec<_> = listed["items"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!((names, &listed["items"][1]["payload"]), (vec!["every_hour".to_owned(), "nightly".to_owned()], &Value::Null));
    for (query, expected) in [("name=nightly", 1), ("kind=probe.run", 2), ("kind=export.create", 0), ("paused=true", 0), ("limit=1", 1)] {
        let page = client.get(&format!("/v1/schedules?{query}")).await.expect(200);
        assert_eq!(page["items"].as_array().unwrap().len(), expected, "{query}: {page}");
    }

    // A merge patch: what is not named stays.
    let changed = patch(client, &id, &json!({"jitter_seconds": 0, "owner": null, "name": "morning"})).await.expect(200);
    assert_eq!(
        (&changed["name"], &changed["owner"], &changed["version"], &changed["cron"]),
        (&json!("morning"), &Value::Null, &json!(2), &made["cron"])
    );
    assert_eq!(changed["next_due_at"], made["next_due_at"]);
    let changed = patch(client, &id, &json!({"cron": null, "time_zone": null, "every_seconds": 60})).await.expect(200);
    assert_eq!(changed["next_due_at"], "2025-03-28T12:01:00Z", "its timing is another: counted from now");
    patch(client, &id, &json!({"name": "every_hour"})).await.problem(409, "schedule_name_taken");
    let wrong = patch(client, &id, &json!({"cron": "0 2 * * *"})).await;
    wrong.problem(422, "validation_failed");
    assert_eq!(wrong.pointers(), ["/every_seconds"]);
    assert_eq!(planned.schedule(&id).await, changed, "a refused change changes nothing");

    let paused = client.post(&format!("/v1/schedules/{id}/pause"), &json!({"by": "ops"})).await.expect(200);
    assert_eq!((&paused["paused"], &paused["next_due_at"]), (&json!({"at": "2025-03-28T12:00:00Z", "by": "ops"}), &Value::Null));
    assert_eq!(client.post_nothing(&format!("/v1/schedules/{id}/pause")).await.expect(200), paused, "done again, it changes nothing");
    planned.clock.advance(chrono::TimeDelta::hours(5));
    let resumed = client.post_nothing(&format!("/v1/schedules/{id}/resume")).await.expect(200);
    assert_eq!((&resumed["paused"], &resumed["next_due_at"]), (&Value::Null, &json!("2025-03-28T17:01:00Z")), "a pause misses nothing");

    for id in [&id, &other] {
        assert_eq!(client.send(client.request(Method::DELETE, &format!("/v1/schedules/{id}"))).await.status, 204);
        client.get(&format!("/v1/schedules/{id}")).await.problem(404, "schedule_not_found");
    }
    assert_eq!(planned.world.number("SELECT count(*) FROM schedule").await, 0);
}

#[tokio::test]
async fn what_is_wrong_is_named_and_changes_nothing() {
    let planned = Planned::at("2025-03-28T12:00:00Z").await;
    let client = planned.client();
    for (schedule, pointers) in [
        (json!({}), &["/kind", "/name"][..]),
        (json!({"name": "A", "kind": "probe.run", "cron": "@daily"}), &["/name"]),
        (json!({"name": 7, "kind": "probe.run", "cron": "@daily"}), &["/name"]),
        (json!({"name": "a", "kind": "probe.run"}), &["/cron"]),
        (json!({"name": "a", "kind": "probe.run", "cron": "61 * * * *", "time_zone": "Nowhere"}), &["/cron", "/time_zone"]),
        (json!({"name": "a", "kind": "probe.run", "cron": "@daily", "crn": 1, "overlap": "allow"}), &["/crn"]),
        (json!({"name": "a", "kind": "probe.run", "cron": "@daily", "overlap": "never"}), &["/overlap"]),
        (json!({"name": "a", "kind": "no.kind", "cron": "@daily"}), &["/kind"]),
        (
            json!({"name": "a", "kind": "probe.run", "cron": "@daily", "payload": {"sleep_ms": "x", "colour": 1}}),
            &["/payload/colour", "/payload/sleep_ms"],
        ),
        (
            json!({"name": "a", "kind": "export.create", "cron": "@daily", "payload": {"dataset": "none", "format": "csv"}}),
            &["/payload/dataset"],
        ),
    ] {
        let answer = client.post("/v1/schedules", &schedule).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), pointers, "{schedule}");
    }
    client.get("/v1/schedules?colour=red").await.problem(400, "query_invalid");
    for path in ["", "/preview", "/history"] {
        client.get(&format!("/v1/schedules/x{path}")).await.problem(404, "schedule_not_found");
    }
    client.acting_for("ada").get("/v1/schedules").await.problem(403, "backend_only");
    assert_eq!(planned.world.number("SELECT count(*) FROM schedule").await, 0);
    // The bound holds, also for those who come at once.
    planned
        .world
        .execute(
            "INSERT INTO schedule (id, tenant_id, declared, anchor, created_at, updated_at, name, kind, definition)
             SELECT gen_random_uuid(), (SELECT id FROM tenant), false, now(), now(), now(), 'n' || i, 'probe.run', '{\"kind\": \"probe.run\", \"cron\": \"@daily\"}'
             FROM generate_series(1, 998) i",
        )
        .await;
    let one = |name: String| async move {
        client.post("/v1/schedules", &json!({"name": name, "kind": "probe.run", "cron": "@daily"})).await.status
    };
    let (a, b, c, d) = tokio::join!(one("a".into()), one("b".into()), one("c".into()), one("d".into()));
    let mut all = [a, b, c, d];
    all.sort_unstable();
    assert_eq!(all, [201, 201, 409, 409]);
}
