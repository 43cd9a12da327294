//! The jobs that wait for circuit breakers: lets them go on as their breakers let calls through; and what became of breakers, written down.
//!
//! Whether a call may begin is asked at the call (`clients/breaker`); here only as many jobs are let go as would be let through: one as the
//! probe, some a second while it ramps up, the rest once it has closed, which the queues' slots hold to what ran before it opened.

use std::{sync::Arc, time::Duration};

use shared::{
    ledger::{
        LedgerError,
        breakers::{self, Became, Let},
    },
    queue::Queue,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Engine, announce::Announcement};
use crate::clients::breaker::{Mode, Override, Transition};

/// How often it is looked who waits: one probe of an index that is empty as a rule.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many looks there are to one for those that have waited long enough.
const SELDOM: u32 = 2;
/// Batches of one breaker in one look: the others have their turn.
const MOST_BATCHES: usize = 10;

/// Lets go and writes down until `stop`.
pub(super) async fn run(engine: Arc<Engine>, queues: Vec<Queue>, stop: CancellationToken) {
    let known = engine.services.clients.breakers.clone();
    let serving = tokio::spawn(known.clone().run(stop.clone()));
    let mut transitions = known.transitions();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = 0_u32;
    loop {
        let transition = async {
            match &mut transitions {
                Some(transitions) => transitions.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            transition = transition => match transition {
                Some(transition) => write_down(&engine, &transition).await,
                None => transitions = None,
            },
            _ = ticks.tick() => {
                looks = looks.wrapping_add(1);
                if let Err(error) = engine.bounded(look(&engine, &queues, looks.is_multiple_of(SELDOM))).await {
                    // What is set stays in force.
                    tracing::debug!(error = &error as &dyn std::error::Error, "can't look who waits for a circuit breaker; trying again");
                }
            }
        }
    }
    let _ = serving.await;
}

/// Reads what operators have set.
///
/// # Errors
/// [`LedgerError`]; what is known stays in force.
pub(super) async fn read(engine: &Engine) -> Result<(), LedgerError> {
    let set = breakers::overrides(&engine.services.pool).await?;
    let mode = |word: &str| if word == "forced_open" { Mode::ForcedOpen } else { Mode::MetricsOnly };
    let set = set.into_iter().map(|set| Override { tenant: set.tenant, provider: set.provider, mode: mode(&set.mode) }).collect();
    engine.services.clients.breakers.set(set);
    Ok(())
}

async fn look(engine: &Engine, queues: &[Queue], seldom: bool) -> Result<(), LedgerError> {
    let (pool, clock) = (&engine.services.pool, &engine.services.clock);
    if !breakers::any_held(pool).await? {
        return Ok(());
    }
    for queue in queues {
        if seldom {
            let given_up = breakers::release(pool, *queue, Let::GiveUp, clock.now()).await?;
            tell(engine, *queue, given_up);
        }
        for name in breakers::awaited(pool, *queue).await? {
            let mut left = engine.services.clients.breakers.draw(&name).await.map(|most| i64::try_from(most).unwrap_or(i64::MAX));
            for _ in 0..MOST_BATCHES {
                let most = left.unwrap_or(breakers::BATCH);
                let released = breakers::release(pool, *queue, Let::Through(&name, most), clock.now()).await?;
                let count = i64::try_from(released.len()).unwrap_or(i64::MAX);
                left = left.map(|left| left - count);
                tell(engine, *queue, released);
                if count < breakers::BATCH {
                    break;
                }
            }
        }
    }
    Ok(())
}

fn tell(engine: &Engine, queue: Queue, released: Vec<shared::job::JobId>) {
    if released.is_empty() {
        return;
    }
    metrics::counter!("offstage_breaker_jobs_released_total", "queue" => queue.name()).increment(released.len() as u64);
    engine.announcer.tell(Announcement { changed: released, ..Announcement::default() });
    engine.dispatch.due(queue);
}

async fn write_down(engine: &Engine, transition: &Transition) {
    let Transition { key, phase, open_for, counts } = transition;
    let name = key.to_string();
    let became = Became {
        name: &name,
        tenant: key.tenant,
        provider: &key.provider,
        credential: key.credential.word(),
        phase: phase.word(),
        open_for: *open_for,
        counts: [counts.calls, counts.failures, counts.slow],
    };
    if let Err(error) = engine.bounded(breakers::became(&engine.services.pool, &became)).await {
        // It is in the log, and the next change is written down anew.
        tracing::warn!(
            breaker = name,
            error = &error as &dyn std::error::Error,
            "what became of a circuit breaker could not be written down"
        );
    }
}
