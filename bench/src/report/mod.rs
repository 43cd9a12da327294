//! The report, as Markdown.

mod goals;
mod table;

use std::fmt;

pub(crate) use table::{Table, thousands, whole};

use crate::{
    contest::{BULK, Figure, HTTP, OURS, PICKUP, Results, Row, drain, of},
    machine,
    measure::{Latencies, Run, median},
    peer::PEERS,
    plan::{BULK_IN_FLIGHT, BYTES, CONCURRENCY, DISTURBED, Plan, RATE},
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
    /// The peers that ran: what they are, and what they leave out.
    pub versions: Vec<(String, &'static str)>,
    /// The peers that did not, and why.
    pub skipped: Vec<String>,
    /// Every run.
    pub results: Results,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Benchmark of {}\n", self.date)?;
        writeln!(f, "Written by `make bench`; how to read it stands in `bench/README.md`, where the time goes in `bench/PROFILES.md`.\n")?;
        writeln!(f, "- Machine: {}", machine::describe())?;
        writeln!(f, "- Servers, the same for all: {}", self.servers)?;
        writeln!(
            f,
            "- {} no-op jobs of {BYTES} bytes, concurrency {CONCURRENCY}, {BULK_IN_FLIGHT} bulk calls in flight; pick-up: {RATE} jobs/s for {} s \
             (a quarter of that with peers other than BullMQ and Sidekiq); medians of {}",
            thousands(self.plan.jobs),
            self.plan.seconds,
            self.plan.rounds,
        )?;
        writeln!(
            f,
            "- {OURS} {}, release build; every job is a durable row before its answer, claimed, and a finished row with the times of its run after its end",
            env!("CARGO_PKG_VERSION")
        )?;
        for (version, note) in &self.versions {
            writeln!(f, "- {version}; what it leaves out: {note}")?;
        }
        for reason in &self.skipped {
            writeln!(f, "- Skipped: {reason}")?;
        }
        for failure in &self.results.failed {
            writeln!(f, "- Failed: {failure}")?;
        }
        writeln!(f)?;
        self.goals(f)?;
        self.ratios(f)?;
        self.rates(f)?;
        self.latencies(f)?;
        self.rest(f)?;
        self.lookups(f)?;
        self.disturbed(f)
    }
}

