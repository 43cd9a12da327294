//! Metrics and views (R61, R62): what is counted of a product's events, by period and group.
//!
//! What must stay true: an answer is of one tenant, and for a user of that user's own; it says as of when it is (`as_of`) and whether
//! events from before the metric are in it (`is_whole`); gaps are filled; an answer about a time that is over may be up to five minutes old
//! ([`Answers`]), one with the present in it, of a user, or with users' names in it is read anew.

mod answer;
mod answers;
mod query;
mod rebuild;
mod view;

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use shared::{
    analytics::{Granularity, Span, observe::USER},
    kinds::DAYS_OF_METRIC as DAYS,
    tenant::{Metric, Panel, Tenant},
};
use utoipa::OpenApi;

pub use answers::Answers;

use super::{conditional::holds, jobs::hash_of};
use crate::{
    app::App,
    auth::{AnalyticsRead, Caller, CallerOrUser},
    extract::Query,
    problem::{Code, Problem, ProblemBody},
};
use answer::MetricAnswer;
use query::AnalyticsQuery;

/// To be kept by the asker alone, and not used again without asking.
const CACHED: HeaderValue = HeaderValue::from_static("private, no-cache");

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(list, read, view::read, rebuild::create))]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/analytics", get(list))
        .route("/v1/analytics/{metric}", get(read))
        .route("/v1/analytics/{metric}/rebuild", post(rebuild::create))
        .route("/v1/analytics/views/{view}", get(view::read))
        // A view and a metric may have the names `rebuild` and `views`.
        .route("/v1/analytics/views/rebuild", get(view::read_rebuild).post(rebuild::create_views))
}

/// What there is to read.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Catalogue {
    /// Metrics, by name.
    metrics: Vec<MetricEntry>,
    /// Views, by name.
    views: Vec<ViewEntry>,
}

/// A metric.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MetricEntry {
    name: String,
    description: String,
    aggregate: shared::analytics::state::Aggregate,
    /// What it can be grouped by.
    dimensions: Vec<String>,
}

/// A view.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ViewEntry {
    name: String,
    title: String,
    /// Its metrics.
    metrics: Vec<String>,
}

/// Lists metrics and views that the caller may read.
#[utoipa::path(
    get, path = "/v1/analytics", tag = "analytics", operation_id = "list_metrics",
    params(("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for")),
    responses((status = 200, body = Catalogue)),
)]
pub async fn list(State(app): State<App>, CallerOrUser(caller): CallerOrUser<AnalyticsRead>) -> Result<axum::Json<Catalogue>, Problem> {
    let tenant = app.tenants.get(caller.tenant).await?.ok_or_else(Problem::unexplained)?;
    let user = caller.acting_user.as_deref();
    let open = |name: &str| tenant.manifest.metrics.get(name).is_some_and(|metric| metric.is_open_to(user));
    let metrics = tenant.manifest.metrics.iter().filter(|(name, _)| open(name)).map(|(name, metric)| MetricEntry {
        name: name.clone(),
        description: metric.description().to_owned(),
        aggregate: metric.aggregate(),
        dimensions: metric.dimensions().to_vec(),
    });
    let views = tenant.manifest.views.iter().map(|(name, view)| ViewEntry {
        name: name.clone(),
        title: view.title.clone(),
        metrics: view.panels.iter().map(|panel| panel.metric.clone()).filter(|name| open(name)).collect(),
    });
    Ok(axum::Json(Catalogue { metrics: metrics.collect(), views: views.filter(|view| !view.metrics.is_empty()).collect() }))
}

/// Finds a metric that may be read for a user, or by the backend.
fn find<'a>(tenant: &'a Tenant, name: &str, user: Option<&str>) -> Result<&'a Metric, Problem> {
    tenant.manifest.metrics.get(name).filter(|metric| metric.is_open_to(user)).ok_or_else(|| {
        Problem::new(Code::MetricNotFound, "The product's manifest declares no such metric for this reader; GET /v1/analytics lists them.")
    })
}

