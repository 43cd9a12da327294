//! An answer's numbers: states of a span put together by period and group, the largest groups for themselves and the rest as one.

use std::collections::HashMap;

use super::{BUCKETS_OF_DAY, Bundle, DayBody, Labels, Period, Shape, State, Unreadable, state::Aggregate};

/// What was read of a series: rows of days, and what is not compacted yet.
#[derive(Debug, Default)]
pub struct Read {
    /// A UTC day of one group, by its number.
    pub days: Vec<(i64, Labels, Vec<u8>)>,
    /// What commits added since, with all labels.
    pub bundles: Vec<Bundle>,
}

/// A group's states by period.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its labels; `None` of the rest.
    pub labels: Option<Labels>,
    /// One a period.
    pub periods: Vec<State>,
    /// All periods together.
    pub total: State,
}

/// What is asked of what was read.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What the metric keeps.
    pub shape: Shape,
    /// By what groups are ranked.
    pub aggregate: Aggregate,
    /// The periods, in order.
    pub periods: &'a [Period],
    /// The dimensions that rows are kept by, as bits.
    pub grouping: u8,
    /// How many groups are shown for themselves.
    pub top: usize,
}

/// Which rows count, and under which labels; `None` leaves one out.
pub type Place<'a> = dyn Fn(&Labels) -> Option<Labels> + 'a;

impl Read {
    /// Puts it together; without a grouping there is one group, of no labels. Where `fixed` names groups, those are shown and no others.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn answer(&self, question: &Question<'_>, place: &Place<'_>, fixed: Option<&[Labels]>) -> Result<Vec<Group>, Unreadable> {
        let Some((first, end)) = question.periods.first().zip(question.periods.last()).map(|(first, last)| (first.first, last.end)) else {
            return Ok(Vec::new());
        };
        // Ranked by all of their span first, so that only those that are shown are put together by period.
        let mut totals: HashMap<Labels, State> = HashMap::new();
        self.each(question, place, |labels, bucket, state| {
            if (first..end).contains(&bucket) {
                totals.entry(labels.clone()).or_insert_with(|| State::empty(question.shape)).merge(state);
            }
        })?;
        let mut ranked: Vec<_> = fixed
            .unwrap_or_default()
            .iter()
            .map(|labels| (labels.clone(), totals.remove(labels).unwrap_or_else(|| State::empty(question.shape))))
            .collect();
        let mut rest: Vec<_> = totals.into_iter().collect();
        if fixed.is_none() {
            rest.sort_by(|(one, few), (other, many)| {
                many.weight(question.aggregate).cmp(&few.weight(question.aggregate)).then_with(|| one.cmp(other))
            });
            let beyond = rest.split_off(rest.len().min(question.top));
            ranked.extend(std::mem::replace(&mut rest, beyond));
        }
        let empty = vec![State::empty(question.shape); question.periods.len()];
        let mut groups: Vec<Group> =
            ranked.into_iter().map(|(labels, total)| Group { labels: Some(labels), periods: empty.clone(), total }).collect();
        if !rest.is_empty() {
            let mut total = State::empty(question.shape);
            rest.iter().for_each(|(_, state)| total.merge(state));
            groups.push(Group { labels: None, periods: empty, total });
        }
        let places: HashMap<Labels, usize> =
            groups.iter().enumerate().filter_map(|(index, group)| Some((group.labels.clone()?, index))).collect();
        let other = if rest.is_empty() { usize::MAX } else { groups.len() - 1 };
        self.each(question, place, |labels, bucket, state| {
            let index = question.periods.partition_point(|period| period.end <= bucket);
            let period = question.periods.get(index).filter(|period| period.first <= bucket);
            let group = groups.get_mut(places.get(labels).copied().unwrap_or(other));
            if let Some(cell) = group.filter(|_| period.is_some()).and_then(|group| group.periods.get_mut(index)) {
                cell.merge(state);
            }
        })?;
        Ok(groups)
    }

    fn each(&self, question: &Question<'_>, place: &Place<'_>, mut visit: impl FnMut(&Labels, i64, &State)) -> Result<(), Unreadable> {
        for (day, labels, body) in &self.days {
            if let Some(labels) = place(labels) {
                DayBody::each(body, |slot, state| visit(&labels, day * BUCKETS_OF_DAY + i64::from(slot), &state))?;
            }
        }
        for (bucket, labels, state) in self.bundles.iter().flat_map(Bundle::states) {
            if let Some(labels) = place(&labels.grouped(question.grouping)) {
                visit(&labels, bucket, state);
            }
        }
        Ok(())
    }
}
