//! Who runs what, in which order, and what came of it.
//!
//! In every round each part of the contest is run by everybody who takes part in it, one after the other on the same servers, and who
//! begins changes from round to round. While one runs the others' processes do not exist. Growth comes last, because its history stays.

mod row;

use std::{collections::BTreeMap, time::Duration};

pub use row::{
    BULK, CALLED_BACK, CLAIMED, FAN_OUT, Figure, HTTP, IDLE, MAIL, MAIL_ALONE, OURS, PICKUP, POLLING, PREPARED, PUSH, PUSH_ALONE,
    PUSH_CROWDED, Row, STREAMS, TIDY, drain, of, scaling,
};

use crate::{
    error::Result,
    measure::{Run, processor::calm},
    offstage::{Lookup, Offstage},
    peer::Peer,
    plan::{AGAIN, CONCURRENCY, DISTURBED, FOLLOWERS, PROCESSES, Plan, SCALING_CONCURRENCY, WAIT, payload, waiting_payload},
    sink::Speech,
};

/// What is run in one go, on cleared servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The drain of a backlog, by one and by two processes; a peer's bulk enqueue too.
    Drain,
    /// `POST /v1/jobs/batch`.
    Bulk,
    /// `POST /v1/jobs`, beside an HTTP server before `BullMQ`.
    Http,
    /// Enqueues one by one by the peers' libraries.
    Single,
    /// Jobs at a steady pace.
    Pickup,
    /// Clients that poll.
    Polling,
    /// Clients that listen.
    Streams,
    /// Nothing.
    Idle,
    /// Jobs that wait, by 1, 2 and 4 processes.
    Scaling,
    /// Pushes to a local push service.
    Push,
    /// Mails to a local server.
    Mail,
    /// A notification to many.
    #[value(name = "fan_out")]
    FanOut,
    /// The same with a history, and what is looked up in it.
    Growth,
}

/// All parts, in the order of a round.
pub const PARTS: [Part; 13] = [
    Part::Drain,
    Part::Bulk,
    Part::Http,
    Part::Single,
    Part::Pickup,
    Part::Polling,
    Part::Streams,
    Part::Idle,
    Part::Scaling,
    Part::Push,
    Part::Mail,
    Part::FanOut,
    Part::Growth,
];

/// What is run again with a history: those that are asked for, all where none is.
const GROWING: [Part; 4] = [Part::Drain, Part::Bulk, Part::Http, Part::Pickup];

/// What came of it.
#[derive(Debug, Default)]
pub struct Results {
    /// Every run of every row.
    pub runs: BTreeMap<Row, Vec<Run>>,
    /// How long the history took to load.
    pub loaded: Option<Duration>,
    /// What was looked up in it.
    pub lookups: Vec<Lookup>,
    /// What went wrong, of peers: ours must not.
    pub failed: Vec<String>,
}

/// One who takes a turn.
#[derive(Debug, Clone, Copy)]
enum Contestant<'a> {
    Ours,
    Peer(&'a Peer),
}

/// All who take part.
#[derive(Debug)]
pub struct Field {
    /// Ours.
    pub offstage: Offstage,
    /// Queues.
    pub peers: Vec<Peer>,
    /// HTTP before a queue.
    pub door: Option<Peer>,
    /// Our own clients for that, without the engine.
    pub alone: Peer,
    /// Who pushes or mails.
    pub senders: Vec<Peer>,
}

