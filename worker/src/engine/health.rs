//! The worker's small HTTP side: `/health/live`, `/health/ready`, `/metrics`.
//!
//! Ready means that it consumes: its lease is held and each of its queues was read within [`STALE_AFTER`]; an idle queue's read
//! returns every five seconds, so silence means trouble and not peace.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use serde_json::{Value, json};
use shared::{queue::Queue, telemetry::Metrics};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::lease::Lease;

/// A queue that was not read for so long is not served.
const STALE_AFTER: Duration = Duration::from_secs(12);

/// What the probes ask; shared by reference.
#[derive(Debug, Default)]
pub struct Health {
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    lease: Option<Arc<Lease>>,
    last_read: BTreeMap<Queue, Option<Instant>>,
}

impl Health {
    pub(super) fn watch(&self, queues: &[Queue], lease: Arc<Lease>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.lease = Some(lease);
        watched.last_read = queues.iter().map(|queue| (*queue, None)).collect();
    }

    /// A queue was read.
    pub(super) fn consumed(&self, queue: Queue) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).last_read.insert(queue, Some(Instant::now()));
    }

    /// Whether the worker consumes, and what keeps it from that.
    fn readiness(&self) -> (bool, Value) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = watched.lease.as_ref().is_some_and(|lease| lease.epoch().is_some());
        let queues: BTreeMap<&str, &str> = watched
            .last_read
            .iter()
            .map(|(queue, last)| {
                let word = match last {
                    None => "not read yet",
                    // A full queue isn't read either: while its jobs run long it is served all the same.
                    Some(at) if at.elapsed() > STALE_AFTER => "not read lately",
                    Some(_) => "consuming",
                };
                (queue.name(), word)
            })
            .collect();
        let ready = lease && !queues.is_empty() && queues.values().all(|word| *word == "consuming");
        (
            ready,
            json!({"status": if ready { "ready" } else { "unready" }, "ledger": if lease { "heard" } else { "not heard" }, "queues": queues}),
        )
    }
}

/// Serves until `stop`.
///
/// # Errors
/// Where the listener fails.
pub async fn serve(listener: TcpListener, health: Arc<Health>, metrics: Metrics, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/health/live", get(|| async { Json(json!({"status": "live", "version": env!("CARGO_PKG_VERSION")})) }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(move || std::future::ready(([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], metrics.render()))))
        .with_state(health);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn ready(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let (ready, report) = health.readiness();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(report))
}
