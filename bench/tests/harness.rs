//! The harness works with small numbers: every part of ours runs to its end and has its row in the report. What the numbers are is not
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
fn every_part_of_ours_has_its_row() {
    // `rusty-sidekiq` is asked for and not built; the others are not asked for.
    let (output, report) = bench("drain,bulk,http,pickup,polling,streams,idle,scaling,growth", "rusty-sidekiq");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let goals: Vec<&str> =
        report.lines().skip_while(|line| *line != "## Goals").take_while(|line| !line.starts_with("## Offstage")).collect();
    let rows: Vec<&&str> = goals.iter().filter(|line| line.starts_with("| ") && !line.starts_with("| figure")).collect();
    assert!(rows.len() >= 26, "{report}");
    // What is compared with a peer has nothing to be compared with here, and says so; all else was measured.
    for row in rows {
        let beside_a_peer =
            row.contains("× ") && (row.contains("≥ 2×") || row.contains("≥ 1.3×") || row.contains("≥ 3×") || row.contains("≤ 0.5×"));
        assert_eq!(row.contains("not measured"), beside_a_peer, "{row}");
    }
    assert_eq!(lines(&report, "- Skipped: rusty-sidekiq: ").len(), 1, "{report}");
    assert_eq!(lines(&report, "- Skipped: ").len(), 8, "{report}");
    assert!(lines(&report, "- Failed").is_empty(), "{report}");
    assert!(lines(&report, "| list: state=failed ").iter().all(|line| line.contains("| 3 ")), "one of a hundred failed: {report}");
}
