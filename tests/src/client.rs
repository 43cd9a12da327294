//! A client of the HTTP API.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, header::HeaderMap, redirect};
use serde_json::{Value, json};

use crate::{PATIENCE, until};

/// One request with its answer; longer than the longest long-poll.
const REQUEST_WITHIN: Duration = Duration::from_secs(45);

/// What the API answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: Bytes,
}

impl Answer {
    /// A header's text; empty when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{} is no JSON ({error}): {}", self.status, self.text()))
    }

    /// The body as JSON of an answer that must have this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// The problem (RFC 9457) of an answer that must be one with this status and code.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        let body = self.expect(status);
        assert_eq!(self.header("content-type"), "application/problem+json", "{body}");
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status, "{body}");
        assert_eq!(body["type"], format!("urn:offstage:problem:{code}"), "{body}");
        assert!(body["detail"].as_str().is_some_and(|detail| detail.len() > 10), "a problem says what to do: {body}");
        body
    }

    /// Where the fields at fault are, as the problem points at them, sorted.
    #[must_use]
    pub fn pointers(&self) -> Vec<String> {
        let body = self.json();
        let errors = body["errors"].as_array().cloned().unwrap_or_default();
        let mut pointers: Vec<String> = errors.iter().filter_map(|error| error["pointer"].as_str().map(str::to_owned)).collect();
        pointers.sort();
        pointers
    }
}

/// A caller with an API key, at one `api` process. Clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
    acting_user: Option<String>,
}

/// A job of the kind `probe.run`.
#[must_use]
pub fn probe(payload: &Value) -> Value {
    json!({"kind": "probe.run", "payload": payload})
}

/// The id in a job's or an export's view.
#[must_use]
#[track_caller]
pub fn id_of(view: &Value) -> String {
    view["id"].as_str().unwrap_or_else(|| panic!("no id in {view}")).to_owned()
}

/// Whether nothing more happens to a job by itself.
#[must_use]
pub fn is_terminal(job: &Value) -> bool {
    matches!(job["state"].as_str(), Some("succeeded" | "failed" | "cancelled" | "expired"))
}

impl Client {
    /// A caller with this key at the API of this address (no slash at the end).
    #[must_use]
    pub fn new(url: String, key: String) -> Self {
        Self { http: http(), url, key: Some(key), acting_user: None }
    }

    /// The same caller at another `api` process.
    #[must_use]
    pub fn at(&self, url: String) -> Self {
        Self { url, ..self.clone() }
    }

    /// Somebody with another key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// Somebody without a key.
    #[must_use]
    pub fn without_key(&self) -> Self {
        Self { key: None, ..self.clone() }
    }

    /// The same backend, acting for one of its users.
    #[must_use]
    pub fn acting_for(&self, user: &str) -> Self {
        Self { acting_user: Some(user.to_owned()), ..self.clone() }
    }

    /// Pauses a queue for this product, and returns when the workers have heard of it: one job of it waits then.
    pub async fn pause(&self, queue: &str) {
        self.post_nothing(&format!("/v1/queues/{queue}/pause")).await.expect(200);
        until("workers have heard of the pause", async || {
            let id = self.create_id(&probe(&json!({"queue": queue}))).await;
            let job = self.wait_for(&id, "somewhere", |job| job["state"] != "queued" && job["state"] != "running").await;
            if job["reason"] == "paused" { Ok(()) } else { Err(job) }
        })
        .await;
    }

    /// The key it calls with.
    #[must_use]
    pub fn key(&self) -> &str {
        self.key.as_deref().unwrap_or_default()
    }

    /// The user it acts for.
    #[must_use]
    pub fn acting_user(&self) -> Option<&str> {
        self.acting_user.as_deref()
    }

    /// A request with this caller's credentials; `path` begins with a slash, or is an address.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let address = if path.starts_with('/') { format!("{}{path}", self.url) } else { path.to_owned() };
        let mut request = self.http.request(method, address);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(user) = &self.acting_user {
            request = request.header("X-Acting-User", user);
        }
        request
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When there was none, or it broke off.
    pub async fn try_send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await? })
    }

    /// Sends a request that must be answered.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        self.try_send(request).await.unwrap_or_else(|error| panic!("no answer: {error:?}"))
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// `PUT path` with a JSON body.
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// `POST path` without a body.
    pub async fn post_nothing(&self, path: &str) -> Answer {
        self.send(self.request(Method::POST, path)).await
    }

    /// `POST /v1/jobs`, whatever comes of it.
    ///
    /// # Errors
    /// When there was no answer.
    pub async fn try_post_job(&self, job: &Value) -> reqwest::Result<Answer> {
        self.try_send(self.request(Method::POST, "/v1/jobs").json(job)).await
    }

    /// `POST /v1/jobs` that must be accepted: the new job's view.
    pub async fn create(&self, job: &Value) -> Value {
        self.post("/v1/jobs", job).await.expect(202)
    }

    /// `POST /v1/jobs` that must be accepted: the new job's id.
    pub async fn create_id(&self, job: &Value) -> String {
        id_of(&self.create(job).await)
    }

    /// The job as it stands.
    pub async fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).await.expect(200)
    }

    /// The job with its runs.
    pub async fn job_with_attempts(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}?include=attempts")).await.expect(200)
    }

    /// Follows a job by long-poll until it is as wanted. Bears an API that is away for a while.
    pub async fn wait_for(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_for_within(PATIENCE, id, what, wanted).await
    }

    /// As [`Client::wait_for`], with a patience of one's own.
    pub async fn wait_for_within(&self, patience: Duration, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        let mut since: Option<i64> = None;
        let mut last = Value::Null;
        while began.elapsed() < patience {
            let path = match since {
                Some(version) => format!("/v1/jobs/{id}?wait=10&since={version}"),
                None => format!("/v1/jobs/{id}"),
            };
            match self.try_send(self.request(Method::GET, &path)).await {
                Ok(answer) if answer.status == 503 => {
                    last = answer.json();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(answer) => {
                    let job = answer.expect(200);
                    if wanted(&job) {
                        return job;
                    }
                    since = job["version"].as_i64();
                    last = job;
                }
                Err(error) => {
                    last = Value::String(error.to_string());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        panic!("job {id} is not {what} after {} s; last seen: {last}", patience.as_secs());
    }

    /// Follows a job until it runs.
    pub async fn running(&self, id: &str) -> Value {
        self.wait_for(id, "running", |job| job["state"] == "running").await
    }

    /// Follows a job to its end, whatever that is.
    pub async fn ended(&self, id: &str) -> Value {
        self.wait_for(id, "at its end", is_terminal).await
    }

    /// Follows a job to its success.
    pub async fn succeeded(&self, id: &str) -> Value {
        let job = self.ended(id).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        job
    }
}

/// Connections of one's own: no redirect is followed, no proxy of the environment is used.
#[expect(clippy::disallowed_methods, reason = "this is where the tests' clients are made, each with its deadline")]
fn http() -> reqwest::Client {
    let builder = reqwest::Client::builder().timeout(REQUEST_WITHIN).redirect(redirect::Policy::none()).no_proxy();
    builder.build().expect("a client without unusual settings")
}
