//! Dead letters: found by what went wrong, looked into, redriven, discarded; one by one or all that match.

use std::collections::BTreeSet;

use acceptance::{Client, World, id_of, probe};
use reqwest::Method;
use serde_json::{Value, json};

async fn dead(client: &Client, body: &Value) -> String {
    let id = client.create_id(body).await;
    client.ended(&id).await;
    id
}

fn failing(more: &Value) -> Value {
    let mut payload = json!({"outcome": "fail"});
    payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    probe(&payload)
}

async fn listed(client: &Client, query: &str) -> BTreeSet<String> {
    let page = client.get(&format!("/v1/jobs?{query}")).await.expect(200);
    page["items"].as_array().unwrap().iter().map(id_of).collect()
}

fn set(ids: &[&String]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).clone()).collect()
}

#[tokio::test]
async fn they_are_found_by_what_went_wrong() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let failed = dead(client, &failing(&json!({}))).await;
    let mails = dead(client, &failing(&json!({"queue": "email"}))).await;
    // A callback that this worker may not make fails for another reason.
    let refused = dead(client, &probe(&json!({"callback_url": "http://192.0.2.1/"}))).await;
    let adas = dead(&client.acting_for("ada"), &failing(&json!({}))).await;
    dead(client, &probe(&json!({}))).await;

    assert_eq!(listed(client, "state=failed").await, set(&[&failed, &mails, &refused, &adas]));
    assert_eq!(listed(client, "state=failed&error_code=probe_failed").await, set(&[&failed, &mails, &adas]));
    assert_eq!(listed(client, "state=failed&error_code=callback_not_allowed&kind=probe.run").await, set(&[&refused]));
    assert_eq!(listed(client, "state=failed&queue=email").await, set(&[&mails]));
    assert_eq!(listed(client, "state=failed&error_code=probe_failed&owner=ada").await, set(&[&adas]));
    assert_eq!(listed(&client.acting_for("ada"), "state=failed&error_code=probe_failed").await, set(&[&adas]));
    let ended = client.job(&mails).await["finished_at"].as_str().unwrap().to_owned();
    assert_eq!(listed(client, &format!("state=failed&ended_before={ended}")).await, set(&[&failed]));
    assert_eq!(listed(client, &format!("state=failed&ended_from={ended}")).await, set(&[&mails, &refused, &adas]));
    assert_eq!(listed(client, "queue=email").await, set(&[&mails]), "by queue in any state");
    client.get("/v1/jobs?error_code=probe_failed").await.problem(400, "query_invalid");
    client.get(&format!("/v1/jobs?state=succeeded&ended_from={ended}")).await.problem(400, "query_invalid");

    // The attempts say what happened each time; what lay beneath is the operator's.
    let job = client.job_with_attempts(&refused).await;
    assert_eq!(job["attempts"][0]["error"]["code"], "callback_not_allowed", "{job}");
    let shown = world.sandbox.run_api(["jobs", "show", &failed, "--tenant", "acme"]).await.unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((shown["state"].as_str(), shown["runs"][0]["error"]["code"].as_str()), (Some("failed"), Some("probe_failed")), "{shown}");
    assert!(shown["runs"][0]["error"]["causes"].is_array(), "{shown}");
}

