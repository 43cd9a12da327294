//! Step 3's loop: moves due jobs from the backlog to their queue's stream, as far as the window has room.
//!
//! It looks when somebody says that a queue has work (an API that accepted something for later, a settle that retries), when a
//! reader made room while a backlog waits, when the next job is due, and every [`FALLBACK`] in any case.
//!
//! What must stay true: while Redis takes no jobs (its memory is full, it was demoted), none leave the backlog but the batch on which
//! that was noticed: it is pushed before anything else is moved.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use shared::{
    ledger::dispatch,
    queue::{
        Commands, Queue,
        push::{self, Handover},
    },
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Engine, announce::Announcement};

/// How often each queue is looked at without a reason.
const FALLBACK: Duration = Duration::from_secs(5);
/// How soon a queue is looked at again when Redis or the ledger did not answer.
const AFTER_FAULT: Duration = Duration::from_secs(1);

/// The reasons to look, left by others.
#[derive(Debug, Default)]
pub struct Dispatch {
    wanted: Mutex<BTreeMap<Queue, bool>>,
    woken: Notify,
}

impl Dispatch {
    /// Work for a queue may be due.
    pub fn due(&self, queue: Queue) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(queue, true);
        self.woken.notify_one();
    }

    /// A reader took entries: if a backlog waits for room, there is some now.
    pub fn drained(&self, queue: Queue) {
        // The entry stands only while a backlog waits.
        if let Some(wanted) = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&queue)
            && !*wanted
        {
            *wanted = true;
            self.woken.notify_one();
        }
    }

    fn is_wanted(&self, queue: Queue) -> bool {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).get(&queue).copied().unwrap_or(false)
    }

    /// Looked: until somebody says otherwise nothing is wanted, but room is if a backlog waits for it.
    fn looked(&self, queue: Queue, backlog_waits: bool) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if backlog_waits {
            wanted.insert(queue, false);
        } else {
            wanted.remove(&queue);
        }
    }
}

/// Dispatches the worker's queues until `stop`.
pub(super) async fn run(engine: Arc<Engine>, queues: Vec<Queue>, stop: CancellationToken, mut connection: Commands) {
    let now = Instant::now();
    let mut next_look: BTreeMap<Queue, Instant> = queues.iter().map(|queue| (*queue, now)).collect();
    let mut unpushed: BTreeMap<Queue, Vec<Handover>> = BTreeMap::new();
    loop {
        for queue in &queues {
            let due = next_look.get(queue).is_none_or(|at| *at <= Instant::now());
            if (!due && !engine.dispatch.is_wanted(*queue)) || engine.lease.epoch().is_none() {
                continue;
            }
            let wait = match look(&engine, *queue, &mut connection, unpushed.entry(*queue).or_default()).await {
                Ok(wait) => wait.min(FALLBACK),
                Err(error) => {
                    tracing::debug!(queue = queue.name(), error = &*error, "can't dispatch now");
                    AFTER_FAULT
                }
            };
            next_look.insert(*queue, Instant::now() + wait);
        }
        let soonest = next_look.values().min().copied().unwrap_or_else(|| Instant::now() + FALLBACK);
        // A floor, so that a queue that can't be helped (the lease is gone) does not spin.
        let sleep = soonest.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        tokio::select! {
            () = stop.cancelled() => return,
            () = engine.dispatch.woken.notified() => {}
            () = tokio::time::sleep(if engine.lease.epoch().is_some() { sleep } else { AFTER_FAULT }) => {}
        }
    }
}

/// One look at a queue: fills the window, and answers how long until the next job is due.
async fn look(
    engine: &Engine,
    queue: Queue,
    connection: &mut Commands,
    unpushed: &mut Vec<Handover>,
) -> Result<Duration, Box<dyn std::error::Error + Send + Sync>> {
    loop {
        engine.dispatch.looked(queue, true);
        // What recovery pushed meanwhile loses at its second claim.
        if !unpushed.is_empty() {
            push::push(connection, engine.redis.keys(), unpushed).await?;
            unpushed.clear();
        }
        let depth = push::depth(connection, engine.redis.keys(), queue).await?;
        metrics::gauge!("offstage_queue_stream_jobs", "queue" => queue.name()).set(depth as f64);
        let room = usize::try_from(engine.window.saturating_sub(depth)).unwrap_or(0);
        let now = engine.services.clock.now();
        // Refilled from a quarter down, in batches, rather than job by job behind the readers.
        if (room as u64) < engine.window / 4 {
            return Ok(FALLBACK);
        }
        let wanted = room.min(dispatch::BATCH);
        let dispatched = engine.bounded(dispatch::dispatch(&engine.services.pool, queue, now, wanted)).await?;
        let moved = dispatched.handovers.len() + dispatched.expired.len();
        if !dispatched.handovers.is_empty() {
            metrics::counter!("offstage_dispatched_total", "queue" => queue.name()).increment(dispatched.handovers.len() as u64);
            if let Err(error) = push::push(connection, engine.redis.keys(), &dispatched.handovers).await {
                *unpushed = dispatched.handovers;
                return Err(error.into());
            }
        }
        let changed = dispatched.handovers.iter().map(|handover| handover.job).chain(dispatched.expired).collect();
        engine.announcer.tell(Announcement { changed, ..Announcement::default() });
        if moved < wanted {
            engine.dispatch.looked(queue, false);
            // Asked after that mark: who inserts from here on says so.
            return Ok(engine.bounded(dispatch::next_due(&engine.services.pool, queue, now)).await?.unwrap_or(FALLBACK));
        }
    }
}
