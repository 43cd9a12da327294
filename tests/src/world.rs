//! An installation of one's own.

use std::future::IntoFuture;

use chrono::{DateTime, Utc};
use sandbox::{Launch, Options, Process, Sandbox};
use sqlx::AssertSqlSafe;

use crate::{Client, SetClock};

/// The tenant that most tests are about.
const TENANT: &str = "acme";

/// Postgres, Redis, S3, one `api`, and a tenant with a key. It ends, with everything in it, when it is dropped; when the test
/// fails, the processes' logs are kept and their place is printed.
#[derive(Debug)]
pub struct World {
    /// The services, and what starts programs.
    pub sandbox: Sandbox,
    /// The API.
    pub api: Process,
    /// The tenant's backend, with a key that may do everything.
    pub client: Client,
}

impl World {
    /// Without a worker.
    pub async fn start() -> Self {
        Self::start_with(Launch::new()).await
    }

    /// Without a worker, the API started as `api` says.
    pub async fn start_with(api: Launch) -> Self {
        Self::start_where(|_| api).await
    }

    /// Without a worker, the API started as `api` says of a sandbox whose services run.
    pub async fn start_where(api: impl FnOnce(&Sandbox) -> Launch) -> Self {
        let sandbox = Sandbox::start(Options::test()).await.expect("a sandbox");
        let api = api(&sandbox);
        // As few connections as do: a debug build takes a while over each password.
        let api = api.env("OFFSTAGE_API_POOL", "8");
        let (api, key) = tokio::join!(sandbox.start_api(api).into_future(), async {
            apply_tenant(&sandbox, TENANT, &manifest(TENANT)).await;
            sandbox.create_key(TENANT, "test", "*").await.expect("a key")
        });
        let api = api.expect("an API");
        let client = Client::new(api.url(), key);
        Self { sandbox, api, client }
    }

    /// Without a worker, at a time (RFC 3339) that stands until the test moves it; workers are started with the clock's launch. `api` adds what
    /// the API is started with beside it.
    pub async fn start_at(time: &str, api: impl FnOnce(Launch) -> Launch) -> (Self, SetClock) {
        let mut clock = None;
        let world = Self::start_where(|sandbox| api(clock.insert(SetClock::at(sandbox, time)).launch())).await;
        (world, clock.expect("set before the API started"))
    }

    /// The same at this moment, for those whose outside goes by a clock of its own: push services look at our tokens' times.
    pub async fn start_now() -> (Self, SetClock) {
        #[expect(clippy::disallowed_methods, reason = "where the clock that tests set begins")]
        let now = Utc::now();
        Self::start_at(&now.format("%FT%TZ").to_string(), |api| api).await
    }

    /// With one worker.
    pub async fn with_worker() -> (Self, Process) {
        let world = Self::start().await;
        let worker = world.worker().await;
        (world, worker)
    }

    /// One more worker, ready; restarted when it dies.
    pub async fn worker(&self) -> Process {
        self.start_worker(Launch::new()).await
    }

    /// One more worker as `launch` says, ready.
    pub async fn start_worker(&self, launch: Launch) -> Process {
        self.sandbox.start_worker(launch).await.expect("a worker")
    }

    /// Makes another tenant, and a key of its own that may do everything.
    pub async fn tenant(&self, name: &str) -> Client {
        self.tenant_of(name, &manifest(name)).await
    }

    /// Makes another tenant from a manifest, and a key of its own that may do everything.
    pub async fn tenant_of(&self, name: &str, manifest: &str) -> Client {
        apply_tenant(&self.sandbox, name, manifest).await;
        self.key_of(name, "*").await
    }

    /// The tenant's backend with a key that has these scopes.
    pub async fn key(&self, scopes: &str) -> Client {
        self.key_of(TENANT, scopes).await
    }

    async fn key_of(&self, tenant: &str, scopes: &str) -> Client {
        self.client.with_key(&self.sandbox.create_key(tenant, "test", scopes).await.expect("a key"))
    }

    /// One number from the database, by a statement of the test's own.
    pub async fn number(&self, statement: impl Into<String>) -> i64 {
        let statement = format!("SELECT ({})::bigint", statement.into());
        sqlx::query_scalar(AssertSqlSafe(statement.as_str()))
            .fetch_one(self.sandbox.pool())
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    /// One text from the database, by a statement of the test's own.
    pub async fn text(&self, statement: impl Into<String>) -> String {
        let statement: String = statement.into();
        sqlx::query_scalar(AssertSqlSafe(statement.as_str()))
            .fetch_one(self.sandbox.pool())
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    /// Changes the database behind the product's back; how many rows.
    pub async fn execute(&self, statement: impl Into<String>) -> u64 {
        let statement: String = statement.into();
        let done = sqlx::query(AssertSqlSafe(statement.as_str())).execute(self.sandbox.pool()).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}")).rows_affected()
    }

    /// The time, by the database's clock.
    pub async fn now(&self) -> DateTime<Utc> {
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(self.sandbox.pool()).await.expect("the time")
    }

    /// One figure of a process' `/metrics`: the sum over the series of this name whose labels hold all of `labels`.
    pub async fn figure(&self, process: &Process, name: &str, labels: &[&str]) -> f64 {
        let answer = self.client.without_key().get(&format!("{}/metrics", process.url())).await;
        assert_eq!(answer.status, 200);
        let text = answer.text();
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, found_labels) = series.split_once('{').unwrap_or((series, ""));
            (found == name && labels.iter().all(|label| found_labels.contains(label))).then(|| value.parse::<f64>().ok()).flatten()
        });
        series.sum()
    }
}

/// The least that a tenant is.
fn manifest(name: &str) -> String {
    format!("[tenant]\nname = \"{name}\"\n")
}

async fn apply_tenant(sandbox: &Sandbox, name: &str, manifest: &str) {
    let path = sandbox.directory().join(format!("{name}.toml"));
    std::fs::write(&path, manifest).expect("a file in the sandbox");
    sandbox.apply_tenant(&path).await.expect("a tenant");
}
