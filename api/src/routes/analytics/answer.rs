//! A metric's answer.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use shared::{
    analytics::{Granularity, Labels, Period, Span, State, range::Group, state::Aggregate},
    ledger::rollups::{
        ask::{Asked, Found, look},
        read::ReadError,
    },
    tenant::{self, Metric, Panel, TOP},
};
use utoipa::ToSchema;

use super::Tagged;
use crate::{
    app::App,
    auth::{AnalyticsRead, Caller},
    problem::{Code, Problem},
};

/// For how long a request waits while others' answers are computed.
const TURN_WITHIN: Duration = Duration::from_secs(5);

/// When to ask again: where others' answers are computed, and where compaction is behind.
const BUSY_FOR: Duration = Duration::from_secs(2);
const BEHIND_FOR: Duration = Duration::from_secs(10);

/// A metric over a span.
#[derive(Debug, Serialize, ToSchema)]
pub struct MetricAnswer {
    /// Its name.
    metric: String,
    /// What `value` is.
    aggregate: Aggregate,
    /// When the first period begins.
    from: DateTime<Utc>,
    /// When the last one ends.
    to: DateTime<Utc>,
    /// How long each is.
    granularity: Granularity,
    /// By which clocks.
    time_zone: String,
    /// What was taken by then is in the numbers.
    as_of: DateTime<Utc>,
    /// Whether events from before the metric was declared are in them. That takes some minutes once.
    is_whole: bool,
    /// The dimensions of `labels`.
    group_by: Vec<String>,
    /// The groups, the largest first; one, of no labels, where nothing is grouped.
    groups: Vec<GroupAnswer>,
    /// The periods before, where that was asked for; of the same groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<Previous>,
}

/// The periods before.
#[derive(Debug, Serialize, ToSchema)]
pub struct Previous {
    /// When the first begins.
    from: DateTime<Utc>,
    /// When the last ends.
    to: DateTime<Utc>,
    groups: Vec<GroupAnswer>,
}

/// A group.
#[derive(Debug, Serialize, ToSchema)]
pub struct GroupAnswer {
    /// By dimension; `null` of events without it. Empty of the group `other`.
    labels: BTreeMap<String, Option<String>>,
    /// Whether it is all groups that are not shown for themselves.
    other: bool,
    /// The whole span.
    total: Numbers,
    /// By how much the total differs from that of the periods before, relative to it: 0.5 is half as much again. Only where that was asked
    /// for, and there is something to compare.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<f64>,
    /// One a period.
    points: Vec<Point>,
}

/// A period.
#[derive(Debug, Serialize, ToSchema)]
pub struct Point {
    /// When it begins.
    at: DateTime<Utc>,
    #[serde(flatten)]
    numbers: Numbers,
}

/// What events come to.
#[derive(Debug, Serialize, ToSchema)]
pub struct Numbers {
    /// What the metric says of them; of percentiles the median. `null` where there is nothing to say.
    #[schema(required)]
    value: Option<f64>,
    /// How many events it is of.
    count: u64,
    /// `p50`, `p90`, `p95`, `p99`, of percentiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, f64>>)]
    percentiles: Option<BTreeMap<&'static str, f64>>,
}

impl Tagged for MetricAnswer {
    fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn numbers(&self) -> Value {
        let mut all = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = all.as_object_mut() {
            fields.remove("as_of");
        }
        all
    }
}

impl Numbers {
    fn of(state: &State, aggregate: Aggregate) -> Self {
        Self { value: state.value(aggregate), count: state.count(), percentiles: state.percentiles() }
    }
}

/// Reads a metric.
pub async fn read(
    app: &App,
    caller: &Caller<AnalyticsRead>,
    name: &str,
    metric: &Metric,
    panel: &Panel,
    span: &Span,
) -> Result<MetricAnswer, Problem> {
    let asked = Asked {
        tenant: caller.tenant,
        metric,
        group_by: &panel.group_by,
        top: panel.top.unwrap_or(TOP),
        span,
        user: caller.acting_user.as_deref(),
    };
    // Before a connection is taken: who waits for others' answers holds up nobody.
    let turn = app.turns.take(TURN_WITHIN).await.map_err(of_read)?;
    let as_of = app.clock.now();
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let looked = look(&mut transaction, &asked).await.map_err(of_read)?;
    drop(transaction);
    let (name, aggregate, group_by, span) = (name.to_owned(), metric.aggregate(), panel.group_by.clone(), span.clone());
    let answer = move |Found { groups: shown, before: previous, is_whole }| {
        let groups_of = |groups: &[Group], periods: &[Period], others: Option<&[Group]>| {
            groups.iter().map(|group| group_answer(group, periods, &group_by, aggregate, others)).collect()
        };
        MetricAnswer {
            metric: name,
            aggregate,
            from: span.periods.first().map_or(as_of, |first| first.start),
            to: shared::analytics::bucket_start(span.buckets.1),
            granularity: span.granularity,
            time_zone: span.tz.clone(),
            as_of,
            is_whole,
            groups: groups_of(&shown, &span.periods, previous.as_deref()),
            previous: previous.as_ref().map(|groups| Previous {
                from: span.before.first().map_or(as_of, |first| first.start),
                to: span.periods.first().map_or(as_of, |first| first.start),
                groups: groups_of(groups, &span.before, None),
            }),
            group_by,
        }
    };
    looked.found(turn, answer).await.map_err(of_read)
}

fn group_answer(group: &Group, periods: &[Period], group_by: &[String], aggregate: Aggregate, before: Option<&[Group]>) -> GroupAnswer {
    let total = Numbers::of(&group.total, aggregate);
    let change = before.and_then(|before| {
        let before = before.iter().find(|other| other.labels == group.labels).and_then(|other| other.total.value(aggregate));
        before.zip(total.value).filter(|(before, _)| *before != 0.0).map(|(before, now)| (now - before) / before.abs())
    });
    let labels =
        group.labels.as_ref().map_or_else(BTreeMap::new, |Labels(labels)| group_by.iter().cloned().zip(labels.iter().cloned()).collect());
    let points = periods.iter().zip(&group.periods);
    GroupAnswer {
        labels,
        other: group.labels.is_none(),
        total,
        change,
        points: points.map(|(period, state)| Point { at: period.start, numbers: Numbers::of(state, aggregate) }).collect(),
    }
}

fn of_read(error: ReadError) -> Problem {
    match error {
        ReadError::Ledger(error) => error.into(),
        ReadError::Behind => {
            let detail = "More events came than are put together yet; the same question is answered when they are.";
            Problem::new(Code::Overloaded, detail).retry_after(BEHIND_FOR)
        }
        ReadError::Busy => {
            let detail = "As many answers are computed as this server does at a time; ask again after Retry-After, or for less at a time.";
            Problem::new(Code::Overloaded, detail).retry_after(BUSY_FOR)
        }
        ReadError::TooMuch => Problem::new(
            Code::QueryInvalid,
            "group_by: there are more groups in this span than can be added up; ask for a shorter one, or for fewer dimensions.",
        ),
    }
}
