//! Exports through the door: their words for a job's states, and links to files. The worker's part is played by the
//! ledger's own statements.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{Client, Method, RequestBuilder, redirect};
use sandbox::{Launch, Options, Process, Sandbox};
use serde_json::{Value, json};
use shared::{
    job::{Failure, JobId, Outcome, Policy, PublishedFile, State, Success},
    ledger::{
        claim::{self, ClaimedJob},
        recover,
        settle::{self, Settlement},
    },
};
use uuid::Uuid;

struct World {
    sandbox: Sandbox,
    api: Process,
    client: Client,
    key: String,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    location: String,
    retry_after: Option<u64>,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    #[track_caller]
    fn problem(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.body);
    }
}

impl World {
    async fn start() -> Self {
        let sandbox = Sandbox::start(Options::test()).await.unwrap();
        let api = sandbox.start_api(Launch::new().once()).await.unwrap();
        let key = sandbox.promptlockr_key().await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test is the client")]
        let client = Client::builder().timeout(Duration::from_secs(30)).redirect(redirect::Policy::none()).build().unwrap();
        Self { sandbox, api, client, key }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.api.url())).bearer_auth(&self.key).header("X-Acting-User", "demo")
    }

    async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    async fn export(&self, body: &Value) -> String {
        let answer = answer(self.request(Method::POST, "/v1/exports").json(body)).await;
        let location = answer.location.clone();
        let export = answer.expect(202);
        let id = export["id"].as_str().unwrap().to_owned();
        assert_eq!((location, export["state"].as_str()), (format!("/v1/exports/{id}"), Some("pending")));
        id
    }

    async fn claim(&self, id: &str) -> ClaimedJob {
        let id = JobId(id.parse().unwrap());
        let claimed = claim::claim(self.sandbox.pool(), &[id], Uuid::from_u128(7), self.now().await).await.unwrap();
        let [claimed] = <[ClaimedJob; 1]>::try_from(claimed).expect("it is queued");
        claimed
    }

    async fn settle(&self, claimed: &ClaimedJob, outcome: Outcome) {
        let settlement = Settlement::decide(claimed, &Policy::DEFAULT, outcome, self.now().await);
        assert_eq!(settle::settle(&mut self.sandbox.pool().acquire().await.unwrap(), &[settlement]).await.unwrap().len(), 1);
    }

    async fn now(&self) -> DateTime<Utc> {
        sqlx::query_scalar("SELECT now()").fetch_one(self.sandbox.pool()).await.unwrap()
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (location, retry_after) = (header("location").unwrap_or_default(), header("retry-after").map(|value| value.parse().unwrap()));
    assert_eq!(header("cache-control").as_deref(), Some("no-store"));
    let text = response.text().await.unwrap();
    Answer { status, location, retry_after, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_leads_to_its_file_while_that_is_there() {
    let world = World::start().await;
    let id = world.export(&json!({"dataset": "prompts", "format": "csv", "filename": "meine Prompts"})).await;
    let download = format!("/v1/exports/{id}/download");
    let early = world.get(&download).await;
    early.problem(409, "export_not_completed");
    assert!(early.retry_after.is_some_and(|seconds| seconds > 0), "it says when to come back: {early:?}");
    let claimed = world.claim(&id).await;
    assert_eq!(world.get(&format!("/v1/exports/{id}")).await.expect(200)["state"], "processing");
    world.get(&download).await.problem(409, "export_not_completed");

    let file = PublishedFile {
        object_key: "1/secret place.csv".into(),
        file_name: "meine Prompts.csv".into(),
        content_type: "text/csv; charset=utf-8; header=present".into(),
        bytes: 3,
        sha256: [0xab; 32],
        expires_at: world.now().await + TimeDelta::days(7),
    };
    world.settle(&claimed, Outcome::Succeeded(Success { result: Some(json!({"rows": 12})), file: Some(file) })).await;
    let done = world.get(&format!("/v1/exports/{id}")).await.expect(200);
    assert_eq!(
        (done["state"].as_str(), done["download_url"].as_str(), done["downloads"].as_i64()),
        (Some("completed"), Some(download.as_str()), Some(0))
    );
    let content_type = "text/csv; charset=utf-8; header=present";
    let file = json!({"name": "meine Prompts.csv", "size": 3, "content_type": content_type, "sha256": "ab".repeat(32), "rows": 12});
    assert_eq!(done["file"], file);
    assert!(!done.to_string().contains("secret place"), "where it stands is nobody's business: {done}");
    assert!(done["completed_at"].is_string() && done["expires_at"].is_string() && done["poll_after_ms"].is_null(), "{done}");

    // HEAD asks, GET takes: only that is counted.
    assert_eq!(answer(world.request(Method::HEAD, &download)).await.status, 302);
    let link = world.get(&download).await;
    assert_eq!(link.status, 302);
    assert!(
        link.location.contains("X-Amz-Expires=300&") && link.location.contains("response-content-disposition=attachment"),
        "{}",
        link.location
    );
    assert_eq!(world.get(&download).await.status, 302);
    assert_eq!(world.get(&format!("/v1/exports/{id}")).await.expect(200)["downloads"], 2);
    assert!(!world.api.log().contains("X-Amz-Signature"), "a link is as good as the file");

    // Its last minute is the link's too; then it is gone, and says so.
    let expire = async |after: &str| {
        let statement = format!("UPDATE job_file SET expires_at = now() + interval '{after}' WHERE job_id = '{id}'");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(world.sandbox.pool()).await.unwrap();
    };
    expire("1 minute").await;
    let link = world.get(&download).await.location;
    let lifetime: u64 = link.split_once("X-Amz-Expires=").unwrap().1.split('&').next().unwrap().parse().unwrap();
    assert!((1..=60).contains(&lifetime), "{link}");
    expire("-1 second").await;
    world.get(&download).await.problem(410, "export_expired");
    let expired = world.get(&format!("/v1/exports/{id}")).await.expect(200);
    assert_eq!((expired["state"].as_str(), expired["error"]["code"].as_str()), (Some("expired"), Some("file_expired")), "{expired}");
    assert_eq!((expired["download_url"].as_str(), expired["downloads"].as_i64()), (None, Some(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_are_listed_and_tell_how_they_ended() {
    let world = World::start().await;
    let failed = world.export(&json!({"dataset": "prompts", "format": "csv"})).await;
    let claimed = world.claim(&failed).await;
    let failure = Failure::permanent("source_denied", "The source denied it.").caused_by(&std::io::Error::other("10.0.0.7"));
    world.settle(&claimed, Outcome::Failed(failure)).await;
    world.get(&format!("/v1/exports/{failed}/download")).await.problem(409, "export_not_completed");
    let view = world.get(&format!("/v1/exports/{failed}")).await.expect(200);
    assert_eq!(
        (view["state"].as_str(), &view["error"]),
        (Some("failed"), &json!({"code": "source_denied", "message": "The source denied it."}))
    );
    let cancelled = world.export(&json!({"dataset": "collections", "format": "csv"})).await;
    answer(world.request(Method::POST, &format!("/v1/jobs/{cancelled}/cancel"))).await.expect(200);
    world.get(&format!("/v1/exports/{cancelled}/download")).await.problem(409, "export_not_completed");
    let pending = world.export(&json!({"dataset": "packages", "format": "csv"})).await;
    // A job of another kind is no export.
    let job = answer(world.request(Method::POST, "/v1/jobs").json(&json!({"kind": "probe.run", "payload": {}}))).await.expect(202);
    world.get(&format!("/v1/exports/{}", job["id"].as_str().unwrap())).await.problem(404, "export_not_found");
    world.get("/v1/exports/x/download").await.problem(404, "export_not_found");

    let mut seen = Vec::new();
    let mut path = "/v1/exports?limit=2".to_owned();
    loop {
        let page = world.get(&path).await.expect(200);
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().map(|item| (item["id"].as_str().unwrap().to_owned(), item["state"].as_str().unwrap().to_owned())));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/exports?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, [(pending, "pending".into()), (cancelled, "cancelled".into()), (failed, "failed".into())]);
    let backend = |path: &str| world.client.get(format!("{}{path}", world.api.url())).bearer_auth(&world.key);
    assert_eq!(answer(backend("/v1/exports")).await.expect(200)["items"].as_array().unwrap().len(), 3);
    assert_eq!(answer(backend("/v1/exports?owner=demo&limit=1")).await.expect(200)["items"].as_array().unwrap().len(), 1);
    assert_eq!(answer(backend("/v1/exports?owner=ada")).await.expect(200)["items"], json!([]));
    // What is the backend's is not for users, and they hear nothing of it.
    let refused = answer(world.request(Method::POST, "/v1/exports").json(&json!({"dataset": "all_prompts", "format": "csv"}))).await;
    refused.problem(422, "validation_failed");
    assert_eq!(
        refused.body["errors"][0]["detail"],
        "there is no dataset `all_prompts`; for users, this product has: collections, packages, prompts"
    );
    let all = world.client.post(format!("{}/v1/exports", world.api.url())).bearer_auth(&world.key);
    answer(all.json(&json!({"dataset": "all_prompts", "format": "csv"}))).await.expect(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_takes_its_workers_down_is_told_of_as_failed() {
    let world = World::start().await;
    let id = world.export(&json!({"dataset": "prompts", "format": "csv"})).await;
    let claimed = world.claim(&id).await;
    let crashes = sqlx::query("UPDATE job_state SET crashes = $2 WHERE job_id = $1").bind(claimed.id.0);
    crashes.bind(recover::CRASHES_OF_POISON - 1).execute(world.sandbox.pool()).await.unwrap();
    // The worker that claimed it is not among the living.
    let recovered = recover::take_over(world.sandbox.pool(), &[Uuid::from_u128(7)], world.now().await, 10).await.unwrap();
    assert_eq!(recovered.iter().map(|one| (one.job, one.state)).collect::<Vec<_>>(), [(claimed.id, State::Failed)]);
    let told: Vec<(String, String, String)> =
        sqlx::query_as("SELECT owner, title, message FROM notification").fetch_all(world.sandbox.pool()).await.unwrap();
    let [(owner, title, message)] = told.as_slice() else { panic!("told once: {told:?}") };
    assert_eq!((owner.as_str(), title.as_str()), ("demo", "Your export failed"));
    assert!(message.starts_with("prompts: ") && !message.contains("process"), "{message}");
}
