//! Partitions of days and weeks: made before they are needed, dropped when nobody keeps them any more.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use shared::ledger::{
    LedgerError,
    events::{self, Prepared, week_of},
    recover::take_duty,
    rollups::series,
};
use uuid::Uuid;

use crate::handlers::Services;

/// How often it looks.
pub(super) const EVERY: Duration = Duration::from_secs(60);

/// How often partitions are made, and how many days ahead.
const PREPARE_EVERY: Duration = Duration::from_secs(3_600);
const AHEAD: u64 = 7;

/// How often what is kept too long is looked for, and how long that may take.
const FORGET_EVERY: Duration = Duration::from_secs(600);
const FORGET_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn round(services: Arc<Services>, worker: Uuid) -> Result<(), LedgerError> {
    let (pool, now) = (&services.pool, services.clock.now());
    if take_duty(pool, "prepare_events", worker, PREPARE_EVERY).await? {
        let days: BTreeSet<NaiveDate> = (0..=AHEAD).filter_map(|ahead| now.date_naive().checked_add_days(Days::new(ahead))).collect();
        let weeks = BTreeSet::from([week_of(now), week_of(now) + TimeDelta::days(7)]);
        Prepared::default().prepare(pool, &days, &weeks).await?;
    }
    if take_duty(pool, "forget_events", worker, FORGET_EVERY).await? {
        forget(&services, now).await?;
    }
    Ok(())
}

async fn forget(services: &Services, now: DateTime<Utc>) -> Result<(), LedgerError> {
    let pool = &services.pool;
    let until = Instant::now() + FORGET_WITHIN;
    let day_before = |days: u32| (now - TimeDelta::days(i64::from(days))).date_naive();
    let (mut kept, mut is_known) = (Vec::new(), true);
    for tenant in events::tenants(pool).await? {
        match services.tenants.get(tenant).await {
            Ok(Some(found)) => kept.push((tenant, found.manifest.events)),
            _ => is_known = false,
        }
    }
    let longest = kept.iter().map(|(_, events)| events.keep_days()).max().unwrap_or(1);
    for (tenant, declared) in &kept {
        // What all others drop too is dropped by the day, which is cheaper.
        if declared.keep_days() < longest || !is_known {
            let before = day_before(declared.keep_days());
            while Instant::now() < until && events::forget(pool, *tenant, before).await? > 0 {}
        }
        let rollups = declared.keep_rollups_days().map(day_before);
        while Instant::now() < until && series::forget(pool, *tenant, rollups, now).await? > 0 {}
    }
    // A tenant that can't be read now must not lose any. A day more than is taken: clocks differ.
    if is_known {
        let dropped = events::drop_partitions(pool, day_before(longest.saturating_add(1)), now).await?;
        metrics::counter!("offstage_event_partitions_dropped_total").increment(dropped);
    }
    Ok(())
}
