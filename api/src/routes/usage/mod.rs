//! What was used and may yet be: `GET /v1/usage`; and what models were used for, in [`ai`]. Reading it uses nothing.
//!
//! What must stay true: a user finds their own alone; a backend that acts for nobody finds the product's as a whole.

mod ai;

use axum::{Json as Answer, Router, extract::State, routing::get};
use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{
    tenant,
    usage::{
        Standing,
        read::{self, Metered},
        reserve,
    },
};
use utoipa::{OpenApi, ToSchema};

use super::jobs::tenant_of;
use crate::{
    app::App,
    auth::{CallerOrUser, UsageRead},
    problem::{Problem, ProblemBody},
};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(show, ai::read, ai::tell),
    tags((name = "usage", description = "What users and the product have used, of what a plan or a budget limits")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/usage", get(show)).route("/v1/ai/usage", get(ai::read).post(ai::tell))
}

/// What was used, now.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    /// Whose: the user's; absent for the product as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, example = "user-42")]
    user: Option<String>,
    /// The plan that holds for them; absent where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, example = "pro")]
    plan: Option<String>,
    /// Plans that were added to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    add_ons: Vec<String>,
    /// By whose clocks days and months begin.
    #[schema(example = "Europe/Berlin")]
    time_zone: String,
    /// Each metric in each of its periods.
    metrics: Vec<MetricUsage>,
}

/// A metric in a period.
#[derive(Debug, Serialize, ToSchema)]
pub struct MetricUsage {
    /// The metric.
    #[schema(example = "ai_enhancements")]
    pub metric: String,
    /// `hour`, `day`, `month` or `total`.
    #[schema(example = "month")]
    pub period: &'static str,
    /// What is used, with what jobs that have not ended may yet use.
    pub used: u64,
    /// The most; `null`: no limit.
    pub limit: Option<u64>,
    /// What may yet be used; `null`: without limit.
    pub remaining: Option<u64>,
    /// When the period began.
    pub starts_at: DateTime<Utc>,
    /// When the next one begins; `null`: never.
    pub resets_at: Option<DateTime<Utc>>,
}

impl From<Metered> for MetricUsage {
    fn from(metered: Metered) -> Self {
        let Metered { metric, period, span, used, limit } = metered;
        let remaining = limit.map(|limit| limit.saturating_sub(used));
        Self { metric, period: period.word(), used, limit, remaining, starts_at: span.starts_at, resets_at: span.ends_at }
    }
}

/// Shows what was used, what may be, and when each period begins anew.
///
/// Of the user that is acted for, or of the product as a whole. Reading it uses nothing.
#[utoipa::path(
    get, path = "/v1/usage", tag = "usage", operation_id = "read_usage",
    params(("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for; then only their own")),
    responses(
        (status = 200, body = Usage),
        (status = 503, body = ProblemBody<'static>, description = "`database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn show(State(app): State<App>, CallerOrUser(caller): CallerOrUser<UsageRead>) -> Result<Answer<Usage>, Problem> {
    let product = tenant_of(&app, caller.tenant).await?;
    let manifest = &product.manifest;
    let owner = caller.acting_user.as_deref();
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let (plan, add_ons) = reserve::plan_of(&mut transaction, caller.tenant, owner).await?.unwrap_or_default();
    let standing = Standing { owner, plan: plan.as_deref(), add_ons: &add_ons };
    let metrics = read::standing(&mut transaction, caller.tenant, manifest, &standing, app.clock.now()).await?;
    drop(transaction);
    let plan = owner.and_then(|_| manifest.plan_of(plan.as_deref())).map(|(name, _)| name.to_owned());
    Ok(Answer(Usage {
        user: owner.map(str::to_owned),
        plan,
        add_ons: add_ons.into_iter().filter(|name| manifest.plans.contains_key(name)).collect(),
        time_zone: manifest.usage.zone().name().to_owned(),
        metrics: metrics.into_iter().map(MetricUsage::from).collect(),
    }))
}
