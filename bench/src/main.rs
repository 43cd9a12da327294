//! `make bench`: ours side by side with what a user would pick instead, on one Redis and one Postgres, in one run.
//!
//! What must stay true here: everybody gets the same jobs, the same servers, the same machine and the settings that suit him
//! best; what one does and another leaves out is said; a figure that other programs on the machine spoiled is marked. Ratios
//! are the result, since machines differ; CPU microseconds a job say where the time goes.

mod ai;
mod contest;
mod error;
mod exports;
mod flood;
mod http;
mod machine;
mod measure;
mod offstage;
mod peer;
mod plan;
mod report;
mod sink;
mod texts;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;

use contest::{Field, PARTS, Part};
use error::{Doing, Error, Result};
use offstage::Offstage;
use peer::{ALONE, DOOR, PEERS, Peer, SENDERS};
use plan::Plan;
use report::Report;

/// Runs ours and the peers in turns and prints ratios.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Jobs of the drain and of each enqueue.
    #[arg(long, env = "BENCH_JOBS", default_value_t = 50_000)]
    jobs: usize,
    /// Seconds of the pick-up; what else lasts as long as one likes takes half of that.
    #[arg(long, env = "BENCH_SECONDS", default_value_t = 20)]
    seconds: usize,
    /// Runs of each figure; medians count.
    #[arg(long, env = "BENCH_ROUNDS", default_value_t = 3)]
    rounds: usize,
    /// Finished jobs that growth loads.
    #[arg(long, env = "BENCH_FINISHED", default_value_t = 10_000_000)]
    finished: usize,
    /// Seconds to wait before each run for other programs to leave the machine alone; 0 takes it as it is.
    #[arg(long, env = "BENCH_PATIENCE", default_value_t = 30)]
    patience: u64,
    /// Parts to run.
    #[arg(long, env = "BENCH_ONLY", value_delimiter = ',')]
    only: Vec<Part>,
    /// Instead of all that: exports of so many rows beside `psql \copy`.
    #[arg(long, env = "BENCH_EXPORT_ROWS")]
    exports: Option<u64>,
    /// Instead of all that: what a task for a model takes around the model's time, for so many seconds.
    #[arg(long, env = "BENCH_AI_SECONDS")]
    ai: Option<u64>,
    /// Peers to run, by name; all when absent.
    #[arg(long, env = "BENCH_PEERS", value_delimiter = ',')]
    with: Vec<String>,
    /// The date that the report bears.
    #[arg(long)]
    date: String,
    /// Where the peers lie.
    #[arg(long, default_value = "bench/peers")]
    peers: PathBuf,
    /// Where the peers that cargo built lie.
    #[arg(long, default_value = "target/peers/release")]
    peer_binaries: PathBuf,
    /// Where the servers' data lie meanwhile; beside the programs when absent. What is there goes.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the report goes.
    #[arg(long)]
    results: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(run(Arguments::parse())).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    if let Some(rows) = arguments.exports {
        let patience = Duration::from_secs(arguments.patience);
        let plan = exports::Plan { rows: rows.max(1), rounds: arguments.rounds.max(1), patience };
        let report = exports::run(&fresh_directory(arguments.data)?, arguments.date, plan).await?;
        return publish(&report, &arguments.results);
    }
    if let Some(seconds) = arguments.ai {
        let report = ai::run(&fresh_directory(arguments.data)?, arguments.date, seconds.max(1)).await?;
        return publish(&report, &arguments.results);
    }
    let plan = Plan {
        jobs: arguments.jobs.max(1),
        seconds: arguments.seconds.max(1),
        rounds: arguments.rounds.max(1),
        finished: arguments.finished.max(1),
        patience: Duration::from_secs(arguments.patience),
    };
    let parts = if arguments.only.is_empty() { PARTS.to_vec() } else { arguments.only };
    let directory = fresh_directory(arguments.data)?;
    let offstage = Offstage::start(&directory).await?;
    let servers = offstage.servers();
    let described = offstage.versions().await?;
    let alone = Peer::find(&ALONE, &arguments.peers, &arguments.peer_binaries, &servers).await.map_err(Error::Unexpected)?;
    let mut found = Vec::new();
    let mut skipped = Vec::new();
    for definition in PEERS.iter().chain([&DOOR]).chain(&SENDERS) {
        if !arguments.with.is_empty() && !arguments.with.iter().any(|name| name == definition.name || name == definition.folder) {
            skipped.push(format!("{}: not asked for (BENCH_PEERS)", definition.name));
            continue;
        }
        match Peer::find(definition, &arguments.peers, &arguments.peer_binaries, &servers).await {
            Ok(peer) => found.push(peer),
            Err(reason) => {
                eprintln!("skipped: {reason}");
                skipped.push(reason);
            }
        }
    }
    let versions = found.iter().map(|peer| (peer.version.clone(), peer.definition.note)).collect();
    let (senders, found): (Vec<Peer>, Vec<Peer>) =
        found.into_iter().partition(|peer| SENDERS.iter().any(|sender| sender.name == peer.name()));
    let (doors, peers): (Vec<Peer>, Vec<Peer>) = found.into_iter().partition(|peer| peer.name() == DOOR.name);
    let field = Field { offstage, peers, door: doors.into_iter().next(), alone, senders };
    let results = field.run(&parts, &plan).await;
    field.offstage.stop().await?;

    let report = Report { date: arguments.date, plan, servers: described, versions, skipped, results: results? };
    publish(&report, &arguments.results)
}

fn publish(report: &impl std::fmt::Display, path: &Path) -> Result<()> {
    let report = report.to_string();
    println!("{report}");
    std::fs::write(path, &report).doing(format!("write the report {}", path.display()))?;
    eprintln!("written to {}", path.display());
    Ok(())
}

/// An empty directory for the servers' data, beside the programs where none is named: a disk that is what it is. An earlier run's goes.
fn fresh_directory(named: Option<PathBuf>) -> Result<PathBuf> {
    let directory = if let Some(named) = named {
        named
    } else {
        let us = std::env::current_exe().doing("find the running program")?;
        us.parent().unwrap_or(Path::new(".")).join("bench-data")
    };
    match std::fs::remove_dir_all(&directory) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Machine { action: format!("remove the data of an earlier run, {}", directory.display()), source })
        }
        _ => Ok(directory),
    }
}
