//! An answer's numbers: states of a span put together by period and group, the largest groups for themselves and the rest as one.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
};

use super::{
    BUCKETS_OF_DAY, BUCKETS_OF_HOUR, Bundle, DayBody, Labels, Period, Shape, State, Unreadable, day_of,
    state::{Aggregate, Gathered},
};

/// What was read of a series: rows of days, and what is not compacted yet.
#[derive(Debug, Default)]
pub struct Read {
    /// A UTC day of one group, by its number.
    pub days: Vec<(i64, Labels, Vec<u8>)>,
    /// What commits added since, with all labels.
    pub bundles: Vec<Bundle>,
}

/// How finely UTC days must be read for some periods. Days that are neither are read by hours.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Grain {
    /// Days that lie in a period from their beginning to their end, and that no other period has a part of.
    pub whole: BTreeSet<i64>,
    /// Days of which a period begins or ends within an hour.
    pub fine: BTreeSet<i64>,
}

impl Grain {
    /// For these periods.
    pub fn of<'a>(periods: impl Iterator<Item = &'a Period>) -> Self {
        let (mut grain, mut cut) = (Self::default(), BTreeSet::new());
        for Period { first, end, .. } in periods {
            grain.whole.extend((first + BUCKETS_OF_DAY - 1).div_euclid(BUCKETS_OF_DAY)..end.div_euclid(BUCKETS_OF_DAY));
            for edge in [*first, *end].into_iter().filter(|edge| edge.rem_euclid(BUCKETS_OF_DAY) > 0) {
                cut.insert(day_of(edge));
                if edge.rem_euclid(i64::from(BUCKETS_OF_HOUR)) > 0 {
                    grain.fine.insert(day_of(edge));
                }
            }
        }
        grain.whole.retain(|day| !cut.contains(day));
        grain
    }
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

/// States with the number of their group: a row of a day, or what a commit added.
enum Part<'a> {
    Day(usize, i64, &'a [u8]),
    Added(usize, i64, &'a State),
}

impl Read {
    /// Puts it together; without a grouping there is one group, of no labels. Where `fixed` names groups, those are shown and no others.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn answer(&self, question: &Question<'_>, place: &Place<'_>, fixed: Option<&[Labels]>) -> Result<Vec<Group>, Unreadable> {
        if question.periods.is_empty() {
            return Ok(Vec::new());
        }
        let mut numbers: HashMap<Labels, usize> = HashMap::new();
        let mut names: Vec<Labels> = Vec::new();
        let mut number_of = |labels: Labels| {
            *numbers.entry(labels).or_insert_with_key(|labels| {
                names.push(labels.clone());
                names.len() - 1
            })
        };
        for labels in fixed.unwrap_or_default() {
            number_of(labels.clone());
        }
        let mut parts = Vec::with_capacity(self.days.len());
        for (day, labels, body) in &self.days {
            if let Some(labels) = place(labels) {
                parts.push(Part::Day(number_of(labels), *day, body));
            }
        }
        for (bucket, labels, state) in self.bundles.iter().flat_map(Bundle::states) {
            if let Some(labels) = place(&labels.grouped(question.grouping)) {
                parts.push(Part::Added(number_of(labels), bucket, state));
            }
        }
        // Which groups are shown for themselves, by number, and in which order.
        let shown: Vec<usize> = match fixed {
            Some(fixed) => (0..fixed.len()).collect(),
            None if names.len() <= question.top => (0..names.len()).collect(),
            None => largest(&parts, question, &names)?,
        };
        let mut slots = vec![shown.len(); names.len()];
        for (slot, number) in shown.iter().enumerate() {
            if let Some(place) = slots.get_mut(*number) {
                *place = slot;
            }
        }
        let (mut cells, seen) = cells(&parts, question, &slots, shown.len() + 1)?;
        let rest = cells.pop().filter(|_| seen.last() == Some(&true));
        let mut groups: Vec<Group> = shown
            .iter()
            .zip(cells)
            .zip(&seen)
            // A row of the first or last day may have nothing within the span.
            .filter(|(_, seen)| **seen || fixed.is_some())
            .filter_map(|((number, periods), _)| Some(group(names.get(*number).cloned()?, periods, question.shape)))
            .collect();
        if fixed.is_none() {
            groups.sort_by(|one, other| {
                by_weight((&one.total, one.labels.as_ref()), (&other.total, other.labels.as_ref()), question.aggregate)
            });
        }
        groups.extend(rest.map(|periods| Group { labels: None, ..group(Labels::default(), periods, question.shape) }));
        Ok(groups)
    }
}

