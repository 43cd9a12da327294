//! Batches: many jobs at once, and what follows when all have ended.

use std::time::Instant;

use acceptance::{Client, World, id_of, probe, until};
use serde_json::{Value, json};

fn many(count: usize, payload: &Value) -> Vec<Value> {
    (0..count).map(|_| probe(payload)).collect()
}

async fn finished(client: &Client, id: &str) -> Value {
    until("the batch has finished", async || {
        let batch = client.get(&format!("/v1/batches/{id}")).await.expect(200);
        if batch["finished_at"].is_null() { Err(batch) } else { Ok(batch) }
    })
    .await
}

fn follow_ups(batch: &Value) -> Vec<String> {
    batch["then"]["jobs"].as_array().unwrap_or_else(|| panic!("{batch}")).iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn five_thousand_are_accepted_done_counted_and_followed_once() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let body = json!({"name": "import", "jobs": many(5_000, &json!({})), "then": [probe(&json!({"pad": "after all"}))]});
    let began = Instant::now();
    let accepted = client.post("/v1/jobs/batch", &body).await.expect(202);
    println!("5,000 jobs were accepted in {:.2} s", began.elapsed().as_secs_f64());
    let id = id_of(&accepted);
    assert_eq!((accepted["jobs"].as_i64(), accepted["items"].as_array().unwrap().len()), (Some(5_000), 5_000));
    assert_eq!(accepted["then"]["state"], "waiting");
    let item = &accepted["items"][17];
    assert_eq!((item["index"].as_i64(), item["outcome"].as_str()), (Some(17), Some("accepted")), "{item}");
    assert_eq!(client.job(item["job"].as_str().unwrap()).await["batch"], id.as_str());

    let batch = finished(client, &id).await;
    println!("and done {:.2} s after they were asked for", began.elapsed().as_secs_f64());
    assert_eq!((batch["counts"]["succeeded"].as_i64(), batch["progress"]["done"].as_i64()), (Some(5_000), Some(5_000)), "{batch}");
    assert_eq!((batch["state"].as_str(), batch["then"]["state"].as_str()), (Some("finished"), Some("created")), "{batch}");
    let after = follow_ups(&batch);
    assert_eq!(after.len(), 1);
    let after = client.succeeded(&after[0]).await;
    assert_eq!((&after["parent"], after["payload"]["pad"].as_str()), (&json!({"batch": id}), Some("after all")), "{after}");

    // Its jobs in pages, as other lists.
    let page = client.get(&format!("/v1/batches/{id}/jobs?limit=200")).await.expect(200);
    let next = page["next_cursor"].as_str().unwrap();
    let second = client.get(&format!("/v1/batches/{id}/jobs?limit=200&cursor={next}")).await.expect(200);
    assert_eq!((page["items"].as_array().unwrap().len(), second["items"].as_array().unwrap().len()), (200, 200));
    assert!(id_of(&second["items"][0]) < id_of(&page["items"][199]), "newest first");
    let failed = client.get(&format!("/v1/batches/{id}/jobs?state=failed")).await.expect(200);
    assert_eq!(failed["items"], json!([]));
    let list = client.get("/v1/batches").await.expect(200);
    assert_eq!((id_of(&list["items"][0]), list["items"][0].get("counts")), (id, None), "{list}");
}

