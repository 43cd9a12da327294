//! `GET /v1/byok`, `PUT`, `GET` and `DELETE /v1/byok/{provider}`, `POST /v1/byok/{provider}/test`: the keys that users bring (R45).
//!
//! What must stay true: no answer holds a key, and no log either; nothing is asked of a provider within a request: a job does it, and the
//! door waits a few seconds for its end; a key is not used before its provider took it; saving and testing together are counted, and a
//! request that is one too many has changed nothing.

use std::time::Duration;

use axum::{
    Json as Answer, Router,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use shared::{
    byok::{self, Vendor},
    job::{JobId, Priority},
    kinds::{ByokCheck, Kind, Violation},
    ledger::{
        insert::{NewJob, insert_within},
        own_keys::{self, Counted, NewKey, OwnKey, Status},
    },
    tenant,
    vault::{Binding, VaultKeys},
};
use tokio::time::Instant;
use utoipa::{OpenApi, ToSchema};

use super::{jobs::ended_within, users::being_erased};
use crate::{
    app::App,
    auth::{ByokRead, ByokWrite, Caller, CallerOrUser, Needs},
    extract::Json,
    follow::Call,
    problem::{Code, Problem, ProblemBody},
};

/// How long a door waits for the provider's word; then it answers `unchecked`, and the job goes on.
const WAIT: Duration = Duration::from_secs(8);

/// The longest request, in bytes.
const BODY_LIMIT: usize = 4 * 1024;

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(list, read, put, delete, test),
    tags((name = "byok", description = "Keys for providers of models that users bring along: kept sealed, shown by their last four characters"))
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/byok", get(list))
        .route("/v1/byok/{provider}", get(read).put(put).delete(delete))
        .route("/v1/byok/{provider}/test", post(test))
}

/// What is known of a user's key for a provider.
#[derive(Debug, Serialize, ToSchema)]
pub struct ByokKey {
    /// The provider.
    provider: Vendor,
    /// Whether it is used: an `active` key alone is.
    status: ByokStatus,
    /// The key's last four characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    last_four: Option<String>,
    /// What the provider said, where it is invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    reason: Option<String>,
    /// When the provider was asked last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    checked_at: Option<DateTime<Utc>>,
    /// When it was put here.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    updated_at: Option<DateTime<Utc>>,
}

/// How a key stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ByokStatus {
    /// There is none.
    NotConfigured,
    /// Its provider has not answered yet; it is not used.
    Unchecked,
    /// Its provider takes it: calls of this user use it.
    Active,
    /// Its provider does not take it; it is not used, and no other in its place by itself.
    Invalid,
}

impl ByokKey {
    const fn none(provider: Vendor) -> Self {
        Self { provider, status: ByokStatus::NotConfigured, last_four: None, reason: None, checked_at: None, updated_at: None }
    }

    fn of(provider: Vendor, key: OwnKey) -> Self {
        let status = match key.status {
            Status::Unchecked => ByokStatus::Unchecked,
            Status::Active => ByokStatus::Active,
            Status::Invalid => ByokStatus::Invalid,
        };
        Self {
            provider,
            status,
            last_four: Some(key.last_four),
            reason: key.reason,
            checked_at: key.checked_at,
            updated_at: Some(key.updated_at),
        }
    }
}

/// A key.
#[derive(Deserialize, ToSchema)]
pub struct NewByokKey {
    /// The key as the provider gave it.
    #[schema(value_type = String, min_length = 20, max_length = 500)]
    key: SecretString,
}

impl std::fmt::Debug for NewByokKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewByokKey").finish_non_exhaustive()
    }
}

/// The `{provider}` of an address.
#[derive(Debug)]
pub struct VendorOfPath(Vendor);

impl FromRequestParts<App> for VendorOfPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let text = Path::<String>::from_request_parts(parts, app).await;
        let vendor = text.ok().and_then(|Path(word)| Vendor::from_word(&word));
        vendor.map(Self).ok_or_else(|| {
            let words: Vec<_> = Vendor::ALL.iter().map(|vendor| vendor.word()).collect();
            Problem::new(Code::ByokProviderUnknown, format!("There is no such provider; there are {}.", words.join(", ")))
        })
    }
}

fn user_of<N: Needs>(caller: &Caller<N>) -> Result<&str, Problem> {
    caller
        .acting_user
        .as_deref()
        .ok_or_else(|| Problem::new(Code::HeaderInvalid, "Keys belong to end users: name the one you act for in the header X-Acting-User."))
}

fn not_configured(vendor: Vendor) -> Problem {
    let detail = format!("This user has no key for {}. Put one with PUT /v1/byok/{}.", vendor.name(), vendor.word());
    Problem::new(Code::ByokKeyNotFound, detail)
}

