//! A metric's groups over a span: what the reading doors answer, and what exports write.
//!
//! What must stay true: a user's are of that user alone; nothing is shown of who is being erased; whoever asks in the same words gets the same
//! numbers.

use sqlx::PgConnection;

use super::{
    read::{ReadError, Wanted, read},
    unreadable,
};
use crate::{
    analytics::{
        Labels, Span, State,
        range::{Grain, Group, Question, Read},
    },
    tenant::Metric,
};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Whose.
    pub tenant: i32,
    /// Of what.
    pub metric: &'a Metric,
    /// By which of its dimensions.
    pub group_by: &'a [String],
    /// How many groups are shown for themselves.
    pub top: usize,
    /// Over which time.
    pub span: &'a Span,
    /// Of one user alone. The metric must have the dimension `user`, as every one that is for users has; else nothing is found.
    pub user: Option<&'a str>,
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The groups, the largest first; one, of no labels, where nothing is grouped.
    pub groups: Vec<Group>,
    /// The same groups in the time before, where the span shows that.
    pub before: Option<Vec<Group>>,
    /// Whether events from before the metric was declared are counted.
    pub is_whole: bool,
}

/// Looks it up.
///
/// # Errors
/// [`ReadError`].
pub async fn ask(connection: &mut PgConnection, asked: &Asked<'_>) -> Result<Found, ReadError> {
    let (metric, span) = (asked.metric, asked.span);
    let dimensions = metric.dimensions();
    let places: Vec<usize> = asked.group_by.iter().filter_map(|name| dimensions.iter().position(|dimension| dimension == name)).collect();
    let mut grouping = places.iter().fold(0_u8, |bits, place| bits | 1 << place);
    if asked.user.is_some()
        && let Some(place) = metric.user_place()
    {
        grouping |= 1 << place;
    }
    // Where a dimension is among those of the grouping.
    let index_in = |place: usize| (grouping & ((1 << place) - 1)).count_ones() as usize;
    let label = |labels: &Labels, place: usize| labels.0.get(index_in(place)).cloned().flatten();
    let begins = span.before.first().or(span.periods.first()).map_or(0, |first| first.first);
    let grain = Grain::of(span.periods.iter().chain(&span.before));
    let buckets = (begins, span.buckets.1);
    let wanted = Wanted { tenant: asked.tenant, series: metric.series(), grouping, buckets, grain: &grain, user: asked.user };
    let (found, is_whole) = read(connection, &wanted).await?;
    let erased: Vec<String> = match metric.user_place() {
        Some(_) => {
            let erased = sqlx::query_scalar("SELECT user_id FROM erasure WHERE tenant_id = $1").bind(asked.tenant);
            erased.fetch_all(&mut *connection).await?
        }
        None => Vec::new(),
    };
    let user_place = metric.user_place().filter(|place| grouping & (1 << place) != 0);
    let place = |labels: &Labels| {
        let whose = user_place.and_then(|place| label(labels, place));
        if asked.user.is_some_and(|user| whose.as_deref() != Some(user)) || whose.is_some_and(|whose| erased.contains(&whose)) {
            return None;
        }
        Some(Labels(places.iter().map(|place| label(labels, *place)).collect()))
    };
    let top = if places.is_empty() { 1 } else { asked.top };
    let question = Question { shape: metric.shape(), aggregate: metric.aggregate(), periods: &span.periods, grouping, top };
    let groups_of = |question: &Question<'_>, like: Option<&[Group]>| {
        groups(&found, question, &place, like, places.is_empty()).map_err(|error| ReadError::Ledger(unreadable(metric.series())(error)))
    };
    let shown = groups_of(&question, None)?;
    let before = match span.before.as_slice() {
        [] => None,
        before => Some(groups_of(&Question { periods: before, ..question }, Some(&shown))?),
    };
    Ok(Found { groups: shown, before, is_whole })
}

/// The groups of a span; those of `like` where there is such.
fn groups(
    found: &Read,
    question: &Question<'_>,
    place: &dyn Fn(&Labels) -> Option<Labels>,
    like: Option<&[Group]>,
    is_one: bool,
) -> Result<Vec<Group>, crate::analytics::Unreadable> {
    let fixed: Option<Vec<Labels>> = like.map(|groups| groups.iter().filter_map(|group| group.labels.clone()).collect());
    let mut groups = found.answer(question, place, fixed.as_deref())?;
    if groups.is_empty() && is_one {
        let empty = State::empty(question.shape);
        groups.push(Group { labels: Some(Labels::default()), periods: vec![empty.clone(); question.periods.len()], total: empty });
    }
    Ok(groups)
}
