//! The report, as Markdown that reads well on a terminal too.

use std::fmt;

use crate::{
    contest::{BULK, DRAIN, Figure, HTTP, OURS, PICKUP, Results, Row, rows_of},
    machine,
    measure::{Latencies, Run, median},
    plan::{BYTES, CONCURRENCY, DISTURBED, IN_FLIGHT_BULK, Plan, RATE},
};

/// All there is to tell about a run of the benchmark.
#[derive(Debug)]
pub struct Report {
    /// The day, as given.
    pub date: String,
    /// What was run.
    pub plan: Plan,
    /// Redis and Postgres.
    pub servers: String,
    /// The peers that ran.
    pub versions: Vec<String>,
    /// The peers that did not, and why.
    pub skipped: Vec<String>,
    /// Every run.
    pub results: Results,
}

/// Peers by name, as far as they can take part.
const PEERS: [&str; 1] = ["BullMQ"];

/// What the figures are to reach (the project's goals).
const GOAL_DRAIN: &str = "≥ 2×";
const GOAL_BULK: &str = "≥ 3×";
const GOAL_PICKUP: &str = "p99 ≤ 3 ms, or at most the peer's";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Benchmark of {}\n", self.date)?;
        writeln!(f, "Written by `make bench`; how to read it stands in `bench/README.md`.\n")?;
        writeln!(f, "- Machine: {}", machine::describe())?;
        writeln!(f, "- Servers, the same for all: {}", self.servers)?;
        writeln!(f, "- {OURS} {}, release build", env!("CARGO_PKG_VERSION"))?;
        for version in &self.versions {
            writeln!(f, "- {version}")?;
        }
        for reason in &self.skipped {
            writeln!(f, "- Skipped: {reason}")?;
        }
        writeln!(
            f,
            "- {} no-op jobs of {BYTES} bytes, concurrency {CONCURRENCY}, {IN_FLIGHT_BULK} bulk calls in flight; pick-up: {RATE} jobs/s for {} s; medians of {}\n",
            thousands(self.plan.jobs),
            self.plan.seconds,
            self.plan.rounds,
        )?;
        self.ratios(f)?;
        self.rates(f)?;
        self.pickups(f)?;
        self.disturbed(f)
    }
}

impl Report {
    fn ratios(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["figure", OURS, "peer", "ratio", "goal"]);
        for peer in PEERS {
            let [drain, bulk, single, pickup] = rows_of(peer);
            for (label, ours, theirs, goal) in [
                ("drain, jobs/s", DRAIN, drain, GOAL_DRAIN),
                ("bulk enqueue, jobs/s", BULK, bulk, GOAL_BULK),
                ("enqueue one by one: HTTP beside calls in process, jobs/s", HTTP, single, ""),
                ("HTTP one by one beside bulk in process, jobs/s", HTTP, bulk, ""),
            ] {
                if let (Some(our_rate), Some(their_rate)) = (self.rate(&ours), self.rate(&theirs)) {
                    let ratio = format!("{:.2}×", our_rate / their_rate);
                    table.line([label.to_owned(), whole(our_rate), format!("{peer} {}", whole(their_rate)), ratio, goal.to_owned()]);
                }
            }
            for (ours, theirs) in [(DRAIN, drain), (BULK, bulk), (HTTP, single)] {
                if let (Some(our_cost), Some(their_cost)) = (self.total_cost(&ours), self.total_cost(&theirs)) {
                    let label = format!("CPU µs a job, all processes: {}", name(ours.figure));
                    let ratio = format!("{:.2}×", our_cost / their_cost);
                    table.line([label, format!("{our_cost:.1}"), format!("{peer} {their_cost:.1}"), ratio, String::new()]);
                }
            }
            for percent in [50, 99] {
                let of = |row: &Row| self.latency(row, |latencies| latencies.percentile(percent));
                if let (Some(ours), Some(theirs)) = (of(&PICKUP), of(&pickup)) {
                    let goal = if percent == 99 { GOAL_PICKUP } else { "≤ 1.5 ms" };
                    let ratio = format!("{:.2}×", ours / theirs);
                    table.line([
                        format!("pick-up p{percent}, ms"),
                        format!("{ours:.2}"),
                        format!("{peer} {theirs:.2}"),
                        ratio,
                        goal.to_owned(),
                    ]);
                }
            }
        }
        writeln!(f, "## {OURS} ÷ peer\n\n{table}")
    }

    fn rates(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["figure", "who", "how", "jobs/s", "all runs", "CPU µs a job"]);
        for (row, runs) in self.results.iter().filter(|(row, _)| row.figure != Figure::Pickup) {
            let rates: Vec<String> = runs.iter().map(|run| format!("{}{}", whole(run.rate()), mark(run))).collect();
            let rate = self.rate(row).map(whole).unwrap_or_default();
            table.line([name(row.figure).to_owned(), row.contestant.to_owned(), row.how.to_owned(), rate, rates.join(", "), costs(runs)]);
        }
        writeln!(f, "## Rates\n\n{table}")
    }

    fn pickups(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["who", "how", "p50 ms", "p99 ms", "max ms", "p99 of all runs", "CPU µs a job"]);
        for (row, runs) in self.results.iter().filter(|(row, _)| row.figure == Figure::Pickup) {
            let middle = |pick: fn(&Latencies) -> f64| self.latency(row, pick).map(|millis| format!("{millis:.2}")).unwrap_or_default();
            let all: Vec<String> =
                runs.iter().filter_map(|run| Some(format!("{:.2}{}", run.latencies.as_ref()?.percentile(99), mark(run)))).collect();
            table.line([
                row.contestant.to_owned(),
                row.how.to_owned(),
                middle(|latencies| latencies.percentile(50)),
                middle(|latencies| latencies.percentile(99)),
                middle(Latencies::max),
                all.join(", "),
                costs(runs),
            ]);
        }
        writeln!(f, "## Pick-up at {RATE} jobs/s on an idle system\n\n{table}")?;
        writeln!(f, "CPU here includes what an idle system uses in that time.\n")
    }

    fn disturbed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.results.values().flatten().any(|run| run.others > DISTURBED) {
            writeln!(
                f,
                "`*` other programs used more than {:.0} % of the machine during this run: its rate says little.",
                DISTURBED * 100.0
            )?;
        }
        Ok(())
    }

    fn rate(&self, row: &Row) -> Option<f64> {
        median(self.results.get(row)?.iter().map(Run::rate))
    }

    fn latency(&self, row: &Row, pick: impl Fn(&Latencies) -> f64) -> Option<f64> {
        median(self.results.get(row)?.iter().filter_map(|run| run.latencies.as_ref().map(&pick)))
    }

    /// CPU microseconds a job of all processes together.
    fn total_cost(&self, row: &Row) -> Option<f64> {
        let runs = self.results.get(row)?;
        median(
            runs.iter()
                .filter(|run| !run.costs.is_empty())
                .map(|run| run.costs.iter().filter_map(|(process, _)| run.micros_per_job(process)).sum()),
        )
    }
}