fn vault(app: &App) -> Result<&VaultKeys, Problem> {
    app.config.vault_keys.as_ref().ok_or_else(|| {
        Problem::new(Code::NotSetUp, "No keys can be kept here yet: whoever runs this has to set OFFSTAGE_VAULT_KEYS.")
            .retry_after(Duration::from_secs(600))
    })
}

/// Shows which keys a user has brought.
///
/// Every provider that there is, also those of which the user has none. Never a key.
#[utoipa::path(
    get, path = "/v1/byok", tag = "byok", operation_id = "list_byok_keys",
    params(("X-Acting-User" = String, Header, description = "The end user whose keys they are")),
    responses(
        (status = 200, body = [ByokKey]),
        (status = 400, body = ProblemBody<'static>, description = "`header_invalid`: there is no `X-Acting-User`"),
    ),
)]
pub async fn list(State(app): State<App>, CallerOrUser(caller): CallerOrUser<ByokRead>) -> Result<Answer<Vec<ByokKey>>, Problem> {
    let user = user_of(&caller)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let mut keys = own_keys::list(&mut transaction, caller.tenant, user).await?;
    let shown = Vendor::ALL.map(|vendor| {
        let found = keys.iter().position(|key| key.provider == vendor.word()).map(|place| keys.swap_remove(place));
        found.map_or_else(|| ByokKey::none(vendor), |key| ByokKey::of(vendor, key))
    });
    Ok(Answer(shown.into()))
}

