//! Whom the drill's probes call: counts their beginnings and their ends, independent of what is tried.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde::Deserialize;
use shared::job::JobId;
use tokio::{net::TcpListener, task::JoinHandle};

/// Listens on a loopback port while it lives.
#[derive(Debug)]
pub struct Observer {
    url: String,
    seen: Arc<Mutex<HashMap<JobId, Seen>>>,
    server: JoinHandle<()>,
}

/// What was heard of one job. Bounded: a run begins once, and runs are bounded by the kills.
#[derive(Debug, Default)]
struct Seen {
    started: Vec<Instant>,
    finished: u32,
}

#[derive(Debug, Deserialize)]
struct Call {
    job_id: JobId,
    phase: String,
}

impl Observer {
    pub async fn listen() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let seen: Arc<Mutex<HashMap<JobId, Seen>>> = Arc::default();
        let router = Router::new().route("/", post(note)).with_state(Arc::clone(&seen));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("worker drill: the observer ended: {error}");
            }
        });
        Ok(Self { url, seen, server })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Jobs that began and have not finished.
    pub fn running(&self) -> Vec<JobId> {
        self.lock().iter().filter(|(_, seen)| !seen.started.is_empty() && seen.finished == 0).map(|(job, _)| *job).collect()
    }

    /// How many jobs finished.
    pub fn finished(&self) -> usize {
        self.lock().values().filter(|seen| seen.finished > 0).count()
    }

    /// Jobs that finished more than once.
    pub fn doubled(&self) -> Vec<JobId> {
        self.lock().iter().filter(|(_, seen)| seen.finished > 1).map(|(job, _)| *job).collect()
    }

    /// When a job first began after a moment. One that finished since without beginning again had done so before it was killed.
    pub fn started_since(&self, job: JobId, moment: Instant) -> Option<Instant> {
        self.lock().get(&job)?.started.iter().find(|at| **at > moment).copied()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn note(State(seen): State<Arc<Mutex<HashMap<JobId, Seen>>>>, Json(call): Json<Call>) -> StatusCode {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = seen.entry(call.job_id).or_default();
    match call.phase.as_str() {
        "started" => seen.started.push(Instant::now()),
        "finished" => seen.finished += 1,
        _ => return StatusCode::BAD_REQUEST,
    }
    StatusCode::NO_CONTENT
}
