//! A metric's groups over a span: what the reading doors answer, and what exports write.
//!
//! What must stay true: a user's are of that user alone; nothing is shown of who is being erased; whoever asks in the same words gets the same
//! numbers; what is computed holds up no other request, and is of so many answers at a time.

use std::{num::NonZero, sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::{
    compute,
    read::{ReadError, Stored, Wanted, read},
    unreadable,
};
use crate::{
    analytics::{
        Labels, Period, Shape, Span, State,
        range::{Grain, Group, Question, Read},
        state::Aggregate,
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

/// Who may compute an answer: half the cores may be busy with that, two at least. One for a process, part of its state.
#[derive(Debug)]
pub struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self(Arc::new(Semaphore::new((cores / 2).max(2))))
    }
}

impl Turns {
    /// Waits for a turn, for so long.
    ///
    /// # Errors
    /// [`ReadError::Busy`].
    pub async fn take(&self, within: Duration) -> Result<Turn, ReadError> {
        let turn = tokio::time::timeout(within, Arc::clone(&self.0).acquire_owned()).await;
        turn.ok().and_then(Result::ok).map(Turn).ok_or(ReadError::Busy)
    }
}

/// The right to have an answer computed, and to hold what it is made of. To be taken before a connection is: who waits holds none.
#[derive(Debug)]
pub struct Turn(OwnedSemaphorePermit);

/// What was looked up, and is not put together yet.
#[derive(Debug)]
pub struct Looked {
    stored: Stored,
    series: Uuid,
    shape: Shape,
    aggregate: Aggregate,
    /// The places of the dimensions that are shown, in the order asked for.
    places: Vec<usize>,
    grouping: u8,
    user_place: Option<usize>,
    user: Option<String>,
    top: usize,
    periods: Vec<Period>,
    before: Vec<Period>,
}

/// Looks it up.
///
/// # Errors
/// [`ReadError`].
pub async fn look(connection: &mut PgConnection, asked: &Asked<'_>) -> Result<Looked, ReadError> {
    let (metric, span) = (asked.metric, asked.span);
    let dimensions = metric.dimensions();
    let places: Vec<usize> = asked.group_by.iter().filter_map(|name| dimensions.iter().position(|dimension| dimension == name)).collect();
    let mut grouping = places.iter().fold(0_u8, |bits, place| bits | 1 << place);
    if asked.user.is_some()
        && let Some(place) = metric.user_place()
    {
        grouping |= 1 << place;
    }
    let begins = span.before.first().or(span.periods.first()).map_or(0, |first| first.first);
    let grain = Grain::of(span.periods.iter().chain(&span.before));
    let buckets = (begins, span.buckets.1);
    let names_users = metric.user_place().is_some();
    let wanted = Wanted { tenant: asked.tenant, series: metric.series(), grouping, buckets, grain: &grain, user: asked.user, names_users };
    Ok(Looked {
        stored: read(connection, &wanted).await?,
        series: metric.series(),
        shape: metric.shape(),
        aggregate: metric.aggregate(),
        user_place: metric.user_place().filter(|place| grouping & (1 << place) != 0),
        user: asked.user.map(str::to_owned),
        top: if places.is_empty() { 1 } else { asked.top },
        places,
        grouping,
        periods: span.periods.clone(),
        before: span.before.clone(),
    })
}

impl Looked {
    /// Puts it together, and makes something of it, where that holds nobody up. The turn is over when that is done, also where nobody waits
    /// for it any more.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn found<T: Send + 'static>(self, turn: Turn, then: impl FnOnce(Found) -> T + Send + 'static) -> Result<T, ReadError> {
        compute(move || {
            let done = self.put_together().map(then);
            drop(turn.0);
            done
        })
        .await?
    }

    fn put_together(mut self) -> Result<Found, ReadError> {
        let (is_whole, erased) = (self.stored.is_whole, std::mem::take(&mut self.stored.erased));
        let found = self.stored.decode()?;
        // Where a dimension is among those of the grouping.
        let grouping = self.grouping;
        let index_in = |place: usize| (grouping & ((1 << place) - 1)).count_ones() as usize;
        let label = |labels: &Labels, place: usize| labels.0.get(index_in(place)).cloned().flatten();
        let place = |labels: &Labels| {
            let whose = self.user_place.and_then(|place| label(labels, place));
            if self.user.as_ref().is_some_and(|user| whose.as_ref() != Some(user)) || whose.is_some_and(|whose| erased.contains(&whose)) {
                return None;
            }
            Some(Labels(self.places.iter().map(|place| label(labels, *place)).collect()))
        };
        let question = Question { shape: self.shape, aggregate: self.aggregate, periods: &self.periods, grouping, top: self.top };
        let groups_of = |question: &Question<'_>, like: Option<&[Group]>| {
            groups(&found, question, &place, like, self.places.is_empty())
                .map_err(|error| ReadError::Ledger(unreadable(self.series)(error)))
        };
        let shown = groups_of(&question, None)?;
        let before = match self.before.as_slice() {
            [] => None,
            before => Some(groups_of(&Question { periods: before, ..question }, Some(&shown))?),
        };
        Ok(Found { groups: shown, before, is_whole })
    }
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
