//! `sandbox`: the miniature world from the command line. `make run` is `sandbox run`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use sandbox::local::{self, Local, Settings};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Runs Offstage and all it needs on this machine: a private Postgres and Redis, an S3 on disk, the API and its workers.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts everything, loads an example product, prints what to try, and stops all of it at Ctrl-C.
    ///
    /// Uses the services named by `OFFSTAGE_DATABASE_URL` (the owner of an empty database, with CREATEROLE and CREATEDB),
    /// `OFFSTAGE_REDIS_URL` and `OFFSTAGE_S3_BUCKET` (with the other `OFFSTAGE_S3_*`) when they are set, each for itself.
    ///
    /// `OFFSTAGE_CONTROL_URL` in DIR/demo.env takes orders meanwhile: `curl -X POST $OFFSTAGE_CONTROL_URL/worker-1/kill9`,
    /// `curl $OFFSTAGE_CONTROL_URL/s3/faults --json '{"fault": {"status": 503}, "times": 3}'`.
    Run(Run),
    /// Starts the private Postgres, Redis and S3 alone, prints the settings for them, and stops them at Ctrl-C.
    Services {
        /// Where data, logs and passwords lie.
        #[arg(long, value_name = "DIR", default_value = ".local")]
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// Where data, logs and passwords lie. They are found again by the next run; remove it to start anew.
    #[arg(long, value_name = "DIR", default_value = ".local")]
    dir: PathBuf,
    /// How many prompts the example's database gets when it is new.
    #[arg(long, default_value_t = 10_000)]
    rows: u64,
    /// The API's port, when it is free.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The port of the example's page, when it is free.
    #[arg(long, default_value_t = 8081)]
    web_port: u16,
    /// How many workers to run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
}

fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let outcome = runtime.block_on(async {
        match command {
            Command::Run(run) => self::run(run).await,
            Command::Services { dir } => services(dir).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

/// As `println!`, but a terminal that has gone is no reason to panic: everything is then stopped in order.
macro_rules! say {
    ($($argument:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

async fn run(run: Run) -> Outcome {
    let mut stop = Stop::listen()?;
    let settings = Settings { directory: run.dir, rows: run.rows, port: run.port, web_port: run.web_port, workers: run.workers };
    // Whatever has started ends with what is dropped here.
    let local = tokio::select! {
        local = Local::start(&settings) => Arc::new(local?),
        () = stop.asked() => {
            say!("Stopped.");
            return Ok(());
        },
    };
    local.serve_control().await?;
    let events = local.events();
    local.announce();
    tokio::select! {
        () = local::watch(events) => {}
        () = stop.asked() => {}
    }
    say!("\nStopping; once more Ctrl-C does not wait.");
    match Arc::try_unwrap(local) {
        Ok(local) => tokio::select! {
            () = local.stop() => {}
            () = stop.asked() => {}
        },
        // A control request holds it: the drop below ends everything all the same.
        Err(local) => drop(local),
    }
    say!("Stopped.");
    Ok(())
}

async fn services(directory: PathBuf) -> Outcome {
    let mut stop = Stop::listen()?;
    let world = tokio::select! {
        world = local::services(&directory) => world?,
        () = stop.asked() => return Ok(()),
    };
    let services = [world.postgres.environment(), world.redis.environment(), world.s3.environment()];
    for (name, value) in services.into_iter().flatten() {
        // These two roles come with the migrations.
        if !matches!(name.as_str(), "OFFSTAGE_API_DATABASE_URL" | "OFFSTAGE_ENGINE_DATABASE_URL") {
            say!("{name}='{value}'");
        }
    }
    say!("# Ready. Ctrl-C stops them.");
    stop.asked().await;
    tokio::select! {
        stopped = world.stop() => stopped?,
        () = stop.asked() => {}
    }
    Ok(())
}

/// The signals that ask for an end: Ctrl-C, a supervisor's SIGTERM, a closed terminal.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// Prints the whole chain of causes, each once.
fn failed(error: &dyn std::error::Error) -> ExitCode {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        message.push_str(": ");
        message.push_str(&inner.to_string());
        cause = inner.source();
    }
    let _ = writeln!(std::io::stderr(), "sandbox: {message}");
    ExitCode::FAILURE
}
