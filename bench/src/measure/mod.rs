//! What is measured, and how: time, latencies, and the CPU time of each process that takes part.
//!
//! Rates depend on how the two or more cores happen to be shared; CPU microseconds a job hardly do, so they stand beside
//! every rate. Work that the operating system does for other programs meanwhile is measured too, because it spoils a figure.

pub mod latency;
pub mod memory;
pub mod processor;

use std::time::Duration;

pub use latency::Latencies;
pub use processor::{Meter, Usage, Watched};

/// One measured run of one contestant.
#[derive(Debug, Clone)]
pub struct Run {
    /// Jobs it handled.
    pub jobs: usize,
    /// From begin to end.
    pub elapsed: Duration,
    /// CPU time of each process, in the order given to the meter; empty where the system does not tell.
    pub costs: Vec<(&'static str, Duration)>,
    /// The part of the machine's CPU time that went to programs outside the benchmark, 0 to 1.
    pub others: f64,
    /// Latencies, where the figure is one of latency.
    pub latencies: Option<Latencies>,
    /// Whatever else was measured: its name, with the unit, and its value.
    pub extras: Vec<(&'static str, f64)>,
}

impl Run {
    /// A run whose processes cost that much.
    #[must_use]
    pub fn new(jobs: usize, elapsed: Duration, usage: Usage) -> Self {
        Self { jobs, elapsed, costs: usage.costs, others: usage.others, latencies: None, extras: Vec::new() }
    }

    /// With latencies.
    #[must_use]
    pub fn latencies(mut self, latencies: Latencies) -> Self {
        self.latencies = Some(latencies);
        self
    }

    /// With one more value; one that could not be measured is left out.
    #[must_use]
    pub fn extra(mut self, name: &'static str, value: impl Into<Option<f64>>) -> Self {
        self.extras.extend(value.into().map(|value| (name, value)));
        self
    }

    /// A value by its name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<f64> {
        self.extras.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Jobs a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        count(self.jobs) / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The processes, each name once.
    #[must_use]
    pub fn processes(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = Vec::new();
        for (name, _) in &self.costs {
            if !names.contains(name) {
                names.push(name);
            }
        }
        names
    }

    /// CPU time of the processes of that name; `None` where there are none or the system does not tell.
    #[must_use]
    pub fn cpu(&self, process: &str) -> Option<Duration> {
        self.costs.iter().filter(|(name, _)| *name == process).map(|(_, cpu)| *cpu).reduce(|sum, cpu| sum + cpu)
    }

    /// CPU microseconds a job of the processes of that name.
    #[must_use]
    pub fn micros_per_job(&self, process: &str) -> Option<f64> {
        let cpu = self.cpu(process)?;
        Some(cpu.as_secs_f64() * 1e6 / count(self.jobs).max(1.0))
    }
}

/// The middle value; of an even number the mean of the two in the middle. `None` of nothing.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(upper), 1) => Some(*upper),
        (Some(upper), _) => values.get(middle.wrapping_sub(1)).map(|lower| f64::midpoint(*lower, *upper)),
        (None, _) => None,
    }
}

/// A number of jobs as a factor.
#[must_use]
pub fn count(number: usize) -> f64 {
    // Exact to 4 billion, which no run reaches.
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn cost_is_per_job() {
        let costs = vec![("worker", Duration::from_millis(500)), ("redis", Duration::from_millis(50))];
        let run = Run { jobs: 10_000, elapsed: Duration::from_secs(2), costs, others: 0.0, latencies: None, extras: Vec::new() };
        assert!((run.rate() - 5_000.0).abs() < 1e-6);
        assert!((run.micros_per_job("redis").unwrap() - 5.0).abs() < 1e-9);
        assert_eq!(run.micros_per_job("api"), None);
    }
}
