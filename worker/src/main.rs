//! The worker: runs the jobs of its queues. Replicas are all the same; start as many as the work needs.
//!
//! `main` reads the settings and puts the parts together; they are the library's.

use std::{process::ExitCode, sync::Arc};

use clap::{Parser, Subcommand};
use shared::{
    config::{Variables, WorkerConfig},
    ledger::{self, Sessions, rollups::ask::Turns},
    queue::{Redis, eviction_policy},
    shutdown::{Exit, Shutdown},
    telemetry::{self, Metrics},
    tenant::Tenants,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use worker::{
    clients::Clients,
    drill,
    engine::{self, Parts, health::Health},
    handlers::{Followers, Handlers, Messages, Rebuilds, Services},
    rollups, scheduler, sweeper,
};

/// Runs jobs: everything that happens after a request was answered.
#[derive(Debug, Parser)]
#[command(version, about, after_help = "Settings come from the environment (OFFSTAGE_…); see docs/operations.md.")]
struct Arguments {
    /// The queues to serve, such as `exports,email`; all when left out. Overrides `OFFSTAGE_QUEUES`.
    #[arg(long)]
    queues: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one job in this process; the worker starts it for jobs under which workers were lost.
    #[command(hide = true)]
    Trial,
    /// Kills a worker of its own under load, again and again, and tells how long recovery takes and whether anything was lost or
    /// done twice. For staging: only where `OFFSTAGE_DRILL=on`.
    Drill(drill::Plan),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        None => {}
        Some(Command::Trial) => return engine::trial::child::main(),
        Some(Command::Drill(plan)) => return drill::main(plan),
    }
    let config = match WorkerConfig::read(&Variables::of_process(), arguments.queues.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Settings.into();
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("worker: the runtime could not be started: {error}");
            return Exit::Fault.into();
        }
    };
    let exit = match runtime.block_on(run(config)) {
        Ok(exit) => exit,
        Err(error) => {
            tracing::error!(error = &*error, "the worker could not start");
            eprintln!("worker: {error}");
            Exit::Fault
        }
    };
    // Handlers that block a thread must not hold up the end of the process.
    runtime.shutdown_background();
    exit.into()
}

async fn run(config: WorkerConfig) -> Result<Exit, Box<dyn std::error::Error + Send + Sync>> {
    telemetry::start_log(&config.log)?;
    let metrics = Metrics::start("worker")?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let shutdown = Shutdown::on_signals()?;

    let listener = TcpListener::bind(config.listen.address).await?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let health = Arc::new(Health::default());
    let serving = CancellationToken::new();
    let server = tokio::spawn(engine::health::serve(listener, Arc::clone(&health), metrics, serving.clone()));

    let database = &config.database;
    let redis = Redis::new(&config.redis.url, &config.redis.prefix)?;
    warn_of_eviction(&redis).await;
    let pool = ledger::pool("OFFSTAGE_ENGINE_DATABASE_URL", &database.url, Sessions::Engine, database.pool)?;
    let services = Services {
        pool: pool.clone(),
        gathered: Messages::start(&pool, &config.clock),
        clock: config.clock.clone(),
        tenants: Tenants::new(pool),
        clients: Clients::new(&config),
        vault_keys: config.vault_keys.clone(),
        recipient_key: config.mail.recipient_key.clone(),
        public_url: config.public_url.clone(),
        ai_keys: config.ai.keys,
        followers: Followers::new(&redis),
        turns: Turns::default(),
        rebuilds: Rebuilds::default(),
        sources: config.sources.with_own(database.url.clone()),
        probe: config.probe,
    };
    let services = Arc::new(services);
    let retention = config.retention;
    let sweeping = CancellationToken::new();
    let sweeps = tokio::spawn(sweeper::run(Arc::clone(&services), retention, sweeping.clone()));
    let counts = tokio::spawn(rollups::run(Arc::clone(&services), sweeping.clone()));
    // A worker that is asked to stop leaves what comes due to others at once.
    let schedules = tokio::spawn(scheduler::run(Arc::clone(&services), redis.clone(), shutdown.asked().child_token()));
    let parts = Parts {
        name: process_name(),
        database: database.url.clone(),
        claims: ledger::pool("OFFSTAGE_ENGINE_DATABASE_URL", &database.url, Sessions::Claims, (database.pool / 2).max(2))?,
        redis,
        services,
        handlers: Handlers::new(config.probe.enabled),
        queues: config.queues.concurrency,
        window: u64::from(config.window),
        grace: config.shutdown_grace,
    };
    // A busy worker's first jobs would else wait for connections that are still being made.
    tokio::join!(ledger::warm(&parts.services.pool), ledger::warm(&parts.claims));
    let exit = engine::run(parts, health, shutdown).await?;
    sweeping.cancel();
    sweeps.await?;
    counts.await?;
    schedules.await?;
    serving.cancel();
    server.await??;
    Ok(exit)
}

/// R9: an evicting Redis may drop streams at any moment. Nothing is lost by it, but jobs wait until recovery pushes them again.
async fn warn_of_eviction(redis: &Redis) {
    let mut connection = redis.commands();
    match eviction_policy(&mut connection).await {
        Ok(Some(policy)) if policy != "noeviction" => {
            tracing::warn!(
                policy,
                "Redis may evict our streams when its memory is full: jobs would wait up to 7 s; set maxmemory-policy to noeviction"
            );
        }
        Ok(_) => {}
        Err(error) => {
            tracing::info!(error = &error as &dyn std::error::Error, "could not read Redis' maxmemory-policy; it should be noeviction");
        }
    }
}

fn process_name() -> String {
    let host = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    let host = host
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_owned()))
        .unwrap_or_else(|| "worker".into());
    format!("{host}-{}", std::process::id())
}
