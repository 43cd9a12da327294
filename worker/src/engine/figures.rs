//! How deep and how old the queues are, for `/metrics`. Each replica tells of the queues it serves; the figures are the whole
//! installation's, so take the maximum over replicas, not the sum.

use std::{sync::Arc, time::Duration};

use shared::{
    ledger::{LedgerError, dispatch, switches},
    queue::{Commands, Queue, push},
};
use tokio_util::sync::CancellationToken;

use super::Engine;

/// How often they are taken.
const EVERY: Duration = Duration::from_secs(10);

/// Tells until `stop`.
pub(super) async fn run(engine: Arc<Engine>, queues: Vec<Queue>, stop: CancellationToken, mut connection: Commands) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        metrics::gauge!("offstage_worker_jobs_held").set(engine.held.len() as f64);
        for queue in &queues {
            if let Ok(depth) = push::depth(&mut connection, engine.redis.keys(), *queue).await {
                metrics::gauge!("offstage_queue_stream_jobs", "queue" => queue.name()).set(depth as f64);
            }
            if let Err(error) = engine.bounded(backlog(&engine, *queue)).await {
                tracing::debug!(queue = queue.name(), error = &error as &dyn std::error::Error, "could not take a queue's figures");
            }
        }
    }
}

async fn backlog(engine: &Engine, queue: Queue) -> Result<(), LedgerError> {
    let backlog = dispatch::backlog(&engine.services.pool, queue, engine.services.clock.now()).await?;
    // Told up to the bound: counting millions every ten seconds would cost more than the figure is worth.
    metrics::gauge!("offstage_queue_waiting_jobs", "queue" => queue.name()).set(backlog.waiting as f64);
    metrics::gauge!("offstage_queue_oldest_due_seconds", "queue" => queue.name()).set(backlog.oldest_due.as_secs_f64());
    let held = switches::held(&engine.services.pool, queue).await?;
    metrics::gauge!("offstage_queue_switched_off_jobs", "queue" => queue.name()).set(held as f64);
    Ok(())
}
