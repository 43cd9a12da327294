//! `metric.rebuild`: counts a metric's days anew from raw events, a day a transaction ([`shared::ledger::rollups::rebuild`]).
//!
//! What must stay true: it may end anywhere and be begun again; days whose raw events are not kept any more are left as they are. However
//! many are asked for, few are under way: each takes a connection for as long as a day takes, and who waits gives its slot back.

use std::time::Duration;

use chrono::{Days, NaiveDate, TimeDelta};
use serde_json::json;
use shared::{
    job::{Failure, Interrupt, Success},
    kinds::MetricRebuild,
    ledger::{
        events,
        rollups::{self, rebuild::RebuildError},
    },
    random,
    tenant::Metric,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{JobContext, export::tenant};

/// Rebuilds at a time in one process. Each holds two connections at the most.
const AT_A_TIME: usize = 2;

/// Those, and who waits in their slots for a place. The queue's other slots are for others.
const IN_LINE: usize = 8;

/// How long a place or a series' turn is waited for; then others may run in this slot.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first pause of a job that finds no place; the next ones are longer.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The places for rebuilds in a process.
#[derive(Debug)]
pub struct Rebuilds {
    line: Semaphore,
    places: Semaphore,
}

impl Default for Rebuilds {
    fn default() -> Self {
        Self { line: Semaphore::new(IN_LINE), places: Semaphore::new(AT_A_TIME) }
    }
}

impl Rebuilds {
    /// Waits for a place, as one of a few, for a while.
    async fn place(&self) -> Option<(SemaphorePermit<'_>, SemaphorePermit<'_>)> {
        let line = self.line.try_acquire().ok()?;
        let place = tokio::time::timeout(PATIENCE, self.places.acquire()).await.ok()?.ok()?;
        Some((line, place))
    }
}

/// Counts the days.
pub(super) async fn run(payload: MetricRebuild, context: JobContext) -> Result<Success, Interrupt> {
    let Some(_place) = context.services.rebuilds.place().await else { return Err(later(&context)) };
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
                return Err(Failure::transient("cancelled", "the rebuild was cancelled; days that it came to are counted anew").into());
            }
            match count(&context, metric, day).await {
                Ok(counted) => found += counted,
                // They went while this ran.
                Err(RebuildError::Gone(_)) => {}
                // The others are counted all the same.
                Err(RebuildError::TooManyGroups(day)) => too_fine.push(day),
                Err(RebuildError::Busy | RebuildError::Behind) => return Err(later(&context)),
                Err(RebuildError::Ledger(error)) => return Err(error.into()),
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
        return Err(Failure::permanent("metric_too_fine", message).into());
    }
    if payload.from.is_none() && payload.to.is_none() {
        rollups::series::is_whole(pool, tenant.id, metric.series()).await?;
    }
    metrics::counter!("offstage_rollup_days_rebuilt_total").increment(days);
    Ok(Success { result: Some(json!({"days": days, "events": found})), file: None })
}

/// Counts a day, again while somebody else has the series' turn or changes it.
async fn count(context: &JobContext, metric: &Metric, day: NaiveDate) -> Result<u64, RebuildError> {
    let (pool, tenant) = (&context.services.pool, context.job.tenant);
    let mut waited = Duration::ZERO;
    loop {
        match rollups::rebuild::day(pool, tenant, metric, day).await {
            Err(RebuildError::Busy | RebuildError::Behind) if waited < PATIENCE => {
                let pause = Duration::from_millis(50).mul_f64(0.5 + random::fraction());
                tokio::time::sleep(pause).await;
                waited += pause;
            }
            counted => return counted,
        }
    }
}

/// Comes back when another may have ended, at no attempt's cost. Days that were counted are counted again then.
fn later(context: &JobContext) -> Interrupt {
    let pause = FIRST_PAUSE.saturating_mul(1 << context.job.snoozes.min(8)).min(LONGEST_PAUSE);
    Interrupt::Snoozed(pause.mul_f64(1.0 + random::fraction() / 4.0))
}
