//! The report of the exports.

use std::fmt;

use super::{Figure, Plan, Run};
use crate::{
    machine,
    measure::median,
    plan::DISTURBED,
    report::{Table, thousands, whole},
};

const MIB: f64 = 1024.0 * 1024.0;

/// All there is to tell.
#[derive(Debug)]
pub struct Report {
    /// The day, as given.
    pub date: String,
    /// What was run.
    pub plan: Plan,
    /// The server.
    pub servers: String,
    /// Every run.
    pub runs: Vec<Run>,
}

impl Report {
    fn of(&self, figure: Figure) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.figure == figure)
    }

    fn rate(&self, figure: Figure) -> Option<f64> {
        median(self.of(figure).map(rate))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Exports, benchmark of {}\n", self.date)?;
        writeln!(f, "Written by `make bench-exports`; how to read it stands in `bench/README.md`.\n")?;
        writeln!(f, "- Machine: {}", machine::describe())?;
        writeln!(f, "- Server: {}", self.servers)?;
        writeln!(f, "- {} rows of nine columns; medians of {}\n", thousands(to_usize(self.plan.rows)), self.plan.rounds)?;
        let mut table = Table::new(&[
            "what",
            "rows/s",
            "÷ `psql \\copy` of the same rows",
            "goal",
            "worker's growth, MiB",
            "goal",
            "CPU µs a row",
            "all runs, rows/s",
        ]);
        for (figure, label, base, goal) in [
            (Figure::Copy, "`psql \\copy … TO /dev/null`, CSV", None, ""),
            (Figure::CsvSink, "CSV export to an S3 that drops it", Some(Figure::Copy), "≥ 0.5"),
            (Figure::CsvS3, "CSV export through the sandbox's S3", Some(Figure::Copy), "≥ 0.3"),
            (Figure::CopyMillion, "`psql \\copy`, a million rows", None, ""),
            (Figure::Workbook, "xlsx export of a million rows, sandbox's S3", Some(Figure::CopyMillion), ""),
        ] {
            let Some(rows_a_second) = self.rate(figure) else { continue };
            let ratio = base.and_then(|base| self.rate(base)).map(|base| format!("{:.2}", rows_a_second / base));
            let growth = self.of(figure).filter_map(growth).max_by(f64::total_cmp);
            let all: Vec<String> = self.of(figure).map(|run| format!("{}{}", whole(rate(run)), mark(run))).collect();
            table.line([
                label.to_owned(),
                whole(rows_a_second),
                ratio.unwrap_or_default(),
                goal.to_owned(),
                growth.map(|growth| format!("{growth:.1}")).unwrap_or_default(),
                if growth.is_some() { "< 64".to_owned() } else { String::new() },
                self.of(figure).next().map(costs).unwrap_or_default(),
                all.join(", "),
            ]);
        }
        writeln!(f, "{table}")?;
        if self.runs.iter().any(|run| run.usage.others > DISTURBED) {
            writeln!(f, "`*` other programs used more than {:.0} % of the machine during this run.", DISTURBED * 100.0)?;
        }
        writeln!(f, "The growth is the worst of all runs: the kernel's peak (`VmHWM`) less what the worker had when it was ready.")
    }
}

pub(super) fn one_line(run: &Run) -> String {
    let growth = growth(run).map(|growth| format!("; grew by {growth:.1} MiB")).unwrap_or_default();
    format!("{:?}: {} rows/s; CPU µs a row: {}{growth}; others {:.0} %", run.figure, whole(rate(run)), costs(run), run.usage.others * 100.0)
}

fn rate(run: &Run) -> f64 {
    number(run.rows) / run.elapsed.as_secs_f64().max(1e-9)
}

fn growth(run: &Run) -> Option<f64> {
    let (idle, peak) = run.memory?;
    Some(number(peak.saturating_sub(idle)) / MIB)
}

fn costs(run: &Run) -> String {
    let parts: Vec<String> =
        run.usage.costs.iter().map(|(name, cpu)| format!("{name} {:.2}", cpu.as_secs_f64() * 1e6 / number(run.rows).max(1.0))).collect();
    parts.join(" + ")
}

fn mark(run: &Run) -> &'static str {
    if run.usage.others > DISTURBED { "*" } else { "" }
}

fn number(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "rows and bytes of a run are far below 2^53")]
    let number = count as f64;
    number
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
