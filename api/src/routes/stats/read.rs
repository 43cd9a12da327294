//! `GET /v1/stats`, one of them, and its history.

use std::collections::BTreeMap;

use axum::{
    Json as Answer,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::{
    job::JobId,
    kinds::{Kind, StatsRefresh},
    ledger::{
        LedgerError,
        statistics::{self, Asked, By, FoundStatistic},
    },
    statistic::FRESH,
    tenant::{self, Tenant},
};
use utoipa::ToSchema;

use super::{
    declared, may_refresh,
    view::{ReadingView, StatisticView},
};
use crate::{
    app::App,
    auth::{Backend, StatsRead},
    extract::Query,
    follow::Call,
    problem::{Code, Problem, ProblemBody},
    routes::{
        conditional::holds,
        jobs::{hash_of, tenant_of},
        moment::Moment,
    },
};

/// To be kept by the asker alone, and not used again without asking: `age` goes on.
const CACHED: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Statistics that one read has refreshed; the next read goes on with the rest.
const MOST_ASKED: usize = 20;

/// Readings of a page unless the caller asks otherwise, and at most.
const DEFAULT_READINGS: u32 = 500;
const MOST_READINGS: u32 = 1_000;

/// How far back a history goes unless the caller asks otherwise.
const DEFAULT_HISTORY: TimeDelta = TimeDelta::days(30);

/// A product's statistics.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatisticList {
    /// In the order of their names.
    items: Vec<StatisticView>,
}

/// Shows all statistics, as last measured.
///
/// What is older than five minutes is `stale` and refreshed in the background, once for all who read it; also while a service is away its last
/// good figures are told. `If-None-Match` with the `ETag` is answered with 304 while nothing but the age changed.
#[utoipa::path(
    get, path = "/v1/stats", tag = "stats", operation_id = "list_statistics",
    params(("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer")),
    responses(
        (status = 200, body = StatisticList, headers(("ETag" = String, description = "Weak, of all but the ages"))),
        (status = 304, description = "Nothing but the ages changed"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
    ),
)]
pub async fn list(State(app): State<App>, Backend(caller): Backend<StatsRead>, headers: HeaderMap) -> Result<Response, Problem> {
    let tenant = tenant_of(&app, caller.tenant).await?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = statistics::list(&mut transaction, caller.tenant).await?;
    drop(transaction);
    let mut found: BTreeMap<String, FoundStatistic> = found.into_iter().map(|one| (one.source.clone(), one)).collect();
    let now = app.clock.now();
    let wanted: Vec<&str> =
        tenant.manifest.stats.keys().map(String::as_str).filter(|name| is_to_be_asked(found.get(*name), now)).take(MOST_ASKED).collect();
    read_ahead(&app, &tenant, &wanted).await;
    let items: Vec<_> =
        tenant.manifest.stats.iter().map(|(name, source)| StatisticView::of(name, source, found.remove(name), now)).collect();
    let tag = tag_of(&items);
    conditional(&headers, &tag, StatisticList { items })
}

