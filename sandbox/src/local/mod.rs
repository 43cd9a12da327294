//! `sandbox run`: a whole installation in one directory, for somebody who wants to see it work.
//!
//! Services that the environment names are used as they are (`OFFSTAGE_DATABASE_URL`, `OFFSTAGE_REDIS_URL`,
//! `OFFSTAGE_S3_BUCKET`, each for itself); private ones stand in for the rest, with their data in the directory.

mod control;
mod demo;
mod given;
mod terminal;

use std::path::PathBuf;
use std::time::Duration;

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::example::{Catalogue, Example, Origin};
use crate::fleet::{Environment, Fleet};
use crate::host::Host;
use crate::process::Process;
use crate::programs::{Launch, Programs};
use crate::secrets::Secrets;
use crate::services::postgres::{Durability, Postgres};
use crate::services::redis::Redis;
use crate::services::s3::S3;
use demo::Demo;
use given::Given;
use terminal::say;
pub use terminal::watch;

/// How to run it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where data, logs and passwords lie.
    pub directory: PathBuf,
    /// How many prompts the example's database is made with, when it is new.
    pub rows: u64,
    /// The port that the API takes when it is free.
    pub port: u16,
    /// How many workers run.
    pub workers: u32,
}

/// A running local installation. Dropping it ends every process at once; [`Local::stop`] does so in order.
#[derive(Debug)]
pub struct Local {
    postgres: Option<Postgres>,
    redis: Option<Redis>,
    s3: Option<S3>,
    fleet: Fleet,
    demo: Demo,
    host: Host,
    directory: Directory,
}

impl Local {
    /// Starts all of it and returns when the API and the workers are ready. Says what it does on standard output.
    ///
    /// # Errors
    /// When something does not come up; the message says what to do.
    pub async fn start(settings: &Settings) -> Result<Self> {
        let directory = Directory::lasting(&settings.directory).map_err(demo::who_runs)?;
        directory.note_owner()?;
        let programs = Programs::beside_us()?;
        // What is not built is better known before anything runs.
        (programs.api()?, programs.worker()?);
        let given = Given::from_environment(&demo::path(directory.path()));
        let secrets = Secrets::kept_in(&directory.path().join("secrets.json"))?;
        let host = Host::new()?;

        let (postgres, redis, s3) = tokio::try_join!(
            async {
                match given.database_url() {
                    Some(_) => Ok(None),
                    None => Postgres::open(
                        &directory,
                        Durability::Lasting,
                        &programs.cache(),
                        &host,
                        None,
                    )
                    .await
                    .map(Some),
                }
            },
            async {
                match given.redis_url() {
                    Some(_) => Ok(None),
                    None => Redis::open(&directory, Durability::Lasting, &secrets.redis, &host)
                        .await
                        .map(Some),
                }
            },
            async {
                match given.has_s3() {
                    true => Ok(None),
                    false => S3::open(
                        &directory,
                        &secrets.s3_key_id,
                        &secrets.s3_secret,
                        host.runtime()?.clone(),
                    )
                    .await
                    .map(Some),
                }
            },
        )?;
        terminal::services(
            directory.path(),
            postgres.as_ref(),
            redis.as_ref(),
            s3.as_ref(),
        );

        let mut environment = given.environment.clone();
        environment.extend(defaults());
        for part in [
            postgres.as_ref().map(Postgres::environment),
            redis.as_ref().map(Redis::environment),
            s3.as_ref().map(S3::environment),
        ] {
            environment.extend(part.unwrap_or_default());
        }

        let owner_url = environment
            .get("OFFSTAGE_DATABASE_URL")
            .cloned()
            .unwrap_or_default();
        programs
            .migrate(&host, &owner_url, &directory.log("migrate"))
            .await?;
        let example_url = match &postgres {
            Some(postgres) => {
                postgres.open_logins().await?;
                Some(postgres.product_url())
            }
            None => given::provision(&owner_url, &secrets, &mut environment).await?,
        };
        if let Some(url) = example_url {
            let psql = postgres
                .as_ref()
                .map_or_else(|| PathBuf::from("psql"), Postgres::psql);
            load_example(
                &Example {
                    host: &host,
                    psql,
                    url,
                    log: directory.log("example"),
                },
                settings.rows,
            )
            .await?;
        }

        let fleet = Fleet::new(programs, directory.logs());
        fleet
            .run_api(
                &host,
                environment.clone(),
                vec![
                    "tenant".into(),
                    "apply".into(),
                    crate::example::manifest().into(),
                ],
            )
            .await?;
        let api = fleet
            .start_api(
                &host,
                environment.clone(),
                Launch::new().prefer_port(settings.port),
            )
            .await?;
        for _ in 0..settings.workers {
            fleet
                .start_worker(&host, environment.clone(), Launch::new())
                .await?;
        }
        let demo = Demo::open(&directory, &api, &fleet, &host, environment).await?;
        Ok(Self {
            postgres,
            redis,
            s3,
            fleet,
            demo,
            host,
            directory,
        })
    }

    /// Ends everything in order: programs with their grace, then the services.
    pub async fn stop(self) {
        self.fleet.stop().await;
        if let Some(s3) = &self.s3 {
            s3.stop();
        }
        // What could go wrong is that the sandbox is already being taken down, which is what is wanted.
        if let Some(redis) = &self.redis {
            let _ = redis.stop().await;
        }
        if let Some(postgres) = &self.postgres {
            let _ = postgres.stop().await;
        }
    }

    /// Every supervised process, services first.
    fn processes(&self) -> Vec<Process> {
        let services = [
            self.postgres.as_ref().map(Postgres::process),
            self.redis.as_ref().map(Redis::process),
        ];
        services
            .into_iter()
            .flatten()
            .cloned()
            .chain(self.fleet.processes())
            .collect()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.host.close();
    }
}

/// What a demonstration has that an installation has not, unless the caller says otherwise.
fn defaults() -> Environment {
    let choose = |name: &str, value: &str| {
        (
            name.to_owned(),
            std::env::var(name).unwrap_or_else(|_| value.to_owned()),
        )
    };
    Environment::from([
        choose("OFFSTAGE_PROBE", "on"),
        choose("OFFSTAGE_PROBE_CALLBACKS", "loopback"),
        choose("OFFSTAGE_LOG_FORMAT", "text"),
    ])
}

async fn load_example(example: &Example<'_>, rows: u64) -> Result<()> {
    let start = std::time::Instant::now();
    let loaded = example.load(rows).await?;
    let packages = example.load_packages().await?;
    let took = |since: Duration| format!("{:.1} s", since.as_secs_f64());
    if loaded {
        say!(
            "  example    promptlockr with {rows} prompts ({})",
            took(start.elapsed())
        );
    }
    match packages {
        Some(Catalogue {
            origin: Origin::Apt,
            rows,
        }) => say!("  example    {rows} packages from this machine's apt-cache"),
        Some(Catalogue {
            origin: Origin::Generated,
            rows,
        }) => say!("  example    {rows} generated packages: apt-cache has none here"),
        None => {}
    }
    Ok(())
}

/// Starts the three services alone and returns them with the settings by which programs find them.
///
/// # Errors
/// When something does not come up; the message says what to do.
pub async fn services(directory: &std::path::Path) -> Result<crate::Sandbox> {
    let options = crate::Options::lasting(directory).without_migrations();
    crate::Sandbox::start(options)
        .await
        .map_err(|error| match error {
            busy @ Error::Busy { .. } => demo::who_runs(busy),
            other => other,
        })
}
