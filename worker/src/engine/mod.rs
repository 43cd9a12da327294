//! The engine: takes jobs from the queues, runs their handlers, settles what became of them, and keeps the ledger and the
//! streams in step. Every replica is the same; none leads.
//!
//! ```text
//!  streams → fetch (claim) → apalis worker → run (handler) → settle → ledger
//!              ↑ credits ─────────────────────────────────────┘          announce → streams, listeners
//!  ledger → dispatch (due jobs) → streams, or of short jobs: (claim) → apalis worker
//!  ledger ↔ recover (dead workers, lost pushes, lost claims);   heartbeat ↔ lease → all of the above
//! ```
//!
//! What must stay true: nothing runs without a live lease; a job is [held](held) from its claim to its settle; every channel
//! and every batch is bounded; a fault of Redis or Postgres makes a task wait and try again, never end.

pub mod health;
pub mod trial;

mod announce;
mod breakers;
mod canary;
mod credits;
mod dispatch;
mod ended;
mod fetch;
mod figures;
mod heartbeat;
mod held;
mod holds;
mod intake;
mod late;
mod lease;
mod limits;
mod meter;
mod recover;
mod run;
mod settle;
mod switches;
mod watchdog;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use apalis_core::worker::builder::WorkerBuilder;
use secrecy::SecretString;
use shared::{
    kinds::Registry,
    ledger::{self, Kept, LedgerError},
    queue::{Queue, Redis, backend::ChannelBackend, signal},
    shutdown::{Exit, Shutdown},
};
use sqlx::PgPool;
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::layer::util::Identity;
use uuid::Uuid;

use crate::handlers::{Handlers, Services};
use announce::{Announcement, Announcer};
use credits::Credits;
use dispatch::Dispatch;
use health::Health;
use heartbeat::{Heartbeat, Pulse};
use held::Held;
use holds::Known;
use intake::Intake;
use lease::Lease;
use run::{Finished, Runner, Work};
use switches::Switches;
use watchdog::Polls;

/// Outcomes that wait for the settler; beyond that, runs wait with their credit.
const UNSETTLED: usize = 4_096;

/// What an engine is made of.
#[derive(Debug)]
pub struct Parts {
    /// The process' name for people.
    pub name: String,
    /// The ledger, for the heartbeat's own connection.
    pub database: SecretString,
    /// The pool whose commits need not wait for the disk.
    pub claims: PgPool,
    /// Redis.
    pub redis: Redis,
    /// What handlers use; its pool is the engine's too.
    pub services: Arc<Services>,
    /// The handlers.
    pub handlers: Handlers,
    /// The queues to serve, and how many jobs of each at a time.
    pub queues: BTreeMap<Queue, usize>,
    /// Jobs that a queue's streams may hold.
    pub window: u64,
    /// How long running jobs get to finish at a shutdown.
    pub grace: Duration,
}

/// Connections kept for claims: as many batches as arrive at the same time, mostly.
const CLAIMING: usize = 4;

/// What the engine's tasks share.
#[derive(Debug)]
struct Engine {
    worker: Uuid,
    /// Sends what claims jobs; its commits need not wait for the disk.
    claims: Kept,
    redis: Redis,
    services: Arc<Services>,
    handlers: Handlers,
    /// The kinds, for jobs that follow others.
    kinds: Registry,
    held: Arc<Held>,
    lease: Arc<Lease>,
    announcer: Announcer,
    dispatch: Dispatch,
    health: Arc<Health>,
    /// What canaries' marks count from.
    canaries: canary::Epoch,
    /// Told when a canary was sent: a reader without room for jobs reads that one.
    canary_waits: BTreeMap<Queue, Notify>,
    /// Told when a queue's connection was found dead: that of its lane of those who go first may be so too.
    first_doubted: BTreeMap<Queue, Notify>,
    /// Told when Redis seems to have been emptied.
    emptied: Notify,
    /// Told when a job was settled whose end may be followed.
    ended: Notify,
    /// Told when a limiting key may have room.
    limits: Notify,
    switches: Switches,
    holds: Known,
    window: u64,
    /// The turns of jobs under which workers were lost.
    suspects: Arc<Semaphore>,
    polls: Arc<Polls>,
    /// Set when the process is asked to stop: nothing new starts.
    draining: CancellationToken,
    /// Set when the grace time is over: what runs is handed back.
    overdue: CancellationToken,
}

/// The longest that the engine waits for an answer of the ledger: beyond what the server lets a statement run.
const LEDGER_DEADLINE: Duration = Duration::from_secs(35);

