//! CPU time from `/proc` (proc(5)): of a process with all its descendants, and of the whole machine.
//!
//! Ticks are 10 ms, so small runs tell little. Where there is no `/proc` (macOS) no cost is reported.

use std::{
    collections::HashMap,
    fs,
    time::{Duration, Instant},
};

/// `USER_HZ`, the unit of `/proc`: 100 on every architecture that Rust's std supports (`getconf CLK_TCK`).
const TICKS_A_SECOND: u32 = 100;

/// A process to account for.
#[derive(Debug, Clone, Copy)]
pub struct Watched {
    /// What it is called in the report.
    pub name: &'static str,
    /// Its id.
    pub pid: u32,
    /// Whether its children count: Postgres is a process a session, Redis forks to rewrite its file.
    pub family: bool,
}

impl Watched {
    /// A process with its children.
    #[must_use]
    pub const fn family(name: &'static str, pid: u32) -> Self {
        Self { name, pid, family: true }
    }

    /// This process alone, whose children are the contestants.
    #[must_use]
    pub fn us(name: &'static str) -> Self {
        Self { name, pid: std::process::id(), family: false }
    }
}

/// Measures the CPU time of processes between two moments.
#[derive(Debug)]
pub struct Meter {
    watched: Vec<Watched>,
    began: Instant,
    before: Option<Snapshot>,
}

/// What a [`Meter`] found.
#[derive(Debug, Clone)]
pub struct Usage {
    /// CPU time by process.
    pub costs: Vec<(&'static str, Duration)>,
    /// The part of the machine that others used, 0 to 1.
    pub others: f64,
}

impl Meter {
    /// Starts now. Besides `watched` the benchmark itself is looked at, so that it does not count as a stranger.
    #[must_use]
    pub fn start(watched: &[Watched]) -> Self {
        let watched = watched.to_vec();
        let before = Snapshot::take(&watched);
        Self { watched, began: Instant::now(), before }
    }

    /// What was used since the start.
    #[must_use]
    pub fn stop(self) -> Usage {
        let elapsed = self.began.elapsed();
        let (Some(before), Some(after)) = (self.before, Snapshot::take(&self.watched)) else {
            return Usage { costs: Vec::new(), others: 0.0 };
        };
        let costs: Vec<_> = self
            .watched
            .iter()
            .zip(after.watched.iter().zip(&before.watched))
            .map(|(watched, (after, before))| (watched.name, after.saturating_sub(*before)))
            .collect();
        let ours = after.ours.saturating_sub(before.ours).as_secs_f64();
        let busy = after.machine.saturating_sub(before.machine).as_secs_f64();
        let capacity = elapsed.as_secs_f64() * cores();
        Usage { costs, others: ((busy - ours) / capacity.max(1e-9)).clamp(0.0, 1.0) }
    }
}

/// How many cores this program may use.
fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| super::count(cores.get()))
}

/// Waits until others leave the machine alone (less than `share` of it for a second), at most `patience`. Answers whether
/// they do.
pub async fn calm(share: f64, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let meter = Meter::start(&[]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        if meter.stop().others < share {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
    }
}

/// One look at `/proc`.
#[derive(Debug)]
struct Snapshot {
    /// Of each watched process.
    watched: Vec<Duration>,
    /// Of this program and everything below it.
    ours: Duration,
    /// Of the whole machine, whoever used it; time that a hypervisor took away included.
    machine: Duration,
}

impl Snapshot {
    fn take(watched: &[Watched]) -> Option<Self> {
        let machine = machine(&fs::read_to_string("/proc/stat").ok()?)?;
        let all = processes()?;
        let of = |watched: &Watched| {
            if watched.family { family(&all, watched.pid) } else { all.get(&watched.pid).map(|one| one.own).unwrap_or_default() }
        };
        Some(Self { watched: watched.iter().map(of).collect(), ours: family(&all, std::process::id()), machine })
    }
}

/// A line of `/proc/PID/stat`, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    parent: u32,
    /// Used by itself.
    own: Duration,
    /// Used by descendants that ended and were waited for.
    gone: Duration,
}

fn processes() -> Option<HashMap<u32, Line>> {
    let mut all = HashMap::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes end while we read.
        let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(line) = parse(&text) {
            all.insert(pid, line);
        }
    }
    Some(all)
}

/// The time of a process and everything below it. What ended and was waited for is in its parent's `gone`.
fn family(all: &HashMap<u32, Line>, root: u32) -> Duration {
    members(all, root).iter().filter_map(|pid| all.get(pid)).map(|line| line.own + line.gone).sum()
}

/// A process and everything below it that runs; nothing where the system does not tell.
pub(super) fn family_of(root: u32) -> Vec<u32> {
    processes().map(|all| members(&all, root)).unwrap_or_default()
}

fn members(all: &HashMap<u32, Line>, root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (pid, line) in all {
        children.entry(line.parent).or_default().push(*pid);
    }
    let mut found = Vec::new();
    let mut left = vec![root];
    while let Some(pid) = left.pop() {
        found.push(pid);
        left.extend(children.remove(&pid).unwrap_or_default());
    }
    found
}

/// The name of a program may hold spaces and parentheses: the fields begin after the last one that closes.
fn parse(stat: &str) -> Option<Line> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // proc(5) counts from 1 with the name as the second; here the third is at index 0.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Line { parent: u32::try_from(number(4)?).ok()?, own: ticks(number(14)? + number(15)?), gone: ticks(number(16)? + number(17)?) })
}

/// The first line of `/proc/stat`: everything but idle and waiting for I/O. Guests' time is in `user` already.
fn machine(stat: &str) -> Option<Duration> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal guest guest_nice
    let busy: u64 = fields.iter().take(8).sum();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    Some(ticks(busy - idle))
}

fn ticks(number: u64) -> Duration {
    Duration::from_secs(number) / TICKS_A_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_read() {
        let stat = "42 (a) b) S 7 42 42 0 -1 4194560 100 200 0 0 250 50 10 5 20 0 1 0 100 0 0";
        let expected = Line { parent: 7, own: Duration::from_secs(3), gone: Duration::from_millis(150) };
        assert_eq!(parse(stat), Some(expected));
    }

    #[test]
    fn the_machine_is_busy_with_all_but_waiting() {
        assert_eq!(machine("cpu  100 0 50 1000 30 5 5 40 0 0\ncpu0 1 2 3"), Some(Duration::from_secs(2)));
    }

    #[test]
    fn families_are_summed_with_those_who_left() {
        let line = |parent, own, gone| Line { parent, own: Duration::from_secs(own), gone: Duration::from_secs(gone) };
        let all = HashMap::from([(1, line(0, 100, 0)), (2, line(1, 3, 4)), (3, line(2, 5, 0)), (4, line(3, 7, 0)), (5, line(1, 11, 0))]);
        assert_eq!(family(&all, 2), Duration::from_secs(19));
    }

    #[test]
    fn work_is_noticed() {
        let meter = Meter::start(&[Watched::us("us")]);
        let until = Instant::now() + Duration::from_secs(10);
        let mut work = 0_u64;
        loop {
            work = std::hint::black_box(work + 1);
            let used = Snapshot::take(&[Watched::us("us")]).map(|now| now.watched);
            let Some(used) = used else { return }; // no /proc here
            if used[0] > meter.before.as_ref().unwrap().watched[0] + Duration::from_millis(30) {
                break;
            }
            assert!(Instant::now() < until, "no CPU time was counted");
        }
        let usage = meter.stop();
        assert!(usage.costs[0].1 >= Duration::from_millis(30));
    }
}
