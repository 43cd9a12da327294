//! What the figures were measured on.

use std::fs;

/// One line: processor, cores, memory, kernel, as far as the system tells.
pub fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |cores| cores.to_string());
    let model = value_of("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let memory = value_of("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| format!(", {} GiB", (kib + 512 * 1024) / (1024 * 1024)))
        .unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| format!(" {}", text.trim())).unwrap_or_default();
    format!("{model}, {cores} cores{memory}, {}{kernel}", std::env::consts::OS)
}

/// The value of the first `name : value` line of a file.
fn value_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
