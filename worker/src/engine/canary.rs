//! Proof that this replica consumes: every [`EVERY`] it sends itself a canary through each queue that it serves.
//!
//! ```text
//!  send → {prefix:queue}:canary:<worker> → the queue's reader → claim → apalis worker → settler → health
//! ```
//!
//! A canary takes the way of a job and leaves nothing: it is read by the command that brings jobs, and goes through the statements
//! that claim and settle them as a job that is not there. They run as they do for jobs, with their locks and through their
//! pools, and find nothing to change. So there is no row to keep, no history and no bloat,
//! and what makes real claims fail (a locked table, a server that only reads, no connections) makes the canary fail too.
//!
//! Busy is not broken: a canary takes no credit, so a queue whose jobs run long is proved like an idle one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use shared::queue::{Commands, Queue, canary};
use tokio_util::sync::CancellationToken;

use super::{Engine, health::STALE_AFTER};

/// How often each queue is proved. The figure of idle commands to Redis depends on it: four a canary.
const EVERY: Duration = Duration::from_secs(5);
/// How often it is tried while a queue is in doubt, so that a worker is ready again soon after a fault.
const EVERY_IN_DOUBT: Duration = Duration::from_secs(1);

/// How far a canary came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Redis took it.
    Sent,
    /// The queue's reader got it.
    Read,
    /// Postgres answered the claim that it was part of.
    Claimed,
    /// Postgres answered the settle that it was part of.
    Settled,
}

/// Marks lead back to the time of sending: microseconds since the engine's start.
#[derive(Debug, Clone, Copy)]
pub struct Epoch(Instant);

impl Epoch {
    pub fn now() -> Self {
        Self(Instant::now())
    }

    /// A mark for what is sent now, and the moment to which it leads back: to the microsecond. Whoever compares moments of
    /// sending compares these.
    fn mark(self) -> (u64, Instant) {
        let mark = u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX);
        (mark, self.0 + Duration::from_micros(mark))
    }

    /// When the canary of a mark was sent; `None` for what we can't have sent.
    pub fn sent(self, mark: u64) -> Option<Instant> {
        self.0.checked_add(Duration::from_micros(mark)).filter(|sent| *sent <= Instant::now())
    }
}

/// Sends canaries until `stop`.
pub(super) async fn run(engine: Arc<Engine>, queues: Vec<Queue>, stop: CancellationToken, connection: Commands) {
    let mut next: Vec<(Queue, Instant)> = queues.into_iter().map(|queue| (queue, Instant::now())).collect();
    let mut ticks = tokio::time::interval(EVERY_IN_DOUBT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Instant::now();
        let mut due = Vec::new();
        for (queue, at) in &mut next {
            let age = engine.health.proved(*queue);
            metrics::gauge!("offstage_queue_canary_age_seconds", "queue" => queue.name())
                .set(age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
            // In doubt as soon as the last one should have been back.
            let in_doubt = age.is_none_or(|age| age > EVERY + EVERY_IN_DOUBT * 2);
            if now >= *at || in_doubt {
                *at = now + EVERY;
                due.push(*queue);
            }
        }
        join_all(due.into_iter().map(|queue| send(&engine, queue, connection.clone()))).await;
    }
}

async fn send(engine: &Engine, queue: Queue, mut connection: Commands) {
    let (mark, sent) = engine.canaries.mark();
    match canary::send(&mut connection, engine.redis.keys(), queue, &engine.worker.to_string(), mark).await {
        Ok(()) => {
            engine.health.reached(queue, Stage::Sent, sent);
            if let Some(waiting) = engine.canary_waits.get(&queue) {
                waiting.notify_one();
            }
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            if engine.health.proved(queue).is_some_and(|age| age > STALE_AFTER) {
                tracing::debug!(queue = queue.name(), error = &error as &dyn std::error::Error, "can't send a canary");
            }
            engine.health.not_sent(queue, cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_leads_back_to_its_very_moment() {
        let epoch = Epoch::now();
        for _ in 0..1_000 {
            let (mark, sent) = epoch.mark();
            assert_eq!(epoch.sent(mark), Some(sent), "or a canary that arrived looks older than itself, and its reader connects anew");
        }
        assert_eq!(epoch.sent(u64::MAX), None);
    }
}
