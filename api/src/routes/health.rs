//! Is the program alive, can it serve, and its figures (R80).
//!
//! Alive means the process answers; a database that is away must not get it killed. Ready means that an accepted job would
//! be stored: Postgres has the schema, and runs the very function that stores jobs, with none to store. Redis is reported and not needed: jobs are accepted without it and
//! handed over when it is back.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use shared::{
    ledger::{LedgerError, insert},
    telemetry::Metrics,
};
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::{app::App, problem::chain, schema};

/// How long one judgement serves everybody who asks, so that asking costs the stores nothing.
const REMEMBERED: Duration = Duration::from_secs(1);

/// The longest that a store may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(2);

/// How things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// All is well.
    Healthy,
    /// Serves, with something missing.
    Degraded,
    /// Does not serve.
    Unhealthy,
}

/// One part and how it stands.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Check {
    /// How it stands.
    status: Standing,
    /// What is wrong and what follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    detail: Option<&'static str>,
}

impl Check {
    const WELL: Self = Self { status: Standing::Healthy, detail: None };

    const fn bad(status: Standing, detail: &'static str) -> Self {
        Self { status, detail: Some(detail) }
    }
}

/// The parts that serving depends on.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Checks {
    /// Postgres, which holds every job.
    postgres: Check,
    /// Whether the database has the tables of this version.
    schema: Check,
    /// Redis, which moves jobs to workers.
    redis: Check,
}

/// What `/health/ready` says.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Readiness {
    /// The worst of the parts that serving needs.
    status: Standing,
    /// The program's version.
    version: &'static str,
    /// How long the program has been running.
    uptime_seconds: u64,
    /// Whether it is ending and takes no new work.
    stopping: bool,
    /// Each part.
    checks: Checks,
}

/// What `/health/live` says.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Liveness {
    /// Always healthy: a dead program says nothing.
    status: Standing,
    /// The program's version.
    version: &'static str,
    /// How long the program has been running.
    uptime_seconds: u64,
}

/// Health as last judged.
#[derive(Debug, Default)]
pub struct Health {
    last: Mutex<Option<(Instant, Checks)>>,
}

impl Health {
    async fn checks(&self, app: &App) -> Checks {
        {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, checks)) = &*last
                && at.elapsed() < REMEMBERED
            {
                return checks.clone();
            }
        }
        let ((postgres, schema), redis) = tokio::join!(judge_postgres(app), judge_redis(app));
        let checks = Checks { postgres, schema, redis };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), checks.clone()));
        checks
    }
}

async fn judge_postgres(app: &App) -> (Check, Check) {
    const AWAY: Check = Check::bad(Standing::Unhealthy, "Postgres does not answer, or takes no jobs: nothing can be accepted");
    const UNKNOWN: Check = Check::bad(Standing::Unhealthy, "can't be asked without Postgres");
    let asked = timeout(PATIENCE, async {
        let mut connection = app.pool.acquire().await?;
        let missing = schema::missing(&mut connection).await?;
        if missing == 0 {
            // What accepts jobs runs, and stores none: a server that only reads, or a locked table, shows here.
            insert::prove(&mut connection, app.clock.now()).await?;
        }
        Ok(missing)
    });
    match asked.await {
        Ok(Ok(0)) => (Check::WELL, Check::WELL),
        Ok(Ok(_)) => (Check::WELL, Check::bad(Standing::Unhealthy, "the database lacks migrations of this version; run `api migrate`")),
        Ok(Err(error @ LedgerError::Refused(_))) => {
            tracing::warn!(error = chain(&error), "the schema can't be read");
            (
                Check::WELL,
                Check::bad(
                    Standing::Unhealthy,
                    "the schema can't be read; run `api migrate` of this version, and give the role offstage_api",
                ),
            )
        }
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), "Postgres does not answer");
            (AWAY, UNKNOWN)
        }
        Err(_) => {
            tracing::warn!(seconds = PATIENCE.as_secs(), "Postgres did not answer in time");
            (AWAY, UNKNOWN)
        }
    }
}

async fn judge_redis(app: &App) -> Check {
    const AWAY: Check = Check::bad(Standing::Degraded, "Redis does not answer: jobs are accepted, and start when it is back");
    let mut redis = app.redis.clone();
    let ping = redis::cmd("PING");
    match timeout(PATIENCE, ping.query_async::<String>(&mut redis)).await {
        Ok(Ok(_)) => Check::WELL,
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), "Redis does not answer");
            AWAY
        }
        Err(_) => AWAY,
    }
}

/// Is the program alive?
#[utoipa::path(get, path = "/health/live", tag = "health", security(()), responses((status = 200, body = Liveness)))]
pub async fn live(State(app): State<App>) -> Json<Liveness> {
    Json(Liveness { status: Standing::Healthy, version: env!("CARGO_PKG_VERSION"), uptime_seconds: app.started.elapsed().as_secs() })
}

/// Can the program serve?
///
/// 503 while Postgres is away, lacks migrations, or the program is ending: send requests elsewhere.
#[utoipa::path(
    get, path = "/health/ready", tag = "health", security(()),
    responses((status = 200, body = Readiness), (status = 503, body = Readiness)),
)]
pub async fn ready(State(app): State<App>) -> Response {
    let checks = app.health.checks(&app).await;
    let stopping = app.shutdown.is_asked();
    let parts = [checks.postgres.status, checks.schema.status, checks.redis.status];
    let status = if stopping || parts.contains(&Standing::Unhealthy) {
        Standing::Unhealthy
    } else if parts.contains(&Standing::Degraded) {
        Standing::Degraded
    } else {
        Standing::Healthy
    };
    let code = if status == Standing::Unhealthy { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let body = Readiness { status, version: env!("CARGO_PKG_VERSION"), uptime_seconds: app.started.elapsed().as_secs(), stopping, checks };
    (code, Json(body)).into_response()
}

/// Figures in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "health", security(()), responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn metrics(State(app): State<App>) -> Response {
    metrics::gauge!("offstage_database_connections", "state" => "open").set(f64::from(app.pool.size()));
    metrics::gauge!("offstage_database_connections", "state" => "idle").set(u32::try_from(app.pool.num_idle()).map_or(f64::NAN, f64::from));
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], app.metrics.render()).into_response()
}
