//! Resident memory of a process and everything below it, from `/proc/PID/status` (proc(5)), in MiB. `None` where there is no such file.

use std::fs;

use super::{count, processor::family_of};

/// What it holds now.
#[must_use]
pub fn resident(pid: u32) -> Option<f64> {
    family(pid, "VmRSS:")
}

/// The most that it held since its start.
#[must_use]
pub fn peak(pid: u32) -> Option<f64> {
    family(pid, "VmHWM:")
}

fn family(pid: u32, name: &str) -> Option<f64> {
    let kib: usize = family_of(pid).into_iter().filter_map(|pid| of(pid, name)).sum();
    (kib > 0).then(|| count(kib) / 1024.0)
}

fn of(pid: u32, name: &str) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().trim_end_matches(" kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_holds_memory() {
        let (Some(now), Some(peak)) = (resident(std::process::id()), peak(std::process::id())) else { return }; // no /proc here
        assert!(now > 0.0 && peak >= now * 0.5, "{now} of {peak}");
    }
}
