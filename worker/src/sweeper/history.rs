//! Finished history: pruned by age and by count, as the tenants' manifests and the installation say; and unique keys that are free.
//!
//! Each tenant's kind is looked through once in [`PASS_EVERY`], by whichever replica comes first; what a replica could not finish in
//! its round is anybody's at once. Between two pages it rests as long as the last one took, so that it never has more than
//! half of one connection's time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    kinds::Registry,
    ledger::{
        LedgerError, breakers, deliveries, feeds, inquiries, notifications, own_keys,
        recover::{give_up_duty, take_duty},
        retention::{self, Cut},
        unique,
    },
    tenant::Retention,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::handlers::Services;

/// How often a replica looks for kinds whose turn it is.
const ROUND_EVERY: Duration = Duration::from_secs(60);

/// How often each tenant's kind is looked through.
const PASS_EVERY: Duration = Duration::from_secs(600);

/// After so long a pass leaves the rest to the next one.
const PASS_WITHIN: Duration = Duration::from_secs(30);

/// Prunes until `stop`.
pub(super) async fn run(services: Arc<Services>, installation: Retention, stop: CancellationToken) {
    let worker = services.clock.new_id();
    let kinds = Registry::new(true);
    let mut ticks = tokio::time::interval(ROUND_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let done = tokio::select! {
            // Wherever it is dropped: each page is a transaction of its own.
            () = stop.cancelled() => return,
            done = round(&services, &kinds, installation, worker) => done,
        };
        if let Err(error) = done {
            metrics::counter!("offstage_prune_failures_total").increment(1);
            tracing::debug!(error = &error as &dyn std::error::Error, "a round of pruning was cut short; the next one goes on");
        }
    }
}

async fn round(services: &Services, kinds: &Registry, installation: Retention, worker: Uuid) -> Result<(), LedgerError> {
    let pool = &services.pool;
    for (tenant, kind) in retention::kinds(pool).await? {
        let duty = format!("prune {tenant} {kind}");
        if !take_duty(pool, &duty, worker, PASS_EVERY).await? {
            continue;
        }
        // Who can't tell how long it is to be kept keeps it.
        let Ok(Some(found)) = services.tenants.get(tenant).await else { continue };
        let name = kinds.find(&kind).map_or(kind.as_str(), |entry| entry.name);
        let passed = pass(services, tenant, &kind, found.manifest.retention(name, installation)).await;
        if !matches!(passed, Ok(true)) {
            give_up_duty(pool, &duty, worker).await?;
        }
        passed?;
    }
    if take_duty(pool, "forget_tombstones", worker, PASS_EVERY).await? {
        let until = Instant::now() + PASS_WITHIN;
        while retention::forget_tombstones(pool, services.clock.now()).await? > 0 && Instant::now() < until {}
    }
    if take_duty(pool, "forget_deliveries", worker, PASS_EVERY).await? {
        let until = Instant::now() + PASS_WITHIN;
        while deliveries::forget(pool, services.clock.now()).await? > 0 && Instant::now() < until {}
    }
    if take_duty(pool, "forget_notifications", worker, PASS_EVERY).await? {
        let until = Instant::now() + PASS_WITHIN;
        while notifications::forget(pool, services.clock.now()).await? > 0 && Instant::now() < until {}
        while inquiries::forget(pool, services.clock.now()).await? > 0 && Instant::now() < until {}
        while own_keys::forget_checks(pool, services.clock.now()).await? > 0 && Instant::now() < until {}
        while own_keys::forget_deletions(pool, services.clock.now()).await? > 0 && Instant::now() < until {}
        while breakers::forget(pool).await? > 0 && Instant::now() < until {}
    }
    if take_duty(pool, "forget_activities", worker, PASS_EVERY).await? {
        let until = Instant::now() + PASS_WITHIN;
        while feeds::forget(pool, services.clock.now()).await? > 0 && Instant::now() < until {}
    }
    if take_duty(pool, "forget_unique_keys", worker, PASS_EVERY).await? {
        forget_unique_keys(services).await?;
    }
    Ok(())
}

/// Goes once through all unique keys and forgets those that are free, resting between two pages as long as the last one took.
async fn forget_unique_keys(services: &Services) -> Result<(), LedgerError> {
    let mut after = None;
    loop {
        let began = Instant::now();
        after = unique::forget(&services.pool, after.as_ref(), services.clock.now()).await?;
        if after.is_none() {
            return Ok(());
        }
        tokio::time::sleep(began.elapsed()).await;
    }
}

/// Looks through a tenant's kind; false where it did not come to the end. What it leaves is the newest, so the next pass, which
/// begins at the oldest again, has less before it.
async fn pass(services: &Services, tenant: i32, kind: &str, retention: Retention) -> Result<bool, LedgerError> {
    let until = Instant::now() + PASS_WITHIN;
    let cut = Cut::find(&services.pool, tenant, kind, retention, services.clock.now()).await?;
    let mut after = None;
    loop {
        let began = Instant::now();
        let pruned = retention::prune(&services.pool, tenant, kind, &cut, after).await?;
        if pruned.gone > 0 {
            metrics::counter!("offstage_jobs_pruned_total", "kind" => kind.to_owned()).increment(pruned.gone);
        }
        after = pruned.next;
        if after.is_none() {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        tokio::time::sleep(began.elapsed()).await;
    }
}
