//! States as they are stored: what a commit added to a series ([`Bundle`]), and what a UTC day of one group came to ([`DayBody`]).
//!
//! Bundles are only read once and merged; a day's bytes are the same for the same events, whatever way they came.

use std::collections::{BTreeMap, HashMap, hash_map};

use super::{
    BUCKETS_OF_DAY, BUCKETS_OF_HOUR, Shape, State, Unreadable, day_of,
    encoding::{Reader, put, put_bytes, put_signed},
    observe::Observation,
    state::Gathered,
};

/// The form of stored bytes; another form gets another number.
const FORM: u8 = 1;

/// The most dimensions of a metric; each doubles what is kept.
pub const MOST_DIMENSIONS: usize = 3;

/// The values of some dimensions, in the order of the metric's; `None` where an event had none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(pub Vec<Option<String>>);

impl Labels {
    /// As they stand in a row: a JSON array, which is read back by [`Self::from_text`].
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }

    /// From a row.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn from_text(text: &str) -> Result<Self, Unreadable> {
        serde_json::from_str(text).map(Self).map_err(|_| Unreadable("its labels are no list of texts"))
    }

    /// Those of the dimensions that a grouping has: the bit of the first dimension is the lowest.
    #[must_use]
    pub fn grouped(&self, grouping: u8) -> Self {
        Self(self.0.iter().enumerate().filter(|(place, _)| grouping & (1 << place) != 0).map(|(_, label)| label.clone()).collect())
    }
}

/// What some events added to a series, by bucket and labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    shape: Shape,
    states: HashMap<(i64, Labels), State>,
}

impl Bundle {
    /// An empty one.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self { shape, states: HashMap::new() }
    }

    /// Adds what an event came to.
    pub fn add(&mut self, bucket: i64, labels: Labels, observation: Observation) {
        self.states.entry((bucket, labels)).or_insert_with(|| State::empty(self.shape)).add(observation);
    }

    /// Adds a state that was made elsewhere.
    pub fn merge(&mut self, bucket: i64, labels: Labels, state: State) {
        match self.states.entry((bucket, labels)) {
            hash_map::Entry::Occupied(mut there) => there.get_mut().merge(&state),
            hash_map::Entry::Vacant(place) => {
                place.insert(state);
            }
        }
    }

    /// Its shape.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Its states, in no order.
    pub fn states(&self) -> impl Iterator<Item = (i64, &Labels, &State)> {
        self.states.iter().map(|((bucket, labels), state)| (*bucket, labels, state))
    }

    /// As it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORM, self.shape.code()];
        for ((bucket, Labels(labels)), state) in &self.states {
            put_signed(i128::from(*bucket), &mut out);
            put(labels.len() as u128, &mut out);
            for label in labels {
                match label {
                    None => out.push(0),
                    Some(text) => {
                        out.push(1);
                        put_bytes(text.as_bytes(), &mut out);
                    }
                }
            }
            state.encode(&mut out);
        }
        out
    }

    /// As it was stored.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut reader = Reader(bytes);
        let mut read = Self::new(head(&mut reader)?);
        while !reader.is_empty() {
            let bucket = reader.small()?;
            let count = usize::try_from(reader.count()?).ok().filter(|count| *count <= MOST_DIMENSIONS);
            let mut labels = Vec::with_capacity(MOST_DIMENSIONS);
            for _ in 0..count.ok_or(Unreadable("there are too many labels"))? {
                labels.push(match reader.byte()? {
                    0 => None,
                    _ => Some(String::from_utf8(reader.bytes()?.to_vec()).map_err(|_| Unreadable("a label is no text"))?),
                });
            }
            let state = State::decode(read.shape, &mut reader)?;
            read.merge(bucket, Labels(labels), state);
        }
        Ok(read)
    }
}

/// What a UTC day came to, by bucket of the day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayBody {
    shape: Shape,
    states: BTreeMap<u8, State>,
}

impl DayBody {
    /// An empty one.
    #[must_use]
    pub const fn new(shape: Shape) -> Self {
        Self { shape, states: BTreeMap::new() }
    }

