//! `POST /v1/stats/{source}/refresh` and `…/accept`.

use axum::{
    Json as Answer,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use shared::{
    job::JobId,
    kinds::{Kind, StatsRefresh},
    ledger::{
        find,
        statistics::{self, Asked, By},
    },
    statistic::MOST_WISHED,
    tenant,
};
use utoipa::ToSchema;

use super::{declared, may_refresh, view::StatisticView};
use crate::{
    app::App,
    auth::{Backend, StatsWrite},
    extract::Json,
    follow::Call,
    problem::{Code, Problem, ProblemBody},
    routes::{
        jobs::{Job, NoBody, Reader, job_address, tenant_of},
        moment::Moment,
    },
};

/// Has a statistic refreshed now.
///
/// While a refresh is on its way this joins it. Where the service may not be asked yet (`not_before`), it waits for that.
#[utoipa::path(
    post, path = "/v1/stats/{source}/refresh", tag = "stats", operation_id = "refresh_statistic",
    params(("source" = String, Path, description = "The statistic's name in the manifest")),
    responses(
        (status = 202, body = Job, description = "The job", headers(("Location" = String, description = "The job's address"))),
        (status = 200, body = Job, description = "The job that was on its way already", headers(("Location" = String, description = "The job's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`, `kind_not_enabled`"),
        (status = 404, body = ProblemBody<'static>, description = "`statistic_not_found`"),
        (status = 429, body = ProblemBody<'static>, description = "`refresh_limit_exceeded`: twelve an hour; again after `Retry-After`"),
    ),
)]
pub async fn refresh(
    State(app): State<App>,
    Backend(caller): Backend<StatsWrite>,
    Path(name): Path<String>,
    _: NoBody,
) -> Result<Response, Problem> {
    let tenant = tenant_of(&app, caller.tenant).await?;
    declared(&tenant, &name)?;
    if !may_refresh(&tenant) {
        let detail = "Refreshes of statistics are switched off in the product's manifest, [kinds.\"stats.refresh\"].";
        return Err(Problem::new(Code::KindNotEnabled, detail));
    }
    let now = app.clock.now();
    let new = JobId(app.clock.new_id());
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let (job, status) = match statistics::ask(&mut transaction, caller.tenant, &name, By::Wish, new, now).await? {
        Asked::New(job) => (job, StatusCode::ACCEPTED),
        Asked::Running(job) => (job, StatusCode::OK),
        Asked::Limited(until) => {
            let detail = format!("A statistic is refreshed by wish {MOST_WISHED} times an hour at most; by the clock it is all the same.");
            return Err(Problem::new(Code::RefreshLimitExceeded, detail).retry_after((until - now).to_std().unwrap_or_default()));
        }
        // Said to readers alone.
        Asked::NotNow => return Err(Problem::unexplained()),
    };
    let found = find::job(&mut transaction, caller.tenant, None, job).await?.ok_or_else(Problem::unexplained)?;
    transaction.commit().await?;
    if status == StatusCode::ACCEPTED {
        app.follow.tell(job, Call::Dispatch(StatsRefresh::QUEUE));
    }
    let view = Job::of(found, None, &app.kinds, now, Reader::acting_for(None));
    Ok((status, [(header::LOCATION, job_address(job))], Answer(view)).into_response())
}

/// Which reading is believed.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Acceptance {
    /// The `at` of `flagged`: what was read since, and not looked at, is not believed by it.
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    flagged_at: Moment,
}

/// Believes a reading that was flagged.
///
/// It is the statistic's from then on, and stands in its history as accepted.
#[utoipa::path(
    post, path = "/v1/stats/{source}/accept", tag = "stats", operation_id = "accept_reading", request_body = Acceptance,
    params(("source" = String, Path, description = "The statistic's name in the manifest")),
    responses(
        (status = 200, body = StatisticView),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`statistic_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`reading_not_flagged`: another was read since, or none is flagged any more"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`"),
    ),
)]
pub async fn accept(
    State(app): State<App>,
    Backend(caller): Backend<StatsWrite>,
    Path(name): Path<String>,
    Json(acceptance): Json<Acceptance>,
) -> Result<Answer<StatisticView>, Problem> {
    let tenant = tenant_of(&app, caller.tenant).await?;
    let source = declared(&tenant, &name)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    if !statistics::accept(&mut transaction, caller.tenant, &name, acceptance.flagged_at.0).await? {
        let detail = "No reading of that time is flagged: another was read since, or it was accepted. Look at the statistic again.";
        return Err(Problem::new(Code::ReadingNotFlagged, detail));
    }
    let found = statistics::find(&mut transaction, caller.tenant, &name).await?;
    transaction.commit().await?;
    metrics::counter!("offstage_statistic_accepted_total").increment(1);
    Ok(Answer(StatisticView::of(&name, source, found, app.clock.now())))
}
