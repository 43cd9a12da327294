//! Finished history: how long it is kept, what is told of it then, and that nothing else grows.

use acceptance::{Client, World, id_of, is_terminal, probe, until};
use sandbox::Launch;
use serde_json::{Value, json};

/// Makes a finished job look as if all of it had happened so many days ago, its id too. Answers the new id.
async fn age(world: &World, id: &str, days: u64) -> String {
    let millis = u64::from_str_radix(&id.replace('-', "")[..12], 16).unwrap() - days * 86_400_000;
    let head = format!("{millis:012x}");
    let aged = format!("{}-{}{}", &head[..8], &head[8..], &id[13..]);
    let times =
        |columns: &[&str]| -> String { columns.iter().map(|column| format!(", {column} = {column} - interval '{days} days'")).collect() };
    for (table, key, columns) in [
        ("job", "id", &["created_at"][..]),
        ("job_state", "job_id", &["run_at", "changed_at", "started_at", "finished_at"]),
        ("job_attempt", "job_id", &[]),
        ("job_result", "job_id", &[]),
        ("job_unsuccessful", "job_id", &["ended_at"]),
        ("job_file", "job_id", &["completed_at", "expires_at"]),
        ("effect", "job_id", &["intended_at"]),
    ] {
        world.execute(format!("UPDATE {table} SET {key} = '{aged}'{} WHERE {key} = '{id}'", times(columns))).await;
    }
    aged
}

/// A tenant that keeps what succeeded for a day, and of its exports two.
async fn forgetful(world: &World) -> Client {
    let manifest = "[tenant]\nname = \"initech\"\n[sources.main]\nurl_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"\n\
         [datasets.words]\nsource = \"main\"\naudience = \"users\"\nsql = \"SELECT 'a' AS word\"\n\
         [retention]\nkeep_days = 1\nunsuccessful_keep_days = 30\n";
    world.tenant_of("initech", manifest).await
}

async fn gone(client: &Client, path: &str, code: &str) -> Value {
    until(&format!("{path} is gone"), async || {
        let answer = client.get(path).await;
        if answer.status == 410 { Ok(answer.problem(410, code)) } else { Err(answer.text()) }
    })
    .await
}

#[tokio::test]
async fn history_goes_in_its_time_and_says_when_it_went() {
    let (world, worker) = World::with_worker().await;
    let client = forgetful(&world).await;
    let ada = client.acting_for("ada");
    let make = async |client: &Client, body: Value| {
        let id = client.create_id(&body).await;
        client.ended(&id).await;
        id
    };
    let (old, dead, fresh) =
        (make(&ada, probe(&json!({}))).await, make(&ada, probe(&json!({"outcome": "fail"}))).await, make(&ada, probe(&json!({}))).await);
    let elsewhere = make(&world.client, probe(&json!({}))).await;
    let export = id_of(&ada.post("/v1/exports", &json!({"dataset": "words", "format": "csv"})).await.expect(202));
    assert_eq!(ada.ended(&export).await["state"], "succeeded");
    worker.stop().await.unwrap();

    let (old, dead, elsewhere, export) =
        (age(&world, &old, 10).await, age(&world, &dead, 10).await, age(&world, &elsewhere, 10).await, age(&world, &export, 10).await);
    for id in [&old, &dead, &export] {
        assert!(is_terminal(&ada.job(id).await), "as it was, only older");
    }
    world.execute("DELETE FROM duty").await;
    let worker = world.worker().await;
    let told = gone(&ada, &format!("/v1/jobs/{old}"), "job_gone").await;
    let gone_at: chrono::DateTime<chrono::Utc> = told["gone_at"].as_str().unwrap().parse().unwrap();
    assert!((world.now().await - gone_at).num_seconds() < 120, "{told}");
    client.acting_for("eve").get(&format!("/v1/jobs/{old}")).await.problem(404, "job_not_found");
    world.client.get(&format!("/v1/jobs/{old}")).await.problem(404, "job_not_found");

    // The file is deleted first, its export at the next pass after that.
    until("the file is deleted", async || {
        match world.number(format!("SELECT count(*) FROM job_file WHERE deleted_at IS NULL AND job_id = '{export}'")).await {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    worker.stop().await.unwrap();
    world.execute("DELETE FROM duty").await;
    let _worker = world.worker().await;
    gone(&ada, &format!("/v1/exports/{export}"), "export_gone").await;
    gone(&ada, &format!("/v1/jobs/{export}"), "job_gone").await;
    // Kept longer, kept by others, or young.
    for (client, id) in [(&ada, &dead), (&ada, &fresh), (&world.client, &elsewhere)] {
        assert!(is_terminal(&client.job(id).await));
    }
    let list = ada.get("/v1/jobs").await.expect(200);
    let listed: Vec<_> = list["items"].as_array().unwrap().iter().map(id_of).collect();
    assert_eq!(listed, [fresh, dead]);
}

#[tokio::test]
async fn an_installation_has_its_own_word_where_a_manifest_has_none() {
    let (world, worker) = World::with_worker().await;
    let id = world.client.create_id(&probe(&json!({}))).await;
    world.client.ended(&id).await;
    worker.stop().await.unwrap();
    let id = age(&world, &id, 10).await;
    world.execute("DELETE FROM duty").await;
    let _worker = world.start_worker(Launch::new().env("OFFSTAGE_RETENTION_DAYS", "9")).await;
    gone(&world.client, &format!("/v1/jobs/{id}"), "job_gone").await;
}

#[tokio::test]
async fn streams_and_passing_tables_are_empty_once_all_is_done() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let mut ids = Vec::new();
    for index in 0..60 {
        let outcome = ["ok", "fail", "ok"][index % 3];
        let priority = ["low", "normal", "high"][index % 3];
        let body = json!({"kind": "probe.run", "priority": priority, "payload": {"outcome": outcome}});
        ids.push(client.create_id(&body).await);
    }
    for id in &ids {
        client.ended(id).await;
    }
    for table in ["job_waiting", "job_dispatched", "job_held", "job_cancel"] {
        assert_eq!(world.number(format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    // Entries are acknowledged and deleted, not only read.
    let mut keys = Vec::new();
    until("no stream holds an entry", async || {
        keys = world.sandbox.redis.command::<Vec<String>>(redis::cmd("KEYS").arg("*")).await.unwrap();
        let mut left = 0;
        for key in &keys {
            let kind: String = world.sandbox.redis.command(redis::cmd("TYPE").arg(key)).await.unwrap();
            if kind == "stream" {
                left += world.sandbox.redis.command::<u64>(redis::cmd("XLEN").arg(key)).await.unwrap();
            }
        }
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(keys.len() < 64, "as many keys as there are queues and priorities, and no more: {keys:?}");
    assert_eq!(worker.exits().len(), 0);
}