#[tokio::test]
async fn all_or_nothing_names_what_is_wrong_and_per_item_takes_the_others() {
    let world = World::start().await;
    let client = &world.client;
    let mut keyed = probe(&json!({}));
    keyed["idempotency_key"] = json!("order-1");
    let first = client.create_id(&keyed).await;
    let mut other = probe(&json!({"pad": "other"}));
    other["idempotency_key"] = json!("order-1");
    let mut twice = probe(&json!({"pad": "twice"}));
    twice["idempotency_key"] = json!("order-2");

    let jobs = json!([
        probe(&json!({})),
        {"kind": "no.such", "payload": {}},
        probe(&json!({"sleep_ms": "long", "colour": 1})),
        "nonsense",
        {"kind": "probe.run", "payload": {}, "priority": "urgent", "then": []},
        {"kind": "probe.run", "payload": {}, "then": [{"kind": "probe.run", "payload": {"timeout_ms": 0}}]},
    ]);
    let answer = client.post("/v1/jobs/batch", &json!({"jobs": jobs})).await;
    let problem = answer.problem(422, "validation_failed");
    let pointers = answer.pointers();
    for wanted in [
        "/jobs/1/kind",
        "/jobs/2/payload/sleep_ms",
        "/jobs/2/payload/colour",
        "/jobs/3",
        "/jobs/4/priority",
        "/jobs/5/then/0/payload/timeout_ms",
    ] {
        assert!(pointers.iter().any(|pointer| pointer == wanted), "{wanted}: {problem}");
    }
    assert_eq!(world.number("SELECT count(*) FROM job").await, 1, "nothing was accepted");

    let conflict = client.post("/v1/jobs/batch", &json!({"jobs": [probe(&json!({})), other]})).await;
    conflict.problem(409, "idempotency_conflict");
    assert_eq!(conflict.pointers(), ["/jobs/1/idempotency_key"]);
    assert_eq!(world.number("SELECT count(*) FROM job").await, 1, "nothing was accepted");

    let jobs = json!([probe(&json!({})), {"kind": "no.such", "payload": {}}, keyed, other, twice, twice, {"kind": "probe.run", "payload": {"sleep_ms": "long"}}]);
    let accepted = client.post("/v1/jobs/batch", &json!({"mode": "per_item", "jobs": jobs})).await.expect(202);
    let outcome = |index: usize| accepted["items"][index]["outcome"].as_str().unwrap().to_owned();
    assert_eq!(
        (0..7).map(outcome).collect::<Vec<_>>(),
        ["accepted", "refused", "duplicate", "refused", "accepted", "duplicate", "refused"],
        "{accepted}"
    );
    let item = |index: usize| &accepted["items"][index];
    assert_eq!((item(2)["job"].as_str(), item(2)["by"].as_str()), (Some(first.as_str()), Some("idempotency_key")), "{accepted}");
    assert_eq!(item(4)["job"], item(5)["job"], "one key, one job");
    assert_eq!(
        (item(3)["code"].as_str(), item(1)["errors"][0]["pointer"].as_str()),
        (Some("idempotency_conflict"), Some("/jobs/1/kind")),
        "{accepted}"
    );
    assert_eq!((accepted["jobs"].as_i64(), accepted["items_asked"].as_i64()), (Some(3), Some(7)), "{accepted}");

    let nothing_right = json!({"mode": "per_item", "jobs": [{"kind": "no.such", "payload": {}}]});
    client.post("/v1/jobs/batch", &nothing_right).await.problem(422, "validation_failed");
    for (body, pointer) in [
        (json!({"jobs": []}), "/jobs"),
        (json!({"jobs": many(5_001, &json!({}))}), "/jobs"),
        (json!({"jobs": many(1, &json!({})), "name": ""}), "/name"),
        (json!({"jobs": many(1, &json!({})), "mode": "some"}), "/mode"),
        (json!({"jobs": many(1, &json!({})), "then": many(11, &json!({}))}), "/then"),
        (json!({"jobs": many(1, &json!({})), "then": [{"kind": "no.such", "payload": {}}]}), "/then/0/kind"),
    ] {
        let answer = client.post("/v1/jobs/batch", &body).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer]);
    }
    assert_eq!(world.number("SELECT count(*) FROM batch").await, 1);
}

#[tokio::test]
async fn a_repeated_request_is_answered_with_the_first_s_batch() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let body = json!({"jobs": many(3, &json!({})), "then": [probe(&json!({}))], "idempotency_key": "import-7"});
    let posts = (0..8).map(|_| client.post("/v1/jobs/batch", &body));
    let answers = futures_util::future::join_all(posts).await;
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 202).count(),
        1,
        "{:?}",
        answers.iter().map(|a| a.status).collect::<Vec<_>>()
    );
    let id = id_of(&answers[0].json());
    for answer in &answers {
        let batch = answer.json();
        assert_eq!((id_of(&batch), batch["items"].as_array().unwrap().len()), (id.clone(), 3), "{batch}");
    }
    finished(client, &id).await;
    assert_eq!(id_of(&client.post("/v1/jobs/batch", &body).await.expect(200)), id);
    assert_eq!(world.number("SELECT count(*) FROM job").await, 4, "three, and what followed");
    let other = json!({"jobs": many(2, &json!({})), "idempotency_key": "import-7"});
    client.post("/v1/jobs/batch", &other).await.problem(409, "idempotency_conflict");
    // A single job's key is another one, and so is another user's.
    let mut single = probe(&json!({}));
    single["idempotency_key"] = json!("import-7");
    client.create(&single).await;
    assert_eq!(client.acting_for("ada").post("/v1/jobs/batch", &body).await.status, 202);
}

