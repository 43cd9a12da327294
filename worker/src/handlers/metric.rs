//! `metric.rebuild`: counts a metric's days anew from raw events, a day a transaction ([`shared::ledger::rollups::rebuild`]).
//!
//! What must stay true: it may end anywhere and be begun again; days whose raw events are not kept any more are left as they are. However
//! many are asked for, few are under way: each takes a connection for as long as a day takes, and who waits gives its slot back, and asks
//! again the sooner the longer it has waited.

use std::time::Duration;

use chrono::{Days, NaiveDate, TimeDelta};
use serde::{Deserialize, Serialize};
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
use uuid::Uuid;

use super::{JobContext, export::tenant};

/// Rebuilds at a time in one process. Each holds one connection.
const AT_A_TIME: usize = 2;

/// Those, and who waits in their slots for a place. The queue's other slots are for others.
const IN_LINE: usize = 8;

/// How long a place or a series' turn is waited for; then others may run in this slot.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first pause of a job that finds no place.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// The shortest, of one that has waited long.
const LAST_PAUSE: Duration = Duration::from_secs(4);

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

/// How far a run came that gave its place back.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Reached {
    /// What was counted: a metric that was changed meanwhile is another series, and is begun anew.
    series: Uuid,
    /// The day that is next.
    next: Option<NaiveDate>,
    days: u64,
    events: u64,
    /// Days that have too many groups, and the first of them.
    too_fine: u64,
    first_too_fine: Option<NaiveDate>,
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
    let kept = (clock.now() - TimeDelta::days(i64::from(tenant.manifest.events.keep_days()))).date_naive();
    // Also where the product keeps events longer by now: those that went do not come back.
    let horizon = events::horizon(pool, tenant.id).await?.unwrap_or(kept);
    let earliest = payload.from.unwrap_or(kept).max(kept).max(horizon);
    let newest = (clock.now() + events::AHEAD).date_naive();
    let latest = payload.to.unwrap_or(newest).min(newest);
    // Days that were asked for are counted also where no events are: something else may be.
    let span = match (payload.from, payload.to) {
        (Some(_), Some(_)) => Some((earliest, latest)),
        (from, to) => events::days(pool, tenant.id, (earliest, latest))
            .await?
            .map(|(first, last)| (from.map_or(first, |_| earliest), to.map_or(last, |_| latest))),
    };
    let saved = context.saved().await?.and_then(|saved| serde_json::from_value(saved).ok());
    let series = metric.series();
    let mut reached = saved.filter(|saved: &Reached| saved.series == series).unwrap_or(Reached { series, ..Reached::default() });
    if let Some((first, last)) = span {
        let total = u64::try_from((last - first).num_days() + 1).unwrap_or(0);
        let mut day = reached.next.unwrap_or(first).max(first);
        while day <= last {
            if context.cancelled.is_cancelled() {
                return Err(Failure::transient("cancelled", "the rebuild was cancelled; days that it came to are counted anew").into());
            }
            match count(&context, metric, day).await {
                Ok(counted) => reached.events += counted,
                // They went while this ran.
                Err(RebuildError::Gone(_)) => {}
                // The others are counted all the same.
                Err(RebuildError::TooManyGroups(day)) => {
                    reached.too_fine += 1;
                    reached.first_too_fine.get_or_insert(day);
                }
                Err(RebuildError::Busy | RebuildError::Behind) => {
                    reached.next = Some(day);
                    context.checkpoint(&json!(reached), None).await?;
                    return Err(later(&context));
                }
                Err(RebuildError::Ledger(error)) => return Err(error.into()),
            }
            reached.days += 1;
            // A courtesy to whoever follows the job.
            let _told = context.progress(reached.days, Some(total)).await;
            let Some(next) = day.checked_add_days(Days::new(1)) else { break };
            day = next;
        }
    }
    if let Some(day) = reached.first_too_fine {
        // Retried, it counts all of them again.
        context.forget_checkpoint().await?;
        let message = format!(
            "{} of {} days stay as they were, {day} the first: each has more groups than can be counted anew (100,000 rows a day, of all \
             combinations of its dimensions). Declare the metric with fewer dimensions, or with such that have fewer values",
            reached.too_fine, reached.days
        );
        return Err(Failure::permanent("metric_too_fine", message).into());
    }
    if payload.from.is_none() && payload.to.is_none() {
        rollups::series::is_whole(pool, tenant.id, series, context.job.id).await?;
    }
    metrics::counter!("offstage_rollup_days_rebuilt_total").increment(reached.days);
    Ok(Success { result: Some(json!({"days": reached.days, "events": reached.events})), file: None })
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

/// Comes back when another may have ended, at no attempt's cost.
fn later(context: &JobContext) -> Interrupt {
    let pause = (FIRST_PAUSE / (1 + u32::from(context.job.snoozes) / 2)).max(LAST_PAUSE);
    Interrupt::Snoozed(pause.mul_f64(1.0 + random::fraction() / 4.0))
}
