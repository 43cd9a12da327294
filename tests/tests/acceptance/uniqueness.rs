//! One job at a time, or one in a period: by `unique`; and how long an idempotency key is remembered.

use std::collections::BTreeSet;

use acceptance::{Client, World, id_of, probe};
use serde_json::{Value, json};

fn unique(payload: &Value, unique: &Value) -> Value {
    let mut body = probe(payload);
    body["unique"] = unique.clone();
    body
}

async fn post(client: &Client, body: &Value) -> (u16, Value) {
    let answer = client.post("/v1/jobs", body).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_second_one_is_answered_with_the_first_until_that_has_ended() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let key = json!({"key": "digest", "while": "unfinished"});
    let first = client.create_id(&unique(&json!({"sleep_ms": 3_600_000}), &key)).await;
    client.running(&first).await;
    // Other than with an idempotency key the body may differ.
    let (status, second) = post(client, &unique(&json!({"sleep_ms": 1}), &key)).await;
    assert_eq!((status, id_of(&second)), (200, first.clone()), "{second}");
    assert_eq!(second["duplicate"], json!({"of": first, "by": "unique"}), "it says of what: {second}");
    assert!(client.job(&first).await.get("duplicate").is_none(), "only the answer to the second request says so");

    // A request that was answered so is answered so again, also when the first has ended.
    let mut keyed = unique(&json!({"sleep_ms": 2}), &key);
    keyed["idempotency_key"] = json!("k-1");
    assert_eq!(post(client, &keyed).await.1["duplicate"]["by"], "unique");
    client.post_nothing(&format!("/v1/jobs/{first}/cancel")).await;
    assert_eq!(client.ended(&first).await["state"], "cancelled");
    let (status, again) = post(client, &keyed).await;
    assert_eq!((status, id_of(&again), again["duplicate"]["by"].as_str()), (200, first.clone(), Some("idempotency_key")), "{again}");

    // Its end lets go of the key; another owner's, another kind's and another tenant's never was the same.
    let next = client.create_id(&unique(&json!({"sleep_ms": 3_600_000}), &key)).await;
    assert_ne!(next, first);
    client.acting_for("ada").create(&unique(&json!({}), &key)).await;
    world.tenant("globex").await.create(&unique(&json!({}), &key)).await;
    // To run the first one again would make two of them.
    let refused = client.post_nothing(&format!("/v1/jobs/{first}/retry")).await.problem(409, "job_not_retryable");
    assert!(refused["detail"].as_str().unwrap().contains(&next), "{refused}");
    let all = client.post("/v1/jobs/retry", &json!({"filter": {"state": "cancelled"}})).await.expect(200);
    assert_eq!((all["jobs"].as_i64(), all["more"].as_bool()), (Some(0), Some(false)), "{all}");
    client.post_nothing(&format!("/v1/jobs/{next}/cancel")).await;
    assert_eq!(client.ended(&next).await["state"], "cancelled");
    // Of two that could run again one does, and has the key then.
    let all = client.post("/v1/jobs/retry", &json!({"filter": {"state": "cancelled"}})).await.expect(200);
    assert_eq!((all["jobs"].as_i64(), all["more"].as_bool()), (Some(1), Some(false)), "{all}");
    let open = world.number("SELECT count(*) FROM job_state s JOIN job j ON j.id = s.job_id WHERE s.state < 3 AND j.options ? 'unique' AND j.owner IS NULL AND j.tenant_id = 1").await;
    assert_eq!(open, 1);
}

#[tokio::test]
async fn a_period_holds_whatever_becomes_of_the_job() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let body = unique(&json!({"pad": "x"}), &json!({"for_seconds": 3600}));
    let first = client.create_id(&body).await;
    client.succeeded(&first).await;
    let (status, second) = post(client, &body).await;
    assert_eq!((status, second["duplicate"]["of"].as_str()), (200, Some(first.as_str())), "the payload is the key: {second}");
    client.create(&unique(&json!({"pad": "y"}), &json!({"for_seconds": 3600}))).await;
    world.execute("UPDATE job_unique SET until = now() - interval '1 second'").await;
    assert_ne!(client.create_id(&body).await, first);

    for (wrong, pointer) in [
        (json!({"key": "a b"}), "/unique/key"),
        (json!({"for_seconds": 0}), "/unique/for_seconds"),
        (json!({"while": "unfinished", "for_seconds": 5}), "/unique"),
        (json!({"while": "running"}), "/unique/while"),
        (json!({"until": "tomorrow"}), "/unique/until"),
    ] {
        let answer = client.post("/v1/jobs", &unique(&json!({}), &wrong)).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer], "{wrong}");
    }
}

/// Many at once, again and again: each time the key is free exactly one gets it.
#[tokio::test]
async fn of_many_at_once_one_gets_the_key() {
    let world = World::start().await;
    let client = &world.client;
    for round in 0..6 {
        // Some with idempotency keys, some of them the same ones.
        let posts = (0..50).map(|number| {
            let mut body = unique(&json!({"pad": number.to_string()}), &json!({"key": "one"}));
            if number % 5 == 0 {
                body["idempotency_key"] = json!(format!("key-{round}-{number}"));
            }
            async move { post(client, &body).await }
        });
        let answers = futures_util::future::join_all(posts).await;
        let ids: BTreeSet<String> = answers.iter().map(|(_, job)| id_of(job)).collect();
        assert_eq!(ids.len(), 1, "round {round}: all were answered with one job");
        assert_eq!(answers.iter().filter(|(status, _)| *status == 202).count(), 1, "round {round}: one was accepted");
        assert_eq!(world.number("SELECT count(*) FROM job").await, round + 1);
        let winner = ids.first().unwrap();
        assert_eq!(client.post_nothing(&format!("/v1/jobs/{winner}/cancel")).await.status, 200);
    }
}

#[tokio::test]
async fn a_manifest_says_how_long_a_kind_s_keys_are_remembered() {
    let world = World::start().await;
    let manifest = "[tenant]\nname = \"hooli\"\n[kinds.\"probe.run\"]\nidempotency_hours = 2\n";
    let client = world.tenant_of("hooli", manifest).await;
    let mut body = probe(&json!({}));
    body["idempotency_key"] = json!("k");
    let first = client.create_id(&body).await;
    let (_, second) = post(&client, &body).await;
    assert_eq!(second["duplicate"], json!({"of": first, "by": "idempotency_key"}), "{second}");
    let minutes = world
        .number("SELECT extract(epoch FROM k.expires_at - j.created_at) / 60 FROM idempotency_key k JOIN job j ON j.id = k.job_id")
        .await;
    assert_eq!(minutes, 120);
}
