//! The heartbeat: a thread and a database connection of its own, so that neither a busy runtime nor a full pool silences it.
//!
//! It beats only while the main runtime makes progress (its [`Pulse`] moves): a process whose tasks are stuck must not keep
//! its jobs. It also watches the lease's end and the [handlers that don't let go](super::watchdog), which no task of a stuck
//! runtime could.

use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use secrecy::{ExposeSecret, SecretString};
use shared::{
    clock::Clock,
    job::{Outcome, Policy},
    ledger::{
        LedgerError,
        claim::ClaimedJob,
        recover::{self, BEAT_EVERY},
        settle::{self, Settlement},
    },
    queue::Queue,
    shutdown::{Exit, Shutdown},
};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    held::Held,
    lease::Lease,
    watchdog::{HOLDS_A_THREAD, LONGEST_POLL, Polls, STILL_FOR},
};

/// The longest one heartbeat may take, connecting included: two of them fit between the last good one and the fence.
const BEAT_DEADLINE: Duration = Duration::from_millis(1_500);
/// The longest that asking for wishes to cancel may wait for a lock; the next heartbeat asks again.
const WISHES_WAIT: Duration = Duration::from_millis(300);
/// How often the lease's end is looked for, and the pulse moves.
const TICK: Duration = Duration::from_millis(200);

/// The lease ended by time.
fn ran_out() {
    metrics::counter!("offstage_worker_fenced_total").increment(1);
    tracing::error!("no heartbeat got through in time: stopped all work, others will take it over");
}

/// Moves while the main runtime runs tasks.
#[derive(Debug, Default)]
pub struct Pulse(AtomicU64);

impl Pulse {
    /// Moves until `stop`. A task of the main runtime.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                now = ticks.tick() => {
                    metrics::histogram!("offstage_worker_loop_lag_seconds").record(now.elapsed().as_secs_f64());
                    self.0.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// What the heartbeat's thread needs.
#[derive(Debug)]
pub struct Heartbeat {
    /// The process' id.
    pub worker: Uuid,
    /// Its name for people.
    pub name: String,
    /// What it serves.
    pub queues: Vec<Queue>,
    /// The ledger.
    pub database: SecretString,
    /// What it renews.
    pub lease: Arc<Lease>,
    /// What must move.
    pub pulse: Arc<Pulse>,
    /// Where wishes to cancel go.
    pub held: Arc<Held>,
    /// Which runs hold a thread.
    pub polls: Arc<Polls>,
    /// Business time, for what is settled here.
    pub clock: Clock,
    /// How to ask for the process' end.
    pub shutdown: Shutdown,
    /// Set when the process ends because a run does not let go.
    pub stuck: Arc<AtomicBool>,
    /// The engine ends: its tasks no longer move, and need not.
    pub ending: CancellationToken,
    /// When to end.
    pub stop: CancellationToken,
}

impl Heartbeat {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where the operating system gives no thread.
    pub fn start(self) -> std::io::Result<thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("heartbeat".into()).spawn(move || runtime.block_on(self.run()))
    }

    async fn run(self) {
        let beating = Arc::new(self);
        let watcher = tokio::spawn(Arc::clone(&beating).watch());
        beating.beat_on().await;
        watcher.abort();
    }