impl Field {
    fn contestants(&self, part: Part) -> Vec<Contestant<'_>> {
        let ours = std::iter::once(Contestant::Ours);
        let peers = self.peers.iter().map(Contestant::Peer);
        match part {
            Part::Drain | Part::Pickup => ours.chain(peers).collect(),
            Part::Single => peers.collect(),
            Part::Http => ours.chain(self.door.iter().map(Contestant::Peer)).collect(),
            Part::Push | Part::Mail => {
                let senders = self.senders.iter().filter(|sender| sender.sends() == Some(part));
                ours.chain(senders.map(Contestant::Peer)).collect()
            }
            Part::Bulk | Part::Polling | Part::Streams | Part::Idle | Part::Scaling | Part::FanOut => ours.collect(),
            Part::Growth => Vec::new(),
        }
    }

    /// Runs the whole contest.
    pub async fn run(&self, parts: &[Part], plan: &Plan) -> Result<Results> {
        let mut results = Results::default();
        for round in 0..plan.rounds {
            for part in parts {
                let mut order = self.contestants(*part);
                let places = order.len().max(1);
                order.rotate_left(round % places);
                for contestant in order {
                    self.take(&contestant, *part, plan, round, false, &mut results).await?;
                }
            }
        }
        if parts.contains(&Part::Growth) {
            self.grow(parts, plan, &mut results).await?;
        }
        self.offstage.clear().await?;
        Ok(results)
    }

    /// What is compared with an empty ledger is run on an empty one too, if it was not.
    async fn grow(&self, parts: &[Part], plan: &Plan, results: &mut Results) -> Result<()> {
        let short = Plan { seconds: plan.seconds.div_ceil(4), ..plan.clone() };
        let asked: Vec<Part> = GROWING.into_iter().filter(|part| parts.contains(part)).collect();
        let growing = if asked.is_empty() { GROWING.to_vec() } else { asked };
        for part in growing.iter().filter(|part| !parts.contains(part)) {
            for round in 0..plan.rounds {
                self.take(&Contestant::Ours, *part, &short, round, false, results).await?;
            }
        }
        eprintln!("loading {} finished jobs", plan.finished);
        results.loaded = Some(self.offstage.grow(plan.finished).await?);
        eprintln!("loaded in {:.0} s", results.loaded.unwrap_or_default().as_secs_f64());
        results.lookups = self.offstage.lookups().await?;
        for round in 0..plan.rounds {
            for part in &growing {
                self.take(&Contestant::Ours, *part, &short, round, true, results).await?;
            }
        }
        Ok(())
    }

    /// Takes a turn; one of a peer's that fails is noted and no more.
    async fn take(
        &self,
        contestant: &Contestant<'_>,
        part: Part,
        plan: &Plan,
        round: usize,
        grown: bool,
        results: &mut Results,
    ) -> Result<()> {
        match self.calmly(contestant, part, plan, grown).await {
            Ok(runs) => {
                for (row, run) in runs {
                    let row = if grown { row.with_history() } else { row };
                    eprintln!("{} of {}: {}", round + 1, plan.rounds, one_line(&row, &run));
                    results.runs.entry(row).or_default().push(run);
                }
                Ok(())
            }
            Err(error) => match contestant {
                Contestant::Ours => Err(error),
                Contestant::Peer(peer) => {
                    let failure = format!("{}, {part:?}: {error}", peer.name());
                    eprintln!("failed: {failure}");
                    if !results.failed.contains(&failure) {
                        results.failed.push(failure);
                    }
                    Ok(())
                }
            },
        }
    }

    /// Takes a turn while others leave the machine alone, as far as patience goes; one that was disturbed is taken again, and of
    /// each row the least disturbed run counts.
    async fn calmly(&self, contestant: &Contestant<'_>, part: Part, plan: &Plan, grown: bool) -> Result<Vec<(Row, Run)>> {
        let mut best: BTreeMap<Row, Run> = BTreeMap::new();
        for again in 0..=AGAIN {
            if !plan.patience.is_zero() && !calm(DISTURBED, plan.patience).await {
                eprintln!("other programs are using this machine; going on");
            }
            for (row, run) in self.turn(contestant, part, plan, grown).await? {
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

    async fn turn(&self, contestant: &Contestant<'_>, part: Part, plan: &Plan, grown: bool) -> Result<Vec<(Row, Run)>> {
        self.offstage.clear().await?;
        match contestant {
            Contestant::Ours => self.ours(part, plan, grown).await,
            Contestant::Peer(peer) => self.theirs(peer, part, plan).await,
        }
    }

    async fn ours(&self, part: Part, plan: &Plan, grown: bool) -> Result<Vec<(Row, Run)>> {
        let offstage = &self.offstage;
        Ok(match part {
            Part::Drain => {
                let mut rows = Vec::new();
                for processes in if grown { 1..=1 } else { 1..=2 } {
                    if processes > 1 {
                        offstage.clear().await?;
                    }
                    rows.push((PREPARED, offstage.prepare(plan.jobs, &payload()).await?));
                    rows.push((drain(processes), offstage.drain(plan.jobs, processes, CONCURRENCY).await?));
                    if processes == 1 && !grown {
                        rows.push((Row { how: TIDY, ..drain(1) }, offstage.tidy(plan.jobs).await?));
                    }
                }
                rows
            }
            Part::Bulk => vec![(BULK, offstage.enqueue_batches(plan.jobs).await?)],
            Part::Http => vec![(HTTP, offstage.enqueue_http(plan.jobs).await?)],
            Part::Pickup => {
                let pickup = offstage.pickup(plan).await?;
                vec![(PICKUP, pickup.handler), (CLAIMED, pickup.claim), (CALLED_BACK, pickup.callback)]
            }
            Part::Polling => vec![(POLLING, offstage.polling(plan).await?)],
            Part::Streams => vec![(STREAMS, offstage.streams(plan).await?)],
            Part::Idle => vec![(IDLE, offstage.idle(plan).await?)],
            Part::Scaling => {
                let mut rows = Vec::new();
                // As long as the first takes, if all scale: some four seconds.
                let each = (plan.jobs / 10).clamp(1, SCALING_CONCURRENCY * 1_000 / WAIT * 4);
                for processes in PROCESSES {
                    offstage.clear().await?;
                    offstage.prepare(each * processes, &waiting_payload()).await?;
                    rows.push((scaling(processes), offstage.drain(each * processes, processes, SCALING_CONCURRENCY).await?));
                }
                rows
            }
            Part::Push => {
                let alone = (PUSH_ALONE, self.alone.send(Speech::Http, plan.messages()).await?);
                let one = (PUSH, offstage.push(plan.messages(), false).await?);
                offstage.clear().await?;
                vec![alone, one, (PUSH_CROWDED, offstage.push(plan.messages(), true).await?)]
            }
            Part::Mail => {
                let alone = (MAIL_ALONE, self.alone.send(Speech::Smtp, plan.messages()).await?);
                vec![alone, (MAIL, offstage.mail(plan.messages()).await?)]
            }
            Part::FanOut => vec![(FAN_OUT, offstage.fan_out(plan.crowd(FOLLOWERS)).await?)],
            Part::Single | Part::Growth => Vec::new(),
        })
    }

    async fn theirs(&self, peer: &Peer, part: Part, plan: &Plan) -> Result<Vec<(Row, Run)>> {
        let name = peer.name();
        Ok(match part {
            Part::Drain => {
                let jobs = peer.part_of(plan.jobs);
                let mut rows = Vec::new();
                for processes in 1..=2 {
                    if processes > 1 {
                        self.offstage.clear().await?;
                    }
                    let added = peer.enqueue(jobs, peer.definition.bulk).await?;
                    if peer.definition.bulk {
                        rows.push((of(name, Figure::Bulk), added));
                    }
                    rows.push((of(name, Figure::Drain(processes)), peer.drain(jobs, processes).await?));
                }
                rows
            }
            // Not in the table of goals: a fifth of the jobs says enough.
            Part::Single => vec![(of(name, Figure::Single), peer.enqueue(peer.part_of(plan.jobs / 5), false).await?)],
            Part::Pickup => vec![(of(name, Figure::Pickup), peer.pickup(plan).await?)],
            Part::Http => {
                let body = format!(r#"{{"kind":"probe.run","payload":{}}}"#, payload());
                vec![(of(name, Figure::Http), peer.serve(plan.jobs, &body).await?)]
            }
            Part::Push => vec![(of(name, Figure::Push), peer.send(Speech::Http, plan.messages()).await?)],
            Part::Mail => vec![(of(name, Figure::Mail), peer.send(Speech::Smtp, plan.messages()).await?)],
            Part::Bulk | Part::Polling | Part::Streams | Part::Idle | Part::Scaling | Part::FanOut | Part::Growth => Vec::new(),
        })
    }
}

fn one_line(row: &Row, run: &Run) -> String {
    let costs: Vec<String> =
        run.processes().iter().map(|name| format!("{name} {:.1}", run.micros_per_job(name).unwrap_or_default())).collect();
    let latencies = run.latencies.as_ref().map(|latencies| {
        format!(" p50 {:.2} p99 {:.2} max {:.2} ms;", latencies.percentile(50), latencies.percentile(99), latencies.max())
    });
    let extras: Vec<String> = run.extras.iter().map(|(name, value)| format!(" {name} {value:.1};")).collect();
    format!(
        "{}{}, {:?}, {}: {:.0}/s;{}{} CPU µs a job: {}; others {:.0} %",
        row.contestant,
        if row.grown { " with a history" } else { "" },
        row.figure,
        row.how,
        run.rate(),
        latencies.unwrap_or_default(),
        extras.concat(),
        costs.join(", "),
        run.others * 100.0
    )
}
