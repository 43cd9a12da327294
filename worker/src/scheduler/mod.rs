//! Jobs that the clock makes. Every replica looks for due schedules; none leads, and the ledger sees to it that each tick happens once
//! (`shared::ledger::schedule`).
//!
//! It looks when the next schedule is due, as far as it knows, and every [`LOOK_EVERY`] in any case: that finds schedules that were made
//! or changed, and a clock that was put forward. One probe of a small index each time. So there is nothing to announce, and nothing that
//! a lost announcement could delay.
//!
//! What must stay true: a fault of one schedule holds up no other; a worker that is asked to stop makes no tick any more.

mod history;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    kinds::Registry,
    ledger::{
        self, LedgerError,
        schedule::{
            follow,
            tick::{self, BATCH, Looked},
        },
    },
    queue::{Commands, Queue, Redis, signal},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::handlers::Services;

/// How often it looks without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The longest that one exchange with the ledger may take: beyond what the server lets a statement run.
const LEDGER_DEADLINE: Duration = Duration::from_secs(35);

/// How long a schedule that could not be handled is left alone here.
const ASIDE_FOR: Duration = Duration::from_secs(60);

/// Schedules that are left alone at most; beyond that they are tried again.
const MOST_ASIDE: usize = 1_000;

/// Makes ticks until `stop`.
pub async fn run(services: Arc<Services>, redis: Redis, stop: CancellationToken) {
    let pruning = tokio::spawn(history::run(Arc::clone(&services), stop.clone()));
    let mut scheduler = Scheduler {
        kinds: Registry::new(services.probe.enabled),
        connection: redis.commands(),
        services,
        redis,
        aside: HashMap::new(),
        one_by_one: false,
    };
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
        // Dropped in the middle, its transaction is rolled back.
        pause = tokio::select! {
            () = stop.cancelled() => break,
            pause = scheduler.look() => pause,
        };
    }
    let _ = pruning.await;
}

struct Scheduler {
    services: Arc<Services>,
    kinds: Registry,
    redis: Redis,
    connection: Commands,
    /// Schedules that can't be handled here just now, since when.
    aside: HashMap<Uuid, Instant>,
    /// The ledger refused a batch: the next are of one, so that the schedule at fault is found.
    one_by_one: bool,
}

impl Scheduler {
    /// One look; answers how long until the next.
    async fn look(&mut self) -> Duration {
        match self.make_all().await {
            Ok(pause) => pause,
            Err(error) => {
                metrics::counter!("offstage_schedule_failures_total").increment(1);
                tracing::warn!(error = &error as &dyn std::error::Error, "can't look for due schedules; trying again");
                LOOK_EVERY
            }
        }
    }

    async fn make_all(&mut self) -> Result<Duration, LedgerError> {
        self.aside.retain(|_, since| since.elapsed() < ASIDE_FOR);
        loop {
            let most = if self.one_by_one { 1 } else { BATCH };
            let aside: Vec<Uuid> = self.aside.keys().copied().collect();
            let services = &self.services;
            let looked = bounded(tick::tick(&services.pool, &services.clock, &self.kinds, &services.tenants, &aside, most)).await;
            let looked = match looked {
                Ok(looked) => looked,
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => {
                    self.refused(&error).await?;
                    continue;
                }
            };
            let (handled, left) = (looked.schedules, looked.aside.len());
            self.tell(looked).await;
            if handled + left == 0 {
                self.one_by_one = false;
                break;
            }
        }
        loop {
            let aside: Vec<Uuid> = self.aside.keys().copied().collect();
            let services = &self.services;
            let looked = bounded(follow::next_queued(&services.pool, &services.clock, &self.kinds, &services.tenants, &aside)).await?;
            let handled = looked.schedules;
            self.tell(looked).await;
            if handled == 0 {
                break;
            }
        }
        let next = bounded(tick::next_due(&self.services.pool)).await?;
        let now = self.services.clock.now();
        // What is due already is another replica's, or aside.
        let until = next.and_then(|next| (next - now).to_std().ok()).filter(|until| !until.is_zero());
        Ok(until.map_or(LOOK_EVERY, |until| until.min(LOOK_EVERY)))
    }

    /// The ledger would not take what a batch of ticks writes. Alone, the schedule at fault is set aside.
    async fn refused(&mut self, error: &LedgerError) -> Result<(), LedgerError> {
        if !self.one_by_one {
            self.one_by_one = true;
            return Ok(());
        }
        let aside: Vec<Uuid> = self.aside.keys().copied().collect();
        let now = self.services.clock.now();
        let first = bounded(tick::first_due(&self.services.pool, &self.kinds, &aside, now)).await?;
        metrics::counter!("offstage_schedule_failures_total").increment(1);
        if let Some(id) = first {
            tracing::error!(schedule = %id, error = error as &dyn std::error::Error, "a tick can't be stored; the schedule is left alone for a minute");
            self.set_aside(id);
        }
        Ok(())
    }

    fn set_aside(&mut self, id: Uuid) {
        if self.aside.len() >= MOST_ASIDE {
            self.aside.clear();
        }
        self.aside.insert(id, Instant::now());
    }

    /// Counts what a look brought, and wakes dispatchers.
    async fn tell(&mut self, looked: Looked) {
        for (outcome, ticks) in looked.ticks {
            metrics::counter!("offstage_schedule_ticks_total", "outcome" => outcome).increment(ticks);
        }
        for late in looked.late {
            metrics::histogram!("offstage_schedule_late_seconds").record(late.to_std().unwrap_or_default().as_secs_f64());
        }
        metrics::counter!("offstage_schedule_notices_total").increment(looked.notices);
        looked.aside.into_iter().for_each(|id| self.set_aside(id));
        for queue in looked.wake {
            self.wake(queue).await;
        }
    }

    /// Dispatchers hear of it, this process' own too; who does not looks by itself soon.
    async fn wake(&mut self, queue: Queue) {
        if let Err(error) = signal::wake(&mut self.connection, self.redis.keys(), queue).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "could not wake the dispatchers; they look by themselves");
        }
    }
}

async fn bounded<T>(exchange: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
    tokio::time::timeout(LEDGER_DEADLINE, exchange).await.unwrap_or_else(|_| Err(ledger::timed_out()))
}
