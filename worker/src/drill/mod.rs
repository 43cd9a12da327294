//! `worker drill`: does to a worker of its own what the worst night does to yours, and tells how it went.
//!
//! It puts probes into a queue that nobody else serves ([`Queue::Drill`]), in the installation's own Postgres and Redis, runs a worker on
//! it (a child: this same program), kills that with SIGKILL again and again under load, and counts: how long until what ran
//! runs again, what was lost, what was done twice. Each probe calls an [observer](observer) in this process, which is outside of
//! what is tried; the ledger's word is compared with it.
//!
//! What must stay true: nobody else's job is touched; it takes out what it put in, also when it is interrupted; it refuses where
//! nobody marked the installation as one for drills.

mod observer;

use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    process::{ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use shared::{
    clock::Clock,
    config::{Variables, WorkerConfig},
    job::JobId,
    ledger::{
        self, LedgerError, Sessions,
        drill::{self, Standing},
        recover::{lay_down_duty, take_duty},
    },
    queue::{Queue, QueueError, Redis, push},
    shutdown::{Exit, Shutdown},
};
use sqlx::PgPool;
use tokio::process::{Child, Command};
use uuid::Uuid;

use observer::Observer;

/// The duty that keeps two drills from each other's way.
const DUTY: &str = "drill";
/// The longest drill.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// The longest that what ran may take to run again before it counts as not recovered.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);
/// The longest that the rest may take once nothing is killed any more, beyond what the work itself takes.
const FINISHED_WITHIN: Duration = Duration::from_secs(120);
/// Jobs that must be running before a worker is killed.
const UNDER_LOAD: usize = 8;
/// How many run at a time.
const CONCURRENCY: usize = 32;
/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How big the drill is.
#[derive(Debug, Clone, Copy, Args)]
pub struct Plan {
    /// How many jobs.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    jobs: u32,
    /// How often the worker is killed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    kills: u32,
    /// How long one job runs, in milliseconds.
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    job_milliseconds: u32,
}

/// What keeps a drill from being held, or from its end.
#[derive(Debug, thiserror::Error)]
enum DrillError {
    #[error("{0}")]
    Refused(&'static str),
    #[error("the drill's jobs could not be stored")]
    Put(#[source] Arc<LedgerError>),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("the drill's {0}")]
    System(&'static str, #[source] std::io::Error),
    #[error("interrupted")]
    Interrupted,
    #[error("the drill took longer than {} minutes", LONGEST.as_secs() / 60)]
    TooLong,
}

/// What a drill found.
#[derive(Debug)]
struct Found {
    jobs: usize,
    kills: u32,
    recoveries: Vec<Duration>,
    /// Runs that were under way at a kill and were not seen again in time.
    unrecovered: usize,
    standing: Standing,
    doubled: usize,
    /// Those of the doubled that the ledger explains.
    explained: usize,
}

impl Found {
    fn lost(&self) -> i64 {
        i64::try_from(self.jobs).unwrap_or(i64::MAX) - self.standing.succeeded
    }

    fn is_well(&self) -> bool {
        self.lost() == 0 && self.unrecovered == 0 && self.doubled == self.explained
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.recoveries.clone();
        sorted.sort_unstable();
        let rank = |percent: usize| {
            let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(index).map_or_else(|| "-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
        };
        writeln!(f, "jobs        {}", self.jobs)?;
        writeln!(f, "kills       {}, with {} runs under way", self.kills, self.recoveries.len() + self.unrecovered)?;
        writeln!(f, "recovery    p50 {}, p99 {}, max {}", rank(50), rank(99), rank(100))?;
        writeln!(f, "unrecovered {}", self.unrecovered)?;
        writeln!(f, "lost        {}", self.lost())?;
        writeln!(f, "doubled     {}, of which the ledger lists {} as unknown", self.doubled, self.explained)?;
        write!(f, "{}", if self.is_well() { "well: nothing lost, nothing doubled without a word" } else { "NOT WELL" })
    }
}

/// Holds a drill. 0: all is well; 1: something was lost, doubled, or kept the drill from its end; 2: refused.
#[must_use]
pub fn main(plan: Plan) -> ExitCode {
    let config = match WorkerConfig::read(&Variables::of_process(), None) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Settings.into();
        }
    };
    if !config.drill {
        eprintln!(
            "worker drill: this installation is not marked for drills: they load its Postgres and Redis. Set OFFSTAGE_DRILL=on where that is wanted."
        );
        return Exit::Settings.into();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("worker drill: the runtime could not be started: {error}");
            return Exit::Fault.into();
        }
    };
    match runtime.block_on(hold(&config, &plan)) {
        Ok(found) => {
            println!("{found}");
            if found.is_well() { ExitCode::SUCCESS } else { Exit::Fault.into() }
        }
        Err(error) => {
            eprintln!("worker drill: {}", chain(&error));
            if matches!(error, DrillError::Refused(_)) { Exit::Settings.into() } else { Exit::Fault.into() }
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

async fn hold(config: &WorkerConfig, plan: &Plan) -> Result<Found, DrillError> {
    let clock = Clock::system();
    let pool = ledger::pool("OFFSTAGE_ENGINE_DATABASE_URL", &config.database.url, Sessions::Engine, 4)?;
    let redis = Redis::new(&config.redis.url, &config.redis.prefix)?;
    let ourselves = clock.new_id();
    if !take_duty(&pool, DUTY, ourselves, LONGEST + FINISHED_WITHIN).await? {
        return Err(DrillError::Refused("another drill is being held here; wait for its end (a killed one counts for half an hour)"));
    }
    let shutdown = Shutdown::on_signals().map_err(|source| DrillError::System("signals can't be heard", source))?;
    let jobs: Vec<JobId> = (0..plan.jobs).map(|_| JobId(clock.new_id())).collect();
    let found = tokio::select! {
        found = try_out(&pool, &clock, plan, &jobs) => found,
        () = shutdown.asked().cancelled() => Err(DrillError::Interrupted),
        () = tokio::time::sleep(LONGEST) => Err(DrillError::TooLong),
    };
    clean_up(&pool, &redis, &clock, ourselves, &jobs).await?;
    found
}

/// Takes out what was put in. The worker is gone by now, and what it still held is cancelled with the rest.
async fn clean_up(pool: &PgPool, redis: &Redis, clock: &Clock, ourselves: Uuid, jobs: &[JobId]) -> Result<(), DrillError> {
    let began = Instant::now();
    // What a killed worker ran can be taken out once somebody took it over, at the latest when it is judged to be dead.
    while drill::take_out(pool, jobs, clock.now()).await? > 0 {
        if began.elapsed() > RECOVERED_WITHIN {
            eprintln!("worker drill: some of its jobs are held by a worker and stay in the ledger, with the tenant {}", drill::TENANT);
            break;
        }
        // They ran nothing but the drill, and this changes nothing while one of them is alive.
        let holders = drill::holders(pool, jobs).await?;
        ledger::recover::take_over(pool, &holders, clock.now(), 1_000).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    push::delete_streams(&mut redis.commands(), redis.keys(), Queue::Drill).await?;
    lay_down_duty(pool, DUTY, ourselves).await?;
    Ok(())
}

async fn try_out(pool: &PgPool, clock: &Clock, plan: &Plan, jobs: &[JobId]) -> Result<Found, DrillError> {
    let observer = Observer::listen().await.map_err(|source| DrillError::System("observer can't listen", source))?;
    let payload = json!({"queue": Queue::Drill, "sleep_ms": plan.job_milliseconds, "callback_url": observer.url()}).to_string();
    drill::put(pool, jobs, &payload, clock.now()).await.map_err(DrillError::Put)?;
    let mut recoveries = Vec::new();
    let (mut unrecovered, mut kills) = (0, 0);
    let mut worker = start()?;
    for kill in 1..=plan.kills {
        if !until(RECOVERED_WITHIN, || observer.running().len() >= UNDER_LOAD || observer.finished() == jobs.len()).await
            || observer.finished() == jobs.len()
        {
            eprintln!("worker drill: no load left after {kills} kills; ask for more jobs (--jobs) or longer ones");
            break;
        }
        // Not always at the moment when the first ones have just begun.
        tokio::time::sleep(Duration::from_millis(u64::from(plan.job_milliseconds) * u64::from(kill % 4) / 4)).await;
        let killed = Instant::now();
        worker.start_kill().map_err(|source| DrillError::System("worker can't be killed", source))?;
        let _ = worker.wait().await;
        kills = kill;
        let lost = observer.running();
        eprintln!("kill {kill} of {}: {} runs under way", plan.kills, lost.len());
        worker = start()?;
        until(RECOVERED_WITHIN, || lost.iter().all(|job| observer.started_since(*job, killed).is_some())).await;
        for job in lost {
            match observer.started_since(job, killed) {
                Some(at) => recoveries.push(at - killed),
                None => unrecovered += 1,
            }
        }
    }
    let work = Duration::from_millis(u64::from(plan.jobs) * u64::from(plan.job_milliseconds) / CONCURRENCY as u64);
    let began = Instant::now();
    let mut standing = drill::look(pool, jobs).await?;
    while standing.open > 0 && began.elapsed() < FINISHED_WITHIN + work * 2 {
        tokio::time::sleep(LOOK_EVERY * 4).await;
        standing = drill::look(pool, jobs).await?;
    }
    stop(worker).await;
    let doubled = observer.doubled();
    let unknown: BTreeSet<JobId> = drill::unknown(pool, jobs).await?.into_iter().collect();
    let explained = doubled.iter().filter(|job| unknown.contains(job)).count();
    Ok(Found { jobs: jobs.len(), kills, recoveries, unrecovered, standing, doubled: doubled.len(), explained })
}

/// Looks until something holds; false when it did not in time.
async fn until(patience: Duration, holds: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > patience {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

/// A worker on the drill's queue. It ends with what holds it.
fn start() -> Result<Child, DrillError> {
    let ourselves = PathBuf::from("/proc/self/exe");
    let program = if ourselves.exists() { ourselves } else { std::env::current_exe().unwrap_or_else(|_| PathBuf::from("worker")) };
    Command::new(program)
        .args(["--queues", Queue::Drill.name()])
        .env("OFFSTAGE_PROBE", "on")
        .env("OFFSTAGE_PROBE_CALLBACKS", "loopback")
        .env("OFFSTAGE_CONCURRENCY", format!("{}={CONCURRENCY}", Queue::Drill))
        .env("OFFSTAGE_WORKER_LISTEN", "127.0.0.1:0")
        // Its log is about nothing but the drill; what goes wrong in it is said at the end.
        .env("OFFSTAGE_LOG", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| DrillError::System("worker can't be started", source))
}

/// Lets the worker leave in good order; it holds nothing any more.
async fn stop(mut worker: Child) {
    if let Some(id) = worker.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
    }
    if tokio::time::timeout(Duration::from_secs(15), worker.wait()).await.is_err() {
        let _ = worker.kill().await;
    }
}
