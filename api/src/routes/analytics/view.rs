//! A named view: several metrics over the same span.

use axum::{
    extract::{Path, State},
    http::HeaderMap,
    response::Response,
};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    Tagged,
    answer::{self, MetricAnswer},
    answers, find, finish, may_be_kept,
    query::AnalyticsQuery,
    respond,
};
use crate::{
    app::App,
    auth::{AnalyticsRead, CallerOrUser},
    extract::Query,
    problem::{Code, Problem, ProblemBody},
};

/// A view.
#[derive(Debug, Serialize, ToSchema)]
pub struct ViewAnswer {
    /// Its name.
    view: String,
    /// For people.
    title: String,
    /// Its metrics, in the manifest's order; of those that the reader may read.
    panels: Vec<MetricAnswer>,
}

impl Tagged for ViewAnswer {
    fn is_whole(&self) -> bool {
        self.panels.iter().all(Tagged::is_whole)
    }

    fn numbers(&self) -> Value {
        json!([self.view, self.title, self.panels.iter().map(Tagged::numbers).collect::<Vec<_>>()])
    }
}

/// Reads a view: several metrics over the same span.
///
/// What the query does not say the manifest's view does; how each metric is grouped, the view alone.
#[utoipa::path(
    get, path = "/v1/analytics/views/{view}", tag = "analytics", operation_id = "read_view",
    params(
        ("view" = String, Path, description = "Its name in the manifest"),
        AnalyticsQuery,
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for: then of that user alone"),
    ),
    responses(
        (status = 200, body = ViewAnswer, headers(("ETag" = String, description = "Weak, of the numbers; not of `as_of`"))),
        (status = 304, description = "The numbers are the same"),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 404, body = ProblemBody<'static>, description = "`view_not_found`"),
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
    let user = caller.acting_user.as_deref();
    let unknown =
        || Problem::new(Code::ViewNotFound, "The product's manifest declares no such view for this reader; GET /v1/analytics lists them.");
    let view = tenant.manifest.views.get(&name).ok_or_else(unknown)?;
    let is_mine = |metric: &str| tenant.manifest.metrics.get(metric).is_some_and(|metric| metric.is_open_to(user));
    let panels: Vec<_> = view.panels.iter().filter(|panel| is_mine(&panel.metric)).collect();
    if panels.is_empty() {
        return Err(unknown());
    }
    if query.is_grouped() {
        return Err(Problem::new(
            Code::QueryInvalid,
            "group_by: the view says how its metrics are grouped; leave `group_by` and `top` out.",
        ));
    }
    let span = query.span(app.clock.now(), view.days, view.granularity, view.compare)?;
    let series: Vec<_> = panels.iter().filter_map(|panel| Some(tenant.manifest.metrics.get(&panel.metric)?.series())).collect();
    let key = answers::key(&caller, &json!(["view", name, view, series, span]));
    let key = Some(key).filter(|_| may_be_kept(&caller, panels.iter().copied()));
    if let Some(kept) = key.as_deref().and_then(|key| app.answers.find(key)) {
        return Ok(respond(&headers, &kept.0, kept.1));
    }
    let mut answer = ViewAnswer { view: name.clone(), title: view.title.clone(), panels: Vec::with_capacity(panels.len()) };
    for panel in panels {
        let metric = find(&tenant, &panel.metric, user)?;
        answer.panels.push(answer::read(&app, &caller, &panel.metric, metric, panel, &span).await?);
    }
    finish(&app, &headers, key, &span, answer).await
}

/// Reads the view that is named `rebuild`.
pub async fn read_rebuild(
    app: State<App>,
    caller: CallerOrUser<AnalyticsRead>,
    headers: HeaderMap,
    query: Query<AnalyticsQuery>,
) -> Result<Response, Problem> {
    read(app, caller, Path("rebuild".to_owned()), headers, query).await
}
