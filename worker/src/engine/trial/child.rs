//! The child's side of a trial: reads a claim, runs its handler, says what came of it, ends.

use std::{
    io::{BufRead, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use shared::{
    config::{Variables, WorkerConfig},
    job::Outcome,
    ledger::{self, Sessions, claim::ClaimedJob, rollups::ask::Turns},
    queue::Redis,
    shutdown::Exit,
    telemetry,
    tenant::Tenants,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{SPINNING, Verdict};
use crate::{
    clients::Clients,
    engine::{
        run::outcome_of,
        watchdog::{LONGEST_POLL, Polls},
    },
    handlers::{Followers, Handlers, JobContext, Messages, Rebuilds, Services},
};

/// What the child says when it begins the job: from here on its death is the job's doing.
pub const STARTED: &str = "started";
/// What the parent says when the job's owner wants it cancelled.
pub const CANCEL: &str = "cancel\n";

/// Connections of a child: its handler has a transaction open at the most (an export of numbers does, while it writes its file), and notes
/// something beside it.
const CONNECTIONS: u32 = 2;
/// The longest claim in bytes of JSON: twice the payload's limit, for its escapes, and some.
const LONGEST_CLAIM: u64 = 1024 * 1024;
/// How often the handler's polls are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// `worker trial`: for the worker itself, not for people.
pub fn main() -> ExitCode {
    let mut input = std::io::stdin().lock();
    let mut line = String::new();
    // The limit is far above what a claim can be (256 KiB of payload), and there is nobody but our parent.
    let read = std::io::Read::take(&mut input, LONGEST_CLAIM).read_line(&mut line);
    let job: ClaimedJob = match read.map_err(serde_json::Error::io).and_then(|_| serde_json::from_str(&line)) {
        Ok(job) => job,
        Err(error) => {
            eprintln!("worker trial: this is for the worker itself; it reads a claim from its standard input: {error}");
            return Exit::Settings.into();
        }
    };
    drop(input);
    tie_to_parent();
    limit_memory();
    let config = match WorkerConfig::read(&Variables::of_process(), None) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Settings.into();
        }
    };
    let cancelled = CancellationToken::new();
    listen_to_parent(cancelled.clone());
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("worker trial: the runtime could not be started: {error}");
            return Exit::Fault.into();
        }
    };
    let outcome = runtime.block_on(run(config, Arc::new(job), cancelled));
    let said = outcome.and_then(|outcome| {
        let verdict = serde_json::to_string(&Verdict::of(outcome))?;
        say(&verdict)?;
        Ok(())
    });
    runtime.shutdown_background();
    match said {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker trial: {error}");
            Exit::Fault.into()
        }
    }
}

async fn run(
    config: WorkerConfig,
    job: Arc<ClaimedJob>,
    cancelled: CancellationToken,
) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
    telemetry::start_log(&config.log)?;
    // Heard and left to the parent, who decides what becomes of its runs.
    let _ignored = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let services = services(config)?;
    let handlers = Handlers::new(services.probe.enabled);
    let Some(handler) = handlers.find(&job.kind) else { return Ok(Outcome::HandedBack) };
    let polls = Arc::new(Polls::default());
    let watching = Arc::clone(&polls);
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        loop {
            std::thread::sleep(LOOK_EVERY);
            if let Some((job, held)) = watching.longer_than(LONGEST_POLL).pop() {
                tracing::error!(job = %job.id, kind = job.kind, seconds = held.as_secs(), "the handler does not let its thread go: ending its process");
                std::process::exit(SPINNING);
            }
        }
    })?;
    say(STARTED)?;
    let context = JobContext { job: Arc::clone(&job), services: Arc::new(services), cancelled };
    let run = polls.watch(job, handler.start(context).run);
    Ok(outcome_of(tokio::spawn(run).await))
}

fn services(config: WorkerConfig) -> Result<Services, Box<dyn std::error::Error + Send + Sync>> {
    let url: &SecretString = &config.database.url;
    let pool = ledger::pool("OFFSTAGE_ENGINE_DATABASE_URL", url, Sessions::Engine, CONNECTIONS)?;
    Ok(Services {
        pool: pool.clone(),
        gathered: Messages::start(&pool, &config.clock),
        clock: config.clock.clone(),
        tenants: Tenants::new(pool),
        clients: Clients::new(&config),
        vault_keys: config.vault_keys.clone(),
        recipient_key: config.mail.recipient_key.clone(),
        public_url: config.public_url.clone(),
        ai_keys: config.ai.keys,
        followers: Followers::new(&Redis::new(&config.redis.url, &config.redis.prefix)?),
        turns: Turns::default(),
        rebuilds: Rebuilds::default(),
        sources: config.sources.with_own(url.clone()),
        probe: config.probe,
    })
}

fn say(line: &str) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

/// Ends with the parent: its end closes our standard input. On a thread of its own, which no handler can hold.
fn listen_to_parent(cancelled: CancellationToken) {
    std::thread::spawn(move || {
        let mut line = String::new();
        loop {
            line.clear();
            match std::io::stdin().lock().read_line(&mut line) {
                Ok(read) if read > 0 => {
                    if line == CANCEL {
                        cancelled.cancel();
                    }
                }
                // Nobody is left who would hear the verdict.
                _ => std::process::exit(i32::from(Exit::Forced.code())),
            }
        }
    });
}

/// Has the kernel kill us when the parent dies, also while every thread of ours is held.
fn tie_to_parent() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL) {
        eprintln!("worker trial: can't be tied to its parent ({error}); it ends with its standard input");
    }
    // Short of memory, the kernel should take us and not the worker with all its other jobs.
    #[cfg(target_os = "linux")]
    let _ = std::fs::write("/proc/self/oom_score_adj", "900");
}

/// Where the container's memory is limited, ends a job that outgrows what is left of it before the kernel ends the whole
/// container: an allocation fails, and the process aborts.
fn limit_memory() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    /// What a child needs to do anything at all.
    const LEAST: u64 = 64 * 1024 * 1024;
    let number = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    let (Some(most), Some(taken)) = (number("memory.max"), number("memory.current")) else { return };
    let wanted = (most.saturating_sub(taken) / 4 * 3).max(LEAST);
    let limited = getrlimit(Resource::RLIMIT_DATA).and_then(|(soft, hard)| {
        // Data, not address space: threads and allocators reserve far more of that than they use.
        setrlimit(Resource::RLIMIT_DATA, wanted.min(soft), hard)
    });
    if let Err(error) = limited {
        eprintln!("worker trial: its memory can't be limited: {error}");
    }
}
