//! The whole of it: services, programs, and what tests need at hand.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::broadcast;

use crate::directory::{Directory, make};
use crate::error::Result;
use crate::example::{self, Catalogue, Example};
use crate::faults::tcp::Proxy;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::process::{Event, Process};
use crate::programs::{Launch, Programs};
use crate::random;
use crate::secrets::Secrets;
use crate::services::ai::AiServer;
use crate::services::mail::MailServer;
use crate::services::postgres::{Durability, Postgres};
use crate::services::push::{self, PushService};
use crate::services::redis::Redis;
use crate::services::s3::S3;
use crate::services::vendors::VendorService;

/// For connections to be given back.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// A test's own connections to the database.
const POOL_SIZE: u32 = 5;

/// What a sandbox is to be like.
#[derive(Debug, Clone)]
pub struct Options {
    durability: Durability,
    directory: Option<PathBuf>,
    programs: Option<PathBuf>,
    migrated: bool,
}

impl Options {
    /// For one test: everything new, small and quick, in a directory that goes with it, the database migrated.
    #[must_use]
    pub fn test() -> Self {
        Self { durability: Durability::Fast, directory: None, programs: None, migrated: true }
    }

    /// For work that goes on tomorrow: data in `directory`, durable, found there again.
    #[must_use]
    pub fn lasting(directory: impl Into<PathBuf>) -> Self {
        Self { durability: Durability::Lasting, directory: Some(directory.into()), programs: None, migrated: true }
    }

    /// Where `api` and `worker` lie, when not beside the running program.
    #[must_use]
    pub fn programs(mut self, directory: impl Into<PathBuf>) -> Self {
        self.programs = Some(directory.into());
        self
    }

    /// Leaves the product's database empty; `api` need not be built.
    #[must_use]
    pub fn without_migrations(mut self) -> Self {
        self.migrated = false;
        self
    }
}

/// A running miniature world. Dropping it ends every process at once; [`Sandbox::stop`] does so in order.
#[derive(Debug)]
pub struct Sandbox {
    /// The private Postgres.
    pub postgres: Postgres,
    /// The private Redis.
    pub redis: Redis,
    /// The private S3.
    pub s3: S3,
    /// The mail server that shows what arrived.
    pub mail: Box<MailServer>,
    /// The push service, and the browsers behind it.
    pub push: Box<PushService>,
    /// The server of models.
    pub ai: Box<AiServer>,
    /// Other people's services that statistics come from.
    pub vendors: Box<VendorService>,
    /// By which mails and pushes are sent.
    sending: BTreeMap<String, String>,
    pool: PgPool,
    fleet: Fleet,
    // Dropped last, in this order: processes end before their directory goes.
    host: Host,
    directory: Directory,
}

impl Sandbox {
    /// Starts the three services and returns when they answer and the database is migrated.
    ///
    /// # Errors
    /// When a program is missing or does not come up; the message says what to do.
    pub async fn start(options: Options) -> Result<Self> {
        let programs = match options.programs {
            Some(directory) => Programs::at(directory),
            None => Programs::beside_us()?,
        };
        let cache = programs.cache();
        let directory = if let Some(path) = &options.directory {
            Directory::lasting(path)?
        } else {
            make(&cache)?;
            Directory::temporary(&cache)?
        };
        let host = Host::new()?;
        let secrets = Secrets::kept_in(&directory.path().join("secrets.json"))?;
        let durability = options.durability;
        let migrations = options.migrated.then_some(&programs);
        let ai_key = format!("sk-sandbox-{}", random::characters(32)?);
        let (postgres, redis, s3, mail, push, ai, vendors) = tokio::try_join!(
            Postgres::open(&directory, durability, &cache, &host, migrations),
            Redis::open(&directory, durability, &secrets.redis, &host),
            S3::open(&directory, &secrets.s3_key_id, &secrets.s3_secret, host.runtime()?.clone()),
            // Boxed, or every test that holds a sandbox would be a large future.
            Box::pin(MailServer::open(&directory, host.runtime()?.clone())),
            Box::pin(PushService::open(host.runtime()?.clone())),
            Box::pin(AiServer::open(ai_key, host.runtime()?.clone())),
            Box::pin(VendorService::open(host.runtime()?.clone())),
        )?;
        if options.migrated && durability == Durability::Lasting {
            programs.migrate(&host, &postgres.owner_url(), &directory.log("migrate")).await?;
            postgres.open_logins().await?;
        }
        let pool =
            PgPoolOptions::new().max_connections(POOL_SIZE).acquire_timeout(Duration::from_secs(10)).connect_lazy(&postgres.owner_url())?;
        let fleet = Fleet::new(programs, directory.logs());
        let mut sending = push::environment(&secrets.push_key);
        sending.insert("OFFSTAGE_RECIPIENT_KEY".to_owned(), secrets.recipient_key);
        sending.insert("OFFSTAGE_TOKEN_KEYS".to_owned(), secrets.token_key);
        sending.insert("OFFSTAGE_VAULT_KEYS".to_owned(), secrets.vault_key);
        Ok(Self {
            postgres,
            redis,
            s3,
            mail: Box::new(mail),
            push: Box::new(push),
            ai: Box::new(ai),
            vendors: Box::new(vendors),
            sending,
            pool,
            fleet,
            host,
            directory,
        })
    }

    /// One `api serve`, ready; restarted when it dies.
    ///
    /// # Errors
    /// When it does not get ready within a minute; with its log's end.
    pub async fn api(&self) -> Result<Process> {
        self.start_api(Launch::new()).await
    }