fn name(figure: Figure) -> &'static str {
    match figure {
        Figure::Drain => "drain",
        Figure::Bulk => "bulk enqueue",
        Figure::Single => "enqueue one by one",
        Figure::Pickup => "pick-up",
    }
}

/// CPU microseconds a job, process by process, medians of the runs.
fn costs(runs: &[Run]) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let parts: Vec<String> = first
        .costs
        .iter()
        .filter_map(|(process, _)| {
            let cost = median(runs.iter().filter_map(|run| run.micros_per_job(process)))?;
            Some(format!("{process} {cost:.1}"))
        })
        .collect();
    parts.join(" + ")
}

fn mark(run: &Run) -> &'static str {
    if run.others > DISTURBED { "*" } else { "" }
}

pub(crate) fn whole(number: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive and far below 2^53")]
    let number = number.round().max(0.0) as usize;
    thousands(number)
}

/// `1,234,567`.
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A Markdown table with aligned columns.
pub(crate) struct Table {
    lines: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { lines: vec![head.iter().map(ToString::to_string).collect()] }
    }

    pub(crate) fn line<const N: usize>(&mut self, cells: [String; N]) {
        self.lines.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.lines.first().map_or(0, Vec::len);
        let width =
            |column: usize| self.lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (number, line) in self.lines.iter().enumerate() {
            for (cell, width) in line.iter().zip(&widths) {
                write!(f, "| {cell:<width$} ")?;
            }
            writeln!(f, "|")?;
            if number == 0 {
                for width in &widths {
                    write!(f, "|{}", "-".repeat(width + 2))?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run(rate: usize, others: f64) -> Run {
        let costs = vec![("worker", Duration::from_millis(20)), ("redis", Duration::from_millis(10))];
        Run { jobs: rate, elapsed: Duration::from_secs(1), costs, others, latencies: None }
    }

    #[test]
    fn ratios_are_of_medians_and_spoiled_runs_are_marked() {
        let [drain, ..] = rows_of("BullMQ");
        let results = Results::from([(DRAIN, vec![run(40_000, 0.0), run(44_000, 0.0), run(10, 0.5)]), (drain, vec![run(20_000, 0.0)])]);
        let plan = Plan { jobs: 50_000, seconds: 20, rounds: 3, patience: Duration::ZERO };
        let report =
            Report { date: "today".into(), plan, servers: "servers".into(), versions: Vec::new(), skipped: vec!["nobody".into()], results };
        let text = report.to_string();
        assert!(text.contains("2.00×"), "{text}");
        assert!(text.contains("40,000, 44,000, 10*"), "{text}");
        assert!(text.contains("Skipped: nobody"), "{text}");
        assert!(text.contains("worker 0.5 + redis 0.2") || text.contains("worker 0.5 + redis 0.3"), "{text}");
    }

    #[test]
    fn large_numbers_have_commas() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
