//! Ends told to an endpoint of the product's choice: signed, once for each end, and to nobody else.

use std::sync::{Arc, Mutex};

use acceptance::{Client, World, id_of, probe, until};
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use chrono::TimeDelta;
use sandbox::{Launch, judges::python};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A delivery as it came.
#[derive(Debug, Clone)]
struct Delivery {
    id: String,
    timestamp: String,
    signature: String,
    body: Bytes,
}

#[derive(Clone, Default)]
struct Receiver {
    deliveries: Arc<Mutex<Vec<Delivery>>>,
    /// Answered first, the last one first.
    refusals: Arc<Mutex<Vec<u16>>>,
}

impl Receiver {
    /// Listens on a free port, which is answered.
    async fn listen(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().route("/hook", post(note)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        port
    }

    /// What came about a job, once there are so many.
    async fn about(&self, job: &str, count: usize) -> Vec<Delivery> {
        until(&format!("{count} deliveries about {job}"), async || {
            let deliveries = self.deliveries.lock().unwrap();
            let about: Vec<_> = deliveries.iter().filter(|delivery| delivery.id.starts_with(job)).cloned().collect();
            if about.len() >= count { Ok(about) } else { Err(about.len()) }
        })
        .await
    }
}

async fn note(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(headers["content-type"], "application/json");
    let delivery = Delivery { id: text("webhook-id"), timestamp: text("webhook-timestamp"), signature: text("webhook-signature"), body };
    receiver.deliveries.lock().unwrap().push(delivery);
    receiver.refusals.lock().unwrap().pop().map_or(StatusCode::NO_CONTENT, |status| StatusCode::from_u16(status).unwrap())
}

/// The body of a delivery that somebody else's program takes for right.
fn verified(delivery: &Delivery) -> Value {
    let script = "import sys\n\
        from standardwebhooks import Webhook\n\
        secret, id, timestamp, signature = sys.argv[1:]\n\
        body = sys.stdin.buffer.read()\n\
        headers = {'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': signature}\n\
        Webhook(secret).verify(body, headers)\n\
        try:\n\
        \tWebhook(secret).verify(body + b' ', headers)\n\
        except Exception:\n\
        \tsys.exit(0)\n\
        sys.exit('it takes anything')";
    let Delivery { id, timestamp, signature, body } = delivery;
    // The verifier of the specification's authors.
    let mut python = python(&["standardwebhooks==1.1.0"]).expect("python3 with pip");
    python.args(["-c", script, SECRET, id, timestamp, signature]);
    let mut child = python.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), body).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{delivery:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(body).unwrap()
}

/// A tenant whose ends may be told to the receiver.
async fn tenant(world: &World, hosts: &str) -> Client {
    let manifest = format!("[tenant]\nname = \"telling\"\n[completion]\nsecret_env = \"OFFSTAGE_COMPLETION_TELLING\"\n{hosts}\n");
    world.tenant_of("telling", &manifest).await
}

async fn worker(world: &World) -> sandbox::Process {
    world.start_worker(Launch::new().env("OFFSTAGE_COMPLETION_TELLING", SECRET)).await
}

fn telling(payload: &Value, url: &str) -> Value {
    let mut job = probe(payload);
    job["completion_url"] = json!(url);
    job
}

