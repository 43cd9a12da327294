//! Summaries of the product's own database: when each was last brought up to date, what that took, and what is wrong with it.

use axum::{Json as Answer, Router, extract::State, routing::get};
use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{
    ledger::summaries::{self, FoundSummary},
    tenant::{self, Refreshed, Summary},
};
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::jobs::tenant_of;
use crate::{
    app::App,
    auth::{Backend, StatsRead},
    problem::{Problem, ProblemBody},
};

/// The door's part of the contract.
#[derive(OpenApi)]
#[openapi(paths(list), tags((name = "summaries", description = "Materialised views and summary tables of the product's own database")))]
pub struct Contract;

/// The door.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/summaries", get(list))
}

/// What goes wrong with a summary.
#[derive(Debug, Serialize, ToSchema)]
pub struct SummaryFailure {
    /// Since when.
    since: DateTime<Utc>,
    /// Attempts in a row.
    attempts: i32,
    /// For programs.
    #[schema(example = "summary_timeout")]
    code: String,
    /// In words.
    detail: String,
}

/// A summary.
#[derive(Debug, Serialize, ToSchema)]
pub struct SummaryView {
    /// Its name in the manifest.
    #[schema(example = "trainers")]
    name: String,
    /// The materialised view, or the function that writes its table.
    #[schema(example = "trainer_summary")]
    of: String,
    /// When it was last brought up to date; what it shows is as old as that, and what it took.
    #[schema(required)]
    refreshed_at: Option<DateTime<Utc>>,
    /// Seconds since.
    #[schema(required)]
    age: Option<i64>,
    /// What it took, in milliseconds.
    #[schema(required)]
    took_ms: Option<i64>,
    /// Whether readers could go on meanwhile; not the first time that a view is filled.
    #[schema(required)]
    concurrently: Option<bool>,
    /// When the last attempt began.
    #[schema(required)]
    started_at: Option<DateTime<Utc>>,
    /// Its job.
    #[schema(required)]
    job: Option<Uuid>,
    /// Why it is not newer.
    #[schema(required)]
    failing: Option<SummaryFailure>,
}

impl SummaryView {
    fn of(name: &str, declared: &Summary, found: Option<&FoundSummary>, now: DateTime<Utc>) -> Self {
        let of = match declared.refreshed() {
            Some(Refreshed::View(name) | Refreshed::Function(name)) => name.to_owned(),
            None => String::new(),
        };
        let refreshed_at = found.and_then(|found| found.refreshed_at);
        let failing = found.and_then(|found| {
            Some(SummaryFailure {
                since: found.failing_since?,
                attempts: found.failures,
                code: found.failure_code.clone()?,
                detail: found.failure.clone().unwrap_or_default(),
            })
        });
        Self {
            name: name.to_owned(),
            of,
            refreshed_at,
            age: refreshed_at.map(|at| (now - at).num_seconds().max(0)),
            took_ms: found.and_then(|found| found.took_ms),
            concurrently: found.and_then(|found| found.concurrently),
            started_at: found.and_then(|found| found.started_at),
            job: found.and_then(|found| found.job_id),
            failing,
        }
    }
}

/// A product's summaries.
#[derive(Debug, Serialize, ToSchema)]
pub struct SummaryList {
    /// In the order of their names.
    items: Vec<SummaryView>,
}

/// Shows all summaries: when each was last brought up to date, and what that took.
///
/// One is brought up to date at once by a job: `POST /v1/jobs` with the kind `summary.refresh`.
#[utoipa::path(
    get, path = "/v1/summaries", tag = "summaries", operation_id = "list_summaries",
    responses(
        (status = 200, body = SummaryList),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
    ),
)]
pub async fn list(State(app): State<App>, Backend(caller): Backend<StatsRead>) -> Result<Answer<SummaryList>, Problem> {
    let tenant = tenant_of(&app, caller.tenant).await?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = summaries::list(&mut transaction, caller.tenant).await?;
    let now = app.clock.now();
    let items = tenant
        .manifest
        .summaries
        .iter()
        .map(|(name, declared)| SummaryView::of(name, declared, found.iter().find(|found| found.name == *name), now));
    Ok(Answer(SummaryList { items: items.collect() }))
}