/// Shows a statistic, as last measured.
///
/// As in the list of all.
#[utoipa::path(
    get, path = "/v1/stats/{source}", tag = "stats", operation_id = "read_statistic",
    params(
        ("source" = String, Path, description = "The statistic's name in the manifest"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer"),
    ),
    responses(
        (status = 200, body = StatisticView, headers(("ETag" = String, description = "Weak, of all but the age"))),
        (status = 304, description = "Nothing but the age changed"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`statistic_not_found`"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    Backend(caller): Backend<StatsRead>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let tenant = tenant_of(&app, caller.tenant).await?;
    let source = declared(&tenant, &name)?;
    let mut transaction = tenant::lookup(&app.pool, caller.tenant).await?;
    let found = statistics::find(&mut transaction, caller.tenant, &name).await?;
    drop(transaction);
    let now = app.clock.now();
    if is_to_be_asked(found.as_ref(), now) {
        read_ahead(&app, &tenant, &[&name]).await;
    }
    let view = StatisticView::of(&name, source, found, now);
    let tag = tag_of(std::slice::from_ref(&view));
    conditional(&headers, &tag, view)
}

/// Whether a read is a reason to ask: it is not fresh, there is such a thing, and nobody asked a moment ago. Judged again under the row's lock.
fn is_to_be_asked(found: Option<&FoundStatistic>, now: DateTime<Utc>) -> bool {
    let Some(found) = found else { return true };
    let is_fresh = |at: Option<DateTime<Utc>>| at.is_some_and(|at| now - at < FRESH);
    let may = found.gone_at.is_none() && found.not_before.is_none_or(|at| at <= now);
    may && !is_fresh(found.measured_at) && !is_fresh(found.checked_at) && !is_fresh(found.read_ahead_at)
}

/// Has statistics refreshed. A courtesy to the next reader: whatever is in its way is no fault of this one's.
async fn read_ahead(app: &App, tenant: &Tenant, wanted: &[&str]) {
    if wanted.is_empty() || !may_refresh(tenant) {
        return;
    }
    match ask_for(app, tenant.id, wanted).await {
        Ok(jobs) => {
            metrics::counter!("offstage_statistic_read_aheads_total").increment(jobs.len() as u64);
            for job in jobs {
                app.follow.tell(job, Call::Dispatch(StatsRefresh::QUEUE));
            }
        }
        Err(error) => {
            tracing::debug!(
                tenant = tenant.id,
                error = &error as &dyn std::error::Error,
                "a refresh could not be asked for; the next reader asks"
            );
        }
    }
}

async fn ask_for(app: &App, tenant: i32, wanted: &[&str]) -> Result<Vec<JobId>, LedgerError> {
    let mut made = Vec::new();
    // In the order of their names, as everybody does: nobody waits crosswise.
    for source in wanted {
        let job = JobId(app.clock.new_id());
        let mut transaction = tenant::transaction(&app.pool, tenant).await?;
        let asked = statistics::ask(&mut transaction, tenant, source, By::Reader, job, app.clock.now()).await?;
        transaction.commit().await?;
        if asked == Asked::New(job) {
            made.push(job);
        }
    }
    Ok(made)
}

/// The `ETag`, weak, of what is told but for the ages.
fn tag_of(items: &[StatisticView]) -> String {
    let told: Vec<_> = items.iter().map(|item| json!([item, item.version])).map(without_age).collect();
    format!("W/\"{}\"", BASE64_URL_SAFE_NO_PAD.encode(hash_of(&json!(told))))
}

fn without_age(mut told: serde_json::Value) -> serde_json::Value {
    if let Some(view) = told.get_mut(0).and_then(serde_json::Value::as_object_mut) {
        view.remove("age");
    }
    told
}

fn conditional(headers: &HeaderMap, tag: &str, body: impl Serialize) -> Result<Response, Problem> {
    let headers_of_both = [(header::ETAG, HeaderValue::try_from(tag).map_err(Problem::internal)?), (header::CACHE_CONTROL, CACHED)];
    if holds(headers, tag) {
        return Ok((StatusCode::NOT_MODIFIED, headers_of_both).into_response());
    }
    Ok((headers_of_both, Answer(body)).into_response())
}

/// Which part of a history.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// From then on; a month ago when absent.
    #[param(value_type = Option<DateTime<Utc>>)]
    from: Option<Moment>,
    /// Before then; now when absent.
    #[param(value_type = Option<DateTime<Utc>>)]
    to: Option<Moment>,
    /// How many, 1 to 1,000; 500 when absent.
    #[param(minimum = 1, maximum = 1_000)]
    limit: Option<u32>,
}

/// What was believed, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadingList {
    items: Vec<ReadingView>,
    /// Whether there are older ones in the range: ask again with the last one's `measured_at` as `to`.
    has_more: bool,
}

/// Shows what a statistic was, newest first.
///
/// A reading stands there when it was different from the one before, and once a day.
#[utoipa::path(
    get, path = "/v1/stats/{source}/history", tag = "stats", operation_id = "read_statistic_history",
    params(("source" = String, Path, description = "The statistic's name in the manifest"), HistoryQuery),
    responses(
        (status = 200, body = ReadingList),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`statistic_not_found`"),
    ),
)]
pub async fn history(
    State(app): State<App>,
    Backend(caller): Backend<StatsRead>,
    Path(name): Path<String>,
    Query(query): Query<HistoryQuery>,
) -> Result<Answer<ReadingList>, Problem> {
    let tenant = tenant_of(&app, caller.tenant).await?;
    declared(&tenant, &name)?;
    let now = app.clock.now();
    // What is measured in this very moment belongs to it.
    let to = query.to.map_or(now + TimeDelta::microseconds(1), |moment| moment.0);
    let from = query.from.map_or(to.checked_sub_signed(DEFAULT_HISTORY).unwrap_or(to), |moment| moment.0);
    if from >= to {
        return Err(Problem::new(Code::QueryInvalid, "from: must be before `to`."));
    }
    let limit = query.limit.unwrap_or(DEFAULT_READINGS);
    if !(1..=MOST_READINGS).contains(&limit) {
        return Err(Problem::new(Code::QueryInvalid, format!("limit: is {limit}; 1 to {MOST_READINGS} are allowed.")));
    }
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let mut found = statistics::history(&mut transaction, caller.tenant, &name, from, to, i64::from(limit) + 1).await?;
    let has_more = found.len() > limit as usize;
    found.truncate(limit as usize);
    Ok(Answer(ReadingList { items: found.into_iter().map(Into::into).collect(), has_more }))
}