    /// One `worker`, ready; restarted when it dies.
    ///
    /// # Errors
    /// As [`Sandbox::api`].
    pub async fn worker(&self) -> Result<Process> {
        self.start_worker(Launch::new()).await
    }

    /// One more `api serve`, as `launch` says. They are named `api-1`, `api-2` …
    ///
    /// # Errors
    /// As [`Sandbox::api`].
    pub async fn start_api(&self, launch: Launch) -> Result<Process> {
        self.fleet.start_api(&self.host, self.env(), launch).await
    }

    /// One more `worker`, as `launch` says. They are named `worker-1`, `worker-2` …
    ///
    /// # Errors
    /// As [`Sandbox::api`].
    pub async fn start_worker(&self, launch: Launch) -> Result<Process> {
        self.fleet.start_worker(&self.host, self.env(), launch).await
    }

    /// A proxy of one's own before a server of this machine, for programs that are told to go through it
    /// ([`Redis::environment_at`], [`Postgres::environment_at`]).
    ///
    /// # Errors
    /// When no port is free.
    pub fn proxy(&self, server: SocketAddr) -> Result<Proxy> {
        Proxy::start(server, self.host.runtime()?)
    }

    /// Every `api` and `worker` started so far.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        self.fleet.processes()
    }

    /// `api ARGUMENTS`, as an operator would run it: with the owner's database.
    ///
    /// # Errors
    /// When it ends with another code than 0; with what it printed.
    pub async fn run_api(&self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Output> {
        let arguments = arguments.into_iter().map(Into::into).collect();
        self.fleet.run_api(&self.host, self.env(), arguments).await
    }

    /// As [`Sandbox::run_api`], with these settings in the place of the sandbox' own.
    ///
    /// # Errors
    /// When it ends with another code than 0; with what it printed.
    pub async fn run_api_with<'a>(
        &self,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Output> {
        let arguments = arguments.into_iter().map(Into::into).collect();
        let mut environment = self.env();
        environment.extend(settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        self.fleet.run_api(&self.host, environment, arguments).await
    }

    /// `api tenant apply MANIFEST`.
    ///
    /// # Errors
    /// When the manifest is refused; with what `api` said.
    pub async fn apply_tenant(&self, manifest: &Path) -> Result<()> {
        self.run_api(["tenant".into(), "apply".into(), manifest.as_os_str().to_owned()]).await.map(drop)
    }

    /// `api key create`: a key of the tenant with these scopes (comma separated; `*` is all).
    ///
    /// # Errors
    /// When there is no such tenant or scope; with what `api` said.
    pub async fn create_key(&self, tenant: &str, name: &str, scopes: &str) -> Result<String> {
        self.fleet.create_key(&self.host, self.env(), tenant, name, scopes).await
    }

    /// Makes promptlockr's tables and fills them with `rows` prompts and all that goes with them (`examples/promptlockr`).
    /// False when they were filled before.
    ///
    /// # Errors
    /// When the SQL is refused; with what `psql` said.
    pub async fn load_promptlockr(&self, rows: u64) -> Result<bool> {
        self.example().load(rows).await
    }

    /// Applies promptlockr's manifest and makes a key with every scope.
    ///
    /// # Errors
    /// When the manifest is refused; with what `api` said.
    pub async fn promptlockr_key(&self) -> Result<String> {
        self.apply_tenant(&example::manifest()).await?;
        self.create_key("promptlockr", "test", "*").await
    }

    /// Fills promptlockr's table of the Debian package catalogue, some 60,000 rows. Returns what was loaded, nothing when
    /// it had been before.
    ///
    /// # Errors
    /// When the table can't be made or filled.
    pub async fn load_packages(&self) -> Result<Option<Catalogue>> {
        self.example().load_packages().await
    }

    fn example(&self) -> Example<'_> {
        Example { host: &self.host, psql: self.postgres.psql(), url: self.postgres.product_url(), log: self.directory.log("example") }
    }

    /// The settings that `api` and `worker` are started with, all of them.
    #[must_use]
    pub fn env(&self) -> BTreeMap<String, String> {
        let mut environment = self.postgres.environment();
        environment.extend(self.redis.environment());
        environment.extend(self.s3.environment());
        environment.extend(self.mail.environment());
        environment.extend(self.ai.environment());
        environment.extend(self.vendors.environment());
        environment.extend(self.sending.clone());
        environment.insert("OFFSTAGE_PROBE".to_owned(), "on".to_owned());
        environment.insert("OFFSTAGE_PROBE_CALLBACKS".to_owned(), "loopback".to_owned());
        environment.insert("OFFSTAGE_OUTBOUND_ALLOW".to_owned(), "loopback".to_owned());
        environment.insert("OFFSTAGE_LOG_FORMAT".to_owned(), "text".to_owned());
        environment
    }

    /// The product's database, as its owner; up to five connections.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Where data and logs lie.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the logs lie, one file a process.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory.logs()
    }

    /// Deaths and restarts from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.host.events()
    }

    /// Ends everything in order: programs with their grace, then the services.
    ///
    /// # Errors
    /// Never as things are; what does not end in time is killed.
    pub async fn stop(self) -> Result<()> {
        // A connection that a test still holds is no reason to wait: the server ends it.
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.pool.close()).await;
        self.fleet.stop().await;
        let (postgres, redis) = tokio::join!(self.postgres.stop(), self.redis.stop());
        self.s3.stop();
        self.mail.stop();
        self.push.stop();
        self.ai.stop();
        self.vendors.stop();
        postgres.and(redis).map(drop)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.host.close();
    }
}
