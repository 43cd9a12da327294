//! What is kept of some events of a metric: enough to be merged, and to answer from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Unreadable,
    decimal::as_number,
    encoding::{Reader, put, put_signed},
    histogram::{self, Histogram},
    observe::Observation,
    uniques::Uniques,
};

/// Which of the states a metric keeps. Its number stands in stored bytes and stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// How many.
    Count,
    /// How many, their sum, the smallest and the largest.
    Numbers,
    /// How many, and how many of them succeeded.
    Rate,
    /// A histogram.
    Histogram,
    /// Uniques.
    Uniques,
}

impl Shape {
    const ALL: [Self; 5] = [Self::Count, Self::Numbers, Self::Rate, Self::Histogram, Self::Uniques];

    /// Its number in stored bytes.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Count => 1,
            Self::Numbers => 2,
            Self::Rate => 3,
            Self::Histogram => 4,
            Self::Uniques => 5,
        }
    }

    pub(super) fn from_code(code: u8) -> Result<Self, Unreadable> {
        Self::ALL.into_iter().find(|shape| shape.code() == code).ok_or(Unreadable("its shape is unknown"))
    }
}

/// What some events came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// How many.
    Count(u64),
    /// In millionths.
    Numbers {
        /// How many values.
        count: u64,
        /// Their sum. A hundred million million of the largest fit.
        sum: i128,
        /// The smallest and the largest; of no value while there is none.
        bounds: Option<(i64, i64)>,
    },
    /// How many succeeded.
    Rate {
        /// How many there were.
        count: u64,
        /// How many of them succeeded.
        successes: u64,
    },
    /// Values in bins.
    Histogram(Box<Histogram>),
    /// Different ones.
    Uniques {
        /// How many events.
        count: u64,
        /// Of how many.
        uniques: Uniques,
    },
}

impl State {
    /// That of no event.
    #[must_use]
    pub fn empty(shape: Shape) -> Self {
        match shape {
            Shape::Count => Self::Count(0),
            Shape::Numbers => Self::Numbers { count: 0, sum: 0, bounds: None },
            Shape::Rate => Self::Rate { count: 0, successes: 0 },
            Shape::Histogram => Self::Histogram(Box::default()),
            Shape::Uniques => Self::Uniques { count: 0, uniques: Uniques::default() },
        }
    }

    /// Its shape.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        match self {
            Self::Count(_) => Shape::Count,
            Self::Numbers { .. } => Shape::Numbers,
            Self::Rate { .. } => Shape::Rate,
            Self::Histogram(_) => Shape::Histogram,
            Self::Uniques { .. } => Shape::Uniques,
        }
    }

    /// Adds what one event came to. What is of another shape is left out, as in [`Self::merge`].
    pub fn add(&mut self, observation: Observation) {
        match (self, observation) {
            (Self::Count(count), Observation::Event) => *count += 1,
            (Self::Numbers { count, sum, bounds }, Observation::Value(value)) => {
                *count += 1;
                *sum = sum.saturating_add(i128::from(value));
                *bounds = Some(bounds.map_or((value, value), |(least, most)| (least.min(value), most.max(value))));
            }
            (Self::Rate { count, successes }, Observation::Success(success)) => {
                *count += 1;
                *successes += u64::from(success);
            }
            (Self::Histogram(histogram), Observation::Value(value)) => histogram.add(value),
            (Self::Uniques { count, uniques }, Observation::Member(hash)) => {
                *count += 1;
                uniques.add(hash);
            }
            (state, observation) => debug_assert!(false, "{observation:?} is no observation of {:?}", state.shape()),
        }
    }

    /// How many events it is of; for numbers and histograms, of those with a value.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Count(count) | Self::Numbers { count, .. } | Self::Rate { count, .. } | Self::Uniques { count, .. } => *count,
            Self::Histogram(histogram) => histogram.count(),
        }
    }

    /// Adds another of the same shape. One of another shape is left out: a series has one shape, which its key stands for.
    pub fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Count(count), Self::Count(others)) => *count += others,
            (Self::Numbers { count, sum, bounds }, Self::Numbers { count: others, sum: more, bounds: far }) => {
                *count += others;
                *sum = sum.saturating_add(*more);
                *bounds = match (*bounds, *far) {
                    (Some((least, most)), Some((low, high))) => Some((least.min(low), most.max(high))),
                    (one, other) => one.or(other),
                };
            }
            (Self::Rate { count, successes }, Self::Rate { count: others, successes: more }) => {
                *count += others;
                *successes += more;
            }
            (Self::Histogram(histogram), Self::Histogram(others)) => histogram.merge(others),
            (Self::Uniques { count, uniques }, Self::Uniques { count: others, uniques: more }) => {
                *count += others;
                uniques.merge(more);
            }
            (one, other) => debug_assert_eq!(one.shape(), other.shape(), "a series has one shape"),
        }
    }

    /// What an aggregate comes to; `None` where there is nothing to say.
    #[must_use]
    pub fn value(&self, aggregate: Aggregate) -> Option<f64> {
        match (self, aggregate) {
            (Self::Numbers { sum, .. }, Aggregate::Sum) => Some(as_number(*sum)),
            (Self::Numbers { count, sum, .. }, Aggregate::Average) => (*count > 0).then(|| as_number(*sum) / *count as f64),
            (Self::Numbers { bounds, .. }, Aggregate::Minimum) => bounds.map(|(least, _)| as_number(i128::from(least))),
            (Self::Numbers { bounds, .. }, Aggregate::Maximum) => bounds.map(|(_, most)| as_number(i128::from(most))),
            (Self::Rate { count, successes }, _) => (*count > 0).then(|| *successes as f64 / *count as f64),
            (Self::Histogram(histogram), _) => histogram.percentile(500).map(|value| as_number(i128::from(value))),
            (Self::Uniques { uniques, .. }, _) => Some(uniques.count() as f64),
            (Self::Count(count) | Self::Numbers { count, .. }, _) => Some(*count as f64),
        }
    }

    /// Its percentiles, where it is a histogram with something in it.
    #[must_use]
    pub fn percentiles(&self) -> Option<BTreeMap<&'static str, f64>> {
        let Self::Histogram(histogram) = self else { return None };
        PERCENTILES.iter().map(|(name, per_mille)| Some((*name, as_number(i128::from(histogram.percentile(*per_mille)?))))).collect()
    }

    /// By what groups are ranked: a sum by itself, everything else by how many events.
    #[must_use]
    pub fn weight(&self, aggregate: Aggregate) -> i128 {
        match (self, aggregate) {
            (Self::Numbers { sum, .. }, Aggregate::Sum) => *sum,
            (Self::Uniques { uniques, .. }, _) => i128::from(uniques.count()),
            (state, _) => i128::from(state.count()),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Count(count) => put(u128::from(*count), out),
            Self::Numbers { count, sum, bounds } => {
                put(u128::from(*count), out);
                if let Some((least, most)) = bounds {
                    put_signed(*sum, out);
                    put_signed(i128::from(*least), out);
                    put(u128::from(most.abs_diff(*least)), out);
                }
            }
            Self::Rate { count, successes } => {
                put(u128::from(*count), out);
                put(u128::from(*successes), out);
            }
            Self::Histogram(histogram) => histogram.encode(out),
            Self::Uniques { count, uniques } => {
                put(u128::from(*count), out);
                uniques.encode(out);
            }
        }
    }

    pub(super) fn decode(shape: Shape, reader: &mut Reader<'_>) -> Result<Self, Unreadable> {
        Ok(match shape {
            Shape::Count => Self::Count(reader.count()?),
            Shape::Numbers => match reader.count()? {
                0 => Self::empty(shape),
                count => {
                    let (sum, least) = (reader.signed()?, reader.small()?);
                    let most = least.checked_add_unsigned(reader.count()?).ok_or(Unreadable("a bound is out of range"))?;
                    Self::Numbers { count, sum, bounds: Some((least, most)) }
                }
            },
            Shape::Rate => Self::Rate { count: reader.count()?, successes: reader.count()? },
            Shape::Histogram => Self::Histogram(Box::new(Histogram::decode(reader)?)),
            Shape::Uniques => Self::Uniques { count: reader.count()?, uniques: Uniques::decode(reader)? },
        })
    }
}