/// Shows how a user's key for a provider stands.
#[utoipa::path(
    get, path = "/v1/byok/{provider}", tag = "byok", operation_id = "read_byok_key",
    params(
        ("provider" = Vendor, Path, description = "The provider"),
        ("X-Acting-User" = String, Header, description = "The end user whose key it is"),
    ),
    responses(
        (status = 200, body = ByokKey, description = "Also where there is none: `not_configured`"),
        (status = 400, body = ProblemBody<'static>, description = "`header_invalid`: there is no `X-Acting-User`"),
        (status = 404, body = ProblemBody<'static>, description = "`byok_provider_unknown`"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<ByokRead>,
    VendorOfPath(vendor): VendorOfPath,
) -> Result<Answer<ByokKey>, Problem> {
    let user = user_of(&caller)?;
    Ok(Answer(shown(&app, caller.tenant, user, vendor).await?))
}

/// Puts a user's key for a provider.
///
/// In the place of another one. It is kept sealed and shown to nobody; its provider is asked whether it takes it, and until it has said so the
/// key is not used. Answers once that is known, or after some seconds with 202 and `unchecked`. Saving and testing together: five times an
/// hour for each user.
#[utoipa::path(
    put, path = "/v1/byok/{provider}", tag = "byok", operation_id = "put_byok_key", request_body = NewByokKey,
    params(
        ("provider" = Vendor, Path, description = "The provider"),
        ("X-Acting-User" = String, Header, description = "The end user whose key it is"),
    ),
    responses(
        (status = 200, body = ByokKey, description = "Kept, and `active` or `invalid`"),
        (status = 202, body = ByokKey, description = "Kept; the provider has not answered yet"),
        (status = 400, body = ProblemBody<'static>, description = "`header_invalid`: there is no `X-Acting-User`"),
        (status = 404, body = ProblemBody<'static>, description = "`byok_provider_unknown`"),
        (status = 409, body = ProblemBody<'static>, description = "`user_being_erased`: again after `Retry-After`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`"),
        (status = 429, body = ProblemBody<'static>, description = "`byok_limit_exceeded`: five in an hour; again after `Retry-After`"),
        (status = 503, body = ProblemBody<'static>, description = "`not_set_up`: this installation keeps no keys"),
    ),
)]
pub async fn put(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<ByokWrite>,
    VendorOfPath(vendor): VendorOfPath,
    Json(new): Json<NewByokKey, BODY_LIMIT>,
) -> Result<Response, Problem> {
    let user = user_of(&caller)?;
    let keys = vault(&app)?;
    if let Some(detail) = byok::wrong(&new.key) {
        return Err(Problem::invalid(vec![Violation::new("/key", detail)]));
    }
    let binding = Binding { tenant: caller.tenant, user, provider: vendor.word() };
    let sealed = keys.seal(&binding, &new.key).map_err(Problem::internal)?;
    let last_four = byok::last_four(&new.key);
    let key = NewKey {
        id: app.clock.new_id(),
        tenant: caller.tenant,
        user,
        vendor,
        sealed: &sealed,
        wrapped_by: keys.current(),
        last_four: &last_four,
    };
    check(&app, caller.tenant, user, vendor, Some(&key)).await
}

/// Forgets a user's key for a provider.
#[utoipa::path(
    delete, path = "/v1/byok/{provider}", tag = "byok", operation_id = "delete_byok_key",
    params(
        ("provider" = Vendor, Path, description = "The provider"),
        ("X-Acting-User" = String, Header, description = "The end user whose key it is"),
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, body = ProblemBody<'static>, description = "`header_invalid`: there is no `X-Acting-User`"),
        (status = 404, body = ProblemBody<'static>, description = "`byok_key_not_found`, `byok_provider_unknown`"),
    ),
)]
pub async fn delete(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<ByokWrite>,
    VendorOfPath(vendor): VendorOfPath,
) -> Result<StatusCode, Problem> {
    let user = user_of(&caller)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let deleted = own_keys::delete(&mut transaction, caller.tenant, user, vendor, app.clock.now()).await?;
    transaction.commit().await?;
    if deleted { Ok(StatusCode::NO_CONTENT) } else { Err(not_configured(vendor)) }
}

/// Asks the provider whether it takes a user's key.
///
/// As when it was put, and counted with that.
#[utoipa::path(
    post, path = "/v1/byok/{provider}/test", tag = "byok", operation_id = "test_byok_key",
    params(
        ("provider" = Vendor, Path, description = "The provider"),
        ("X-Acting-User" = String, Header, description = "The end user whose key it is"),
    ),
    responses(
        (status = 200, body = ByokKey, description = "`active` or `invalid`"),
        (status = 202, body = ByokKey, description = "The provider has not answered yet; the key stands as it did"),
        (status = 400, body = ProblemBody<'static>, description = "`header_invalid`: there is no `X-Acting-User`"),
        (status = 404, body = ProblemBody<'static>, description = "`byok_key_not_found`, `byok_provider_unknown`"),
        (status = 409, body = ProblemBody<'static>, description = "`user_being_erased`: again after `Retry-After`"),
        (status = 429, body = ProblemBody<'static>, description = "`byok_limit_exceeded`: five in an hour; again after `Retry-After`"),
        (status = 503, body = ProblemBody<'static>, description = "`not_set_up`: this installation keeps no keys"),
    ),
)]
pub async fn test(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<ByokWrite>,
    VendorOfPath(vendor): VendorOfPath,
) -> Result<Response, Problem> {
    let user = user_of(&caller)?;
    vault(&app)?;
    check(&app, caller.tenant, user, vendor, None).await
}

/// Counts a check, puts the new key if there is one, has it checked and waits for that.
async fn check(app: &App, tenant: i32, user: &str, vendor: Vendor, new: Option<&NewKey<'_>>) -> Result<Response, Problem> {
    let deadline = Instant::now() + WAIT;
    let now = app.clock.now();
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let found = match new {
        Some(_) => None,
        None => Some(own_keys::find(&mut transaction, tenant, user, vendor).await?.ok_or_else(|| not_configured(vendor))?),
    };
    match own_keys::count(&mut transaction, (tenant, user), app.clock.new_id(), now).await? {
        Counted::Now => {}
        Counted::Gone => return Err(being_erased()),
        Counted::TooMany(until) => {
            let detail = format!(
                "Keys of one user are checked {} times an hour at the most, saving and testing together; the next time at {}.",
                own_keys::MOST,
                until.format("%FT%TZ")
            );
            let pause = (until - now).to_std().unwrap_or_default().max(Duration::from_secs(1));
            return Err(Problem::new(Code::ByokLimitExceeded, detail).retry_after(pause));
        }
    }
    let key = match (found, new) {
        (Some(found), _) => found,
        (None, Some(new)) => own_keys::put(&mut transaction, new, now).await?,
        (None, None) => return Err(not_configured(vendor)),
    };
    let job = JobId(app.clock.new_id());
    let payload = ByokCheck { provider: vendor, version: key.version };
    // Somebody waits for it.
    let check = NewJob { owner: Some(user.to_owned()), priority: Priority::High, ..NewJob::of(job, tenant, &payload, now) };
    insert_within(&mut transaction, now, &[check]).await?;
    transaction.commit().await?;
    app.follow.tell(job, Call::Dispatch(ByokCheck::QUEUE));
    let ended = ended_within(app, tenant, job, deadline).await?;
    let status = if ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Answer(shown(app, tenant, user, vendor).await?)).into_response())
}

async fn shown(app: &App, tenant: i32, user: &str, vendor: Vendor) -> Result<ByokKey, Problem> {
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let found = own_keys::find(&mut transaction, tenant, user, vendor).await?;
    Ok(found.map_or_else(|| ByokKey::none(vendor), |key| ByokKey::of(vendor, key)))
}
