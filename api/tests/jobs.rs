//! Jobs through the door where the logic is intricate: repeats, waiting, changes that meet. The worker's part is played by
//! the ledger's own statements, so that each state lasts until the test moves on.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{Client, Method, RequestBuilder};
use sandbox::{Launch, Options, Process, Sandbox};
use serde_json::{Value, json};
use shared::{
    job::{Failure, JobId, Outcome, Policy, Priority, Success},
    ledger::{
        claim::{self, ClaimedJob},
        dispatch,
        settle::{self, Settlement},
    },
    queue::Queue,
};
use uuid::Uuid;

/// Long enough for a slow machine; what should be there at once is there long before.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    sandbox: Sandbox,
    api: Process,
    client: Client,
    key: String,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    etag: String,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    #[track_caller]
    fn problem(self, status: u16, code: &str) -> Value {
        let body = self.expect(status);
        assert_eq!(body["code"], code, "{body}");
        body
    }
}

impl World {
    async fn start() -> Self {
        let sandbox = Sandbox::start(Options::test()).await.unwrap();
        let api = sandbox.start_api(Launch::new().once()).await.unwrap();
        let key = sandbox.promptlockr_key().await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test is the client")]
        let client = Client::builder().timeout(Duration::from_secs(45)).build().unwrap();
        Self { sandbox, api, client, key }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.api.url())).bearer_auth(&self.key)
    }

    async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        answer(self.request(Method::POST, path).json(body)).await
    }

    async fn probe(&self) -> String {
        id_of(&self.post("/v1/jobs", &json!({"kind": "probe.run", "payload": {}})).await.expect(202))
    }

    /// Takes a job as a worker would.
    async fn claim(&self, id: &str) -> ClaimedJob {
        let id = JobId(id.parse().unwrap());
        let claimed = claim::claim(self.sandbox.pool(), &[id], Uuid::from_u128(7), self.now().await).await.unwrap();
        let [claimed] = <[ClaimedJob; 1]>::try_from(claimed).expect("it is queued");
        claimed
    }

    /// Ends a run as a worker would.
    async fn settle(&self, claimed: &ClaimedJob, outcome: Outcome) {
        let settlement = Settlement::decide(claimed, &Policy::DEFAULT, outcome, self.now().await);
        assert_eq!(settle::settle(&mut self.sandbox.pool().acquire().await.unwrap(), &[settlement]).await.unwrap().len(), 1);
    }

    async fn now(&self) -> DateTime<Utc> {
        sqlx::query_scalar("SELECT now()").fetch_one(self.sandbox.pool()).await.unwrap()
    }

    async fn count(&self, table: &'static str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"))).fetch_one(self.sandbox.pool()).await.unwrap()
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let etag = response.headers().get("etag").map_or(String::new(), |etag| etag.to_str().unwrap().to_owned());
    let text = response.text().await.unwrap();
    Answer { status, etag, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

#[track_caller]
fn id_of(view: &Value) -> String {
    view["id"].as_str().unwrap_or_else(|| panic!("no id in {view}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_its_job_also_when_it_would_not_be_accepted_as_new() {
    let world = World::start().await;
    let start_by = world.now().await + TimeDelta::seconds(2);
    let body = json!({"kind": "probe.run", "payload": {"sleep_ms": 1, "pad": "é"}, "start_by": start_by, "idempotency_key": "k"});
    let first = id_of(&world.post("/v1/jobs", &body).await.expect(202));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while world.now().await <= start_by {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The sender never heard the answer, and sends again.
    assert_eq!(id_of(&world.post("/v1/jobs", &body).await.expect(200)), first);
    // Without the key, or as another request, it is what it is: too late.
    let mut other = body.clone();
    other["payload"]["sleep_ms"] = json!(2);
    world.post("/v1/jobs", &other).await.problem(422, "validation_failed");
    let mut other = body.clone();
    other["idempotency_key"] = json!("another");
    world.post("/v1/jobs", &other).await.problem(422, "validation_failed");
    // Another user's key of the same name is another key.
    let other = answer(world.request(Method::POST, "/v1/jobs").header("X-Acting-User", "ada").json(&body)).await;
    other.problem(422, "validation_failed");
    // Nobody gets at a job by naming its owner.
    let owned = json!({"kind": "probe.run", "payload": {}, "owner": "ada", "idempotency_key": "k"});
    let adas = id_of(&world.post("/v1/jobs", &owned).await.expect(202));
    let eve = answer(world.request(Method::POST, "/v1/jobs").header("X-Acting-User", "eve").json(&owned)).await;
    let refused = eve.problem(422, "validation_failed");
    assert!(!refused.to_string().contains(&adas), "{refused}");
    assert_eq!(refused["errors"].as_array().unwrap().len(), 1, "{refused}");

    // The same key for something else names the job it made.
    let conflict = json!({"kind": "probe.run", "payload": {"sleep_ms": 2}, "idempotency_key": "k"});
    let conflict = world.post("/v1/jobs", &conflict).await.problem(409, "idempotency_conflict");
    assert!(conflict["detail"].as_str().unwrap().contains(&first), "{conflict}");
    // An export is the same job by whichever door it comes.
    let export = json!({"dataset": "packages", "format": "csv", "params": {"section": "games"}, "idempotency_key": "e"});
    let by_exports = id_of(&world.post("/v1/exports", &export).await.expect(202));
    let job = json!({
        "kind": "export.create",
        "payload": {"params": {"section": "games"}, "format": "csv", "dataset": "packages"},
        "idempotency_key": "e", "priority": "normal",
    });
    assert_eq!(id_of(&world.post("/v1/jobs", &job).await.expect(200)), by_exports);
    let again = world.post("/v1/exports", &export).await.expect(200);
    assert_eq!((id_of(&again), again["state"].as_str()), (by_exports, Some("pending")));
    assert_eq!(world.count("job").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once_under_one_key_are_one_job() {
    let world = Arc::new(World::start().await);
    let body = json!({"kind": "probe.run", "payload": {"pad": "x"}, "idempotency_key": "k"});
    let requests = (0..50).map(|_| {
        let (world, body) = (world.clone(), body.clone());
        tokio::spawn(async move { world.post("/v1/jobs", &body).await })
    });
    let mut answers = Vec::new();
    for request in requests.collect::<Vec<_>>() {
        answers.push(request.await.unwrap());
    }
    let mut accepted = 0;
    let first = id_of(&answers[0].body);
    for answer in &answers {
        assert_eq!(id_of(&answer.body), first);
        accepted += i32::from(answer.status == 202);
        assert!([200, 202].contains(&answer.status), "{answer:?}");
    }
    assert_eq!((accepted, world.count("job").await, world.count("idempotency_key").await), (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_hears_of_news_with_redis_and_without() {
    let world = Arc::new(World::start().await);
    let id = world.probe().await;
    let wait = |path: String| {
        let world = world.clone();
        tokio::spawn(async move { tokio::time::timeout(PATIENCE, world.get(&path)).await.expect("news, and not the end of the wait") })
    };
    let waiting = async |number: usize| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let figures = world.client.get(format!("{}/metrics", world.api.url())).send().await.unwrap().text().await.unwrap();
            let value = figures.lines().find_map(|line| line.strip_prefix("offstage_http_requests_waiting "));
            if value == Some(&number.to_string()) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{value:?} wait, not {number}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };

    // Two ways to say what is known, and one to know nothing: news is what happens from now on.
    let tag = world.get(&format!("/v1/jobs/{id}")).await.etag;
    assert_eq!(tag, "W/\"1\"");
    let by_since = wait(format!("/v1/jobs/{id}?wait=30&since=1"));
    let by_nothing = wait(format!("/v1/jobs/{id}?wait=30"));
    let by_tag = {
        let (world, id, tag) = (world.clone(), id.clone(), tag.clone());
        let ask = async move { answer(world.request(Method::GET, &format!("/v1/jobs/{id}?wait=30")).header("If-None-Match", tag)).await };
        tokio::spawn(async move { tokio::time::timeout(PATIENCE, ask).await.expect("news") })
    };
    waiting(3).await;
    // Nobody tells Redis: it is found by looking, as when a worker has lost its Redis.
    let claimed = world.claim(&id).await;
    for answer in [by_since, by_nothing, by_tag] {
        let job = answer.await.unwrap().expect(200);
        assert_eq!((job["state"].as_str(), job["version"].as_i64()), (Some("running"), Some(2)), "{job}");
    }
    waiting(0).await;

    // Nothing new: the state as it stands, or 304 for whoever has it.
    assert_eq!(world.get(&format!("/v1/jobs/{id}?wait=1&since=2")).await.expect(200)["version"], 2);
    let unchanged = world.request(Method::GET, &format!("/v1/jobs/{id}?wait=1")).header("If-None-Match", "\"1\", W/\"2\"");
    assert_eq!(answer(unchanged).await.status, 304);

    // Redis goes away with somebody waiting, and comes back.
    let by_since = wait(format!("/v1/jobs/{id}?wait=30&since=2"));
    waiting(1).await;
    world.sandbox.redis.kill9().await.unwrap();
    world.settle(&claimed, Outcome::Succeeded(Success::with(json!({"n": 1})))).await;
    let job = by_since.await.unwrap().expect(200);
    assert_eq!((job["state"].as_str(), &job["result"]), (Some("succeeded"), &json!({"n": 1})));
    // Neither asking nor changing needs Redis.
    let other = world.probe().await;
    let cancelled = world.post(&format!("/v1/jobs/{other}/cancel"), &json!({})).await.expect(200);
    assert_eq!(cancelled["state"], "cancelled");
    world.sandbox.redis.start().await.unwrap();

    // What has ended is answered at once, unless the caller knows it; what is not there is not waited for.
    assert_eq!(wait(format!("/v1/jobs/{id}?wait=30")).await.unwrap().expect(200)["state"], "succeeded");
    wait(format!("/v1/jobs/{}?wait=30", Uuid::nil())).await.unwrap().problem(404, "job_not_found");
    let last = wait(format!("/v1/jobs/{id}?wait=30&since=3"));
    waiting(1).await;
    // Who waits when the program ends is answered and not cut off.
    let exit = world.api.stop().await.unwrap().unwrap();
    assert_eq!(exit.code, Some(0), "{}", world.api.log());
    assert_eq!(last.await.unwrap().expect(200)["version"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_follow_the_state_and_say_why_not() {
    let world = World::start().await;
    let id = world.probe().await;
    let change = async |id: &str, what: &str| world.post(&format!("/v1/jobs/{id}/{what}"), &json!({})).await;
    assert!(change(&id, "retry").await.problem(409, "job_not_retryable")["detail"].as_str().unwrap().contains("has not ended"));
    // What runs is asked to stop; asking twice is asking once.
    let claimed = world.claim(&id).await;
    for _ in 0..2 {
        let job = change(&id, "cancel").await.expect(202);
        assert_eq!(
            (job["state"].as_str(), job["cancel_requested"].as_bool(), job["version"].as_i64()),
            (Some("running"), Some(true), Some(3))
        );
    }
    assert_eq!(world.count("job_cancel").await, 1);
    let failure = Failure::permanent("broken", "It broke.").caused_by(&std::io::Error::other("10.0.0.7 refused"));
    world.settle(&claimed, Outcome::Failed(failure)).await;
    let job = world.get(&format!("/v1/jobs/{id}?include=attempts")).await.expect(200);
    assert_eq!(job["error"], json!({"code": "broken", "message": "It broke."}));
    assert_eq!((job["attempts"][0]["outcome"].as_str(), &job["attempts"][0]["error"]), (Some("failed"), &job["error"]));
    assert!(!job.to_string().contains("10.0.0.7"), "causes are not for clients: {job}");
    assert!(change(&id, "cancel").await.problem(409, "job_not_cancellable")["detail"].as_str().unwrap().contains("failed"));
    assert_eq!((job["links"]["cancel"].as_str(), job["links"]["retry"].as_str()), (None, Some(format!("/v1/jobs/{id}/retry").as_str())));

    let again = change(&id, "retry").await.expect(202);
    assert_eq!(
        (again["state"].as_str(), again["attempts_allowed"].as_i64(), again["cancel_requested"].as_bool()),
        (Some("waiting"), Some(4), Some(false))
    );
    assert!(again["poll_after_ms"].as_i64().unwrap() > 0 && again["estimate_seconds"].as_i64().unwrap() > 0, "{again}");
    let unwanted = world.post(&format!("/v1/jobs/{id}/retry"), &json!({"force": true})).await.problem(422, "validation_failed");
    assert_eq!(unwanted["errors"][0]["pointer"], "/force");

    // Lists are light: what can be large is not in them.
    let page = world.get("/v1/jobs").await.expect(200);
    let item = &page["items"][0];
    assert_eq!((id_of(item), item.get("payload"), item.get("result")), (id, None, None));
    // A user who is none of the job's can't change it, nor list others.
    let strange = |method, path: &str| answer(world.request(method, path).header("X-Acting-User", "eve"));
    for what in ["cancel", "retry"] {
        strange(Method::POST, &format!("/v1/jobs/{}/{what}", id_of(item))).await.problem(404, "job_not_found");
    }
    assert_eq!(world.get(&format!("/v1/jobs/{}", id_of(item))).await.expect(200)["version"], item["version"]);
    strange(Method::GET, "/v1/jobs?owner=ada").await.problem(400, "query_invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancels_retries_and_dispatches_that_meet_all_end_well() {
    const JOBS: usize = 20;
    const ROUNDS: usize = 15;
    let world = Arc::new(World::start().await);
    let mut ids = Vec::new();
    for _ in 0..JOBS {
        ids.push(world.probe().await);
    }
    let stop = tokio_util::sync::CancellationToken::new();
    let dispatching = {
        let (world, stop) = (world.clone(), stop.clone());
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                let now = world.now().await;
                let pool = world.sandbox.pool();
                let [tenants] = dispatch::turns(pool, Queue::Analytics, now, [(Priority::Normal, -1)]).await.unwrap();
                let turns = dispatch::divide(100, &tenants);
                let dispatched = dispatch::dispatch(pool, Queue::Analytics, Priority::Normal, now, &turns).await.unwrap();
                let ids: Vec<JobId> = dispatched.handovers.iter().map(|handover| handover.job).step_by(2).collect();
                let claimed = claim::claim(world.sandbox.pool(), &ids, Uuid::from_u128(7), now).await.unwrap();
                let failed =
                    |job: &ClaimedJob| Settlement::decide(job, &Policy::DEFAULT, Outcome::Failed(Failure::permanent("x", "y")), now);
                let settlements: Vec<_> = claimed.iter().map(failed).collect();
                settle::settle(&mut world.sandbox.pool().acquire().await.unwrap(), &settlements).await.unwrap();
            }
        })
    };
    let changing: Vec<_> = ["cancel", "retry", "cancel", "retry"]
        .into_iter()
        .map(|what| {
            let (world, ids) = (world.clone(), ids.clone());
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    for id in &ids {
                        let answer = world.post(&format!("/v1/jobs/{id}/{what}"), &json!({})).await;
                        assert!([200, 202, 409].contains(&answer.status), "{what}: {answer:?}");
                    }
                }
            })
        })
        .collect();
    for changes in changing {
        changes.await.unwrap();
    }
    stop.cancel();
    dispatching.await.unwrap();
    // Each job is in the one table that its state belongs to.
    let astray: Vec<(Uuid, i16)> = sqlx::query_as(
        "SELECT s.job_id, s.state FROM job_state s
         WHERE (s.state = 0) <> EXISTS (SELECT FROM job_waiting w WHERE w.job_id = s.job_id)
            OR (s.state IN (1, 2)) <> EXISTS (SELECT FROM job_dispatched d WHERE d.job_id = s.job_id)
            OR (s.state > 3) <> EXISTS (SELECT FROM job_unsuccessful u WHERE u.job_id = s.job_id AND u.state = s.state)",
    )
    .fetch_all(world.sandbox.pool())
    .await
    .unwrap();
    assert_eq!(astray, []);
}