    /// How many of the day's buckets have anything.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.states.len()
    }

    /// Adds a state to a bucket of the day.
    pub fn merge(&mut self, slot: u8, state: &State) {
        self.states.entry(slot).or_insert_with(|| State::empty(self.shape)).merge(state);
    }

    /// As it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORM, self.shape.code()];
        for (slot, state) in &self.states {
            out.push(*slot);
            state.encode(&mut out);
        }
        out
    }

    /// As it was stored.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut reader = Reader(bytes);
        let mut read = Self::new(head(&mut reader)?);
        Self::each(bytes, |slot, state| {
            read.states.insert(slot, state);
        })?;
        Ok(read)
    }

    /// Walks through a stored one without keeping it.
    ///
    /// # Errors
    /// [`Unreadable`], behind what was readable.
    pub fn each(bytes: &[u8], mut visit: impl FnMut(u8, State)) -> Result<(), Unreadable> {
        let mut reader = Reader(bytes);
        let shape = head(&mut reader)?;
        while !reader.is_empty() {
            visit(slot(&mut reader)?, State::decode(shape, &mut reader)?);
        }
        Ok(())
    }

    /// The day by hours, and as one, for who asks for no smaller part of it: as days of fewer buckets, each in the place of its first.
    /// `None` where that saves nothing.
    #[must_use]
    pub fn coarser(&self) -> Option<[Vec<u8>; 2]> {
        let is_large = matches!(self.shape, Shape::Histogram | Shape::Uniques) && self.states.len() > 1;
        is_large.then(|| {
            let (mut hours, mut whole) = (Self::new(self.shape), Self::new(self.shape));
            for (slot, state) in &self.states {
                hours.merge(slot - slot % BUCKETS_OF_HOUR, state);
            }
            for state in hours.states.values() {
                whole.merge(0, state);
            }
            [hours.encode(), whole.encode()]
        })
    }

    /// Visits a day's buckets, those put together that follow one another and that `part_of` puts in one part. `gathered` is left empty.
    pub(super) fn each_part(
        bytes: &[u8],
        gathered: &mut Gathered,
        mut part_of: impl FnMut(u8) -> Option<usize>,
        mut visit: impl FnMut(usize, &State),
    ) -> Result<(), Unreadable> {
        let mut reader = Reader(bytes);
        let shape = head(&mut reader)?;
        let mut last = None;
        while !reader.is_empty() {
            let slot = slot(&mut reader)?;
            let Some(part) = part_of(slot) else {
                State::decode(shape, &mut reader)?;
                continue;
            };
            if let Some(before) = last.replace(part).filter(|before| *before != part) {
                visit(before, &gathered.take());
            }
            gathered.read(shape, &mut reader)?;
        }
        if let Some(last) = last {
            visit(last, &gathered.take());
        }
        Ok(())
    }
}

/// The place of a bucket within its day.
#[must_use]
pub fn slot_of(bucket: i64) -> u8 {
    // Below 96.
    u8::try_from(bucket - day_of(bucket) * BUCKETS_OF_DAY).unwrap_or_default()
}

/// The number of a bucket of a day.
fn slot(reader: &mut Reader<'_>) -> Result<u8, Unreadable> {
    let slot = reader.byte()?;
    if i64::from(slot) >= BUCKETS_OF_DAY { Err(Unreadable("a day has no such bucket")) } else { Ok(slot) }
}