fn group(labels: Labels, periods: Vec<State>, shape: Shape) -> Group {
    let mut total = State::empty(shape);
    for state in &periods {
        total.merge(state);
    }
    Group { labels: Some(labels), periods, total }
}

fn by_weight(one: (&State, Option<&Labels>), other: (&State, Option<&Labels>), aggregate: Aggregate) -> Ordering {
    other.0.weight(aggregate).cmp(&one.0.weight(aggregate)).then_with(|| one.1.cmp(&other.1))
}

/// The largest groups, by number: where there are many, what is not shown for itself is not put together by period.
fn largest(parts: &[Part<'_>], question: &Question<'_>, names: &[Labels]) -> Result<Vec<usize>, Unreadable> {
    let mut totals: Vec<(usize, State)> = (0..names.len()).map(|number| (number, State::empty(question.shape))).collect();
    each(parts, question, |number, _, state| {
        if let Some((_, total)) = totals.get_mut(number) {
            total.merge(state);
        }
    })?;
    totals.retain(|(_, total)| total.count() > 0);
    totals.sort_by(|(one, many), (other, few)| by_weight((many, names.get(*one)), (few, names.get(*other)), question.aggregate));
    totals.truncate(question.top);
    Ok(totals.into_iter().map(|(number, _)| number).collect())
}

/// States by slot and period, and which slots have any.
fn cells(parts: &[Part<'_>], question: &Question<'_>, slots: &[usize], count: usize) -> Result<(Vec<Vec<State>>, Vec<bool>), Unreadable> {
    let mut cells = vec![vec![State::empty(question.shape); question.periods.len()]; count];
    let mut seen = vec![false; count];
    each(parts, question, |number, period, state| {
        let slot = slots.get(number).copied().unwrap_or(count);
        if let Some(cell) = cells.get_mut(slot).and_then(|periods| periods.get_mut(period)) {
            cell.merge(state);
        }
        if let Some(seen) = seen.get_mut(slot) {
            *seen = true;
        }
    })?;
    Ok((cells, seen))
}

/// Walks through all states within the span: the number of their group, and of their period.
fn each(parts: &[Part<'_>], question: &Question<'_>, mut visit: impl FnMut(usize, usize, &State)) -> Result<(), Unreadable> {
    let periods = question.periods;
    let mut gathered = Gathered::new(question.shape);
    let mut last = 0;
    // Neighbours mostly are of one period.
    let mut period_of = |bucket: i64| {
        let is_in = |index: usize| periods.get(index).is_some_and(|period| period.first <= bucket && bucket < period.end);
        if !is_in(last) {
            last = periods.partition_point(|period| period.end <= bucket);
        }
        is_in(last).then_some(last)
    };
    for part in parts {
        match part {
            Part::Day(number, day, body) => DayBody::each_part(
                body,
                &mut gathered,
                |slot| period_of(day * BUCKETS_OF_DAY + i64::from(slot)),
                |period, state| visit(*number, period, state),
            )?,
            Part::Added(number, bucket, state) => {
                if let Some(period) = period_of(*bucket) {
                    visit(*number, period, state);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_as_finely_as_periods_ask() {
        let grain = |periods: &[(i64, i64)]| {
            let start = chrono::DateTime::UNIX_EPOCH;
            let periods: Vec<Period> = periods.iter().map(|(first, end)| Period { start, first: *first, end: *end }).collect();
            let Grain { whole, fine } = Grain::of(periods.iter());
            (whole.into_iter().collect::<Vec<_>>(), fine.into_iter().collect::<Vec<_>>())
        };
        // UTC days; days of Berlin; of Kathmandu.
        assert_eq!(grain(&[(0, 96), (96, 192)]), (vec![0, 1], vec![]));
        assert_eq!(grain(&[(-4, 92), (92, 188)]), (vec![], vec![]));
        assert_eq!(grain(&[(-23, 73), (73, 169)]), (vec![], vec![-1, 0, 1]));
        // A month of Berlin has whole days within; one that another span begins in is none.
        assert_eq!(grain(&[(92, 480)]), (vec![1, 2, 3, 4], vec![]));
        assert_eq!(grain(&[(92, 480), (0, 200)]), (vec![1, 3, 4], vec![]));
    }
}
