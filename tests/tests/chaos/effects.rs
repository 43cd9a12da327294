//! The outside world that effects arrive at: a receiver of probes' callbacks that counts, whatever the product thinks of itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

/// What arrived for one job.
#[derive(Debug, Clone, Default)]
pub struct Arrived {
    /// When it said that a run of it started.
    pub started: Vec<Instant>,
    /// When it said that it finished.
    pub finished: Vec<Instant>,
}

#[derive(Debug, Default)]
struct Jobs {
    arrived: BTreeMap<String, Arrived>,
    /// How many of them finished: clients ask before each job, so it is not counted anew each time.
    finished: usize,
}

/// The receiver. It ends with this.
#[derive(Debug)]
pub struct Effects {
    url: String,
    jobs: Arc<Mutex<Jobs>>,
    server: JoinHandle<()>,
}

impl Effects {
    /// Listens on a free port of 127.0.0.1.
    pub async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("the address of an open listener");
        let jobs = Arc::new(Mutex::new(Jobs::default()));
        let router = Router::new().route("/", post(note)).with_state(Arc::clone(&jobs));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving loopback") });
        Self { url: format!("http://{address}/"), jobs, server }
    }

    /// What a probe's `callback_url` is to be.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// All that arrived, by job.
    pub fn arrived(&self) -> BTreeMap<String, Arrived> {
        self.jobs().arrived.clone()
    }

    /// How many jobs finished.
    pub fn finished(&self) -> usize {
        self.jobs().finished
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Effects {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn note(State(jobs): State<Arc<Mutex<Jobs>>>, Json(body): Json<Value>) -> StatusCode {
    let now = Instant::now();
    let (Some(job), Some(phase)) = (body["job_id"].as_str(), body["phase"].as_str()) else { return StatusCode::BAD_REQUEST };
    let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
    let arrived = jobs.arrived.entry(job.to_owned()).or_default();
    match phase {
        "started" => arrived.started.push(now),
        "finished" => {
            arrived.finished.push(now);
            jobs.finished += usize::from(arrived.finished.len() == 1);
        }
        _ => return StatusCode::BAD_REQUEST,
    }
    StatusCode::NO_CONTENT
}
