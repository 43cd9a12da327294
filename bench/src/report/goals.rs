//! What the figures are to reach (the project's goals), and whether they do.

use std::fmt;

use super::{Report, Table, a_core, thousands, whole};
use crate::{
    contest::{
        BULK, FAN_OUT, Figure, HTTP, IDLE, MAIL, MAIL_ALONE, OURS, PICKUP, POLLING, PUSH, PUSH_ALONE, PUSH_CROWDED, Row, STREAMS, drain,
        of, scaling,
    },
    measure::count,
    peer::DOOR,
    plan::{FOLLOWERS, PROCESSES},
};

/// One line: what, ours, beside what, the ratio, the goal, and whether it is met.
struct Line {
    figure: String,
    ours: Option<f64>,
    beside: Option<(&'static str, f64)>,
    goal: String,
    met: Option<bool>,
    unit: &'static str,
}

impl Line {
    /// A rate that is to be so many times another's.
    fn times(figure: &str, ours: Option<f64>, name: &'static str, theirs: Option<f64>, least: f64) -> Self {
        let met = ours.zip(theirs).map(|(ours, theirs)| ours >= least * theirs);
        let beside = theirs.map(|theirs| (name, theirs));
        Self { figure: figure.to_owned(), ours, beside, goal: format!("≥ {least}×"), met, unit: "/s" }
    }

    /// The same, its goal in other words.
    fn goal(self, goal: impl Into<String>) -> Self {
        Self { goal: goal.into(), ..self }
    }

    /// A value beside another, which is shown and has no goal.
    fn shown(self) -> Self {
        Self { goal: "none".to_owned(), met: None, ..self }
    }

    /// A value that is not to exceed another.
    fn at_most(figure: &str, ours: Option<f64>, most: f64, unit: &'static str) -> Self {
        let met = ours.map(|ours| ours <= most);
        Self { figure: figure.to_owned(), ours, beside: None, goal: format!("≤ {most}{unit}"), met, unit }
    }
}

impl Report {
    /// The goals.
    pub(super) fn goals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.beside_peers();
        lines.extend(self.latencies_and_losses());
        lines.extend(self.memory_and_idling());
        lines.extend(self.growth_and_scaling());
        lines.extend(self.sending());
        lines.extend(self.fan_out());
        let mut table = Table::new(&["figure", OURS, "beside", "ratio", "goal", "result"]);
        for line in lines {
            let show = |value: f64| if line.unit == "/s" { whole(value) } else { format!("{value:.2}{}", line.unit) };
            let result = match line.met {
                Some(true) => "met",
                Some(false) => "**missed**",
                None if line.ours.is_some() && line.goal == "none" => "",
                None => "not measured",
            };
            table.line([
                line.figure,
                line.ours.map(show).unwrap_or_default(),
                line.beside.map(|(name, value)| format!("{name} {}", show(value))).unwrap_or_default(),
                line.ours.zip(line.beside).map(|(ours, (_, theirs))| format!("{:.2}×", ours / theirs)).unwrap_or_default(),
                line.goal,
                result.to_owned(),
            ]);
        }
        writeln!(f, "## Goals\n\n{table}")
    }

    fn beside_peers(&self) -> Vec<Line> {
        let theirs = |figure| self.rate(&of("BullMQ", figure));
        let (one, two) = (self.rate(&drain(1)), self.rate(&drain(2)));
        let faster = Line::times("two processes beside one", two, "one", one, 1.0).goal("not slower");
        let door = of(DOOR.name, Figure::Http);
        let cost = |row: &Row| self.total_cost(row);
        let (our_cost, their_cost) = (cost(&drain(1)), cost(&of("BullMQ", Figure::Drain(1))));
        let http = |row: &Row| self.latency(row, |latencies| latencies.percentile(99));
        let (our_p99, their_p99) = (http(&HTTP), http(&door));
        vec![
            Line::times("durable completions, 1 process, jobs", one, "BullMQ", theirs(Figure::Drain(1)), 2.0),
            Line::times("durable completions, 2 processes, jobs", two, "BullMQ", theirs(Figure::Drain(2)), 2.0),
            faster,
            Line {
                figure: "CPU a job of all processes, drain".to_owned(),
                ours: our_cost,
                beside: their_cost.map(|cost| ("BullMQ", cost)),
                goal: "≤ 0.5×".to_owned(),
                met: our_cost.zip(their_cost).map(|(ours, theirs)| ours <= 0.5 * theirs),
                unit: " µs",
            },
            Line::times("HTTP enqueue, jobs", self.rate(&HTTP), DOOR.name, self.rate(&door), 1.3),
            Line {
                figure: "HTTP enqueue, p99".to_owned(),
                ours: our_p99,
                beside: their_p99.map(|millis| (DOOR.name, millis)),
                goal: "≤ 0.5×".to_owned(),
                met: our_p99.zip(their_p99).map(|(ours, theirs)| ours <= 0.5 * theirs),
                unit: " ms",
            },
            Line::times("bulk enqueue, jobs", self.rate(&BULK), "BullMQ", theirs(Figure::Bulk), 3.0),
        ]
    }