impl Report {
    /// Ours beside each peer.
    fn ratios(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "peer",
            "drain",
            "drain, two processes",
            "bulk",
            "HTTP beside its single adds",
            "CPU a job, drain",
            "pick-up p99",
        ]);
        for peer in &PEERS {
            let rate = |ours: Row, figure: Figure| ratio(self.rate(&ours), self.rate(&of(peer.name, figure)));
            let cost = ratio(self.total_cost(&drain(1)), self.total_cost(&of(peer.name, Figure::Drain(1))));
            let latency = |row: &Row| self.latency(row, |latencies| latencies.percentile(99));
            table.line([
                peer.name.to_owned(),
                rate(drain(1), Figure::Drain(1)),
                rate(drain(2), Figure::Drain(2)),
                rate(BULK, Figure::Bulk),
                rate(HTTP, Figure::Single),
                cost,
                ratio(latency(&PICKUP), latency(&of(peer.name, Figure::Pickup))),
            ]);
        }
        writeln!(f, "## {OURS} ÷ each peer\n\n{table}")?;
        writeln!(f, "Rates: more than 1 is ours ahead. CPU and pick-up: less than 1 is.\n")
    }

    /// All that is a rate.
    fn rates(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["figure", "who", "how", "jobs/s", "all runs", "CPU µs a job", "peak RSS MiB"]);
        let has_rate = |row: &Row| {
            matches!(
                row.figure,
                Figure::Drain(_)
                    | Figure::Bulk
                    | Figure::Http
                    | Figure::Single
                    | Figure::Scaling(_)
                    | Figure::Push
                    | Figure::Mail
                    | Figure::FanOut
            )
        };
        for (row, runs) in self.results.runs.iter().filter(|(row, _)| has_rate(row)) {
            let rates: Vec<String> = runs.iter().map(|run| format!("{}{}", whole(run.rate()), mark(run))).collect();
            let memory = ["API RSS MiB", "worker RSS MiB"].iter().find_map(|name| self.value(row, name));
            table.line([
                name(row),
                row.contestant.to_owned(),
                row.how.to_owned(),
                self.rate(row).map(whole).unwrap_or_default(),
                rates.join(", "),
                costs(runs),
                memory.map(|mib| format!("{mib:.0}")).unwrap_or_default(),
            ]);
        }
        writeln!(f, "## Rates\n\n{table}")
    }

    /// All that is a latency.
    fn latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["figure", "who", "how", "p50 ms", "p95 ms", "p99 ms", "max ms", "p99 of all runs", "CPU µs each"]);
        for (row, runs) in &self.results.runs {
            let middle = |pick: fn(&Latencies) -> f64| self.latency(row, pick).map(|millis| format!("{millis:.2}")).unwrap_or_default();
            let all: Vec<String> =
                runs.iter().filter_map(|run| Some(format!("{:.2}{}", run.latencies.as_ref()?.percentile(99), mark(run)))).collect();
            if all.is_empty() {
                continue;
            }
            table.line([
                name(row),
                row.contestant.to_owned(),
                row.how.to_owned(),
                middle(|latencies| latencies.percentile(50)),
                middle(|latencies| latencies.percentile(95)),
                middle(|latencies| latencies.percentile(99)),
                middle(Latencies::max),
                all.join(", "),
                costs(runs),
            ]);
        }
        writeln!(f, "## Latencies\n\n{table}")?;
        writeln!(
            f,
            "CPU of a pick-up includes what an idle system uses in that time. Of a bulk request the latency is that of 1,000 jobs.\n"
        )
    }

    /// All that is neither.
    fn rest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["figure", "what", "median", "all runs"]);
        let has_extras = |row: &Row| matches!(row.figure, Figure::Idle | Figure::Polling | Figure::Streams | Figure::FanOut);
        for (row, runs) in self.results.runs.iter().filter(|(row, _)| has_extras(row)) {
            for (extra, _) in runs.first().map(|run| run.extras.as_slice()).unwrap_or_default() {
                let all: Vec<String> =
                    runs.iter().filter_map(|run| run.value(extra).map(|value| format!("{value:.1}{}", mark(run)))).collect();
                let value = self.value(row, extra).map(|value| format!("{value:.1}")).unwrap_or_default();
                table.line([name(row), (*extra).to_owned(), value, all.join(", ")]);
            }
        }
        writeln!(f, "## Memory, idling, losses\n\n{table}")
    }

    fn lookups(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(loaded) = self.results.loaded else { return Ok(()) };
        let mut table = Table::new(&["lookup", "found", "p50 ms", "max ms"]);
        for lookup in &self.results.lookups {
            let (middle, most) = (lookup.latencies.percentile(50), lookup.latencies.max());
            table.line([lookup.what.to_owned(), lookup.found.to_string(), format!("{middle:.2}"), format!("{most:.2}")]);
        }
        writeln!(f, "## Lookups among {} finished jobs\n\n{table}", thousands(self.plan.finished))?;
        writeln!(
            f,
            "The first of the questions, on a new API, right after loading, is among them. The history took {:.0} s to load.\n",
            loaded.as_secs_f64()
        )
    }

    fn disturbed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.results.runs.values().flatten().any(|run| run.others > DISTURBED) {
            writeln!(
                f,
                "`*` other programs used more than {:.0} % of the machine during this run: its rate says little.",
                DISTURBED * 100.0
            )?;
        }
        Ok(())
    }

    fn rate(&self, row: &Row) -> Option<f64> {
        median(self.results.runs.get(row)?.iter().map(Run::rate))
    }

    fn latency(&self, row: &Row, pick: impl Fn(&Latencies) -> f64) -> Option<f64> {
        median(self.results.runs.get(row)?.iter().filter_map(|run| run.latencies.as_ref().map(&pick)))
    }

    fn value(&self, row: &Row, name: &str) -> Option<f64> {
        median(self.results.runs.get(row)?.iter().filter_map(|run| run.value(name)))
    }

    /// The largest of all runs, for limits that allow no exceptions: a median would forgive one run in three.
    fn worst(&self, row: &Row, name: &str) -> Option<f64> {
        self.results.runs.get(row)?.iter().filter_map(|run| run.value(name)).reduce(f64::max)
    }

    /// CPU microseconds a job of all processes together; who makes the load is no part of it.
    fn total_cost(&self, row: &Row) -> Option<f64> {
        let runs = self.results.runs.get(row)?;
        let sum = |run: &Run| {
            let processes = run.processes().into_iter().filter(|process| *process != "load generator");
            processes.filter_map(|process| run.micros_per_job(process)).sum()
        };
        median(runs.iter().filter(|run| !run.costs.is_empty()).map(sum))
    }
}

