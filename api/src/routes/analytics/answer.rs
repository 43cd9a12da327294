//! A metric's answer.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use shared::{
    analytics::{
        Granularity, Labels, Period,
        range::{Group, Question, Read},
        state::{Aggregate, State},
    },
    ledger::rollups::read::{ReadError, Wanted, read as read_rollups},
    tenant::{self, Metric, Panel, TOP},
};
use utoipa::ToSchema;

use super::{Tagged, query::Span};
use crate::{
    app::App,
    auth::{AnalyticsRead, Caller},
    problem::{Code, Problem},
};

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'a> {
    /// The product's backend: everybody's.
    Backend,
    /// A user: their own.
    User(&'a str),
}

impl<'a> Who<'a> {
    /// By the acting user.
    pub fn of(user: Option<&'a str>) -> Self {
        user.map_or(Self::Backend, Who::User)
    }
}

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
    let who = Who::of(caller.acting_user.as_deref());
    let dimensions = metric.dimensions();
    let place_of = |name: &String| dimensions.iter().position(|dimension| dimension == name);
    let asked: Vec<usize> = panel.group_by.iter().filter_map(place_of).collect();
    let mut grouping = asked.iter().fold(0_u8, |bits, place| bits | 1 << place);
    let user = match (who, metric.user_place()) {
        (Who::Backend, _) => None,
        (Who::User(user), Some(place)) => {
            grouping |= 1 << place;
            Some((user, place))
        }
        // It is not declared for users, then.
        (Who::User(_), None) => return Err(Problem::unexplained()),
    };
    // Where a dimension is among those of the grouping.
    let index_in = |place: usize| (grouping & ((1 << place) - 1)).count_ones() as usize;
    let label = |labels: &Labels, place: usize| labels.0.get(index_in(place)).cloned().flatten();
    let begins = span.before.first().or(span.periods.first()).map_or(0, |first| first.first);
    let wanted = Wanted {
        tenant: caller.tenant,
        series: metric.series(),
        grouping,
        buckets: (begins, span.buckets.1),
        user: user.map(|(user, _)| user),
    };
    let as_of = app.clock.now();
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let (found, is_whole) = read_rollups(&mut transaction, &wanted).await.map_err(of_read)?;
    // Nothing is shown of who is being erased.
    let erased: Vec<String> = match metric.user_place() {
        Some(_) => {
            let erased = sqlx::query_scalar("SELECT user_id FROM erasure WHERE tenant_id = $1").bind(caller.tenant);
            erased.fetch_all(&mut *transaction).await?
        }
        None => Vec::new(),
    };
    drop(transaction);
    let user_place = metric.user_place().filter(|place| grouping & (1 << place) != 0);
    let place = |labels: &Labels| {
        if let Some(place) = user_place {
            let whose = label(labels, place);
            if user.is_some_and(|(user, _)| whose.as_deref() != Some(user)) || whose.is_some_and(|whose| erased.contains(&whose)) {
                return None;
            }
        }
        Some(Labels(asked.iter().map(|place| label(labels, *place)).collect()))
    };
    let top = if asked.is_empty() { 1 } else { panel.top.unwrap_or(TOP) };
    let question = Question { shape: metric.shape(), aggregate: metric.aggregate(), periods: &span.periods, grouping, top };
    let shown = answer(&found, &question, &place, None, asked.is_empty())?;
    let previous = match span.before.as_slice() {
        [] => None,
        before => {
            let question = Question { periods: before, ..question };
            Some(answer(&found, &question, &place, Some(&shown), asked.is_empty())?)
        }
    };
    let aggregate = metric.aggregate();
    let groups_of = |groups: &[Group], periods: &[Period], others: Option<&[Group]>| {
        groups.iter().map(|group| group_answer(group, periods, &panel.group_by, aggregate, others)).collect()
    };
    Ok(MetricAnswer {
        metric: name.to_owned(),
        aggregate,
        from: span.periods.first().map_or(as_of, |first| first.start),
        to: shared::analytics::bucket_start(span.buckets.1),
        granularity: span.granularity,
        time_zone: span.tz.clone(),
        as_of,
        is_whole,
        group_by: panel.group_by.clone(),
        groups: groups_of(&shown, &span.periods, previous.as_deref()),
        previous: previous.as_ref().map(|groups| Previous {
            from: span.before.first().map_or(as_of, |first| first.start),
            to: span.periods.first().map_or(as_of, |first| first.start),
            groups: groups_of(groups, &span.before, None),
        }),
    })
}

/// The groups of a span; those of `like` where there is such.
fn answer(
    found: &Read,
    question: &Question<'_>,
    place: &dyn Fn(&Labels) -> Option<Labels>,
    like: Option<&[Group]>,
    is_one: bool,
) -> Result<Vec<Group>, Problem> {
    let fixed: Option<Vec<Labels>> = like.map(|groups| groups.iter().filter_map(|group| group.labels.clone()).collect());
    let mut groups = found.answer(question, place, fixed.as_deref()).map_err(Problem::internal)?;
    if groups.is_empty() && is_one {
        let empty = State::empty(question.shape);
        groups.push(Group { labels: Some(Labels::default()), periods: vec![empty.clone(); question.periods.len()], total: empty });
    }
    Ok(groups)
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
        ReadError::TooMuch => Problem::new(
            Code::QueryInvalid,
            "group_by: there are more groups in this span than can be added up; ask for a shorter one, or for fewer dimensions.",
        ),
    }
}