impl Engine {
    /// Waits for an exchange with the ledger, but not past the lease's end: the heartbeat did not get through either, so the
    /// connection may well be lost, and nothing would ever say so.
    async fn bounded<T, E: From<LedgerError>>(&self, exchange: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let deadline = async {
            match self.lease.epoch() {
                Some(held) => _ = tokio::time::timeout(LEDGER_DEADLINE, held.cancelled()).await,
                // Without a lease there is little hope; what there is should be tried on a new connection soon.
                None => tokio::time::sleep(ledger::recover::FENCE_AFTER).await,
            }
        };
        tokio::select! {
            biased;
            answer = exchange => answer,
            () = deadline => Err(ledger::timed_out().into()),
        }
    }
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handlers").finish_non_exhaustive()
    }
}

/// Runs until shut down; answers how it ended.
///
/// # Errors
/// Only what prevents a start: no thread, no usable address. Faults of the outside are waited out.
pub async fn run(parts: Parts, health: Arc<Health>, shutdown: Shutdown) -> Result<Exit, StartError> {
    let worker = parts.services.clock.new_id();
    let queues: Vec<Queue> = parts.queues.keys().copied().collect();
    let draining = shutdown.asked().child_token();
    let overdue = CancellationToken::new();
    let background = CancellationToken::new();
    let held = Arc::new(Held::default());
    let lease = Arc::new(Lease::default());
    health.watch(&queues, Arc::clone(&lease));

    let polls = Arc::new(Polls::default());
    let mut tasks = JoinSet::new();
    let (announcer, announcements) = Announcer::new();
    let holds = Known::new(&parts.redis);
    let engine = Arc::new(Engine {
        worker,
        claims: Kept::of(parts.claims, CLAIMING),
        redis: parts.redis,
        kinds: Registry::new(parts.services.probe.enabled),
        services: parts.services,
        handlers: parts.handlers,
        held: Arc::clone(&held),
        lease: Arc::clone(&lease),
        announcer,
        dispatch: Dispatch::default(),
        health: Arc::clone(&health),
        canaries: canary::Epoch::now(),
        canary_waits: queues.iter().map(|queue| (*queue, Notify::new())).collect(),
        first_doubted: queues.iter().map(|queue| (*queue, Notify::new())).collect(),
        emptied: Notify::new(),
        ended: Notify::new(),
        limits: Notify::new(),
        switches: Switches::default(),
        holds,
        window: parts.window,
        suspects: Arc::new(Semaphore::new(trial::AT_ONCE)),
        polls: Arc::clone(&polls),
        draining: draining.clone(),
        overdue: overdue.clone(),
    });

    let pulse = Arc::new(Pulse::default());
    tasks.spawn(Arc::clone(&pulse).run(background.clone()));
    let stop_heartbeat = CancellationToken::new();
    let stuck = Arc::new(AtomicBool::new(false));
    let heartbeat = Heartbeat {
        worker,
        name: parts.name.clone(),
        queues: queues.clone(),
        database: parts.database,
        lease,
        pulse,
        held,
        polls,
        clock: engine.services.clock.clone(),
        shutdown: shutdown.clone(),
        stuck: Arc::clone(&stuck),
        ending: background.clone(),
        stop: stop_heartbeat.clone(),
    }
    .start()
    .map_err(StartError::Thread)?;

    figures::begin(&queues, engine.services.probe.enabled);
    // A job that is claimed before the switches are known for the first time would run although it must not.
    read_switches(&engine, &shutdown).await;
    run_beside(&engine, &queues, announcements, &background, &mut tasks);

    let (finished, outcomes) = mpsc::channel(UNSETTLED);
    let settler = tokio::spawn(settle::run(Arc::clone(&engine), outcomes, shutdown.forced().clone()));

    let mut workers = JoinSet::new();
    let mut intakes = BTreeMap::new();
    for (queue, slots) in &parts.queues {
        intakes.insert(*queue, serve(&engine, *queue, *slots, finished.clone(), &mut workers));
    }
    drop(finished);
    tasks.spawn(dispatch::run(Arc::clone(&engine), parts.queues, intakes, background.clone(), engine.redis.commands()));
    tracing::info!(worker = %worker, name = parts.name, "the engine runs");

    let mut exit = serve_until(&draining, &mut workers).await;

    health.stop();
    let asked = Instant::now();
    tracing::info!(held = engine.held.len(), "draining");
    if !drain(&engine, &mut workers, parts.grace, &shutdown).await && exit == Exit::Finished {
        exit = if shutdown.is_forced() { Exit::Forced } else { Exit::HandedBack };
    }
    drop(workers);

    // The last outcomes are worth waiting for: without them finished work would run again.
    let settled = tokio::time::timeout(Duration::from_secs(10), settler).await;
    if settled.is_err() {
        tracing::error!("the last outcomes could not be settled; others will run those jobs again");
        exit = Exit::Fault;
    }
    background.cancel();
    engine.announcer.close();
    let _ = tokio::time::timeout(Duration::from_secs(3), async { while tasks.join_next().await.is_some() {} }).await;
    stop_heartbeat.cancel();
    let _ = tokio::task::spawn_blocking(move || heartbeat.join()).await;
    if engine.held.len() == 0 {
        leave(&engine).await;
    }
    if stuck.load(Ordering::Relaxed) {
        exit = Exit::Stuck;
    }
    tracing::info!(took_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX), ?exit, "stopped");
    Ok(exit)
}