#[tokio::test]
async fn however_they_end_it_is_followed_once_and_not_again() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    // One that was there before, and is not told of by its own end.
    let mut before = probe(&json!({"sleep_ms": 1_000}));
    before["idempotency_key"] = json!("before");
    let was_there = client.create_id(&before).await;
    let jobs = json!([before, probe(&json!({"outcome": "fail"})), probe(&json!({})), probe(&json!({"sleep_ms": 3_600_000}))]);
    let accepted = client
        .post("/v1/jobs/batch", &json!({"jobs": jobs, "then": [probe(&json!({})), probe(&json!({"queue": "email"}))]}))
        .await
        .expect(202);
    let id = id_of(&accepted);
    assert_eq!(accepted["items"][0]["job"], was_there.as_str());
    let job = |index: usize| accepted["items"][index]["job"].as_str().unwrap().to_owned();
    client.ended(&job(1)).await;
    client.ended(&job(2)).await;
    client.running(&job(3)).await;
    let batch = client.get(&format!("/v1/batches/{id}")).await.expect(200);
    assert_eq!((batch["state"].as_str(), batch["then"]["state"].as_str()), (Some("open"), Some("waiting")), "{batch}");
    client.post_nothing(&format!("/v1/jobs/{}/cancel", job(3))).await.expect(202);
    let batch = finished(client, &id).await;
    let counts = &batch["counts"];
    assert_eq!((&counts["succeeded"], &counts["failed"], &counts["cancelled"]), (&json!(2), &json!(1), &json!(1)), "{batch}");
    assert_eq!(follow_ups(&batch).len(), 2);
    // A member that runs again does not bring it again.
    let failed = job(1);
    client.post_nothing(&format!("/v1/jobs/{failed}/retry")).await.expect(202);
    until("it failed again, and that was followed", async || {
        let runs = client.job_with_attempts(&failed).await["attempts"].as_array().unwrap().len();
        let open = world.number("SELECT count(*) FROM job_ended").await;
        if runs == 2 && open == 0 { Ok(()) } else { Err((runs, open)) }
    })
    .await;
    assert_eq!(world.number("SELECT count(*) FROM job WHERE options ? 'parent'").await, 2);
}

#[tokio::test]
async fn a_worker_that_is_killed_before_the_follow_up_leaves_it_to_another_which_makes_it_once() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let accepted =
        client.post("/v1/jobs/batch", &json!({"jobs": many(3, &json!({"sleep_ms": 300})), "then": [probe(&json!({}))]})).await.expect(202);
    let id = id_of(&accepted);
    // Whoever wants to finish the batch waits for its row.
    let mut held = world.sandbox.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM batch WHERE id = $1::uuid FOR UPDATE").bind(&id).execute(&mut *held).await.unwrap();
    for item in accepted["items"].as_array().unwrap() {
        client.succeeded(item["job"].as_str().unwrap()).await;
    }
    until("the worker is about to make the follow-up", async || {
        match world
            .number("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FROM batch %FOR UPDATE%'")
            .await
        {
            0 => Err("nobody waits"),
            _ => Ok(()),
        }
    })
    .await;
    worker.kill9().await.unwrap();
    assert_eq!(world.number("SELECT count(*) FROM job WHERE options ? 'parent'").await, 0);
    held.rollback().await.unwrap();
    // Two at once, beside the one that is started again by itself.
    let _others = tokio::join!(world.worker(), world.worker());
    let batch = finished(client, &id).await;
    let after = follow_ups(&batch);
    assert_eq!(after.len(), 1);
    client.succeeded(&after[0]).await;
    assert_eq!(world.number("SELECT count(*) FROM job WHERE options ? 'parent'").await, 1);
}

