//! `PUT` and `DELETE /v1/users/{id}/follows/{other}`.

use axum::{extract::State, http::StatusCode};
use shared::{
    kinds::Violation,
    ledger::people::keep::{self, Followed},
    tenant,
};

use super::{TwoUsersOfPath, not_found};
use crate::{
    app::App,
    auth::{Backend, UsersWrite},
    problem::{Problem, ProblemBody},
    routes::jobs::NoBody,
};

/// Lets a user follow another: from then on they are among those who are told what is for that one's followers.
#[utoipa::path(
    put, path = "/v1/users/{id}/follows/{other}", tag = "users", operation_id = "follow_user",
    params(("id" = String, Path, description = "Who follows"), ("other" = String, Path, description = "Whom")),
    responses(
        (status = 204, description = "They follow, by this request or before"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`user_not_found`: one of the two was not put here"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: nobody follows themselves"),
    ),
)]
pub async fn follow(
    State(app): State<App>,
    Backend(caller): Backend<UsersWrite>,
    TwoUsersOfPath(id, other): TwoUsersOfPath,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    if id == other {
        return Err(Problem::invalid(vec![Violation::new("", "nobody follows themselves; name two users")]));
    }
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let followed = keep::follow(&mut transaction, caller.tenant, &id, &other, app.clock.now()).await?;
    transaction.commit().await?;
    match followed {
        Followed::Yes => Ok(StatusCode::NO_CONTENT),
        Followed::Missing => Err(not_found()),
    }
}

/// Ends that.
#[utoipa::path(
    delete, path = "/v1/users/{id}/follows/{other}", tag = "users", operation_id = "unfollow_user",
    params(("id" = String, Path, description = "Who follows"), ("other" = String, Path, description = "Whom")),
    responses(
        (status = 204, description = "They don't follow, by this request or before"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`user_not_found`: no user can be called so"),
    ),
)]
pub async fn unfollow(
    State(app): State<App>,
    Backend(caller): Backend<UsersWrite>,
    TwoUsersOfPath(id, other): TwoUsersOfPath,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    keep::unfollow(&mut transaction, caller.tenant, &id, &other).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
