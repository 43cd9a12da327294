//! Figures that a test prints and does not judge.

use std::{fmt, time::Duration};

/// How measured times spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// How many there are.
    pub count: usize,
    /// Half of them took no longer.
    pub median: Duration,
    /// The longest.
    pub longest: Duration,
}

impl FromIterator<Duration> for Spread {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort_unstable();
        let at = |index: usize| times.get(index).copied().unwrap_or_default();
        Self { count: times.len(), median: at(times.len().saturating_sub(1) / 2), longest: at(times.len().saturating_sub(1)) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n={} p50={:.2} s max={:.2} s", self.count, self.median.as_secs_f64(), self.longest.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let spread: Spread = [5, 1, 3].map(Duration::from_secs).into_iter().collect();
        assert_eq!((spread.count, spread.median, spread.longest), (3, Duration::from_secs(3), Duration::from_secs(5)));
        assert_eq!([].into_iter().collect::<Spread>().count, 0);
    }
}
