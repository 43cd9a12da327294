//! `GET` and `PUT /v1/users/{id}/preferences`: the user's own words, also by their token.

use axum::{Json as Answer, extract::State};
use shared::{ledger::people::preferences, people::Preferences, tenant};

use super::{UserOfPath, being_erased, not_found};
use crate::{
    app::App,
    auth::{Caller, CallerOrUser, Needs, NotificationsRead, NotificationsWrite},
    extract::Json,
    problem::{Problem, ProblemBody},
};

/// The most that a request may say, in bytes.
const BODY_LIMIT: usize = 32 * 1024;

/// Another user's preferences do not exist for who acts for a user.
fn check_own<N: Needs>(caller: &Caller<N>, id: &str) -> Result<(), Problem> {
    if caller.acting_user.as_deref().is_none_or(|acting| acting == id) { Ok(()) } else { Err(not_found()) }
}

/// Shows what a user wants to be told of.
///
/// Only what they said something of; of anybody who said nothing, nothing.
#[utoipa::path(
    get, path = "/v1/users/{id}/preferences", tag = "users", operation_id = "read_preferences",
    params(
        ("id" = String, Path, description = "The user's name at the product"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for; then only their own"),
    ),
    responses(
        (status = 200, body = Preferences),
        (status = 404, body = ProblemBody<'static>, description = "`user_not_found`: no user can be called so, or it is another's"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<NotificationsRead>,
    UserOfPath(id): UserOfPath,
) -> Result<Answer<Preferences>, Problem> {
    check_own(&caller, &id)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    Ok(Answer(preferences::find(&mut transaction, caller.tenant, &id).await?))
}

/// Puts what a user wants to be told of.
///
/// What is sent takes the place of all that they said. A channel of which nothing is said, or `null`, is as the product has it. Whoever
/// tells them something asks then, so it counts at once, also for what was asked for before.
#[utoipa::path(
    put, path = "/v1/users/{id}/preferences", tag = "users", operation_id = "put_preferences", request_body = Preferences,
    params(
        ("id" = String, Path, description = "The user's name at the product"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for; then only their own"),
    ),
    responses(
        (status = 200, body = Preferences),
        (status = 404, body = ProblemBody<'static>, description = "`user_not_found`: no user can be called so, or it is another's"),
        (status = 409, body = ProblemBody<'static>, description = "`user_being_erased`: again after `Retry-After`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
    ),
)]
pub async fn put(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<NotificationsWrite>,
    UserOfPath(id): UserOfPath,
    Json(said): Json<Preferences, BODY_LIMIT>,
) -> Result<Answer<Preferences>, Problem> {
    check_own(&caller, &id)?;
    let said = said.checked().map_err(Problem::invalid)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let is_kept = preferences::put(&mut transaction, caller.tenant, &id, &said, app.clock.now()).await?;
    transaction.commit().await?;
    if is_kept { Ok(Answer(said)) } else { Err(being_erased()) }
}
