//! The history of schedules, pruned by age and by count, by one replica at a time.

use std::{sync::Arc, time::Duration};

use shared::ledger::{LedgerError, recover::take_duty, schedule::history};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::handlers::Services;

/// How often it is pruned.
const EVERY: Duration = Duration::from_secs(600);

/// How often a replica asks whether it is its turn.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// Prunes until `stop`.
pub(super) async fn run(services: Arc<Services>, stop: CancellationToken) {
    let worker = services.clock.new_id();
    let mut ticks = tokio::time::interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let done = tokio::select! {
            // Wherever it is dropped: each statement stands for itself.
            () = stop.cancelled() => return,
            done = round(&services, worker) => done,
        };
        if let Err(error) = done {
            metrics::counter!("offstage_prune_failures_total").increment(1);
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the history of schedules could not be pruned; the next round goes on"
            );
        }
    }
}

async fn round(services: &Services, worker: Uuid) -> Result<(), LedgerError> {
    if !take_duty(&services.pool, "prune_schedules", worker, EVERY).await? {
        return Ok(());
    }
    let mut after = Some(Uuid::nil());
    while let Some(last) = after {
        let (gone, next) = history::prune(&services.pool, last, services.clock.now()).await?;
        metrics::counter!("offstage_schedule_ticks_pruned_total").increment(gone);
        after = next;
    }
    Ok(())
}
