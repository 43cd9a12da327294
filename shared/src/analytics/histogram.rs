//! Percentiles, by counting values in bins whose width grows with the value: the logarithmic histogram of `DDSketch`
//! (Masson, Rim and Lee, "`DDSketch`: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees", VLDB 2019).
//!
//! A percentile that is read from it is within [`ERROR`] of the true one, relative to that. Bins are never collapsed: values are
//! millionths in 64 bits, so there are at most 2,200 bins a sign, and merging adds counts, which is exact.

use super::{
    Unreadable,
    encoding::{Reader, put, put_signed},
};

/// The relative error of a percentile.
pub const ERROR: f64 = 0.01;

/// The ratio of a bin's upper bound to its lower one.
const GAMMA: f64 = (1.0 + ERROR) / (1.0 - ERROR);

/// Bins of one sign: a value of 64 bits has one of the first 2,184.
const BINS: usize = 2_200;

/// Counts by bin, in the order of bins; no bin is empty.
type Bins = Vec<(i16, u64)>;

/// Counts by bin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Values below zero, by the bin of their size; zeros; values above it.
    negative: Bins,
    zeros: u64,
    positive: Bins,
    /// The smallest and the largest, in millionths; of nothing while there are none.
    bounds: Option<(i64, i64)>,
}

impl Histogram {
    /// Counts a value, in millionths.
    pub fn add(&mut self, value: i64) {
        match value {
            0 => self.zeros += 1,
            1.. => count(&mut self.positive, bin(value)),
            _ => count(&mut self.negative, bin(value)),
        }
        self.bounds = Some(self.bounds.map_or((value, value), |(least, most)| (least.min(value), most.max(value))));
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        merge(&mut self.negative, &other.negative);
        merge(&mut self.positive, &other.positive);
        self.zeros += other.zeros;
        self.bounds = match (self.bounds, other.bounds) {
            (Some((least, most)), Some((low, high))) => Some((least.min(low), most.max(high))),
            (one, other) => one.or(other),
        };
    }

    /// How many values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.zeros + self.negative.iter().chain(&self.positive).map(|(_, count)| count).sum::<u64>()
    }

    /// The value below or at which so many of a thousand lie, in millionths, within [`ERROR`]; `None` of nothing. By the nearest rank: of
    /// `n` values in order the one at `⌈n · per_mille / 1000⌉`, and the first for 0. (A share as a float would be off by a rank where
    /// that product is a whole number.)
    #[must_use]
    pub fn percentile(&self, per_mille: u16) -> Option<i64> {
        let (least, most) = self.bounds?;
        let rank = (u128::from(self.count()) * u128::from(per_mille)).div_ceil(1_000).max(1);
        let mut before = 0;
        let below = self.negative.iter().rev().map(|(bin, count)| (-middle(*bin), *count));
        let above = self.positive.iter().map(|(bin, count)| (middle(*bin), *count));
        for (value, count) in below.chain([(0.0, self.zeros)]).chain(above) {
            before += u128::from(count);
            if before >= rank {
                #[expect(clippy::cast_possible_truncation, reason = "a float beyond the range becomes its end, which is then cut")]
                return Some((value.round() as i64).clamp(least, most));
            }
        }
        Some(most)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put(u128::from(self.zeros), out);
        for bins in [&self.negative, &self.positive] {
            put(bins.len() as u128, out);
            let mut last = 0;
            for (bin, count) in bins {
                put_signed(i128::from(bin - last), out);
                put(u128::from(*count), out);
                last = *bin;
            }
        }
        if let Some((least, most)) = self.bounds {
            put_signed(i128::from(least), out);
            put(u128::from(most.abs_diff(least)), out);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Unreadable> {
        let mut read = Self { zeros: reader.count()?, ..Self::default() };
        for bins in [&mut read.negative, &mut read.positive] {
            read_bins(reader, |bin, count| {
                bins.push((bin, count));
                Ok(())
            })?;
        }
        if read.count() > 0 {
            read.bounds = Some(read_bounds(reader)?);
        }
        Ok(read)
    }
}

fn read_bins(reader: &mut Reader<'_>, mut each: impl FnMut(i16, u64) -> Result<(), Unreadable>) -> Result<(), Unreadable> {
    let length = reader.count()?;
    let mut last = 0_i64;
    for place in 0..length {
        let step = reader.small()?;
        if place > 0 && step <= 0 {
            return Err(Unreadable("its bins are out of order"));
        }
        last = last.checked_add(step).ok_or(Unreadable("a bin is out of range"))?;
        each(i16::try_from(last).map_err(|_| Unreadable("a bin is out of range"))?, reader.count()?)?;
    }
    Ok(())
}

fn read_bounds(reader: &mut Reader<'_>) -> Result<(i64, i64), Unreadable> {
    let least = reader.small()?;
    Ok((least, least.checked_add_unsigned(reader.count()?).ok_or(Unreadable("a bound is out of range"))?))
}

/// Many histograms, put together from their bytes: bin by bin in their places, for which nothing is searched and nothing moved. It takes
/// 35 KB however little is in it, so there is one for a whole answer.
#[derive(Debug)]
pub(super) struct Gathered {
    negative: Places,
    zeros: u64,
    positive: Places,
    bounds: Option<(i64, i64)>,
}

/// Counts of all bins there are, and which of them are the first and the last in use.
#[derive(Debug)]
struct Places {
    counts: Vec<u64>,
    used: Option<(usize, usize)>,
}

impl Places {
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<u64, Unreadable> {
        let (mut all, mut span) = (0, self.used);
        read_bins(reader, |bin, count| {
            let place = usize::try_from(bin).map_err(|_| Unreadable("a bin is out of range"))?;
            *self.counts.get_mut(place).ok_or(Unreadable("a bin is out of range"))? += count;
            span = Some(span.map_or((place, place), |(first, last)| (first.min(place), last.max(place))));
            // Put down before anything can go wrong with the next.
            self.used = span;
            all += count;
            Ok(())
        })?;
        Ok(all)
    }

    fn take(&mut self) -> Bins {
        let Some((first, last)) = self.used.take() else { return Bins::new() };
        let counts = self.counts.get_mut(first..=last).unwrap_or_default();
        // 64 bits have at most 2,184 bins.
        let bins = (first..).zip(&*counts).filter(|(_, count)| **count > 0);
        let bins = bins.filter_map(|(bin, count)| Some((i16::try_from(bin).ok()?, *count))).collect();
        counts.fill(0);
        bins
    }
}

impl Default for Gathered {
    fn default() -> Self {
        let places = || Places { counts: vec![0; BINS], used: None };
        Self { negative: places(), zeros: 0, positive: places(), bounds: None }
    }
}

impl Gathered {
    /// Adds one as it was encoded.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Unreadable> {
        let zeros = reader.count()?;
        self.zeros += zeros;
        let counted = zeros + self.negative.read(reader)? + self.positive.read(reader)?;
        if counted > 0 {
            let (low, high) = read_bounds(reader)?;
            self.bounds = Some(self.bounds.map_or((low, high), |(least, most)| (least.min(low), most.max(high))));
        }
        Ok(())
    }

    /// What was added, which is forgotten.
    pub(super) fn take(&mut self) -> Histogram {
        let (negative, positive) = (self.negative.take(), self.positive.take());
        Histogram { negative, zeros: std::mem::take(&mut self.zeros), positive, bounds: self.bounds.take() }
    }
}

