//! Latencies of a run, as percentiles.

/// Latencies in milliseconds, sorted.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    sorted: Vec<f64>,
}

impl Latencies {
    /// The smallest value that at least `percent` of all do not exceed (the nearest rank); 0 of nothing.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied().unwrap_or(0.0)
    }

    /// The largest.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.sorted.last().copied().unwrap_or(0.0)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sorted.len()
    }
}

impl FromIterator<f64> for Latencies {
    fn from_iter<I: IntoIterator<Item = f64>>(millis: I) -> Self {
        let mut sorted: Vec<f64> = millis.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are picked, not computed")]
    fn percentiles_are_nearest_ranks() {
        let latencies: Latencies = (1..=200).rev().map(f64::from).collect();
        assert_eq!((latencies.percentile(50), latencies.percentile(99), latencies.max()), (100.0, 198.0, 200.0));
        let one: Latencies = [7.0].into_iter().collect();
        assert_eq!((one.percentile(50), one.percentile(99), one.max()), (7.0, 7.0, 7.0));
        assert_eq!(Latencies::default().percentile(50), 0.0);
    }
}