#[tokio::test]
async fn one_is_discarded_and_answers_that_it_is_gone() {
    let (world, _worker) = World::with_worker().await;
    let ada = world.client.acting_for("ada");
    let id = dead(&ada, &failing(&json!({}))).await;
    let discard = async |client: &Client, id: &str| client.post_nothing(&format!("/v1/jobs/{id}/discard")).await;
    let job = ada.job(&id).await;
    assert_eq!(job["links"]["discard"], format!("/v1/jobs/{id}/discard"));
    discard(&world.client.acting_for("eve"), &id).await.problem(404, "job_not_found");
    assert_eq!(discard(&ada, &id).await.status, 204);

    for path in [format!("/v1/jobs/{id}"), format!("/v1/jobs/{id}?wait=5"), format!("/v1/jobs/{id}?wait=5&since=1")] {
        let gone = ada.get(&path).await.problem(410, "job_gone");
        assert!(gone["gone_at"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().is_ok(), "it says when: {gone}");
    }
    let tagged = ada.send(ada.request(Method::GET, &format!("/v1/jobs/{id}")).header("If-None-Match", "W/\"3\"")).await;
    tagged.problem(410, "job_gone");
    for action in ["cancel", "retry", "discard"] {
        ada.post_nothing(&format!("/v1/jobs/{id}/{action}")).await.problem(410, "job_gone");
    }
    // For its backend too; for nobody else.
    world.client.get(&format!("/v1/jobs/{id}")).await.problem(410, "job_gone");
    world.client.acting_for("eve").get(&format!("/v1/jobs/{id}")).await.problem(404, "job_not_found");
    world.tenant("globex").await.get(&format!("/v1/jobs/{id}")).await.problem(404, "job_not_found");
    ada.get(&format!("/v1/exports/{id}")).await.problem(404, "export_not_found");
    for table in ["job WHERE id", "job_state WHERE job_id", "job_attempt WHERE job_id", "job_unsuccessful WHERE job_id"] {
        assert_eq!(world.number(format!("SELECT count(*) FROM {table} = '{id}'")).await, 0, "{table}");
    }

    // What has not ended, or has succeeded, is not discarded.
    let succeeded = dead(&world.client, &probe(&json!({}))).await;
    let waiting = world
        .client
        .create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": world.now().await + chrono::TimeDelta::hours(1)}))
        .await;
    for id in [&succeeded, &waiting] {
        discard(&world.client, id).await.problem(409, "job_not_discardable");
    }
}

#[tokio::test]
async fn an_export_that_was_discarded_is_gone_as_an_export_too() {
    let world = World::start().await;
    let manifest = "[tenant]\nname = \"initech\"\n[sources.main]\nurl_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"\n\
         [datasets.words]\nsource = \"main\"\naudience = \"users\"\nsql = \"SELECT 'a' AS word\"\n";
    let client = world.tenant_of("initech", manifest).await;
    let id = id_of(&client.post("/v1/exports", &json!({"dataset": "words", "format": "csv"})).await.expect(202));
    client.post_nothing(&format!("/v1/jobs/{id}/cancel")).await.expect(200);
    assert_eq!(client.post_nothing(&format!("/v1/jobs/{id}/discard")).await.status, 204);
    for (method, path) in [("GET", ""), ("DELETE", ""), ("GET", "/download"), ("POST", "/page"), ("DELETE", "/page")] {
        let answer = client.send(client.request(method.parse().unwrap(), &format!("/v1/exports/{id}{path}"))).await;
        assert!(answer.problem(410, "export_gone")["gone_at"].is_string(), "{method} {path}");
    }
    world.client.get(&format!("/v1/exports/{id}")).await.problem(404, "export_not_found");
}

#[tokio::test]
async fn all_that_match_are_counted_redriven_and_discarded() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let mut failed = Vec::new();
    for _ in 0..5 {
        failed.push(client.create_id(&failing(&json!({}))).await);
    }
    let mails = client.create_id(&failing(&json!({"queue": "email"}))).await;
    let adas = client.acting_for("ada").create_id(&failing(&json!({}))).await;
    for id in failed.iter().chain([&mails, &adas]) {
        client.ended(id).await;
    }
    let elsewhere = world.tenant("globex").await;
    let theirs = dead(&elsewhere, &failing(&json!({}))).await;
    let all = async |client: &Client, action: &str, body: Value| client.post(&format!("/v1/jobs/{action}"), &body).await;

    // Counting changes nothing.
    for (filter, expected) in [
        (json!({}), 7),
        (json!({"queue": "email"}), 1),
        (json!({"queue": "analytics", "kind": "probe.run", "error_code": "probe_failed"}), 6),
        (json!({"owner": "ada"}), 1),
        (json!({"owner": "ada", "error_code": "panic"}), 0),
        (json!({"error_code": "panic"}), 0),
        (json!({"state": "cancelled"}), 0),
        (json!({"ended_before": "2026-01-01T00:00:00Z"}), 0),
        (json!({"ended_from": "2026-01-01T00:00:00Z"}), 7),
    ] {
        for action in ["retry", "discard"] {
            let told = all(client, action, json!({"filter": filter, "dry_run": true})).await.expect(200);
            assert_eq!(
                (&told["dry_run"], &told["jobs"], &told["more"]),
                (&json!(true), &json!(expected), &json!(false)),
                "{filter} {told}"
            );
        }
    }
    let told = all(&client.acting_for("ada"), "retry", json!({"filter": {}, "dry_run": true})).await.expect(200);
    assert_eq!(told["jobs"], 1, "a user's own only");

    // In bites, until nothing is left; those that fail again at once are not redriven for ever.
    let mut body = json!({"filter": {"queue": "analytics"}, "limit": 2});
    let mut done = Vec::new();
    loop {
        let told = all(client, "retry", body.clone()).await.expect(200);
        done.push(told["jobs"].as_i64().unwrap());
        body["filter"]["ended_before"] = told["ended_before"].clone();
        for id in &failed {
            client.ended(id).await;
        }
        if told["more"] == false {
            break;
        }
    }
    assert_eq!(done, [2, 2, 2]);
    for id in failed.iter().chain([&adas]) {
        let job = client.wait_for(id, "failed again", |job| job["state"] == "failed" && job["attempt"] == 2).await;
        assert_eq!(job["attempts_allowed"], 4, "its kind's full number of attempts: {job}");
    }
    assert_eq!(client.job(&mails).await["attempt"], 1, "another queue's is left alone");

    // An operator does the same from a shell.
    let run = async |arguments: &[&str]| {
        let output = world.sandbox.run_api(arguments.to_vec()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["jobs", "discard", "--tenant", "acme", "--queue", "email", "--dry-run"]).await.starts_with("1 match"));
    assert!(run(&["jobs", "redrive", "--tenant", "acme", "--queue", "email"]).await.starts_with("1 wait"));
    client.wait_for(&mails, "failed again", |job| job["state"] == "failed" && job["attempt"] == 2).await;

    let told = all(&client.acting_for("ada"), "discard", json!({"filter": {}})).await.expect(200);
    assert_eq!((&told["jobs"], &told["more"]), (&json!(1), &json!(false)));
    client.get(&format!("/v1/jobs/{adas}")).await.problem(410, "job_gone");
    let told = all(client, "discard", json!({"filter": {}, "limit": 4})).await.expect(200);
    assert_eq!((&told["jobs"], &told["more"]), (&json!(4), &json!(true)));
    let told = all(client, "discard", json!({"filter": {}})).await.expect(200);
    assert_eq!((&told["jobs"], &told["more"]), (&json!(2), &json!(false)));
    assert_eq!(world.number("SELECT count(*) FROM job").await, 1);
    assert_eq!(elsewhere.job(&theirs).await["attempt"], 1, "another tenant's are untouched");

    for (body, pointer) in [
        (json!({}), "/filter"),
        (json!({"filter": {"knd": "x"}}), "/filter/knd"),
        (json!({"filter": {"state": "succeeded"}}), "/filter/state"),
        (json!({"filter": {"queue": "nowhere"}}), "/filter/queue"),
        (json!({"filter": {"state": "expired", "error_code": "x"}}), "/filter/error_code"),
        (json!({"filter": {}, "limit": 0}), "/limit"),
    ] {
        for action in ["retry", "discard"] {
            let answer = all(client, action, body.clone()).await;
            answer.problem(422, "validation_failed");
            assert_eq!(answer.pointers(), [pointer], "{body}");
        }
    }
    let answer = all(&client.acting_for("ada"), "retry", json!({"filter": {"owner": "eve"}})).await;
    answer.problem(422, "validation_failed");
    assert_eq!(answer.pointers(), ["/filter/owner"]);
}
