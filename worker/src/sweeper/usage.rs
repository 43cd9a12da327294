//! Reservations that have outlived their jobs lapse; counters and charges of months long over are forgotten.

use std::time::{Duration, Instant};

use shared::{
    ledger::{LedgerError, recover::take_duty},
    usage::{calls, settle},
};
use uuid::Uuid;

use crate::handlers::Services;

/// How often what is reserved is looked through. What a job reserved ends with the job, so hardly anything is ever found.
const LAPSE_EVERY: Duration = Duration::from_secs(30);

/// How often what is old is forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);

/// After so long the rest is left to the next time.
const WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn sweep(services: &Services, worker: Uuid) -> Result<(), LedgerError> {
    let pool = &services.pool;
    if take_duty(pool, "lapse_usage", worker, LAPSE_EVERY).await? {
        let until = Instant::now() + WITHIN;
        let mut after = 0;
        loop {
            let lapsed = settle::lapse(pool, after, services.clock.now()).await?;
            if lapsed.reservations > 0 {
                metrics::counter!("offstage_usage_lapsed_total").increment(lapsed.reservations);
                tracing::warn!(reservations = lapsed.reservations, "what jobs had reserved outlived them, and has lapsed");
            }
            let Some(next) = lapsed.next.filter(|_| Instant::now() < until) else { break };
            after = next;
        }
    }
    if take_duty(pool, "forget_usage", worker, FORGET_EVERY).await? {
        let until = Instant::now() + WITHIN;
        while settle::forget(pool, services.clock.now()).await? > 0 && Instant::now() < until {}
        while calls::forget(pool, services.clock.now()).await? > 0 && Instant::now() < until {}
    }
    Ok(())
}