fn head(reader: &mut Reader<'_>) -> Result<Shape, Unreadable> {
    if reader.byte()? != FORM {
        return Err(Unreadable("its form is unknown"));
    }
    Shape::from_code(reader.byte()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    fn labels(one: Option<&str>, other: Option<&str>) -> Labels {
        Labels(vec![one.map(str::to_owned), other.map(str::to_owned)])
    }

    #[test]
    fn bundles_survive_bytes_and_days_are_the_same_in_any_order() {
        for (shape, observations) in [
            (Shape::Count, [Observation::Event, Observation::Event]),
            (Shape::Numbers, [Observation::Value(-5), Observation::Value(7)]),
            (Shape::Rate, [Observation::Success(true), Observation::Success(false)]),
            (Shape::Histogram, [Observation::Value(0), Observation::Value(1_000_000)]),
            (Shape::Uniques, [Observation::Member(1), Observation::Member(u64::MAX)]),
        ] {
            let mut bundle = Bundle::new(shape);
            for (place, observation) in observations.into_iter().enumerate() {
                bundle.add(1_900_000 + i64::try_from(place).unwrap(), labels(Some("a\"é"), None), observation);
                bundle.add(-1, labels(None, Some("")), observation);
            }
            let stored = bundle.encode();
            assert_eq!(Bundle::decode(&stored).unwrap(), bundle);
            for end in 0..stored.len() {
                // Cut off anywhere it is no bundle, or one of fewer states.
                assert_ne!(Bundle::decode(&stored[..end]), Ok(bundle.clone()));
            }
            let mut days = [DayBody::new(shape), DayBody::new(shape)];
            let states: Vec<_> = bundle.states().map(|(bucket, _, state)| (slot_of(bucket), state.clone())).collect();
            for ((slot, state), (last_slot, last)) in states.iter().zip(states.iter().rev()) {
                days[0].merge(*slot, state);
                days[1].merge(*last_slot, last);
            }
            assert_eq!(days[0].encode(), days[1].encode());
            assert_eq!(DayBody::decode(&days[0].encode()).as_ref(), Ok(&days[1]));
        }
        assert!(Bundle::decode(&[]).is_err() && Bundle::decode(&[2, 1]).is_err() && DayBody::decode(&[1, 9]).is_err());
        assert!(DayBody::decode(&[1, 1, 96, 1]).is_err());
    }

    #[test]
    fn parts_of_a_day_are_its_buckets_put_together() {
        let random = |below: u64| u64::from_le_bytes(random::bytes()) % below;
        for shape in [Shape::Count, Shape::Numbers, Shape::Rate, Shape::Histogram, Shape::Uniques] {
            let mut gathered = Gathered::new(shape);
            for most in [0, 3, 60, 2_000] {
                let mut day = DayBody::new(shape);
                for slot in (0..96).filter(|slot| slot % 5 > 0) {
                    let mut state = State::empty(shape);
                    for _ in 0..random(most + 1) {
                        let value = i64::try_from(random(4_000_000)).unwrap() - 1_000_000;
                        state.add(match shape {
                            Shape::Count => Observation::Event,
                            Shape::Rate => Observation::Success(value > 0),
                            Shape::Uniques => Observation::Member(random(100_000).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                            Shape::Numbers | Shape::Histogram => Observation::Value(if random(9) == 0 { 0 } else { value }),
                        });
                    }
                    day.merge(slot, &state);
                }
                let stored = day.encode();
                let part_of = |slot: u8| (slot >= 20).then_some(usize::from(slot / 12));
                let (mut one, mut other) = (BTreeMap::new(), BTreeMap::new());
                let put = |parts: &mut BTreeMap<usize, State>, part, state: &State| {
                    parts.entry(part).or_insert_with(|| State::empty(shape)).merge(state);
                };
                DayBody::each(&stored, |slot, state| {
                    if let Some(part) = part_of(slot) {
                        put(&mut one, part, &state);
                    }
                })
                .unwrap();
                DayBody::each_part(&stored, &mut gathered, part_of, |part, state| put(&mut other, part, state)).unwrap();
                assert_eq!(one, other);
                assert_eq!(gathered.take(), State::empty(shape), "it is left empty");
                for end in (0..stored.len()).rev().take(40) {
                    // Cut off it is none, or one of fewer buckets.
                    let _ = DayBody::each_part(&stored[..end], &mut Gathered::new(shape), part_of, |_, _| ());
                }
            }
        }
        for broken in [&[1, 4, 0, 0, 1, 0xff, 0xff, 3, 1], [1, 4, 96, 0, 0, 0, 0, 0, 0].as_slice()] {
            assert!(DayBody::each_part(broken, &mut Gathered::new(Shape::Histogram), |_| Some(0), |_, _| ()).is_err());
        }
    }

    #[test]
    fn groupings_take_their_labels() {
        let all = labels(Some("x"), None);
        assert_eq!(
            [0, 1, 2, 3].map(|grouping| all.grouped(grouping).to_text()),
            ["[]", r#"["x"]"#, "[null]", r#"["x",null]"#].map(str::to_owned)
        );
        assert_eq!(Labels::from_text(&all.to_text()), Ok(all));
        assert_eq!((slot_of(-1), slot_of(0), slot_of(95), slot_of(96)), (95, 0, 95, 0));
    }
}
