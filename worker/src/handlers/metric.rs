//! `metric.rebuild`: counts a metric's days anew from raw events, a day a transaction ([`shared::ledger::rollups::rebuild`]).
//!
//! What must stay true: it may end anywhere and be begun again; days whose raw events are not kept any more are left as they are.

use std::time::Duration;

use chrono::{Days, NaiveDate, TimeDelta};
use serde_json::json;
use shared::{
    job::{Failure, Success},
    kinds::MetricRebuild,
    ledger::{
        LedgerError, events,
        rollups::{self, rebuild::RebuildError},
    },
    tenant::Metric,
};

use super::{JobContext, export::tenant};

/// How often a day is tried at once while others change the series.
const TRIES: u32 = 20;

/// Counts the days.
pub(super) async fn run(payload: MetricRebuild, context: JobContext) -> Result<Success, Failure> {
    let tenant = tenant(&context).await?;
    let (pool, clock) = (&context.services.pool, &context.services.clock);
    let metric = tenant.manifest.metrics.get(&payload.metric).ok_or_else(|| {
        let message = format!("the metric `{}` is not in the product's manifest any more", payload.metric);
        Failure::permanent("metric_unknown", message)
    })?;
    // It may have been declared a moment ago.
    rollups::series::declare(pool, tenant.id, &tenant.manifest.metrics, clock).await?;
    let kept = clock.now() - TimeDelta::days(i64::from(tenant.manifest.events.keep_days()));
    let (mut found, mut days, mut too_fine) = (0, 0, Vec::new());
    if let Some((first, last)) = rollups::series::days(pool, tenant.id).await? {
        // Also where the product keeps events longer by now: those that went do not come back.
        let horizon = events::horizon(pool, tenant.id).await?.unwrap_or(first);
        let first = payload.from.unwrap_or(first).max(first).max(kept.date_naive()).max(horizon);
        let last = payload.to.unwrap_or(last).min(last);
        let total = u64::try_from((last - first).num_days() + 1).unwrap_or(0);
        let mut next = Some(first).filter(|first| *first <= last);
        while let Some(day) = next {
            if context.cancelled.is_cancelled() {
                return Err(Failure::transient("cancelled", "the rebuild was cancelled; days that it came to are counted anew"));
            }
            match count(&context, metric, day).await {
                Ok(counted) => found += counted,
                // They went while this ran.
                Err(RebuildError::Gone(_)) => {}
                // The others are counted all the same.
                Err(RebuildError::TooManyGroups(day)) => too_fine.push(day),
                Err(error) => return Err(failure(error)),
            }
            days += 1;
            // A courtesy to whoever follows the job.
            let _told = context.progress(days, Some(total)).await;
            next = day.checked_add_days(Days::new(1)).filter(|next| *next <= last);
        }
    }
    if let Some(day) = too_fine.first() {
        let message = format!(
            "{} of {days} days stay as they were, {day} the first: each has more groups than can be counted anew (100,000 rows a day, of all \
             combinations of its dimensions). Declare the metric with fewer dimensions, or with such that have fewer values",
            too_fine.len()
        );
        return Err(Failure::permanent("metric_too_fine", message));
    }
    if payload.from.is_none() && payload.to.is_none() {
        rollups::series::is_whole(pool, tenant.id, metric.series()).await?;
    }
    metrics::counter!("offstage_rollup_days_rebuilt_total").increment(days);
    Ok(Success { result: Some(json!({"days": days, "events": found})), file: None })
}

/// Counts a day, again while somebody else changes the series meanwhile.
async fn count(context: &JobContext, metric: &Metric, day: NaiveDate) -> Result<u64, RebuildError> {
    let (pool, tenant) = (&context.services.pool, context.job.tenant);
    let mut tries = 0;
    loop {
        match rollups::rebuild::day(pool, tenant, metric, day).await {
            Err(error) if is_conflict(&error) && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            counted => return counted,
        }
    }
}

/// SQLSTATE 40001: it would not have been as if one came after the other.
fn is_conflict(error: &RebuildError) -> bool {
    match error {
        RebuildError::Ledger(LedgerError::Unavailable(sqlx::Error::Database(error))) => error.code().as_deref() == Some("40001"),
        RebuildError::Behind => true,
        RebuildError::Ledger(_) | RebuildError::Gone(_) | RebuildError::TooManyGroups(_) => false,
    }
}

fn failure(error: RebuildError) -> Failure {
    match error {
        RebuildError::Ledger(error) => error.into(),
        RebuildError::Behind => {
            Failure::transient("metric_behind", "more is added to the metric than is put together now; the rebuild goes on later")
        }
        RebuildError::Gone(_) | RebuildError::TooManyGroups(_) => Failure::permanent("metric_too_fine", error.to_string()),
    }
}