#[tokio::test]
async fn a_batch_is_cancelled_as_a_whole() {
    let world = World::start().await;
    let client = &world.client;
    let mut before = probe(&json!({}));
    before["idempotency_key"] = json!("somebody-else-s");
    let was_there = client.create_id(&before).await;
    let mut jobs = many(1_200, &json!({"sleep_ms": 3_600_000}));
    jobs.push(before);
    let accepted = client.post("/v1/jobs/batch", &json!({"jobs": jobs, "then": [probe(&json!({}))]})).await.expect(202);
    let id = id_of(&accepted);
    let _worker = world.worker().await;
    until("some run", async || match world.number("SELECT count(*) FROM job_state WHERE state = 2").await {
        0 => Err(0),
        running => Ok(running),
    })
    .await;
    let cancelled = client.post_nothing(&format!("/v1/batches/{id}/cancel")).await.expect(200);
    assert_eq!(cancelled["more"], false, "{cancelled}");
    let number = |field: &str| cancelled[field].as_i64().unwrap();
    assert_eq!(number("jobs_cancelled") + number("jobs_asked"), 1_200, "{cancelled}");
    let batch = finished(client, &id).await;
    assert_eq!((batch["state"].as_str(), batch["counts"]["cancelled"].as_i64()), (Some("cancelled"), Some(1_200)), "{batch}");
    assert_eq!((batch["then"]["state"].as_str(), follow_ups(&batch).len()), (Some("not_created"), 0), "{batch}");
    client.succeeded(&was_there).await;
    client.post_nothing(&format!("/v1/batches/{id}/cancel")).await.expect(200);
    let done = id_of(&client.post("/v1/jobs/batch", &json!({"jobs": many(1, &json!({}))})).await.expect(202));
    finished(client, &done).await;
    client.post_nothing(&format!("/v1/batches/{done}/cancel")).await.problem(409, "batch_not_cancellable");
    // The backlog's tables are clean.
    assert_eq!(world.number("SELECT (SELECT count(*) FROM job_waiting) + (SELECT count(*) FROM job_dispatched)").await, 0);
}

#[tokio::test]
async fn who_cancels_while_another_does_has_cancelled_it_too() {
    let world = World::start().await;
    let client = &world.client;
    let id = id_of(&client.post("/v1/jobs/batch", &json!({"jobs": many(3, &json!({}))})).await.expect(202));
    let path = format!("/v1/batches/{id}/cancel");
    let mut held = world.sandbox.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM batch WHERE id = $1::uuid FOR UPDATE").bind(&id).execute(&mut *held).await.unwrap();
    // Both have seen that nobody had cancelled it.
    let release = async {
        until("both wait for the batch", async || match world.number("SELECT count(*) FROM pg_locks WHERE NOT granted").await {
            2 => Ok(()),
            waiting => Err(waiting),
        })
        .await;
        held.rollback().await.unwrap();
    };
    let (one, other, ()) = tokio::join!(client.post_nothing(&path), client.post_nothing(&path), release);
    let cancelled: Vec<i64> = [one, other].map(|answer| answer.expect(200)["jobs_cancelled"].as_i64().unwrap()).into();
    assert_eq!(cancelled.iter().sum::<i64>(), 3, "{cancelled:?}");
}

#[tokio::test]
async fn a_batch_of_another_user_or_tenant_is_not_there() {
    let world = World::start().await;
    let ada = world.client.acting_for("ada");
    let id = id_of(&ada.post("/v1/jobs/batch", &json!({"jobs": many(2, &json!({}))})).await.expect(202));
    assert_eq!(ada.get(&format!("/v1/batches/{id}")).await.expect(200)["owner"], "ada");
    assert_eq!(world.client.get(&format!("/v1/batches/{id}")).await.status, 200, "the backend sees it");
    for stranger in [world.client.acting_for("eve"), world.tenant("globex").await, world.tenant("hooli").await.acting_for("ada")] {
        stranger.get(&format!("/v1/batches/{id}")).await.problem(404, "batch_not_found");
        stranger.get(&format!("/v1/batches/{id}/jobs")).await.problem(404, "batch_not_found");
        stranger.post_nothing(&format!("/v1/batches/{id}/cancel")).await.problem(404, "batch_not_found");
        assert_eq!(stranger.get("/v1/batches").await.expect(200)["items"], json!([]));
    }
    let mut eves = probe(&json!({}));
    eves["owner"] = json!("eve");
    let answer = ada.post("/v1/jobs/batch", &json!({"jobs": [eves]})).await;
    answer.problem(422, "validation_failed");
    assert_eq!(answer.pointers(), ["/jobs/0/owner"]);
}