/// Reads a metric over a span, by period.
///
/// Each point is a period of the zone's own clocks: days of 23 or 25 hours are what they are. Periods without events are in it, with 0 where
/// that is a number of the metric and `null` where not. A group's `total` is of the whole span, not the sum of the points: users of a week
/// are fewer than those of its days together. With `group_by` the largest groups come first, and what is beyond `top` is one group, `other`.
#[utoipa::path(
    get, path = "/v1/analytics/{metric}", tag = "analytics", operation_id = "read_metric",
    params(
        ("metric" = String, Path, description = "Its name in the manifest"),
        AnalyticsQuery,
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for: then of that user alone"),
    ),
    responses(
        (status = 200, body = MetricAnswer, headers(("ETag" = String, description = "Weak, of the numbers; not of `as_of`"))),
        (status = 304, description = "The numbers are the same"),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 404, body = ProblemBody<'static>, description = "`metric_not_found`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<AnalyticsRead>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Query(query): Query<AnalyticsQuery>,
) -> Result<Response, Problem> {
    let tenant = app.tenants.get(caller.tenant).await?.ok_or_else(Problem::unexplained)?;
    let metric = find(&tenant, &name, caller.acting_user.as_deref())?;
    let span = query.span(app.clock.now(), DAYS, Granularity::Day, false)?;
    let panel = query.panel(metric)?;
    let key = answers::key(&caller, &json!([metric.series(), metric.aggregate(), panel, span]));
    let key = Some(key).filter(|_| may_be_kept(&caller, [&panel]));
    if let Some(kept) = key.as_deref().and_then(|key| app.answers.find(key)) {
        return Ok(respond(&headers, &kept.0, kept.1));
    }
    let answer = answer::read(&app, &caller, &name, metric, &panel, &span).await?;
    finish(&app, &headers, key, &span, answer).await
}

/// Whether answers may be kept. Those of a user, and those that name users, are not: nothing is shown of who is being erased, from the first
/// moment.
fn may_be_kept<'p>(caller: &Caller<AnalyticsRead>, panels: impl IntoIterator<Item = &'p Panel>) -> bool {
    caller.acting_user.is_none() && panels.into_iter().all(|panel| panel.group_by.iter().all(|dimension| dimension != USER))
}

/// Answers with what was read, and keeps it under `key` where its time is over and all of it is counted.
async fn finish<T>(app: &App, headers: &HeaderMap, key: Option<String>, span: &Span, answer: T) -> Result<Response, Problem>
where
    T: Tagged + Send + 'static,
{
    let is_whole = answer.is_whole();
    // Ten megabytes of text and more, of the largest.
    let writing = tokio::task::spawn_blocking(move || {
        let body = serde_json::to_vec(&answer)?;
        Ok::<_, serde_json::Error>((Bytes::from(body), format!("W/\"{}\"", BASE64_URL_SAFE_NO_PAD.encode(hash_of(&answer.numbers())))))
    });
    let is_kept = is_whole && span.is_over(app.clock.now());
    let (body, tag) = writing.await.map_err(Problem::internal)?.map_err(Problem::internal)?;
    if let Some(key) = key.filter(|_| is_kept) {
        app.answers.keep(key, &tag, &body);
    }
    Ok(respond(headers, &tag, body))
}

/// An answer whose tag is of its numbers.
trait Tagged: Serialize {
    /// All of it but as of when it is.
    fn numbers(&self) -> serde_json::Value;

    /// Whether all events are counted in it, also those from before its metrics.
    fn is_whole(&self) -> bool;
}

fn respond(headers: &HeaderMap, tag: &str, body: Bytes) -> Response {
    let Ok(value) = HeaderValue::try_from(tag) else { return Problem::unexplained().into_response() };
    let headers_of_both = [(header::ETAG, value), (header::CACHE_CONTROL, CACHED)];
    if holds(headers, tag) {
        return (StatusCode::NOT_MODIFIED, headers_of_both).into_response();
    }
    (headers_of_both, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// Who reads, as answers are kept for them.
fn reader(caller: &Caller<AnalyticsRead>) -> serde_json::Value {
    json!([caller.tenant, caller.acting_user])
}
