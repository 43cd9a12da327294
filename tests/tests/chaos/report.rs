//! What a scenario found, as a table: printed, and kept in `target/chaos/`.

use std::{
    fmt::{Display, Write},
    path::Path,
    time::Duration,
};

use crate::seed::{Seed, full};

/// A report that grows line by line.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    text: String,
}

impl Report {
    /// Begins one.
    pub fn of(name: &'static str, title: &str, seed: &Seed) -> Self {
        let size = if full() { "full size" } else { "small size" };
        Self { name, text: format!("## {title}\n\n`CHAOS_SEED={}`, {size}\n\n| figure | value |\n|---|---|\n", seed.number) }
    }

    /// Adds a line, and prints it.
    pub fn line(&mut self, figure: impl Display, value: impl Display) {
        println!("  {figure}: {value}");
        writeln!(self.text, "| {figure} | {value} |").expect("a text takes all");
    }

    /// Writes it down.
    fn keep(&self) {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the temporary directory lies in target/");
        let directory = target.join("chaos").join(if full() { "full" } else { "small" });
        std::fs::create_dir_all(&directory).expect("a directory for reports");
        let path = directory.join(format!("{}.md", self.name));
        std::fs::write(&path, &self.text).expect("a report");
        println!("the report is {}", path.display());
    }
}

impl Drop for Report {
    /// Also when the scenario failed: how far it came is what one wants to know then.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.text.push_str("| this run | failed |\n");
        }
        self.keep();
    }
}

/// How times spread: how many, p50, p99, the longest.
pub fn spread(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    let Some(longest) = times.last() else { return "none".to_owned() };
    // The smallest value that so many percent don't exceed.
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    format!("n={} p50 {} p99 {} max {}", times.len(), seconds(at(50)), seconds(at(99)), seconds(*longest))
}

/// A time for people.
pub fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

#[test]
fn percentiles_are_values_that_were_measured() {
    let times: Vec<Duration> = (1..=200).map(Duration::from_secs).collect();
    assert_eq!(spread(&times), "n=200 p50 100.000 s p99 198.000 s max 200.000 s");
    assert_eq!(spread(&[]), "none");
}
