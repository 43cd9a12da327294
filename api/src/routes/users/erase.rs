//! `DELETE /v1/users/{id}`.

use axum::{
    Json as Answer,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use shared::{
    kinds::{Kind, UserErase},
    ledger::{find, people::erase},
    status::{Job, Reader},
    tenant,
};

use super::UserOfPath;
use crate::{
    app::App,
    auth::{Backend, UsersWrite},
    follow::Call,
    problem::{Problem, ProblemBody},
    routes::jobs::{NoBody, job_address, view_of},
};

/// Erases a user.
///
/// Of everything that is here in that name nothing is shown from this answer on, by no door and to nobody: the user, their jobs with
/// payloads and results, exports and files, batches, notifications, whom they follow and who follows them. A job removes it for good,
/// mostly within half a minute; what was being written to object storage at that moment, within half an hour. It can be followed as any
/// job. What is unfinished is cancelled; what the product asks for in that name before the job has succeeded goes with it. Also for a
/// user who was never put. Asked for again meanwhile, the same job is answered, and one that failed goes on.
#[utoipa::path(
    delete, path = "/v1/users/{id}", tag = "users", operation_id = "erase_user",
    params(("id" = String, Path, description = "The user's name at the product")),
    responses(
        (status = 202, body = Job, description = "The job that erases them", headers(("Location" = String, description = "The job's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`user_not_found`: no user can be called so"),
        (status = 503, body = ProblemBody<'static>, description = "`database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn erase(
    State(app): State<App>,
    Backend(caller): Backend<UsersWrite>,
    UserOfPath(id): UserOfPath,
    _: NoBody,
) -> Result<Response, Problem> {
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let job = erase::request(&mut transaction, caller.tenant, &id, &app.clock).await?;
    let found = find::job(&mut transaction, caller.tenant, None, job).await?;
    transaction.commit().await?;
    app.follow.tell(job, Call::Dispatch(UserErase::QUEUE));
    let found = found.ok_or_else(Problem::unexplained)?;
    let view = view_of(&app, caller.tenant, found, None, Reader::Backend);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, job_address(job))], Answer(view)).into_response())
}
