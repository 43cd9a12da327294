//! The report of the events.

use std::fmt;

use super::{Plan, Results, Sent};
use crate::{
    machine,
    measure::count,
    report::{Table, thousands, whole},
};

/// All there is to tell.
#[derive(Debug)]
pub struct Report {
    /// The day, as given.
    pub date: String,
    /// The server.
    pub servers: String,
    /// What was run.
    pub plan: Plan,
    /// What came of it.
    pub results: Results,
}

fn rate(sent: &Sent) -> f64 {
    sent.taken as f64 / sent.elapsed.as_secs_f64()
}

/// A run as it goes by.
pub fn one_line(sent: &Sent) -> String {
    format!("{}: {:.0} events/s, {} refused, p99 {:.0} ms", sent.label, rate(sent), sent.refused, sent.latencies.percentile(99))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let results = &self.results;
        writeln!(f, "# Events, benchmark of {}\n", self.date)?;
        writeln!(f, "Written by `make bench-events`; how to read it stands in `bench/README.md`.\n")?;
        writeln!(f, "- Machine: {}", machine::describe())?;
        writeln!(f, "- Server: {}", self.servers)?;
        writeln!(
            f,
            "- Events of some 200 bytes, 1,000 a request, 6 connections, 5 metrics; {} s at the sustained rate\n",
            self.plan.seconds
        )?;
        let mut table = Table::new(&["what", "events/s", "refused requests", "p50 ms", "p99 ms", "CPU µs an event", "others used"]);
        for sent in &results.sent {
            let costs = sent.usage.as_ref().map(|usage| {
                let each =
                    usage.costs.iter().map(|(name, cost)| format!("{name} {:.1}", cost.as_secs_f64() * 1e6 / (sent.taken.max(1) as f64)));
                each.collect::<Vec<_>>().join(", ")
            });
            let label = sent.asked.map_or(sent.label.to_owned(), |_| sent.label.to_owned());
            table.line([
                label,
                whole(rate(sent)),
                sent.refused.to_string(),
                format!("{:.0}", sent.latencies.percentile(50)),
                format!("{:.0}", sent.latencies.percentile(99)),
                costs.unwrap_or_default(),
                sent.usage.as_ref().map_or_else(String::new, |usage| format!("{:.0} %", usage.others * 100.0)),
            ]);
        }
        writeln!(f, "{table}")?;
        let (events, partials, took) = results.compacted;
        writeln!(
            f,
            "- Putting together: {} partials of {} events in {:.1} s, {} events/s, the worker's start included.",
            thousands(usize::try_from(partials).unwrap_or(0)),
            thousands(usize::try_from(events).unwrap_or(0)),
            took.as_secs_f64(),
            whole(events as f64 / took.as_secs_f64()),
        )?;
        writeln!(
            f,
            "- Freshness, from sending an event to reading its number while 20,000/s come: p50 {:.0} ms, p99 {:.0} ms, most {:.0} ms of {} (goal: p99 ≤ 10 s).",
            results.fresh.percentile(50),
            results.fresh.percentile(99),
            results.fresh.max(),
            count(results.fresh.len()),
        )?;
        let (grouped, read) = results.grouped;
        writeln!(f, "- `GROUP BY` hour and model over the plain rows: {grouped:.0} ms; the same hours of ours, 30 days: {read:.1} ms.")?;
        if let (Some(before), Some(peak)) = results.memory {
            writeln!(f, "- The API's memory: {before:.0} MiB idle, {peak:.0} MiB at its peak.")?;
        }
        writeln!(f, "\n90 days by day over a year of buckets (96 a day, five groups), today among them, so that no answer is kept:\n")?;
        let mut table = Table::new(&["metric", "p50 ms", "p95 ms", "goal"]);
        for (label, latencies) in &results.views {
            table.line([
                (*label).to_owned(),
                format!("{:.1}", latencies.percentile(50)),
                format!("{:.1}", latencies.percentile(95)),
                "≤ 20".to_owned(),
            ]);
        }
        write!(f, "{table}")
    }
}
