//! Who runs what, in which order, and what came of it.
//!
//! In every round each part of the contest is run by everybody, one after the other on the same servers, and who begins
//! changes from round to round. While one runs the others' processes do not exist.

use std::collections::BTreeMap;

use crate::{
    error::Result,
    measure::{Run, processor::calm},
    offstage::Offstage,
    peer::Peer,
    plan::{AGAIN, DISTURBED, Plan},
};

/// A line of the report: what was measured, of whom, how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// What.
    pub figure: Figure,
    /// Who.
    pub contestant: &'static str,
    /// In which way.
    pub how: &'static str,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// Jobs that wait are worked off.
    Drain,
    /// Jobs are added a thousand at a time.
    Bulk,
    /// Jobs are added one by one, 64 at a time.
    Single,
    /// A job starts on an idle system.
    Pickup,
}

/// What is run in one go, on cleared servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// A bulk enqueue and the drain of those jobs.
    Backlog,
    /// Enqueues one by one.
    Single,
    /// Jobs at a steady pace.
    Pickup,
}

/// All parts, in the order of a round.
pub const PARTS: [Part; 3] = [Part::Backlog, Part::Single, Part::Pickup];

/// The name of ours.
pub const OURS: &str = "Offstage";

/// The rows of ours that others are compared with.
pub const DRAIN: Row = Row { figure: Figure::Drain, contestant: OURS, how: "worker, durable rows" };
/// Bulk inserts.
pub const BULK: Row = Row { figure: Figure::Bulk, contestant: OURS, how: "the ledger's insert of 1,000, no HTTP" };
/// HTTP.
pub const HTTP: Row = Row { figure: Figure::Single, contestant: OURS, how: "`POST /v1/jobs`, 64 connections" };
/// Pick-up as the handler tells it.
pub const PICKUP: Row = Row { figure: Figure::Pickup, contestant: OURS, how: "POST sent → handler starts" };
/// What a vacuum costs after a drain.
pub const TIDY: &str = "vacuum afterwards";

/// The rows of a peer that ours are compared with.
#[must_use]
pub const fn rows_of(peer: &'static str) -> [Row; 4] {
    [
        Row { figure: Figure::Drain, contestant: peer, how: "worker, records in Redis" },
        Row { figure: Figure::Bulk, contestant: peer, how: "bulk add of 1,000, in process" },
        Row { figure: Figure::Single, contestant: peer, how: "single add, in process, 64 in flight" },
        Row { figure: Figure::Pickup, contestant: peer, how: "add called → handler starts" },
    ]
}

/// Every run of every row.
pub type Results = BTreeMap<Row, Vec<Run>>;

enum Contestant<'a> {
    Ours,
    Peer(&'a Peer),
}

/// Runs the whole contest.
pub async fn run(offstage: &Offstage, peers: &[Peer], parts: &[Part], plan: &Plan) -> Result<Results> {
    let mut results = Results::new();
    for round in 0..plan.rounds {
        for part in parts {
            let mut order: Vec<Contestant<'_>> = std::iter::once(Contestant::Ours).chain(peers.iter().map(Contestant::Peer)).collect();
            let places = order.len();
            order.rotate_left(round % places);
            for contestant in order {
                for (row, run) in calmly(offstage, &contestant, *part, plan).await? {
                    eprintln!("{} of {}: {}", round + 1, plan.rounds, one_line(&row, &run));
                    results.entry(row).or_default().push(run);
                }
            }
        }
    }
    offstage.clear().await?;
    Ok(results)
}

/// Takes a turn while others leave the machine alone, as far as patience goes; one that was disturbed is taken again, and of
/// each row the least disturbed run counts.
async fn calmly(offstage: &Offstage, contestant: &Contestant<'_>, part: Part, plan: &Plan) -> Result<Vec<(Row, Run)>> {
    let mut best: BTreeMap<Row, Run> = BTreeMap::new();
    for again in 0..=AGAIN {
        offstage.clear().await?;
        if !calm(DISTURBED, plan.patience).await {
            eprintln!("other programs are using this machine; going on");
        }
        for (row, run) in turn(offstage, contestant, part, plan).await? {
            match best.get(&row) {
                Some(other) if other.others <= run.others => {}
                _ => _ = best.insert(row, run),
            }
        }
        let disturbed = best.values().any(|run| run.others > DISTURBED);
        if !disturbed || plan.patience.is_zero() {
            break;
        }
        if again < AGAIN {
            eprintln!("disturbed by other programs; once more");
        }
    }
    Ok(best.into_iter().collect())
}

async fn turn(offstage: &Offstage, contestant: &Contestant<'_>, part: Part, plan: &Plan) -> Result<Vec<(Row, Run)>> {
    let redis = offstage.redis_pid();
    Ok(match contestant {
        Contestant::Ours => match part {
            Part::Backlog => {
                let bulk = offstage.enqueue_bulk(plan.jobs).await?;
                let drain = offstage.drain(plan.jobs).await?;
                let tidy = offstage.tidy(plan.jobs).await?;
                vec![(BULK, bulk), (DRAIN, drain), (Row { how: TIDY, ..DRAIN }, tidy)]
            }
            Part::Single => vec![(HTTP, offstage.enqueue_http(plan.jobs).await?)],
            Part::Pickup => {
                let pickup = offstage.pickup(plan).await?;
                let claim = Row { how: "POST sent → claimed (ledger)", ..PICKUP };
                let callback = Row { how: "POST sent → handler's callback arrives", ..PICKUP };
                vec![(PICKUP, pickup.handler), (claim, pickup.claim), (callback, pickup.callback)]
            }
        },
        Contestant::Peer(peer) => {
            let [drain, bulk, single, pickup] = rows_of(peer.name);
            match part {
                Part::Backlog => {
                    let added = peer.enqueue(plan.jobs, true, redis).await?;
                    vec![(bulk, added), (drain, peer.drain(plan.jobs, redis).await?)]
                }
                Part::Single => vec![(single, peer.enqueue(plan.jobs, false, redis).await?)],
                Part::Pickup => vec![(pickup, peer.pickup(plan, redis).await?)],
            }
        }
    })
}

fn one_line(row: &Row, run: &Run) -> String {
    let costs: Vec<String> =
        run.costs.iter().map(|(name, _)| format!("{name} {:.1}", run.micros_per_job(name).unwrap_or_default())).collect();
    let speed = match &run.latencies {
        Some(latencies) => {
            format!("p50 {:.2} p99 {:.2} max {:.2} ms", latencies.percentile(50), latencies.percentile(99), latencies.max())
        }
        None => format!("{:.0} jobs/s", run.rate()),
    };
    format!("{}, {}: {speed}; CPU µs a job: {}; others {:.0} %", row.contestant, row.how, costs.join(", "), run.others * 100.0)
}
