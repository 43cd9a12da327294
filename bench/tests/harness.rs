//! The harness works with small numbers: parts of ours run to their ends and have their rows in the report. What the numbers are is not
//! looked at. Peers are other people's programs, which a test does not install: that they are named as skipped is looked at.

use std::{
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

/// Runs the harness with small numbers and answers what it printed and the report.
fn bench(parts: &str, peers: &str) -> (Output, String) {
    let directory = TempDir::new().expect("a directory");
    let report = directory.path().join("results.md");
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--date", "today", "--jobs", "60", "--seconds", "1", "--rounds", "1", "--patience", "0", "--finished", "300"])
        .args(["--only", parts, "--with", peers, "--peers"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers"))
        .arg("--peer-binaries")
        .arg(directory.path())
        .arg("--data")
        .arg(directory.path().join("data"))
        .arg("--results")
        .arg(&report)
        .output()
        .expect("the harness runs");
    let text = std::fs::read_to_string(report).unwrap_or_default();
    (output, text)
}

/// The report's lines that begin with this.
fn lines<'a>(report: &'a str, start: &str) -> Vec<&'a str> {
    report.lines().filter(|line| line.starts_with(start)).collect()
}

#[test]
fn what_is_asked_for_is_measured() {
    // `rusty-sidekiq` is asked for and not built; the others are not asked for. Of growth this is the drain.
    let (output, report) = bench("drain,streams,idle,growth", "rusty-sidekiq");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let measured = ["two processes", "SSE", "idle", "under load", "growth: drain", "growth: the slowest"];
    let goals = report.lines().skip_while(|line| *line != "## Goals").skip(4).take_while(|line| line.starts_with("| "));
    for row in goals {
        let is_measured = measured.iter().any(|what| row.starts_with(&format!("| {what}")));
        assert_ne!(row.contains("not measured"), is_measured, "{row}");
    }
    for what in measured {
        assert!(!lines(&report, &format!("| {what}")).is_empty(), "{what} is not in {report}");
    }
    assert_eq!(lines(&report, "- Skipped: rusty-sidekiq: ").len(), 1, "{report}");
    assert_eq!(lines(&report, "- Skipped: ").len(), 10, "{report}");
    assert!(lines(&report, "- Failed").is_empty(), "{report}");
    // One of a hundred failed: of those that were run, and of their three hundred copies.
    let failed = lines(&report, "| list: state=failed ");
    assert!(failed.len() == 1 && failed[0].contains("| 4 "), "{report}");
}

#[test]
fn enqueues_are_measured() {
    let (output, report) = bench("bulk,http,polling", "none");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Each table has widths of its own.
    let report: String = report.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect();
    // A goal has its line even where nothing was measured; an enqueue has one among the rates and one among the latencies.
    for (row, times) in [
        ("| bulk enqueue | Offstage | `POST /v1/jobs/batch`", 2),
        ("| HTTP enqueue | Offstage | `POST /v1/jobs`", 2),
        ("| under load, API RSS ", 1),
        ("| status polling p95 ", 1),
        ("| status polling, dropped ", 1),
    ] {
        let found = lines(&report, row);
        assert_eq!(found.len(), times, "{row} in {report}");
        assert!(found.iter().all(|line| !line.contains("not measured")), "{found:?}");
    }
}

#[test]
fn pushes_and_mails_are_measured() {
    let (output, report) = bench("push,mail,fan_out", "web-push");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: String = report.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect();
    for row in [
        "| push | Offstage | `push.send`, a browser a job",
        "| push | Offstage | `push.send`, 20 browsers a job",
        "| mail | Offstage | `email.send`",
    ] {
        assert_eq!(lines(&report, row).len(), 1, "{row} in {report}");
    }
    assert!(lines(&report, "- Failed").is_empty(), "{report}");
}