    /// Looks at the lease, the runtime and the runs, several times a second.
    async fn watch(self: Arc<Self>) {
        let (mut last_pulse, mut still, mut blamed) = (0, 0, false);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            if self.lease.expire() {
                ran_out();
            }
            let pulse = self.pulse.0.load(Ordering::Relaxed);
            still = if pulse == last_pulse && pulse > 0 && !self.ending.is_cancelled() { still + 1 } else { 0 };
            last_pulse = pulse;
            if TICK * still >= STILL_FOR {
                self.end_at_once().await;
            }
            let holding = self.polls.longer_than(LONGEST_POLL);
            if !holding.is_empty() && !blamed {
                blamed = true;
                self.stuck.store(true, Ordering::Relaxed);
                tracing::error!("a run keeps its thread: this process finishes what else it runs, and ends");
                self.blame(&holding).await;
                self.shutdown.ask();
            }
        }
    }

    /// The runtime stands still: says whose doing it is, gives everything else back, and ends the process.
    async fn end_at_once(&self) {
        let holding = self.polls.longer_than(HOLDS_A_THREAD);
        tracing::error!(
            running = ?self.polls.jobs(),
            holding = ?holding.iter().map(|(job, _)| job.id).collect::<Vec<_>>(),
            "the runtime stands still: ending this process"
        );
        self.blame(&holding).await;
        let handed_back = async {
            let mut connection = self.connect().await?;
            let claims = self.held.claims();
            recover::give_back(&mut connection, &claims, self.clock.now()).await?;
            recover::deregister(&mut connection, self.worker).await
        };
        match tokio::time::timeout(BEAT_DEADLINE, handed_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "its jobs could not be given back; others take them over");
            }
            Err(_) => tracing::error!("its jobs could not be given back in time; others take them over"),
        }
        std::process::exit(i32::from(Exit::Stuck.code()));
    }

    /// Returns jobs whose runs hold a thread to the ledger, as suspects.
    async fn blame(&self, holding: &[(Arc<ClaimedJob>, Duration)]) {
        let now = self.clock.now();
        let settlements: Vec<Settlement> = holding
            .iter()
            .map(|(job, held)| {
                tracing::error!(job = %job.id, kind = job.kind, seconds = held.as_secs(), "the run does not let its thread go");
                Settlement::decide(job, &Policy::DEFAULT, Outcome::Stuck(*held), now)
            })
            .collect();
        metrics::counter!("offstage_runs_stuck_total").increment(settlements.len() as u64);
        let settled = async {
            let mut connection = self.connect().await?;
            settle::settle(&mut connection, &settlements).await
        };
        match tokio::time::timeout(BEAT_DEADLINE, settled).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(error = &error as &dyn std::error::Error, "the blame could not be written down"),
            Err(_) => tracing::error!("the blame could not be written down in time"),
        }
    }

    async fn beat_on(&self) {
        let mut connection: Option<PgConnection> = None;
        let mut registered = false;
        let mut last_pulse = None;
        let mut failures: u64 = 0;
        while !self.stop.is_cancelled() {
            let sent = Instant::now();
            let pulse = self.pulse.0.load(Ordering::Relaxed);
            if last_pulse.replace(pulse) == Some(pulse) {
                tracing::error!("the runtime made no progress since the last heartbeat: sending none");
            } else {
                match tokio::time::timeout(BEAT_DEADLINE, self.beat(&mut connection, &mut registered)).await {
                    Ok(Ok(known)) => {
                        if failures > 0 {
                            tracing::info!(failures, "the heartbeat gets through again");
                        }
                        failures = 0;
                        self.heard(known, sent, &mut registered);
                        self.pass_wishes_on(&mut connection).await;
                    }
                    outcome => {
                        connection = None;
                        failures += 1;
                        metrics::counter!("offstage_worker_heartbeat_failures_total").increment(1);
                        if failures.is_power_of_two() {
                            if let Ok(Err(error)) = outcome {
                                tracing::warn!(error = &error as &dyn std::error::Error, failures, "a heartbeat failed");
                            } else {
                                tracing::warn!(failures, "a heartbeat took too long");
                            }
                        }
                    }
                }
            }
            // After a failure sooner, so that a short gap stays short.
            let pause = if failures > 0 { BEAT_EVERY / 4 } else { BEAT_EVERY };
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(pause.saturating_sub(sent.elapsed()).max(TICK)) => {}
            }
        }
    }

    fn heard(&self, known: bool, sent: Instant, registered: &mut bool) {
        if known {
            if self.lease.renew(sent) {
                ran_out();
            }
        } else {
            // Declared dead while we thought otherwise: paused, or cut off. Everything of before belongs to others now.
            *registered = false;
            if self.lease.fence() {
                metrics::counter!("offstage_worker_fenced_total").increment(1);
                tracing::error!("this worker was declared dead and its jobs were taken over: stopped all work, starting anew");
            }
        }
    }

    /// A statement of its own behind the heartbeat, so that a lock on its table costs no lease.
    async fn pass_wishes_on(&self, connection: &mut Option<PgConnection>) {
        let Some(open) = connection else { return };
        match tokio::time::timeout(BEAT_DEADLINE, recover::cancels(open, self.worker)).await {
            Ok(Ok(wished)) => self.held.cancel(&wished),
            Ok(Err(error)) => tracing::debug!(error = &error as &dyn std::error::Error, "could not ask for wishes to cancel"),
            // An answer may still be on its way: the connection is not to be used again.
            Err(_) => *connection = None,
        }
    }

    async fn beat(&self, connection: &mut Option<PgConnection>, registered: &mut bool) -> Result<bool, LedgerError> {
        let connection = if let Some(connection) = connection { connection } else { connection.insert(self.connect().await?) };
        if !*registered {
            recover::register(connection, self.worker, &self.name, &self.queues, env!("CARGO_PKG_VERSION")).await?;
            *registered = true;
        }
        recover::beat(connection, self.worker).await
    }

    async fn connect(&self) -> Result<PgConnection, LedgerError> {
        let options = PgConnectOptions::from_str(self.database.expose_secret())?
            .application_name("offstage heartbeat")
            .options([("statement_timeout", BEAT_DEADLINE.as_millis().to_string()), ("lock_timeout", WISHES_WAIT.as_millis().to_string())]);
        Ok(options.connect().await?)
    }
}
