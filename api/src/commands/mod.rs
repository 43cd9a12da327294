//! The command line: `api serve`, and what an operator does to an installation.
//!
//! What a command was asked for goes to standard output, everything else to standard error. Exit codes are
//! [`Exit`]'s: 0 done, 1 failed (trying again may help), 2 the command line, the settings or the manifest are wrong.

mod breaker;
mod hold;
mod jobs;
mod key;
mod metric;
mod migrate;
mod serve;
mod switch;
mod tenant;
mod usage;
mod vault;

use std::{fmt::Display, path::PathBuf};

use clap::{Parser, Subcommand};
use shared::{
    clock::Clock,
    config::{ConfigError, OwnerConfig, Variables},
    job::JobId,
    keys::UnknownScope,
    ledger::{self, LedgerError, Sessions, schedule::declare::DeclareError},
    shutdown::Exit,
    telemetry::{self, TelemetryError},
    tenant::ManifestError,
    vault::VaultKeys,
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{app::AppError, problem::chain, routes, schema::MigrateError};

/// The HTTP door of Offstage, and the operator's commands.
#[derive(Debug, Parser)]
#[command(name = "api", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve HTTP until a signal asks to stop.
    Serve,
    /// Bring the database's schema up to this version (as the owner, `OFFSTAGE_DATABASE_URL`).
    Migrate,
    /// Print the contract (`OpenAPI` 3.1).
    Openapi,
    /// Tenants: the products that share this installation.
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// API keys, by which a tenant's backend calls.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Jobs, as an operator sees them: errors with their causes, dead letters redriven or discarded.
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Outward effects (mails, pushes, calls that cost money): stop them, let them go on.
    #[command(subcommand)]
    Switch(switch::SwitchCommand),
    /// Circuit breakers of providers: show them, keep them open, let them stop nothing.
    #[command(subcommand)]
    Breaker(breaker::BreakerCommand),
    /// What is counted of events: have it counted anew.
    #[command(subcommand)]
    Metric(metric::MetricCommand),
    /// What users entrusted to us: wrap it by a new key.
    #[command(subcommand)]
    Vault(vault::VaultCommand),
    /// Keep jobs from starting: all, or those of a queue, a tenant, a kind. What runs goes on.
    Pause(hold::PauseArguments),
    /// Let paused jobs start again.
    Resume(hold::ResumeArguments),
    /// Bound how many jobs of a queue or a tenant start in a time, or lift that.
    Throttle(hold::ThrottleArguments),
    /// Show what is paused and throttled.
    Holds(hold::HoldsArguments),
    /// Metering: whether its books balance.
    #[command(subcommand)]
    Usage(usage::UsageCommand),
}

/// A command could not be done.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Settings(#[from] ConfigError),
    #[error("{path}", path = path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: ManifestError,
    },
    #[error("{path} can't be read", path = path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("there is no tenant `{0}`; apply its manifest first: api tenant apply FILE")]
    NoTenant(String),
    #[error("there is no key {0}; `api key list --tenant T` shows them")]
    NoKey(Uuid),
    #[error("tenant `{1}` has no job {0}")]
    NoJob(JobId, String),
    #[error("the books of metering do not balance; report this with what is printed")]
    OutOfBalance,
    #[error("{0}")]
    Argument(String),
    #[error(transparent)]
    Scope(#[from] UnknownScope),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("the program can't start")]
    App(#[from] AppError),
    #[error("can't {doing}")]
    System {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Declare(#[from] DeclareError),
    #[error(transparent)]
    Migrate(#[from] MigrateError),
}

impl CommandError {
    fn exit(&self) -> Exit {
        match self {
            Self::Settings(_)
            | Self::Manifest { .. }
            | Self::File { .. }
            | Self::NoTenant(_)
            | Self::NoKey(_)
            | Self::NoJob(..)
            | Self::Argument(_)
            | Self::Scope(_)
            | Self::App(_)
            | Self::Declare(DeclareError::NameTaken { .. } | DeclareError::Refused { .. }) => Exit::Settings,
            Self::OutOfBalance
            | Self::Telemetry(_)
            | Self::System { .. }
            | Self::Ledger(_)
            | Self::Declare(DeclareError::Ledger(_))
            | Self::Migrate(_) => Exit::Fault,
        }
    }
}

/// Does what the command line asks for.
#[must_use]
pub fn main() -> Exit {
    let CommandLine { command } = CommandLine::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return failed(&CommandError::System { doing: "start the runtime".into(), source }),
    };
    match runtime.block_on(run(command)) {
        Ok(exit) => exit,
        Err(error) => failed(&error),
    }
}

fn failed(error: &CommandError) -> Exit {
    complain(&format!("error: {}", chain(error)));
    error.exit()
}

async fn run(command: Command) -> Result<Exit, CommandError> {
    let variables = Variables::of_process();
    match command {
        Command::Serve => return serve::serve(&variables).await,
        Command::Openapi => say(routes::document().trim_end()),
        Command::Migrate => migrate::migrate(&Owner::open(&variables)?).await?,
        Command::Tenant(command) => command.run(&Owner::open(&variables)?).await?,
        Command::Key(command) => command.run(&Owner::open(&variables)?).await?,
        Command::Jobs(command) => command.run(&Owner::open(&variables)?).await?,
        Command::Switch(command) => command.run(&Owner::open(&variables)?).await?,
        Command::Breaker(command) => command.run(&Owner::open(&variables)?).await?,
        Command::Metric(command) => command.run(&Owner::open(&variables)?).await?,
        Command::Vault(command) => command.run(&Owner::open(&variables)?).await?,
        Command::Pause(arguments) => hold::pause(arguments, &Owner::open(&variables)?).await?,
        Command::Resume(arguments) => hold::resume(arguments, &Owner::open(&variables)?).await?,
        Command::Throttle(arguments) => hold::throttle(arguments, &Owner::open(&variables)?).await?,
        Command::Usage(command) => command.run(&Owner::open(&variables)?).await?,
        Command::Holds(arguments) => hold::list(&arguments, &Owner::open(&variables)?).await?,
    }
    Ok(Exit::Finished)
}

/// The database as its owner, for one command.
struct Owner {
    pool: PgPool,
    clock: Clock,
    vault_keys: Option<VaultKeys>,
}

impl Owner {
    fn open(variables: &Variables) -> Result<Self, CommandError> {
        let config = OwnerConfig::read(variables)?;
        telemetry::start_log(&config.log)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let pool = ledger::pool("OFFSTAGE_DATABASE_URL", &config.database.url, Sessions::Plain, config.database.pool)?;
        Ok(Self { pool, clock: config.clock, vault_keys: config.vault_keys })
    }

    async fn tenant(&self, name: &str) -> Result<i32, CommandError> {
        shared::tenant::find_by_name(&self.pool, name).await?.ok_or_else(|| CommandError::NoTenant(name.to_owned()))
    }
}

/// Writes a line of what was asked for.
#[expect(clippy::print_stdout, reason = "the one place where a command answers")]
fn say(line: impl Display) {
    println!("{line}");
}

/// Writes a line about it.
#[expect(clippy::print_stderr, reason = "the one place where a command remarks")]
fn complain(line: &str) {
    eprintln!("{line}");
}
