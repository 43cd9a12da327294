//! A private Postgres: a cluster of its own on 127.0.0.1, with the product's database and the example's.
//!
//! The accounts are those of a real installation, so that what a role may not do fails here too: `offstage` owns the
//! database and is no superuser, `offstage_api` and `offstage_engine` come from the migrations, and `offstage_source` can
//! only read the example's database, `promptlockr`.

mod account;
mod cluster;
mod installation;
mod template;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, postgres::PgConnectOptions};

use cluster::Cluster;
pub use cluster::Durability;
pub(crate) use installation::Installation;

use crate::directory::Directory;
use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::process::{Exit, Process};
use crate::programs::Programs;
use crate::secrets::Secrets;

/// The product's database.
pub(crate) const DATABASE: &str = "offstage";
/// The example product's database, and the role that owns it.
pub(crate) const PRODUCT: &str = "promptlockr";
/// Recovery after a crash is part of a start.
const START_WITHIN: Duration = Duration::from_mins(1);
/// A statement of the sandbox's own.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The Postgres of one sandbox.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    data: PathBuf,
    secrets: Secrets,
    installation: Installation,
}

impl Postgres {
    /// One with databases and roles in place. Fast ones come from a template with the migrations applied (when `programs`
    /// are given); lasting ones are found in their directory again, or made, and are migrated by the caller.
    pub(crate) async fn open(
        directory: &Directory,
        durability: Durability,
        cache: &Path,
        host: &Host,
        programs: Option<&Programs>,
    ) -> Result<Self> {
        let data = directory.path().join("postgres");
        let log = directory.log("postgres");
        match durability {
            Durability::Fast => {
                let secrets = template::copy_to(&data, cache, host, programs).await?;
                let postgres = Cluster::find(&data, Some(&data))?.serve(data, secrets, durability, host, &log)?;
                postgres.start().await?;
                Ok(postgres)
            }
            Durability::Lasting => {
                let secrets = Secrets::kept_in(&directory.path().join("secrets.json"))?;
                let cluster = Cluster::find(directory.path(), Some(&data))?;
                if !data.exists() {
                    cluster.initialise(&data, &secrets, durability, host, &directory.log("initdb")).await?;
                }
                cluster::clear_leftovers(&data).await?;
                let postgres = cluster.serve(data, secrets, durability, host, &log)?;
                postgres.process.set_restart(true).await?;
                postgres.start().await?;
                postgres.provision().await?;
                Ok(postgres)
            }
        }
    }

    fn new(process: Process, data: PathBuf, secrets: Secrets, installation: Installation) -> Self {
        Self { process, data, secrets, installation }
    }