    fn latencies_and_losses(&self) -> Vec<Line> {
        let pickup = |row: &Row, percent| self.latency(row, |latencies| latencies.percentile(percent));
        let (ours, theirs) = (pickup(&PICKUP, 99), pickup(&of("BullMQ", Figure::Pickup), 99));
        let polls = self.latency(&POLLING, |latencies| latencies.percentile(95));
        let events = self.latency(&STREAMS, |latencies| latencies.percentile(99));
        vec![
            Line::at_most("pick-up p50", pickup(&PICKUP, 50), 1.5, " ms"),
            Line {
                figure: "pick-up p99".to_owned(),
                ours,
                beside: theirs.map(|millis| ("BullMQ", millis)),
                goal: "≤ 3 ms, or BullMQ's".to_owned(),
                met: ours.map(|ours| ours <= theirs.map_or(3.0, |theirs| theirs.max(3.0))),
                unit: " ms",
            },
            Line::at_most("status polling p95", polls, 20.0, " ms"),
            Line::at_most("status polling, dropped", self.worst(&POLLING, "dropped"), 0.0, ""),
            Line::at_most("SSE, RSS a listener", self.value(&STREAMS, "KiB RSS a listener"), 20.0, " KiB"),
            Line::at_most("SSE, event latency p99", events, 50.0, " ms"),
        ]
    }

    fn memory_and_idling(&self) -> Vec<Line> {
        let idle = |name| self.value(&IDLE, name);
        let peak = |rows: &[Row], name| rows.iter().filter_map(|row| self.worst(row, name)).reduce(f64::max);
        vec![
            Line::at_most("idle, API RSS", idle("API RSS MiB"), 25.0, " MiB"),
            Line::at_most("idle, worker RSS", idle("worker RSS MiB"), 25.0, " MiB"),
            Line::at_most("idle, API CPU", idle("API CPU %"), 0.5, " %"),
            Line::at_most("idle, worker CPU", idle("worker CPU %"), 0.5, " %"),
            Line::at_most("idle, Redis commands a second", idle("Redis commands/s"), 20.0, ""),
            Line::at_most("under load, worker RSS", peak(&[drain(1), drain(2)], "worker RSS MiB"), 128.0, " MiB"),
            Line::at_most("under load, API RSS", peak(&[HTTP, BULK, POLLING, STREAMS], "API RSS MiB"), 128.0, " MiB"),
        ]
    }

    /// Libraries that send are compared with our clients; what the engine adds stands below. A core's pushes go by the CPU time of all processes but the sink's; mails by the clock.
    fn sending(&self) -> Vec<Line> {
        let a_core = |row: &Row| a_core(self.total_cost(row));
        let (theirs, mails) = (of("web-push", Figure::Push), of("nodemailer", Figure::Mail));
        vec![
            Line::times("push, a second and core, the client by itself", a_core(&PUSH_ALONE), "web-push", a_core(&theirs), 5.0),
            Line::times("push, a second and core, through the engine, a browser a job", a_core(&PUSH), "web-push", a_core(&theirs), 5.0)
                .shown(),
            Line::times(
                "push, a second and core, through the engine, 20 browsers a job",
                a_core(&PUSH_CROWDED),
                "web-push",
                a_core(&theirs),
                5.0,
            )
            .shown(),
            Line::times("mail, a second, the client by itself", self.rate(&MAIL_ALONE), "nodemailer", self.rate(&mails), 2.0),
            Line::times("mail, a second, through the engine", self.rate(&MAIL), "nodemailer", self.rate(&mails), 2.0).shown(),
        ]
    }

    /// A notification to many.
    fn fan_out(&self) -> Vec<Line> {
        let to = thousands(self.plan.crowd(FOLLOWERS));
        let seconds = self.value(&FAN_OUT, "s to the last row");
        vec![
            Line::at_most(&format!("fan-out to {to}, the last inbox's row"), seconds, 0.0, " s").shown(),
            Line::at_most(&format!("fan-out to {to}, worker RSS"), self.worst(&FAN_OUT, "worker RSS MiB"), 128.0, " MiB"),
        ]
    }

    fn growth_and_scaling(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for (figure, row) in [("drain", drain(1)), ("HTTP enqueue", HTTP), ("bulk enqueue", BULK)] {
            let figure = format!("growth: {figure}, jobs");
            let line = Line::times(&figure, self.rate(&row.with_history()), "empty", self.rate(&row), 1.0 / 1.2);
            lines.push(line.goal("within 1.2×"));
        }
        let pickup = |row: &Row| self.latency(row, |latencies| latencies.percentile(50));
        let (grown, empty) = (pickup(&PICKUP.with_history()), pickup(&PICKUP));
        lines.push(Line {
            figure: "growth: pick-up p50".to_owned(),
            ours: grown,
            beside: empty.map(|millis| ("empty", millis)),
            goal: "within 1.2×".to_owned(),
            met: grown.zip(empty).map(|(grown, empty)| grown <= 1.2 * empty),
            unit: " ms",
        });
        let slowest = self.results.lookups.iter().map(|lookup| lookup.latencies.max()).reduce(f64::max);
        lines.push(Line::at_most("growth: the slowest list or lookup", slowest, 100.0, " ms"));
        let one = self.rate(&scaling(1));
        for processes in PROCESSES.into_iter().skip(1) {
            let factor = count(processes);
            let figure = format!("scaling: jobs that wait, {processes} processes");
            let line = Line::times(&figure, self.rate(&scaling(processes)), "one", one, 0.9 * factor);
            lines.push(line.goal(format!("≥ {:.1}×, until a core is full", 0.9 * factor)));
        }
        lines
    }
}
