//! `PUT` and `GET /v1/users/{id}`.

use axum::{
    Json as Answer,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{
    ledger::people::{
        EndUser,
        keep::{self, Kept},
    },
    people::Profile,
    tenant,
};
use utoipa::ToSchema;

use super::{UserOfPath, being_erased, not_found};
use crate::{
    app::App,
    auth::{Backend, UsersRead, UsersWrite},
    extract::Json,
    problem::{Problem, ProblemBody},
    routes::jobs::tenant_of,
};

/// The most that a request may say of a user, in bytes.
const BODY_LIMIT: usize = 16 * 1024;

/// A user.
#[derive(Debug, Serialize, ToSchema)]
pub struct User {
    /// What `owner` and `X-Acting-User` name.
    #[schema(example = "user-42")]
    id: String,
    #[schema(inline)]
    #[serde(flatten)]
    profile: Profile,
    /// When they were first put here.
    created_at: DateTime<Utc>,
    /// When they were last put here.
    updated_at: DateTime<Utc>,
}

impl From<EndUser> for User {
    fn from(user: EndUser) -> Self {
        Self { id: user.id, profile: user.profile, created_at: user.created_at, updated_at: user.updated_at }
    }
}

/// Puts a user.
///
/// What is sent takes the place of all that was known of them: a field that is left out is then absent. The address, the name, the roles
/// and whom they follow are for what the product tells them; nothing else needs a user to be put here.
#[utoipa::path(
    put, path = "/v1/users/{id}", tag = "users", operation_id = "put_user", request_body = Profile,
    params(("id" = String, Path, description = "The user's name at the product: 1 to 255 characters without spaces")),
    responses(
        (status = 200, body = User, description = "They were here"),
        (status = 201, body = User, description = "They are new", headers(("Location" = String, description = "The user's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`user_not_found`: no user can be called so"),
        (status = 409, body = ProblemBody<'static>, description = "`user_being_erased`: again after `Retry-After`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
    ),
)]
pub async fn put(
    State(app): State<App>,
    Backend(caller): Backend<UsersWrite>,
    UserOfPath(id): UserOfPath,
    Json(profile): Json<Profile, BODY_LIMIT>,
) -> Result<Response, Problem> {
    let product = tenant_of(&app, caller.tenant).await?;
    let profile = profile.checked(&product.manifest.plans).map_err(Problem::invalid)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let kept = keep::put(&mut transaction, caller.tenant, &id, profile, app.clock.now()).await?;
    transaction.commit().await?;
    match kept {
        Kept::Created(user) => Ok((StatusCode::CREATED, [(header::LOCATION, address(&user.id))], Answer(User::from(user))).into_response()),
        Kept::Updated(user) => Ok(Answer(User::from(user)).into_response()),
        Kept::BeingErased => Err(being_erased()),
    }
}

/// Shows a user.
#[utoipa::path(
    get, path = "/v1/users/{id}", tag = "users", operation_id = "read_user",
    params(("id" = String, Path, description = "The user's name at the product")),
    responses(
        (status = 200, body = User),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`user_not_found`"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    Backend(caller): Backend<UsersRead>,
    UserOfPath(id): UserOfPath,
) -> Result<Answer<User>, Problem> {
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = keep::find(&mut transaction, caller.tenant, &id).await?;
    Ok(Answer(found.ok_or_else(not_found)?.into()))
}

/// A user's address. Names may hold anything that can be seen.
fn address(id: &str) -> String {
    let mut url = String::from("/v1/users/");
    url.extend(url::form_urlencoded::byte_serialize(id.as_bytes()));
    url
}
