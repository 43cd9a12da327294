//! What this process knows of the switches, and the release of what waited for one.
//!
//! A run asks here before it starts, which costs nothing while all is on; a step outside asks the ledger itself
//! (`JobContext::intend_outward`). So what is known here may be a second old: a run that starts in that second stops at its first
//! outward step.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use shared::{
    ledger::{
        LedgerError,
        switches::{self, Off},
    },
    queue::Queue,
};
use tokio_util::sync::CancellationToken;

use super::{Engine, announce::Announcement};

/// How often the switches are read, and what waits is looked at: two probes of tables that are empty as a rule.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The switches that are off, as last read.
#[derive(Debug, Default)]
pub struct Switches {
    off: RwLock<Vec<Off>>,
}

impl Switches {
    /// Whether outward effects of a tenant's jobs of a kind are switched off.
    pub fn stop(&self, tenant: i32, kind: &str) -> bool {
        self.off.read().unwrap_or_else(PoisonError::into_inner).iter().any(|off| off.stops(tenant, kind))
    }

    fn learn(&self, off: Vec<Off>) {
        let mut known = self.off.write().unwrap_or_else(PoisonError::into_inner);
        if *known != off {
            tracing::warn!(switches = off.len(), "outward effects: the switches that are off have changed");
            *known = off;
        }
    }

    /// Reads them.
    pub async fn read(&self, engine: &Engine) -> Result<(), LedgerError> {
        self.learn(switches::off(&engine.services.pool).await?);
        Ok(())
    }
}

/// Follows the switches until `stop`, and releases the jobs of `queues`.
pub(super) async fn run(engine: Arc<Engine>, queues: Vec<Queue>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = look(&engine, &queues).await {
            // What is known stays in force, and each outward step asks for itself.
            tracing::debug!(error = &error as &dyn std::error::Error, "the switches could not be read; trying again");
        }
    }
}

/// Reads the switches, the pauses and the throttles anew.
///
/// # Errors
/// [`LedgerError`]; what is known stays in force.
pub(super) async fn read(engine: &Engine) -> Result<(), LedgerError> {
    engine.switches.read(engine).await?;
    super::breakers::read(engine).await?;
    engine.holds.read(engine).await
}

async fn look(engine: &Engine, queues: &[Queue]) -> Result<(), LedgerError> {
    read(engine).await?;
    if !switches::any_held(&engine.services.pool).await? {
        return Ok(());
    }
    for queue in queues {
        release(engine, *queue).await?;
    }
    Ok(())
}

/// Releases a queue's jobs whose switches are on, for as long as one look may take; the next one goes on.
async fn release(engine: &Engine, queue: Queue) -> Result<(), LedgerError> {
    let until = Instant::now() + LOOK_EVERY;
    loop {
        let released = switches::release(&engine.services.pool, queue, engine.services.clock.now()).await?;
        let count = released.len();
        if count > 0 {
            metrics::counter!("offstage_jobs_released_total", "queue" => queue.name()).increment(count as u64);
            engine.announcer.tell(Announcement { changed: released, ..Announcement::default() });
            engine.dispatch.due(queue);
        }
        if i64::try_from(count).unwrap_or(i64::MAX) < switches::BATCH || Instant::now() > until {
            return Ok(());
        }
    }
}
