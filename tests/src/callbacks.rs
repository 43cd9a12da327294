//! A receiver for the callbacks of `probe.run`: an HTTP server of the test's own that writes down who called.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::until_within;

/// One callback.
#[derive(Debug, Clone)]
pub struct Call {
    /// The job that called.
    pub job: String,
    /// The attempt it said it was.
    pub attempt: u64,
    /// `started` or `finished`.
    pub phase: String,
    /// When it said that it happened, as it wrote it.
    pub at: String,
    /// When it arrived.
    pub received: Instant,
}

type Calls = Arc<Mutex<Vec<Call>>>;

/// The receiver. It ends with this.
#[derive(Debug)]
pub struct Callbacks {
    url: String,
    calls: Calls,
    server: JoinHandle<()>,
}

impl Callbacks {
    /// Listens on a free port of 127.0.0.1.
    pub async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("the address of an open listener");
        let calls = Calls::default();
        let router = Router::new().route("/", post(note)).with_state(Arc::clone(&calls));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving loopback") });
        Self { url: format!("http://{address}/"), calls, server }
    }

    /// What a probe's `callback_url` is to be.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// All calls so far, in the order of their arrival.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The calls of a phase so far.
    #[must_use]
    pub fn of_phase(&self, phase: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.phase == phase).collect()
    }

    /// Waits until `count` calls of a phase came after `since`, and returns those of that phase which came after it.
    pub async fn wait_for(&self, patience: Duration, phase: &str, since: Option<Instant>, count: usize) -> Vec<Call> {
        until_within(patience, &format!("{count} `{phase}` callbacks"), async || {
            let mut calls = self.of_phase(phase);
            calls.retain(|call| since.is_none_or(|since| call.received > since));
            if calls.len() >= count { Ok(calls) } else { Err(calls.len()) }
        })
        .await
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn note(State(calls): State<Calls>, Json(body): Json<Value>) -> StatusCode {
    let received = Instant::now();
    let text = |field: &str| body.get(field).and_then(Value::as_str).map(str::to_owned);
    let (Some(job), Some(phase), Some(at)) = (text("job_id"), text("phase"), text("at")) else { return StatusCode::BAD_REQUEST };
    let Some(attempt) = body.get("attempt").and_then(Value::as_u64) else { return StatusCode::BAD_REQUEST };
    calls.lock().unwrap_or_else(PoisonError::into_inner).push(Call { job, attempt, phase, at, received });
    StatusCode::NO_CONTENT
}
