//! `POST /v1/schedules/{id}/run`.

use axum::{
    Json as Answer,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use shared::{
    kinds::Violation,
    ledger::{
        find,
        schedule::{self, RanNow},
    },
    tenant,
};

use super::{Backend, IdOfPath, tenant as tenant_of};
use crate::{
    app::App,
    auth::SchedulesWrite,
    follow::Call,
    problem::{Problem, ProblemBody},
    routes::jobs::{Job, NoBody, Reader, job_address},
};

/// Makes a job of a schedule at once, beside its ticks: whatever it overlaps, and also while it is paused.
#[utoipa::path(
    post, path = "/v1/schedules/{id}/run", tag = "schedules", operation_id = "run_schedule",
    params(("id" = String, Path, description = "The schedule's id")),
    responses(
        (status = 202, body = Job, description = "The job", headers(("Location" = String, description = "The job's address"))),
        (status = 404, body = ProblemBody<'static>, description = "`schedule_not_found`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: the kind is switched off, is asked for by a door of its own alone, or its payload is not one that the kind and the product take any more"),
    ),
)]
pub async fn run(State(app): State<App>, Backend(caller): Backend<SchedulesWrite>, id: IdOfPath, _: NoBody) -> Result<Response, Problem> {
    let id = id.schedule()?;
    let tenant = tenant_of(&app, caller.tenant).await?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let held = schedule::hold(&mut transaction, caller.tenant, id).await?;
    let RanNow { job, queue } = schedule::run_now(&mut transaction, &held, &app.kinds, &tenant.manifest, &app.clock)
        .await?
        .map_err(|why| Problem::invalid(vec![Violation::new("", why)]))?;
    let found = find::job(&mut transaction, caller.tenant, None, job).await?.ok_or_else(Problem::unexplained)?;
    transaction.commit().await?;
    app.follow.tell(job, Call::Dispatch(queue));
    metrics::counter!("offstage_schedule_runs_wished_total").increment(1);
    let view = Job::of(found, None, &app.kinds, app.clock.now(), Reader::acting_for(None));
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, job_address(job))], Answer(view)).into_response())
}
