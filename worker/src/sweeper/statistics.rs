//! Statistics: how old each is and what vendors still grant, for the figures; and what no manifest declares any more is forgotten.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use shared::ledger::{LedgerError, recover::take_duty, statistics, vendors};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::handlers::Services;

/// How often each replica tells the figures: reads of two small tables.
const EVERY: Duration = Duration::from_secs(15);

/// How often what is undeclared is looked for, by one replica.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);

/// Tells and forgets until `stop`.
pub(super) async fn run(services: Arc<Services>, stop: CancellationToken) {
    let worker = services.clock.new_id();
    let mut told = BTreeSet::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let done = tokio::select! {
            // Wherever it is dropped: each step is a transaction of its own.
            () = stop.cancelled() => return,
            done = round(&services, worker, &mut told) => done,
        };
        if let Err(error) = done {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "figures of statistics could not be told; the next round tries again"
            );
        }
    }
}

/// `told` are the statistics whose age was told before.
async fn round(services: &Services, worker: Uuid, told: &mut BTreeSet<(String, String)>) -> Result<(), LedgerError> {
    let (pool, now) = (&services.pool, services.clock.now());
    let age_of = |(tenant, source): &(String, String), age: f64| {
        metrics::gauge!("offstage_statistic_age_seconds", "tenant" => tenant.clone(), "source" => source.clone()).set(age);
    };
    let mut there = BTreeSet::new();
    for (tenant, source, measured_at) in statistics::ages(pool).await? {
        let named = (tenant, source);
        age_of(&named, (now - measured_at).as_seconds_f64());
        there.insert(named);
    }
    // A series can't be taken back; what is gone has no age, and no alert is raised by that.
    told.difference(&there).for_each(|gone| age_of(gone, f64::NAN));
    *told = there;
    for (vendor, left) in vendors::left(pool, now).await? {
        metrics::gauge!("offstage_vendor_budget_left", "vendor" => vendor).set(left as f64);
    }
    if take_duty(pool, "forget_statistics", worker, FORGET_EVERY).await? {
        for tenant in statistics::tenants(pool).await? {
            // Of whom it can't be told what is declared, all is kept.
            let Ok(Some(found)) = services.tenants.get(tenant).await else { continue };
            let declared: Vec<&str> = found.manifest.stats.keys().map(String::as_str).collect();
            statistics::forget_undeclared(pool, tenant, &declared).await?;
        }
        vendors::forget(pool, now).await?;
    }
    Ok(())
}
