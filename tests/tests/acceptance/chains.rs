//! Chains: jobs that are made when another one succeeds.

use acceptance::{Client, World, probe, until};
use serde_json::{Value, json};

fn then(payload: &Value, next: &[Value]) -> Value {
    let mut body = probe(payload);
    body["then"] = json!(next);
    body
}

async fn followed(client: &Client, id: &str) -> Value {
    client.succeeded(id).await;
    until("what follows has been made", async || {
        let job = client.job(id).await;
        if job["then"]["state"] == "created" { Ok(job) } else { Err(job) }
    })
    .await
}

#[tokio::test]
async fn each_success_brings_what_follows_once() {
    let (world, _worker) = World::with_worker().await;
    let ada = world.client.acting_for("ada");
    let last = probe(&json!({"pad": "last"}));
    let middle = then(&json!({"pad": "middle", "queue": "email"}), &[last]);
    let first = ada.create(&then(&json!({"pad": "first"}), &[middle, probe(&json!({"pad": "beside"}))])).await;
    assert_eq!(first["then"], json!({"state": "waiting", "kinds": ["probe.run", "probe.run"], "jobs": []}), "{first}");
    let first = followed(&ada, first["id"].as_str().unwrap()).await;
    let children: Vec<&str> = first["then"]["jobs"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!(children.len(), 2);
    let middle = followed(&ada, children[0]).await;
    let beside = ada.succeeded(children[1]).await;
    for (child, pad) in [(&middle, "middle"), (&beside, "beside")] {
        assert_eq!((&child["parent"], child["payload"]["pad"].as_str()), (&json!({"job": first["id"]}), Some(pad)), "{child}");
        assert_eq!(child["owner"], "ada", "it is its parent's owner's");
    }
    let last = ada.succeeded(middle["then"]["jobs"][0].as_str().unwrap()).await;
    assert_eq!((last["payload"]["pad"].as_str(), last.get("then")), (Some("last"), None), "{last}");
    assert_eq!(world.number("SELECT count(*) FROM job").await, 4);
}

#[tokio::test]
async fn what_does_not_succeed_brings_nothing_until_it_does() {
    let (world, _worker) = World::with_worker().await;
    let client = &world.client;
    let failed = client.create_id(&then(&json!({"outcome": "fail"}), &[probe(&json!({}))])).await;
    let job = client.ended(&failed).await;
    assert_eq!((job["state"].as_str(), job["then"]["state"].as_str()), (Some("failed"), Some("not_created")), "{job}");
    until("its end was followed", async || match world.number("SELECT count(*) FROM job_ended").await {
        0 => Ok(()),
        open => Err(open),
    })
    .await;
    assert_eq!(world.number("SELECT count(*) FROM job").await, 1, "it brought nothing");
    // It succeeds at another try, as one does whose cause was mended.
    world.execute(format!("UPDATE job SET payload = '{{}}' WHERE id = '{failed}'")).await;
    client.post_nothing(&format!("/v1/jobs/{failed}/retry")).await.expect(202);
    let job = followed(client, &failed).await;
    assert_eq!(job["then"]["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(world.number("SELECT count(*) FROM job").await, 2);
}

#[tokio::test]
async fn what_is_to_follow_is_checked_beforehand() {
    let world = World::start().await;
    let client = &world.client;
    let deep = (0..6).fold(probe(&json!({})), |next, _| then(&json!({}), &[next]));
    let wide: Vec<Value> = (0..10).map(|_| then(&json!({}), &vec![probe(&json!({})); 10])).collect();
    let heavy: Vec<Value> = (0..3).map(|_| probe(&json!({"pad": "x".repeat(100_000)}))).collect();
    for (body, pointer) in [
        (then(&json!({}), &[json!({"kind": "no.such", "payload": {}})]), "/then/0/kind"),
        (
            then(&json!({}), &[probe(&json!({})), then(&json!({}), &[probe(&json!({"timeout_ms": 0}))])]),
            "/then/1/then/0/payload/timeout_ms",
        ),
        (then(&json!({}), &[json!({"kind": "probe.run", "payload": {}, "owner": "a b"})]), "/then/0/owner"),
        (then(&json!({}), &[json!({"kind": "probe.run", "payload": {}, "delay_seconds": 2_592_001})]), "/then/0/delay_seconds"),
        (then(&json!({}), &[json!({"kind": "probe.run", "payload": {}, "run_at": "2030-01-01T00:00:00Z"})]), "/then/0/run_at"),
        (then(&json!({}), &vec![probe(&json!({})); 11]), "/then"),
        (deep, "/then/0/then/0/then/0/then/0/then/0/then"),
        (then(&json!({}), &wide), "/then"),
        (then(&json!({}), &heavy), "/then"),
    ] {
        let answer = client.post("/v1/jobs", &body).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [pointer]);
    }
    assert_eq!(world.number("SELECT count(*) FROM job").await, 0);
}
