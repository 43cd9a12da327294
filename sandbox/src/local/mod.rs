//! `sandbox run`: a whole installation in one directory, for somebody who wants to see it work.
//!
//! Services that the environment names are used as they are (`OFFSTAGE_DATABASE_URL`, `OFFSTAGE_REDIS_URL`,
//! `OFFSTAGE_S3_BUCKET`, each for itself); private ones stand in for the rest, with their data in the directory.

mod control;
mod demo;
mod given;
mod services;
mod terminal;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::directory::Directory;
use crate::error::{Doing, Error, Result};
use crate::example::{self, Catalogue, Example, Origin};
use crate::fleet::{Environment, Fleet};
use crate::host::Host;
use crate::process::Process;
use crate::programs::{Launch, Programs};
use crate::secrets::Secrets;
use crate::services::postgres::Postgres;
use crate::services::redis::Redis;
use crate::web::{Place, Web};
use crate::{Options, Sandbox};
use demo::Demo;
use given::Given;
use services::Services;
use terminal::line;
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
    /// The port that the example's page takes when it is free.
    pub web_port: u16,
    /// How many workers run.
    pub workers: u32,
}

/// A running local installation. Dropping it ends every process at once; [`Local::stop`] does so in order.
#[derive(Debug)]
pub struct Local {
    services: Services,
    fleet: Fleet,
    demo: Demo,
    /// The example's page.
    web: Web,
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
        terminal::begin();
        // What is not built is better known before anything runs.
        let programs = Programs::beside_us()?;
        programs.api()?;
        programs.worker()?;

        let given = Given::from_environment(&demo::path(directory.path()));
        let secrets = Secrets::kept_in(&directory.path().join("secrets.json"))?;
        let host = Host::new()?;
        let services = Services::start(&given, &directory, &programs.cache(), &secrets, &host).await?;
        terminal::services(directory.path(), &services);

        let mut environment = given.environment;
        environment.extend(defaults());
        environment.extend(services.environment());
        let log = directory.log("migrate");
        let example_url = services.migrate(&programs, &secrets, &mut environment, &host, &log).await?;
        if let Some(url) = example_url {
            let example = Example { host: &host, psql: services.psql(), url, log: directory.log("example") };
            load(&example, settings.rows).await?;
        }

        let fleet = Fleet::new(programs, directory.logs());
        let place = Place::prefer(settings.web_port)?;
        for manifest in manifests_for(&place, &services, &directory)? {
            let apply = vec!["tenant".into(), "apply".into(), manifest.into()];
            fleet.run_api(&host, environment.clone(), apply).await?;
        }
        let launch = Launch::new().prefer_port(settings.port);
        let api = fleet.start_api(&host, environment.clone(), launch).await?;
        let address = api.address().ok_or_else(|| Error::Invalid("the API has no address".to_owned()))?;
        let mut for_workers = environment.clone();
        // So that mails and pushes lead to files.
        let public = || std::env::var("OFFSTAGE_PUBLIC_URL").unwrap_or_else(|_| format!("http://{address}"));
        for_workers.entry("OFFSTAGE_PUBLIC_URL".to_owned()).or_insert_with(public);
        for _ in 0..settings.workers {
            fleet.start_worker(&host, for_workers.clone(), Launch::new()).await?;
        }
        let demo = Demo::open(&directory, &api, &fleet, &host, environment).await?;
        let web = place.serve(address, demo.key.clone()).await?;
        demo.add("OFFSTAGE_WEB_URL", &web.url())?;
        Ok(Self { services, fleet, demo, web, host, directory })
    }

    /// Ends everything in order: programs with their grace, then the services.
    pub async fn stop(self) {
        self.fleet.stop().await;
        self.services.stop().await;
    }

    /// Every supervised process, services first.
    fn processes(&self) -> Vec<Process> {
        let postgres = self.services.postgres.as_ref().map(Postgres::process);
        let redis = self.services.redis.as_ref().map(Redis::process);
        [postgres, redis].into_iter().flatten().cloned().chain(self.fleet.processes()).collect()
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
        let value = std::env::var(name).unwrap_or_else(|_| value.to_owned());
        (name.to_owned(), value)
    };
    Environment::from([
        choose("OFFSTAGE_PROBE", "on"),
        choose("OFFSTAGE_PROBE_CALLBACKS", "loopback"),
        choose("OFFSTAGE_OUTBOUND_ALLOW", "loopback"),
        choose("OFFSTAGE_LOG_FORMAT", "text"),
    ])
}

/// The examples' manifests, with what is this run's: models whose keys were not given are the sandbox', and promptlockr's page has its origins.
fn manifests_for(place: &Place, services: &Services, directory: &Directory) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for product in example::PRODUCTS {
        let (from, to) = (example::manifest_of(product), directory.path().join(format!("{product}.toml")));
        let manifest = std::fs::read_to_string(&from).doing(|| format!("read {}", from.display()))?;
        let mut manifest = services.ai.listed_in(&manifest, |variable| services.answers_for(variable));
        if product == example::PROMPTLOCKR {
            manifest = place.listed_in(&manifest);
        }
        std::fs::write(&to, manifest).doing(|| format!("write {}", to.display()))?;
        written.push(to);
    }
    Ok(written)
}

async fn load(example: &Example<'_>, rows: u64) -> Result<()> {
    let start = Instant::now();
    if example.load(rows).await? {
        let seconds = start.elapsed().as_secs_f64();
        line("example", &format!("promptlockr with {rows} prompts, made in {seconds:.1} s"));
    }
    match example.load_packages().await? {
        Some(Catalogue { origin: Origin::Apt, rows }) => {
            line("example", &format!("{rows} packages from this machine's apt-cache"));
        }
        Some(Catalogue { origin: Origin::Generated, rows }) => {
            line("example", &format!("{rows} generated packages: apt-cache has none here"));
        }
        None => {}
    }
    Ok(())
}

/// Starts the three services alone, with data that stays in `directory`.
///
/// # Errors
/// When something does not come up; the message says what to do.
pub async fn services(directory: &Path) -> Result<Sandbox> {
    Sandbox::start(Options::lasting(directory).without_migrations()).await.map_err(demo::who_runs)
}
