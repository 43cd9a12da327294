//! Statistics of other people's services (R63): read from what was last measured, refreshed by jobs, never by a request.
//!
//! What must stay true: no request calls anybody outside; a reading older than five minutes is served as it is, `stale`, and asked for anew
//! by one job however many read it; what a manifest does not declare does not exist here (404).

mod change;
mod read;
mod view;

use std::sync::Arc;

use axum::{
    Router,
    routing::{get, post},
};
use shared::{
    kinds::{Kind, StatsRefresh},
    tenant::{StatisticSource, Tenant},
};
use utoipa::OpenApi;

use crate::{
    app::App,
    problem::{Code, Problem},
};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(read::list, read::read, read::history, change::refresh, change::accept),
    tags((name = "stats", description = "Numbers of other people's services, as last measured. For backends: a request with `X-Acting-User` gets 403 `backend_only`")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/stats", get(read::list))
        .route("/v1/stats/{source}", get(read::read))
        .route("/v1/stats/{source}/history", get(read::history))
        .route("/v1/stats/{source}/refresh", post(change::refresh))
        .route("/v1/stats/{source}/accept", post(change::accept))
}

/// A statistic of the caller's manifest.
fn declared<'a>(tenant: &'a Arc<Tenant>, source: &str) -> Result<&'a StatisticSource, Problem> {
    tenant.manifest.stats.get(source).ok_or_else(|| {
        Problem::new(Code::StatisticNotFound, "The product's manifest declares no such statistic; GET /v1/stats lists those that it does.")
    })
}

/// Whether the product may have statistics refreshed.
fn may_refresh(tenant: &Tenant) -> bool {
    tenant.manifest.allows(StatsRefresh::NAME, None).is_ok()
}