/// States put together from their bytes, one after the other. One for a whole answer.
#[derive(Debug)]
pub(super) enum Gathered {
    /// Of histograms.
    Histogram(Box<histogram::Gathered>),
    /// Of others.
    Other(State),
}

impl Gathered {
    /// Nothing yet.
    pub(super) fn new(shape: Shape) -> Self {
        match shape {
            Shape::Histogram => Self::Histogram(Box::default()),
            shape => Self::Other(State::empty(shape)),
        }
    }

    const fn shape(&self) -> Shape {
        match self {
            Self::Histogram(_) => Shape::Histogram,
            Self::Other(state) => state.shape(),
        }
    }

    /// Adds one as it was encoded.
    pub(super) fn read(&mut self, shape: Shape, reader: &mut Reader<'_>) -> Result<(), Unreadable> {
        match self {
            // Of another shape is nothing that belongs here, as in [`State::merge`].
            other if other.shape() != shape => drop(State::decode(shape, reader)?),
            Self::Histogram(histogram) => histogram.read(reader)?,
            Self::Other(State::Uniques { count, uniques }) => {
                *count += reader.count()?;
                uniques.read(reader)?;
            }
            Self::Other(state) => state.merge(&State::decode(shape, reader)?),
        }
        Ok(())
    }

    /// What was added, which is forgotten.
    pub(super) fn take(&mut self) -> State {
        match self {
            Self::Histogram(histogram) => State::Histogram(Box::new(histogram.take())),
            Self::Other(state) => {
                let empty = State::empty(state.shape());
                std::mem::replace(state, empty)
            }
        }
    }
}

/// The percentiles of an answer, in thousandths.
const PERCENTILES: [(&str, u16); 4] = [("p50", 500), ("p90", 900), ("p95", 950), ("p99", 990)];

/// The names of the percentiles of an answer, in order.
pub fn percentile_names() -> impl Iterator<Item = &'static str> {
    PERCENTILES.iter().map(|(name, _)| *name)
}

/// What a metric says of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// How many events.
    Count,
    /// The sum of their values.
    Sum,
    /// The sum of their values, divided by how many have one.
    Average,
    /// The smallest value.
    Minimum,
    /// The largest value.
    Maximum,
    /// The share of events that succeeded, 0 to 1.
    SuccessRate,
    /// The median, and the 90th, 95th and 99th percentile of the values, within 1 %.
    Percentiles,
    /// How many different users, or values of a property.
    Uniques,
}

impl Aggregate {
    /// What is kept for it.
    #[must_use]
    pub const fn shape(self) -> Shape {
        match self {
            Self::Count => Shape::Count,
            Self::Sum | Self::Average | Self::Minimum | Self::Maximum => Shape::Numbers,
            Self::SuccessRate => Shape::Rate,
            Self::Percentiles => Shape::Histogram,
            Self::Uniques => Shape::Uniques,
        }
    }
}