    /// Starts the server and returns when it takes connections; a killed one recovers first.
    ///
    /// # Errors
    /// When it ends, or is not ready within a minute; with its log's end.
    pub async fn start(&self) -> Result<()> {
        // Backends of a killed server go a moment after it, and until then it refuses to start.
        let deadline = tokio::time::Instant::now() + START_WITHIN;
        loop {
            if self.process.pid().is_none() {
                cluster::clear_leftovers(&self.data).await?;
            }
            self.process.start().await?;
            let ready = self.process.wait_until(START_WITHIN, async || match self.connect(&self.superuser_url()).await {
                Ok(connection) => connection.close().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            });
            match ready.await {
                Ok(()) => return Ok(()),
                Err(error) if self.process.pid().is_some() || tokio::time::Instant::now() > deadline => {
                    return Err(error);
                }
                Err(error) if !mentions(&self.process.log(), &["is still in use", "lock file \"postmaster.pid\""]) => {
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Ends sessions, writes what is to be written, ends the server.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn stop(&self) -> Result<Option<Exit>> {
        self.process.stop().await
    }

    /// SIGKILL to the server and all its sessions. What was committed is there after [`Postgres::start`].
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn kill9(&self) -> Result<Option<Exit>> {
        self.process.kill9().await
    }

    /// Shut down in immediate mode (SIGQUIT: no checkpoint, sessions are thrown out in the middle of their statements) and started
    /// again at once, recovering from its log.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn restart_immediately(&self) -> Result<()> {
        self.process.quit().await?;
        self.start().await
    }

    /// The server and all its sessions stand still; connections stay open and new ones hang.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn pause(&self) -> Result<bool> {
        self.process.pause().await
    }

    /// Goes on after [`Postgres::pause`].
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn resume(&self) -> Result<bool> {
        self.process.resume().await
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Never as things are.
    pub fn address(&self) -> Result<SocketAddr> {
        self.process.address().ok_or_else(|| Error::Invalid("the sandbox's Postgres has no address".to_owned()))
    }

    /// The settings by which `api` and `worker` find the product's database at another address, as a proxy's.
    #[must_use]
    pub fn environment_at(&self, address: SocketAddr) -> BTreeMap<String, String> {
        let real = self.process.address().map(|address| address.to_string()).unwrap_or_default();
        let mut environment = self.environment();
        environment.retain(|name, _| ["OFFSTAGE_API_DATABASE_URL", "OFFSTAGE_ENGINE_DATABASE_URL"].contains(&name.as_str()));
        for url in environment.values_mut() {
            *url = url.replace(&format!("@{real}/"), &format!("@{address}/"));
        }
        environment
    }

    /// The server's process, for its log and its exits.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The version that runs, as in `15.13`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.installation.version
    }

    /// The client program of the same installation.
    #[must_use]
    pub fn psql(&self) -> PathBuf {
        self.installation.psql()
    }

    /// As `offstage`, the owner, on the product's database (`OFFSTAGE_DATABASE_URL`).
    #[must_use]
    pub fn owner_url(&self) -> String {
        self.url("offstage", &self.secrets.owner, DATABASE)
    }

    /// As `offstage_api` (`OFFSTAGE_API_DATABASE_URL`).
    #[must_use]
    pub fn api_url(&self) -> String {
        self.url("offstage_api", &self.secrets.api, DATABASE)
    }

    /// As `offstage_engine` (`OFFSTAGE_ENGINE_DATABASE_URL`).
    #[must_use]
    pub fn engine_url(&self) -> String {
        self.url("offstage_engine", &self.secrets.engine, DATABASE)
    }

    /// As `offstage_source`, who can read the example's database and write nothing.
    #[must_use]
    pub fn source_url(&self) -> String {
        self.url("offstage_source", &self.secrets.source, PRODUCT)
    }

    /// As `promptlockr`, who owns the example's database.
    #[must_use]
    pub fn product_url(&self) -> String {
        self.url(PRODUCT, &self.secrets.product, PRODUCT)
    }

    /// As the superuser, on `postgres`.
    #[must_use]
    pub fn superuser_url(&self) -> String {
        self.url("postgres", &self.secrets.superuser, "postgres")
    }

    /// The settings by which `api` and `worker` find it.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("OFFSTAGE_DATABASE_URL".to_owned(), self.owner_url()),
            ("OFFSTAGE_API_DATABASE_URL".to_owned(), self.api_url()),
            ("OFFSTAGE_ENGINE_DATABASE_URL".to_owned(), self.engine_url()),
            ("OFFSTAGE_SOURCE_PROMPTLOCKR_URL".to_owned(), self.source_url()),
        ])
    }

    fn url(&self, user: &str, password: &str, database: &str) -> String {
        let address = self.process.address().map(|address| address.to_string()).unwrap_or_default();
        format!("postgres://{user}:{password}@{address}/{database}")
    }

    async fn connect(&self, url: &str) -> sqlx::Result<PgConnection> {
        connect(url).await
    }

    /// Makes roles and databases that are missing and sets their passwords. Doing it again changes nothing.
    pub(crate) async fn provision(&self) -> Result<()> {
        let mut connection = self.superuser().await?;
        let secrets = &self.secrets;
        // CREATEROLE and nothing more: migrations that need a superuser must fail here, not at a customer's.
        ensure_role(&mut connection, "offstage", "LOGIN CREATEROLE", &secrets.owner).await?;
        ensure_role(&mut connection, PRODUCT, "LOGIN", &secrets.product).await?;
        ensure_role(&mut connection, "offstage_source", "LOGIN", &secrets.source).await?;
        ensure_database(&mut connection, DATABASE, Some("offstage")).await?;
        ensure_database(&mut connection, PRODUCT, Some(PRODUCT)).await?;
        close_to_writers(&mut connection).await?;
        let mut product =
            self.connect(&self.url("postgres", &secrets.superuser, PRODUCT)).await.doing(|| format!("connect to {PRODUCT}"))?;
        // Large objects belong to nobody's table; only a superuser may close them.
        let large = "REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC";
        execute(&mut product, large.to_owned(), || "close large objects".to_owned()).await?;
        product.close().await.doing(|| "close a connection".to_owned())?;
        connection.close().await.doing(|| "close a connection".to_owned())
    }

    /// Lets the roles that the migrations made log in.
    pub(crate) async fn open_logins(&self) -> Result<()> {
        let mut connection = self.superuser().await?;
        open_logins(&mut connection, &self.secrets).await?;
        connection.close().await.doing(|| "close a connection".to_owned())
    }

    async fn superuser(&self) -> Result<PgConnection> {
        self.connect(&self.superuser_url()).await.doing(|| "connect to the sandbox's Postgres".to_owned())
    }
}