/// Starts what runs beside the queues' workers, until `stop`.
fn run_beside(
    engine: &Arc<Engine>,
    queues: &[Queue],
    announcements: mpsc::Receiver<Announcement>,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    tasks.spawn(announce::run(Arc::clone(engine), announcements, engine.redis.commands()));
    let signals = signal::listen(engine.redis.clone(), &[signal::Channel::Wake, signal::Channel::Cancels], stop.clone());
    tasks.spawn(recover::run(Arc::clone(engine), signals, stop.clone(), engine.redis.commands()));
    tasks.spawn(figures::run(Arc::clone(engine), queues.to_vec(), stop.clone(), engine.redis.commands()));
    tasks.spawn(switches::run(Arc::clone(engine), queues.to_vec(), stop.clone()));
    tasks.spawn(canary::run(Arc::clone(engine), queues.to_vec(), engine.draining.clone(), engine.redis.commands()));
    tasks.spawn(limits::run(Arc::clone(engine), queues.to_vec(), stop.clone(), engine.redis.commands()));
    tasks.spawn(ended::run(Arc::clone(engine), stop.clone()));
    tasks.spawn(late::run(Arc::clone(engine), stop.clone()));
    tasks.spawn(breakers::run(Arc::clone(engine), queues.to_vec(), stop.clone()));
}

/// Leaves the ledger in good order: this process holds nothing any more.
async fn leave(engine: &Engine) {
    let left = engine.bounded(ledger::recover::deregister(&engine.services.pool, engine.worker));
    if let Err(error) = left.await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "could not leave the ledger in good order; it will forget this worker by itself"
        );
    }
}

/// Reads the switches and what else holds jobs up, for as long as that takes: without the ledger there is nothing to run either.
async fn read_switches(engine: &Engine, shutdown: &Shutdown) {
    while let Err(error) = switches::read(engine).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "the switches can't be read yet");
        tokio::select! {
            () = shutdown.asked().cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Starts a queue's fetchers and its apalis worker, each a task of its own: a monitor would poll all workers in one. Answers the way in
/// for what is claimed elsewhere.
fn serve(engine: &Arc<Engine>, queue: Queue, slots: usize, finished: mpsc::Sender<Finished>, workers: &mut JoinSet<()>) -> Intake {
    let credits = Credits::new(slots);
    let (feed, backend) = ChannelBackend::<Work, Identity>::new(credits.most(), Identity::new());
    let runner = Runner::new(Arc::clone(engine), queue, slots, Arc::clone(&credits), finished);
    let apalis = WorkerBuilder::new(format!("{}-{}", queue.name(), engine.worker)).backend(backend).build(runner);
    workers.spawn(async move {
        if let Err(error) = apalis.run().await {
            tracing::error!(queue = queue.name(), error = %error, "the queue's worker ended");
        }
    });
    // So many of those who go first are held beside the others: one that waits is the next to get a slot.
    let first = Credits::new((slots / 4).clamp(2, 16));
    let first = Intake { queue, credits: first, feed: feed.clone(), goes_first: true };
    let intake = Intake { queue, credits, feed, goes_first: false };
    workers.spawn(fetch::run(Arc::clone(engine), first, engine.redis.commands()));
    workers.spawn(fetch::run(Arc::clone(engine), intake.clone(), engine.redis.commands()));
    intake
}

/// Waits until the process is asked to stop. Until then nothing ends by itself; a worker that did would leave its queue unserved, so it
/// ends all.
async fn serve_until(draining: &CancellationToken, workers: &mut JoinSet<()>) -> Exit {
    let ended_early = tokio::select! {
        () = draining.cancelled() => false,
        _ = workers.join_next() => !draining.is_cancelled(),
    };
    if ended_early {
        draining.cancel();
        return Exit::Fault;
    }
    Exit::Finished
}

/// Waits for what runs; hands it back when the grace time is over, or at once when forced. Answers whether all finished.
async fn drain(engine: &Engine, workers: &mut JoinSet<()>, grace: Duration, shutdown: &Shutdown) -> bool {
    let in_time = tokio::select! {
        () = async { while workers.join_next().await.is_some() {} } => true,
        () = tokio::time::sleep(grace) => false,
        () = shutdown.forced().cancelled() => false,
    };
    if !in_time {
        tracing::warn!(held = engine.held.len(), "handing back what still runs");
        engine.overdue.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(2), async { while workers.join_next().await.is_some() {} }).await;
    }
    in_time
}

/// What keeps an engine from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system gave no thread.
    #[error("the heartbeat's thread could not be started")]
    Thread(#[source] std::io::Error),
}