fn count(bins: &mut Bins, bin: i16) {
    match bins.binary_search_by_key(&bin, |(bin, _)| *bin) {
        Ok(place) => {
            if let Some((_, count)) = bins.get_mut(place) {
                *count += 1;
            }
        }
        Err(place) => bins.insert(place, (bin, 1)),
    }
}

/// Adds other bins, both walked through once; those that are new are put in their places after that.
fn merge(bins: &mut Bins, others: &Bins) {
    let mut new = Vec::new();
    let mut own = bins.iter_mut().peekable();
    for (other, more) in others {
        while own.next_if(|(bin, _)| bin < other).is_some() {}
        match own.peek_mut() {
            Some((bin, count)) if bin == other => *count += more,
            _ => new.push((*other, *more)),
        }
    }
    if !new.is_empty() {
        bins.append(&mut new);
        bins.sort_unstable_by_key(|(bin, _)| *bin);
    }
}

/// The bin of a value that is not zero, by its size.
fn bin(value: i64) -> i16 {
    // 64 bits have at most 2,184 bins, from 0.
    #[expect(clippy::cast_possible_truncation, reason = "see above")]
    let bin = ((value.unsigned_abs() as f64).ln() / GAMMA.ln()).ceil() as i16;
    bin
}

/// The value that is equally far, relatively, from both ends of a bin.
fn middle(bin: i16) -> f64 {
    2.0 * GAMMA.powi(i32::from(bin)) / (GAMMA + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    #[test]
    fn percentiles_are_within_their_error() {
        #[expect(clippy::cast_possible_truncation, reason = "any numbers will do")]
        let mut values: Vec<i64> = (0..20_000)
            .map(|_| ((random::fraction() * 40.0).exp() * if random::fraction() < 0.3 { -1.0 } else { 1.0 }) as i64)
            .chain([0; 500])
            .collect();
        let mut histogram = Histogram::default();
        for value in &values {
            histogram.add(*value);
        }
        values.sort_unstable();
        for per_mille in 0..=1_000_usize {
            let rank = (values.len() * per_mille).div_ceil(1_000).max(1);
            let (truth, read) = (values[rank - 1], histogram.percentile(u16::try_from(per_mille).unwrap()).unwrap());
            let error = (read - truth).abs() as f64;
            // Below a hundred the whole millionths that values are rounded to are coarser than the bins.
            assert!(error <= 1.0 + ERROR * 1.000_001 * truth.abs() as f64, "{per_mille}: {read} for {truth}");
        }
        assert_eq!(histogram.count(), 20_500);
        assert_eq!(Histogram::default().percentile(500), None);
    }

    #[test]
    fn extremes_survive_bytes() {
        let mut histogram = Histogram::default();
        for value in [i64::MIN + 1, -1, 0, 1, 2, i64::MAX] {
            histogram.add(value);
        }
        assert_eq!((histogram.percentile(0), histogram.percentile(1_000)), (Some(i64::MIN + 1), Some(i64::MAX)));
        for histogram in [histogram, Histogram::default()] {
            let mut out = Vec::new();
            histogram.encode(&mut out);
            let mut reader = Reader(&out);
            assert_eq!(Histogram::decode(&mut reader), Ok(histogram));
            assert!(reader.is_empty());
        }
    }
}
