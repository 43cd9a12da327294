//! Ours as a contestant: real `api` and `worker` processes on the sandbox's Redis and Postgres, set as they come.

mod drain;
mod enqueue;
mod fan_out;
mod growth;
mod idle;
mod pickup;
mod polling;
mod sending;
mod steady;
mod streams;

pub use growth::Lookup;

use std::{net::SocketAddr, path::Path, str::FromStr, sync::OnceLock, time::Duration};

use redis::{AsyncConnectionConfig, RedisError};
use sandbox::{Launch, Options, Process, Sandbox};
use secrecy::SecretString;
use shared::{
    clock::Clock,
    queue::{Commands, Queue, QueueError, Redis},
};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
    types::Uuid,
};

use crate::{
    error::{Doing, Error, Result},
    measure::Watched,
};

/// The tenant that everything is done for.
const TENANT: &str = "bench";
/// Longer than any run.
const WITHIN: Duration = Duration::from_secs(600);

/// The peers' database on the one Postgres.
const PEERS_DATABASE: &str = "peers";

/// Redis and Postgres, which everybody uses.
#[derive(Debug, Clone)]
pub struct Servers {
    /// Redis' address, with its password.
    pub redis: String,
    /// The address of a database for peers, with the superuser's password.
    pub postgres: String,
    redis_pid: u32,
    postgres_pid: u32,
}

impl Servers {
    /// Their processes.
    pub fn watched(&self) -> [Watched; 2] {
        [Watched::family("postgres", self.postgres_pid), Watched::family("redis", self.redis_pid)]
    }
}

/// An installation of ours, and the services that peers use too.
#[derive(Debug)]
pub struct Offstage {
    world: Sandbox,
    clock: Clock,
    redis: Redis,
    superuser: PgPool,
    tenant: i32,
    key: String,
    /// Jobs up to this one were there before the benchmark's own and stay: what growth loaded.
    floor: OnceLock<Uuid>,
}

impl Offstage {
    /// Starts Redis and Postgres, durable both, in `directory`, migrates, and makes a tenant with a key.
    pub async fn start(directory: &Path) -> Result<Self> {
        let world = Sandbox::start(Options::lasting(directory)).await?;
        let manifest = directory.join("tenant.toml");
        std::fs::write(&manifest, sending::manifest()).doing("write the benchmark's manifest")?;
        world.apply_tenant(&manifest).await?;
        let key = world.create_key(TENANT, "bench", "jobs:read,jobs:write,pushes:write,notifications:write").await?;

        let database = PgConnectOptions::from_str(&world.postgres.owner_url())?;
        let superuser = PgConnectOptions::from_str(&world.postgres.superuser_url())?;
        let superuser = superuser.database(database.get_database().unwrap_or_default());
        let superuser = PgPoolOptions::new().max_connections(2).connect_lazy_with(superuser);
        let tenant = sqlx::query_scalar("SELECT id FROM tenant WHERE name = $1").bind(TENANT).fetch_one(&superuser).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {PEERS_DATABASE}"))).execute(&superuser).await?;
        let redis = Redis::new(&SecretString::from(world.redis.url()), "offstage")?;
        Ok(Self { world, clock: Clock::system(), redis, superuser, tenant, key, floor: OnceLock::new() })
    }

    /// What everybody uses.
    pub fn servers(&self) -> Servers {
        let url = self.world.postgres.superuser_url();
        // What stands after the last slash is the database.
        let address = url.rsplit_once('/').map_or(url.as_str(), |(address, _)| address);
        Servers {
            redis: self.world.redis.url().to_owned(),
            postgres: format!("{address}/{PEERS_DATABASE}"),
            redis_pid: self.world.redis.process().pid().unwrap_or_default(),
            postgres_pid: self.world.postgres.process().pid().unwrap_or_default(),
        }
    }

