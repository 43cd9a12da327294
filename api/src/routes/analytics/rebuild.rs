//! Has a metric counted anew from raw events.

use axum::{
    extract::{Path, State},
    http::HeaderMap,
    response::Response,
};
use chrono::NaiveDate;
use serde::Deserialize;
use shared::kinds::MetricRebuild;
use utoipa::ToSchema;

use super::find;
use crate::{
    app::App,
    auth::{AnalyticsWrite, Backend},
    extract::MaybeJson,
    problem::{Problem, ProblemBody},
    routes::jobs::{Job, Wish, ask},
};

/// Which days.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct RebuildBody {
    /// The first UTC day; the first that has events when absent.
    from: Option<NaiveDate>,
    /// The last UTC day; the last that has events when absent.
    to: Option<NaiveDate>,
}

/// Counts a metric anew.
///
/// Whole UTC days are counted from the raw events that are kept; the numbers come out the same, or right where they were not. Reading goes on
/// meanwhile. A new metric's past is counted without being asked for.
#[utoipa::path(
    post, path = "/v1/analytics/{metric}/rebuild", tag = "analytics", operation_id = "rebuild_metric", request_body = Option<RebuildBody>,
    params(("metric" = String, Path, description = "Its name in the manifest")),
    responses(
        (status = 202, body = Job, description = "The job that does it", headers(("Location" = String, description = "The job's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`metric_not_found`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
        (status = 429, body = ProblemBody<'static>, description = "`backlog_full`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    Backend(caller): Backend<AnalyticsWrite>,
    Path(name): Path<String>,
    headers: HeaderMap,
    MaybeJson(body): MaybeJson<RebuildBody>,
) -> Result<Response, Problem> {
    let tenant = app.tenants.get(caller.tenant).await?.ok_or_else(Problem::unexplained)?;
    find(&tenant, &name, None)?;
    let payload = MetricRebuild { metric: name, from: body.from, to: body.to };
    ask(&app, caller.tenant, None, &headers, Wish::of(&payload)).await
}

/// Counts the metric that is named `views` anew.
pub async fn create_views(
    app: State<App>,
    caller: Backend<AnalyticsWrite>,
    headers: HeaderMap,
    body: MaybeJson<RebuildBody>,
) -> Result<Response, Problem> {
    create(app, caller, Path("views".to_owned()), headers, body).await
}
