//! Users as recipients: put, shown, erased, and whom they follow. What tells them something reads them by
//! [`shared::ledger::people::audience`].
//!
//! What must stay true: users are the backend's affair, but for their own preferences, so a request that acts for one is turned away
//! before anything is looked at; of a user who is being erased
//! nothing is shown by any door, and nothing is put in that name.

mod erase;
mod follows;
mod keep;
mod preferences;

use std::time::Duration;

use axum::{
    Router,
    extract::{FromRequestParts, Path},
    http::request::Parts,
    routing::{get, put},
};
use shared::kinds::Violation;
use utoipa::OpenApi;

use crate::{
    app::App,
    auth::check_user,
    problem::{Code, Problem},
};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(keep::put, keep::read, erase::erase, follows::follow, follows::unfollow, preferences::read, preferences::put),
    tags((name = "users", description = "Whom a product tells things. For backends, but for a user's own preferences: a request with `X-Acting-User` gets 403 `backend_only`")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/users/{id}", put(keep::put).get(keep::read).delete(erase::erase))
        .route("/v1/users/{id}/preferences", get(preferences::read).put(preferences::put))
        .route("/v1/users/{id}/follows/{other}", put(follows::follow).delete(follows::unfollow))
}

/// When to come again to a name that is being erased.
const COME_AGAIN: Duration = Duration::from_secs(10);

/// The `{id}` of an address. What can't be a user's name names nobody.
#[derive(Debug)]
pub struct UserOfPath(pub String);

impl FromRequestParts<App> for UserOfPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let text = Path::<String>::from_request_parts(parts, app).await;
        text.ok().filter(|Path(id)| check_user(id).is_ok()).map(|Path(id)| Self(id)).ok_or_else(not_found)
    }
}

/// The `{id}` and the `{other}` of an address.
#[derive(Debug)]
struct TwoUsersOfPath(String, String);

impl FromRequestParts<App> for TwoUsersOfPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let text = Path::<(String, String)>::from_request_parts(parts, app).await;
        let legal = |ids: &(String, String)| check_user(&ids.0).is_ok() && check_user(&ids.1).is_ok();
        text.ok().map(|Path(ids)| ids).filter(legal).map(|(id, other)| Self(id, other)).ok_or_else(not_found)
    }
}

fn not_found() -> Problem {
    Problem::new(Code::UserNotFound, "There is no such user of this product. Put them first, with PUT /v1/users/{id}.")
}

/// Nothing is put in a name that is being erased.
pub fn being_erased() -> Problem {
    let detail =
        "A user of this name is being erased. Nothing can be put in that name until this is done; the answer to the DELETE names the job.";
    Problem::new(Code::UserBeingErased, detail).retry_after(COME_AGAIN)
}

/// What is wrong with the name of a user.
pub fn check_name(at: &str, user: Option<&str>, wrong: &mut Vec<Violation>) {
    if let Some(Err(detail)) = user.map(check_user) {
        wrong.push(Violation::new(at, detail));
    }
}
