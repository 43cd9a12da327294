//! The worker's small HTTP side: `/health/live`, `/health/ready`, `/metrics`.
//!
//! Ready means that it consumes, and that is proved and not assumed: a [canary](super::canary) went through each of its queues lately,
//! from the stream over the claim to the settle, and its lease is held. A queue that is full of long jobs is proved like any
//! other: a canary needs no room.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

use super::{canary::Stage, lease::Lease};

/// A queue whose last proof was sent longer ago is not served. One canary may get lost on the way without harm; a fault shows
/// within 15 s of its beginning.
pub const STALE_AFTER: Duration = Duration::from_secs(12);

/// What the probes ask; shared by reference.
#[derive(Debug, Default)]
pub struct Health {
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    lease: Option<Arc<Lease>>,
    queues: BTreeMap<Queue, Proof>,
    stopping: bool,
}

/// How far a queue's canaries came: when the newest one that reached each stage was sent.
#[derive(Debug, Default, Clone)]
struct Proof {
    reached: BTreeMap<Stage, Instant>,
    /// Why the last one could not be sent.
    unsendable: Option<String>,
}

impl Proof {
    /// What keeps the queue from being proved; `None` where it is.
    fn doubt(&self) -> Option<String> {
        let Some(settled) = self.reached.get(&Stage::Settled) else { return Some(self.missing("no canary came through yet")) };
        let age = settled.elapsed();
        (age > STALE_AFTER).then(|| self.missing(&format!("no canary came through for {} s", age.as_secs())))
    }

    /// Where the newest one is stuck.
    fn missing(&self, what: &str) -> String {
        if let Some(why) = &self.unsendable {
            return format!("{what}: it can't be sent ({why})");
        }
        let at = |stage| self.reached.get(&stage).copied();
        // From the end: what is stuck there holds up whatever comes behind it.
        let stuck = if at(Stage::Settled) < at(Stage::Claimed) {
            "Postgres takes no outcomes"
        } else if at(Stage::Claimed) < at(Stage::Read) {
            "Postgres takes no claims"
        } else {
            "the queue's streams are not read"
        };
        format!("{what}: {stuck}")
    }
}

impl Health {
    pub(super) fn watch(&self, queues: &[Queue], lease: Arc<Lease>) {
        let mut watched = self.lock();
        watched.lease = Some(lease);
        watched.queues = queues.iter().map(|queue| (*queue, Proof::default())).collect();
    }

    /// A canary that was sent then reached a stage.
    pub(super) fn reached(&self, queue: Queue, stage: Stage, sent: Instant) {
        if let Some(proof) = self.lock().queues.get_mut(&queue) {
            let newest = proof.reached.entry(stage).or_insert(sent);
            *newest = sent.max(*newest);
            if stage == Stage::Sent {
                proof.unsendable = None;
            }
        }
    }

    /// A canary could not be sent.
    pub(super) fn not_sent(&self, queue: Queue, why: String) {
        if let Some(proof) = self.lock().queues.get_mut(&queue) {
            proof.unsendable = Some(why);
        }
    }

    /// Whether the newest canary was sent at least so long ago and has not been read.
    pub(super) fn is_under_way(&self, queue: Queue, least: Duration) -> bool {
        let standing = self.lock();
        let Some(proof) = standing.queues.get(&queue) else { return false };
        let (sent, read) = (proof.reached.get(&Stage::Sent), proof.reached.get(&Stage::Read));
        sent.is_some_and(|sent| sent.elapsed() >= least && read.is_none_or(|read| read < sent))
    }

    /// How long ago the newest canary that came through was sent; `None` where none did yet.
    pub(super) fn proved(&self, queue: Queue) -> Option<Duration> {
        self.lock().queues.get(&queue)?.reached.get(&Stage::Settled).map(Instant::elapsed)
    }

    /// From here on nothing new is taken.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
    }

    /// Whether the worker consumes, and what keeps it from that.
    fn readiness(&self) -> (bool, Value) {
        let watched = self.lock();
        let lease = watched.lease.as_ref().is_some_and(|lease| lease.epoch().is_some());
        let mut proved = !watched.queues.is_empty();
        let queues: BTreeMap<&str, Value> = watched
            .queues
            .iter()
            .map(|(queue, proof)| {
                let age = proof.reached.get(&Stage::Settled).map(|settled| settled.elapsed().as_millis() as f64 / 1_000.0);
                let standing = match proof.doubt() {
                    None => json!({"status": "consuming", "canary_age_seconds": age}),
                    Some(reason) => {
                        proved = false;
                        json!({"status": "not consuming", "reason": reason, "canary_age_seconds": age})
                    }
                };
                (queue.name(), standing)
            })
            .collect();
        let ready = lease && proved && !watched.stopping;
        let ledger = if lease { "heard" } else { "not heard: no heartbeat got through to Postgres" };
        let status = if ready { "ready" } else { "unready" };
        (ready, json!({"status": status, "stopping": watched.stopping, "ledger": ledger, "queues": queues}))
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_ready_while_its_canaries_come_through_and_says_where_they_stop() {
        let health = Health::default();
        let lease = Arc::new(Lease::default());
        lease.renew(Instant::now());
        health.watch(&[Queue::Email], lease);
        let reason = || health.readiness().1["queues"]["email"]["reason"].as_str().unwrap_or_default().to_owned();
        assert!(!health.readiness().0 && reason().contains("no canary came through yet"), "{}", reason());
        let reach = |stages: &[Stage], sent| stages.iter().for_each(|stage| health.reached(Queue::Email, *stage, sent));
        let now = Instant::now();
        let long_ago = now.checked_sub(STALE_AFTER * 2).unwrap();
        reach(&[Stage::Sent, Stage::Read, Stage::Claimed, Stage::Settled], long_ago);
        reach(&[Stage::Sent], now);
        assert!(!health.readiness().0 && reason().ends_with("the queue's streams are not read"), "{}", reason());
        reach(&[Stage::Read], now);
        assert!(reason().ends_with("Postgres takes no claims"), "{}", reason());
        reach(&[Stage::Claimed], now);
        assert!(reason().ends_with("Postgres takes no outcomes"), "{}", reason());
        reach(&[Stage::Settled], now);
        assert!(health.readiness().0, "{}", health.readiness().1);
        health.stop();
        assert!(!health.readiness().0);
    }
}
