//! Ours as a contestant: real `api` and `worker` processes on the sandbox's Redis and Postgres, set as they come.

mod drain;
mod enqueue;
mod pickup;

use std::{path::Path, str::FromStr, time::Duration};

use redis::{AsyncConnectionConfig, RedisError};
use sandbox::{Launch, Options, Process, Sandbox};
use secrecy::SecretString;
use shared::{
    clock::Clock,
    queue::{Commands, QueueError, Redis},
};
use sqlx::{
    AssertSqlSafe, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{
    error::{Doing, Error, Result},
    measure::Watched,
    plan::CONCURRENCY,
};

/// The tenant that everything is done for.
const TENANT: &str = "bench";
/// Longer than any run.
const WITHIN: Duration = Duration::from_secs(600);

/// An installation of ours, and the services that peers use too.
#[derive(Debug)]
pub struct Offstage {
    world: Sandbox,
    clock: Clock,
    redis: Redis,
    superuser: PgPool,
    tenant: i32,
    key: String,
}

impl Offstage {
    /// Starts Redis and Postgres, durable both, in `directory`, migrates, and makes a tenant with a key.
    pub async fn start(directory: &Path) -> Result<Self> {
        let world = Sandbox::start(Options::lasting(directory)).await?;
        let manifest = directory.join("tenant.toml");
        std::fs::write(&manifest, format!("[tenant]\nname = \"{TENANT}\"\n")).doing("write the benchmark's manifest")?;
        world.apply_tenant(&manifest).await?;
        let key = world.create_key(TENANT, "bench", "jobs:read,jobs:write").await?;

        let database = PgConnectOptions::from_str(&world.postgres.owner_url())?;
        let superuser = PgConnectOptions::from_str(&world.postgres.superuser_url())?;
        let superuser = superuser.database(database.get_database().unwrap_or_default());
        let superuser = PgPoolOptions::new().max_connections(2).connect_lazy_with(superuser);
        let tenant = sqlx::query_scalar("SELECT id FROM tenant WHERE name = $1").bind(TENANT).fetch_one(&superuser).await?;
        let redis = Redis::new(&SecretString::from(world.redis.url()), "offstage")?;
        Ok(Self { world, clock: Clock::system(), redis, superuser, tenant, key })
    }

    /// The Redis of everybody.
    pub fn redis_url(&self) -> &str {
        self.world.redis.url()
    }

    /// Redis' process.
    pub fn redis_pid(&self) -> u32 {
        self.world.redis.process().pid().unwrap_or_default()
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

    /// Empties the queues and the ledger and writes out what is dirty, so that every run finds the same.
    pub async fn clear(&self) -> Result<()> {
        self.empty_redis().await?;
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT quote_ident(tablename) FROM pg_tables
             WHERE schemaname = 'public' AND tablename NOT IN ('tenant', 'api_key', '_sqlx_migrations')",
        )
        .fetch_all(&self.superuser)
        .await?;
        sqlx::query(AssertSqlSafe(format!("TRUNCATE {}", tables.join(", ")))).execute(&self.superuser).await?;
        sqlx::query("CHECKPOINT").execute(&self.superuser).await?;
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

    async fn worker(&self) -> Result<Process> {
        let launch = Launch::new()
            .once()
            .arg("--queues")
            .arg("analytics")
            .env("OFFSTAGE_CONCURRENCY", format!("analytics={CONCURRENCY}"))
            .env("OFFSTAGE_LOG", "warn");
        Ok(self.world.start_worker(launch).await?)
    }

    fn watched_servers(&self) -> [Watched; 2] {
        let postgres = self.world.postgres.process().pid().unwrap_or_default();
        [Watched::family("postgres", postgres), Watched::family("redis", self.redis_pid())]
    }

    /// The connection on which the benchmark looks at the queues.
    fn commands(&self) -> Commands {
        self.redis.commands()
    }

    /// How many jobs stand in the ledger as accepted, and how many of them succeeded, each with the record of its run.
    async fn counts(&self) -> Result<(usize, usize)> {
        let (all, done): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM job),
                    (SELECT count(*) FROM job_state s JOIN job_attempt a ON a.job_id = s.job_id AND a.run = s.runs
                     WHERE s.state = 3 AND a.outcome = 'succeeded')",
        )
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

    /// Ends everything.
    pub async fn stop(self) -> Result<()> {
        self.superuser.close().await;
        Ok(self.world.stop().await?)
    }
}