    /// What the servers say they are.
    pub async fn versions(&self) -> Result<String> {
        let info: String = self.world.redis.command(redis::cmd("INFO").arg("server")).await?;
        let redis = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("?");
        let setting = |name: &'static str| async move {
            sqlx::query_scalar::<_, String>("SELECT current_setting($1)").bind(name).fetch_one(&self.superuser).await
        };
        let (fsync, commit) = (setting("fsync").await?, setting("synchronous_commit").await?);
        let append: Vec<String> = self.world.redis.command(redis::cmd("CONFIG").arg("GET").arg("appendfsync")).await?;
        let on: Vec<String> = self.world.redis.command(redis::cmd("CONFIG").arg("GET").arg("appendonly")).await?;
        Ok(format!(
            "Redis {redis} ({}), Postgres {} ({})",
            [on.join(" "), append.join(" ")].join(", "),
            self.world.postgres.version(),
            format_args!("fsync {fsync}, synchronous_commit {commit}"),
        ))
    }

    /// Empties the queues and the ledger and writes out what is dirty, so that every run finds the same. What growth loaded stays.
    pub async fn clear(&self) -> Result<()> {
        self.empty_redis().await?;
        if let Some(floor) = self.floor.get() {
            self.clear_above(*floor).await?;
        } else {
            let tables: Vec<String> = sqlx::query_scalar(
                "SELECT quote_ident(tablename) FROM pg_tables
                 WHERE schemaname = 'public' AND tablename NOT IN ('tenant', 'api_key', '_sqlx_migrations')",
            )
            .fetch_all(&self.superuser)
            .await?;
            sqlx::query(AssertSqlSafe(format!("TRUNCATE {}", tables.join(", ")))).execute(&self.superuser).await?;
        }
        self.clear_peers().await?;
        sqlx::query("CHECKPOINT").execute(&self.superuser).await?;
        Ok(())
    }

    async fn clear_peers(&self) -> Result<()> {
        let mut connection = PgConnection::connect(&self.servers().postgres).await?;
        sqlx::query("DROP SCHEMA IF EXISTS pgboss CASCADE").execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    /// Freeing a peer's half a million keys takes its time, so this waits longer than the sandbox does. The append-only file is
    /// written anew, or its growth would set off a rewrite in the middle of somebody's run.
    async fn empty_redis(&self) -> Result<()> {
        let patient = AsyncConnectionConfig::new().set_response_timeout(Some(WITHIN));
        let client = redis::Client::open(self.world.redis.url()).map_err(QueueError::Address)?;
        let during = |action: &'static str| move |source: RedisError| QueueError::Redis { action, source };
        let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await.map_err(during("connect"))?;
        redis::cmd("FLUSHALL").arg("SYNC").query_async::<()>(&mut connection).await.map_err(during("empty it"))?;
        redis::cmd("BGREWRITEAOF").query_async::<String>(&mut connection).await.map_err(during("rewrite its file"))?;
        loop {
            let info: String =
                redis::cmd("INFO").arg("persistence").query_async(&mut connection).await.map_err(during("look at its file"))?;
            if info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn api(&self) -> Result<Process> {
        Ok(self.world.start_api(Launch::new().once().env("OFFSTAGE_LOG", "warn")).await?)
    }

    /// A worker of the benchmark's queue, which runs so many jobs at a time.
    async fn worker(&self, concurrency: usize) -> Result<Process> {
        self.worker_of(Queue::Analytics, concurrency, Launch::new()).await
    }

    /// A worker of one queue, with settings of its own.
    async fn worker_of(&self, queue: Queue, concurrency: usize, launch: Launch) -> Result<Process> {
        let queue = queue.name();
        let launch = launch
            .once()
            .arg("--queues")
            .arg(queue)
            .env("OFFSTAGE_CONCURRENCY", format!("{queue}={concurrency}"))
            .env("OFFSTAGE_LOG", "warn");
        Ok(self.world.start_worker(launch).await?)
    }

    fn watched_servers(&self) -> [Watched; 2] {
        self.servers().watched()
    }

    /// Jobs after this one are of the run.
    fn floor(&self) -> Uuid {
        self.floor.get().copied().unwrap_or_default()
    }

    /// The connection on which the benchmark looks at the queues.
    fn commands(&self) -> Commands {
        self.redis.commands()
    }

    /// How many jobs stand in the ledger as accepted, and how many of them succeeded, each with the time of its run.
    async fn counts(&self) -> Result<(usize, usize)> {
        let (all, done): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM job WHERE id > $1),
                    (SELECT count(*) FROM job_state
                     WHERE state = 3 AND runs > 0 AND finished_at >= started_at AND worker IS NOT NULL AND job_id > $1)",
        )
        .bind(self.floor())
        .fetch_one(&self.superuser)
        .await?;
        Ok((usize::try_from(all).unwrap_or(0), usize::try_from(done).unwrap_or(0)))
    }

    /// A figure of ours counts only if the ledger says the same.
    async fn check(&self, accepted: usize, succeeded: usize) -> Result<()> {
        let found = self.counts().await?;
        if found == (accepted, succeeded) {
            return Ok(());
        }
        let (all, done) = found;
        Err(Error::Unexpected(format!("the ledger has {all} jobs of {accepted}, {done} succeeded of {succeeded}")))
    }

    fn address_of(api: &Process) -> Result<SocketAddr> {
        api.address().ok_or_else(|| Error::Unexpected("the API has no address".to_owned()))
    }

    /// Ends everything.
    pub async fn stop(self) -> Result<()> {
        self.superuser.close().await;
        Ok(self.world.stop().await?)
    }
}