/// Connects within a few seconds or fails. Statements are not logged: the sandbox sends passwords.
pub(crate) async fn connect(url: &str) -> sqlx::Result<PgConnection> {
    let options: PgConnectOptions = url.parse()?;
    let options = options.disable_statement_logging();
    tokio::time::timeout(CONNECT_WITHIN, PgConnection::connect_with(&options)).await.map_err(|_| sqlx::Error::PoolTimedOut)?
}

/// Gives `offstage_api` and `offstage_engine` their passwords.
pub(crate) async fn open_logins(connection: &mut PgConnection, secrets: &Secrets) -> Result<()> {
    for (name, password) in [("offstage_api", &secrets.api), ("offstage_engine", &secrets.engine)] {
        let statement = format!("ALTER ROLE {name} LOGIN PASSWORD '{password}'");
        execute(connection, statement, || format!("let the role {name} log in")).await?;
    }
    Ok(())
}

/// Makes a role or gives it these attributes and this password.
pub(crate) async fn ensure_role(connection: &mut PgConnection, name: &str, attributes: &str, password: &str) -> Result<()> {
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
        .bind(name)
        .fetch_one(&mut *connection)
        .await
        .doing(|| "look for a role".to_owned())?;
    let verb = if exists { "ALTER" } else { "CREATE" };
    // Names are constants of ours, passwords letters and digits: nothing to escape.
    execute(connection, format!("{verb} ROLE {name} {attributes} PASSWORD '{password}'"), || format!("make the role {name}")).await
}

/// Makes a database unless there is one, and says whether it did. Without an owner it belongs to who makes it.
pub(crate) async fn ensure_database(connection: &mut PgConnection, name: &str, owner: Option<&str>) -> Result<bool> {
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(&mut *connection)
        .await
        .doing(|| "look for a database".to_owned())?;
    if exists {
        return Ok(false);
    }
    let owner = owner.map(|owner| format!(" OWNER {owner}")).unwrap_or_default();
    execute(connection, format!("CREATE DATABASE {name}{owner}"), || format!("make the database {name}")).await?;
    Ok(true)
}

/// `offstage_source` reads: it can't make so much as a temporary table in the example's database.
pub(crate) async fn close_to_writers(connection: &mut PgConnection) -> Result<()> {
    execute(connection, format!("REVOKE TEMPORARY ON DATABASE {PRODUCT} FROM PUBLIC"), || format!("close the database {PRODUCT}")).await?;
    execute(connection, "ALTER ROLE offstage_source SET default_transaction_read_only = on".to_owned(), || {
        "make offstage_source a reader".to_owned()
    })
    .await
}

async fn execute(connection: &mut PgConnection, statement: String, action: impl FnOnce() -> String) -> Result<()> {
    connection.execute(AssertSqlSafe(statement)).await.map(|_| ()).doing(action)
}

/// Whether the last lines of a log hold one of these.
fn mentions(log: &str, words: &[&str]) -> bool {
    log.lines().rev().take(10).any(|line| words.iter().any(|word| line.contains(word)))
}

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        Self::Sql { action: "ask the sandbox's Postgres".to_owned(), source }
    }
}
