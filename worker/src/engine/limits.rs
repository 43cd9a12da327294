//! Admits jobs behind their limiting keys, and lets them start no faster than their keys' rates.
//!
//! Looks when this process settled a job that has a key, when somebody says that a queue has work, when a key's rate allows the next
//! start, and every [`FALLBACK`] in any case. Any number of replicas may look.

use std::{sync::Arc, time::Duration};

use shared::{
    ledger::{LedgerError, limits},
    queue::{Commands, Queue, signal},
};
use tokio_util::sync::CancellationToken;

use super::Engine;

/// How often it looks without a reason.
const FALLBACK: Duration = Duration::from_secs(1);
/// The shortest time between two looks without a reason: a key of many starts a second is served in small batches.
const LEAST_PAUSE: Duration = Duration::from_millis(5);

/// Admits until `stop`; `served` are the queues of this worker, others are told of theirs.
pub(super) async fn run(engine: Arc<Engine>, served: Vec<Queue>, stop: CancellationToken, mut connection: Commands) {
    let mut pause = FALLBACK;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = engine.limits.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        if engine.lease.epoch().is_none() {
            pause = FALLBACK;
            continue;
        }
        pause = match engine.bounded(look(&engine, &served, &mut connection)).await {
            Ok(pause) => pause.clamp(LEAST_PAUSE, FALLBACK),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "can't look at the limiting keys; trying again");
                FALLBACK
            }
        };
    }
}

/// Looks as long as there is something to admit; answers how long until there is again.
async fn look(engine: &Engine, served: &[Queue], connection: &mut Commands) -> Result<Duration, LedgerError> {
    loop {
        let now = engine.services.clock.now();
        let pool = &engine.services.pool;
        match limits::next_look(pool, now).await? {
            Some(wait) if wait.is_zero() => {}
            later => return Ok(later.unwrap_or(FALLBACK)),
        }
        let admitted = limits::admit(pool, now).await?;
        metrics::counter!("offstage_limited_jobs_admitted_total").increment(admitted.jobs);
        for queue in &admitted.queues {
            if served.contains(queue) {
                engine.dispatch.due(*queue);
            } else if let Err(error) = signal::wake(connection, engine.redis.keys(), *queue).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "could not wake another queue's dispatchers; they look by themselves"
                );
            }
        }
        if !admitted.is_full() {
            return Ok(limits::next_look(pool, now).await?.unwrap_or(FALLBACK));
        }
    }
}