#[tokio::test]
async fn each_end_is_told_once_and_signed() {
    let (world, receiver) = (World::start().await, Receiver::default());
    let port = receiver.listen().await;
    let client = tenant(&world, &format!("private_hosts = [\"127.0.0.1:{port}\"]")).await;
    let url = format!("http://127.0.0.1:{port}/hook");

    // Two that end without a worker's doing, and two with it.
    let mut planned = telling(&json!({}), &url);
    planned["run_at"] = json!(world.now().await + TimeDelta::hours(1));
    let cancelled = client.create_id(&planned).await;
    let _ = client.post_nothing(&format!("/v1/jobs/{cancelled}/cancel")).await.expect(200);
    let start_by = world.now().await + TimeDelta::seconds(1);
    let mut late = telling(&json!({}), &url);
    late["start_by"] = json!(start_by);
    let expired = client.create_id(&late).await;
    until("its time is over", async || if world.now().await > start_by { Ok(()) } else { Err(()) }).await;
    let _worker = worker(&world).await;
    let succeeded = client.create_id(&telling(&json!({"sleep_ms": 10}), &url)).await;
    let failed = client.create_id(&telling(&json!({"outcome": "fail"}), &url)).await;
    let untold = client.create_id(&probe(&json!({}))).await;
    for (id, state) in [(&cancelled, "cancelled"), (&expired, "expired"), (&succeeded, "succeeded"), (&failed, "failed")] {
        let deliveries = receiver.about(id, 1).await;
        let body = verified(&deliveries[0]);
        let mut shown = client.job(id).await;
        shown.as_object_mut().unwrap().remove("payload");
        assert_eq!((body["state"].as_str(), &body), (Some(state), &shown), "the same view");
        assert_eq!(deliveries[0].id, format!("{id}-{}", shown["version"]));
    }
    client.succeeded(&untold).await;

    // A job that runs again ends again.
    let _ = client.post_nothing(&format!("/v1/jobs/{failed}/retry")).await.expect(202);
    let both = receiver.about(&failed, 2).await;
    assert_ne!(both[0].id, both[1].id);
    assert_eq!(verified(&both[1])["attempt"], 2);

    // The telling is a job of its own, the backend's and nobody else's.
    let told = "SELECT count(*) FROM job j JOIN job_state s ON s.job_id = j.id WHERE kind = 'completion.notify' AND s.state = 3";
    until("all are told", async || match world.number(told).await {
        5 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(receiver.deliveries.lock().unwrap().len(), 5, "once each");
    assert_eq!(world.number("SELECT count(*) FROM job_ended").await, 0);
    let listed = client.get("/v1/jobs?kind=completion.notify").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 5);
    let refused = client.post("/v1/jobs", &json!({"kind": "completion.notify", "payload": listed["items"][0]["payload"]})).await;
    refused.problem(422, "validation_failed");
}

#[tokio::test]
async fn a_receiver_that_refuses_is_asked_again_under_the_same_id() {
    let (world, receiver) = (World::start().await, Receiver::default());
    let port = receiver.listen().await;
    let client = tenant(&world, &format!("private_hosts = [\"127.0.0.1:{port}\"]")).await;
    receiver.refusals.lock().unwrap().push(500);
    let worker = worker(&world).await;
    let id = client.create_id(&telling(&json!({"outcome": "fail"}), &format!("http://127.0.0.1:{port}/hook"))).await;
    let first = receiver.about(&id, 1).await.remove(0);
    // It is run again meanwhile: what is told is still its first end.
    client.ended(&id).await;
    let again = receiver.about(&id, 2).await.remove(1);
    assert_eq!((&again.id, &again.body), (&first.id, &first.body));
    assert_ne!((&again.timestamp, &again.signature), (&first.timestamp, &first.signature), "each try is signed for its time");
    verified(&first);
    verified(&again);
    let logs = [world.api.log(), worker.log()].concat();
    assert!(!logs.contains("whsec_") && !logs.contains("/hook"), "neither key nor address is logged");
}

#[tokio::test]
async fn ends_are_told_to_listed_hosts_only() {
    let (world, receiver) = (World::start().await, Receiver::default());
    let port = receiver.listen().await;
    // Listed, but not as one that may be private.
    let client = tenant(&world, &format!("hosts = [\"hooks.example.com\", \"localhost:{port}\"]")).await;
    for url in [
        "https://elsewhere.example.com/".to_owned(),
        "http://hooks.example.com/".to_owned(),
        "https://hooks.example.com:8443/".to_owned(),
        format!("http://localhost:{port}/hook"),
        "https://169.254.169.254/latest/meta-data".to_owned(),
        "nonsense".to_owned(),
        format!("https://hooks.example.com/{}", "a".repeat(2_000)),
    ] {
        let answer = client.post("/v1/jobs", &telling(&json!({}), &url)).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), ["/completion_url"], "{url}");
    }
    let answer = world.client.post("/v1/jobs", &telling(&json!({}), "https://hooks.example.com/")).await;
    answer.problem(422, "validation_failed");
    let answer = client.post("/v1/exports", &json!({"dataset": "x", "format": "csv", "completion_url": "http://x/"})).await;
    assert!(answer.pointers().contains(&"/completion_url".to_owned()));
    assert_eq!(world.number("SELECT count(*) FROM job").await, 0);

    // The sandbox lets users' addresses lead to this machine; an operator who has not said so does not.
    let _worker = world.start_worker(Launch::new().env("OFFSTAGE_COMPLETION_TELLING", SECRET).env("OFFSTAGE_OUTBOUND_ALLOW", "")).await;
    client.ended(&client.create_id(&telling(&json!({}), &format!("https://localhost:{port}/hook"))).await).await;
    let told = until("the telling has failed", async || {
        let listed = client.get("/v1/jobs?kind=completion.notify&state=failed").await.expect(200);
        listed["items"].as_array().and_then(|items| items.first().cloned()).ok_or(listed)
    })
    .await;
    assert_eq!((told["error"]["code"].as_str(), told["attempt"].as_i64()), (Some("completion_not_allowed"), Some(1)), "{told}");
    assert!(receiver.deliveries.lock().unwrap().is_empty());
    assert!(!id_of(&told).is_empty());
}