fn a_core(cost: Option<f64>) -> Option<f64> {
    cost.filter(|micros| *micros > 0.0).map(|micros| 1e6 / micros)
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> String {
    ours.zip(theirs).map_or_else(|| "–".to_owned(), |(ours, theirs)| format!("{:.2}×", ours / theirs))
}

fn name(row: &Row) -> String {
    let figure = match row.figure {
        Figure::Drain(1) => "drain".to_owned(),
        Figure::Drain(processes) => format!("drain, {processes} processes"),
        Figure::Bulk => "bulk enqueue".to_owned(),
        Figure::Http => "HTTP enqueue".to_owned(),
        Figure::Single => "single adds".to_owned(),
        Figure::Pickup => "pick-up".to_owned(),
        Figure::Polling => "status polling".to_owned(),
        Figure::Streams => "SSE".to_owned(),
        Figure::Idle => "idle".to_owned(),
        Figure::Push => "push".to_owned(),
        Figure::Mail => "mail".to_owned(),
        Figure::FanOut => "fan-out".to_owned(),
        Figure::Scaling(1) => "jobs that wait, 1 process".to_owned(),
        Figure::Scaling(processes) => format!("jobs that wait, {processes} processes"),
    };
    if row.grown { format!("{figure}, with a history") } else { figure }
}

/// CPU microseconds a job, process by process, medians of the runs; what used none is left out.
fn costs(runs: &[Run]) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let parts: Vec<String> = first
        .processes()
        .into_iter()
        .filter_map(|process| {
            let cost = median(runs.iter().filter_map(|run| run.micros_per_job(process)))?;
            (cost >= 0.05).then(|| format!("{process} {cost:.1}"))
        })
        .collect();
    parts.join(" + ")
}

fn mark(run: &Run) -> &'static str {
    if run.others > DISTURBED { "*" } else { "" }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contest::{POLLING, STREAMS};

    fn run(rate: usize, others: f64) -> Run {
        let costs = vec![("worker", Duration::from_millis(20)), ("redis", Duration::from_millis(10))];
        Run { jobs: rate, elapsed: Duration::from_secs(1), costs, others, latencies: None, extras: vec![("worker RSS MiB", 40.0)] }
    }

    fn report(runs: Vec<(Row, Vec<Run>)>) -> String {
        let plan = Plan { jobs: 50_000, seconds: 20, rounds: 3, finished: 10, patience: Duration::ZERO };
        let results = Results { runs: runs.into_iter().collect(), ..Results::default() };
        let skipped = vec!["nobody".into()];
        Report { date: "today".into(), plan, servers: "servers".into(), versions: vec![("Peer 1".into(), "all")], skipped, results }
            .to_string()
    }

    fn line_of<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} is not in {text}"))
    }

    #[test]
    fn ratios_are_of_medians_and_spoiled_runs_are_marked() {
        let theirs = of("BullMQ", Figure::Drain(1));
        let text = report(vec![(drain(1), vec![run(40_000, 0.0), run(44_000, 0.0), run(10, 0.5)]), (theirs, vec![run(20_000, 0.0)])]);
        assert!(line_of(&text, "| BullMQ ").contains("2.00×"), "{text}");
        assert!(text.contains("40,000, 44,000, 10*"), "{text}");
        assert!(text.contains("Skipped: nobody") && text.contains("leaves out: all"), "{text}");
        assert!(text.contains("worker 0.5 + redis 0.2") || text.contains("worker 0.5 + redis 0.3"), "{text}");
    }

    #[test]
    fn goals_are_met_missed_or_not_measured() {
        let theirs = of("BullMQ", Figure::Drain(1));
        let of_drain = |ours: usize| {
            let text = report(vec![(drain(1), vec![run(ours, 0.0)]), (theirs, vec![run(20_000, 0.0)])]);
            (line_of(&text, "| durable completions, 1 process").to_owned(), text)
        };
        let (met, text) = of_drain(41_000);
        assert!(met.contains("met") && met.contains("2.05×"), "{met}");
        assert!(line_of(&text, "| HTTP enqueue, jobs ").contains("not measured"), "{text}");
        let (missed, _) = of_drain(39_000);
        assert!(missed.contains("missed"), "{missed}");
    }

    #[test]
    fn what_allows_no_exceptions_is_judged_by_the_worst_run() {
        let with = |name, values: [f64; 3]| values.map(|value| Run { extras: vec![(name, value)], ..run(10, 0.0) }).to_vec();
        let text = report(vec![
            (POLLING, with("dropped", [0.0, 1.0, 0.0])),
            (drain(2), with("worker RSS MiB", [60.0, 60.0, 129.0])),
            (HTTP, with("API RSS MiB", [60.0; 3])),
            (STREAMS, with("API RSS MiB", [130.0, 60.0, 60.0])),
        ]);
        for (line, worst) in
            [("status polling, dropped", "1.00"), ("under load, worker RSS", "129.00 MiB"), ("under load, API RSS", "130.00 MiB")]
        {
            let line = line_of(&text, &format!("| {line}"));
            assert!(line.contains("missed") && line.contains(&format!("| {worst} ")), "{line}");
        }
    }
}
