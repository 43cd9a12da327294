//! `GET /v1/push/key`, `POST` and `DELETE /v1/push/subscriptions`: browsers that can be pushed to.

use axum::{Json as Answer, extract::State, http::StatusCode};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    kinds::Violation,
    ledger::browsers::{self, NewBrowser},
    outbound::Reach,
    push::{Subscription, SubscriptionError, VapidKeys},
    tenant,
};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    app::App,
    auth::{Caller, CallerOrUser, Needs, PushesRead, PushesWrite},
    extract::Json,
    problem::{Code, Problem, ProblemBody},
    routes::users::being_erased,
};

/// The key that browsers subscribe with.
#[derive(Debug, Serialize, ToSchema)]
pub struct PushKey {
    /// For `pushManager.subscribe({userVisibleOnly: true, applicationServerKey})`.
    #[schema(example = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4")]
    key: String,
}

/// A subscription as the browser writes it (`PushSubscription.toJSON()`), with what a page may add.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewSubscription {
    /// Where the browser is pushed to.
    #[schema(max_length = 2_000, example = "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV")]
    endpoint: String,
    /// When it ends, in milliseconds since 1970, where the browser says so.
    #[serde(default)]
    expiration_time: Option<f64>,
    /// By what its messages are sealed.
    keys: SubscriptionKeys,
    /// The key that it was made with, where that may be another than `GET /v1/push/key` says now.
    application_server_key: Option<String>,
    /// The browser's endpoint before, in `pushsubscriptionchange`: the new one takes its place.
    old_endpoint: Option<String>,
}

/// By what a browser's messages are sealed.
#[derive(Debug, Deserialize, ToSchema)]
pub struct SubscriptionKeys {
    /// Its public key, in base64url.
    p256dh: String,
    /// Its secret, in base64url.
    auth: String,
}

/// Which browser to forget.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Forgotten {
    /// Its endpoint.
    endpoint: String,
}

/// A browser that can be pushed to.
#[derive(Debug, Serialize, ToSchema)]
pub struct SubscriptionView {
    /// Its id, as in deliveries.
    id: Uuid,
}

/// The key that browsers subscribe with now.
#[utoipa::path(
    get, path = "/v1/push/key", tag = "pushes", operation_id = "read_push_key",
    responses((status = 200, body = PushKey), (status = 503, body = ProblemBody<'static>, description = "`not_set_up`: nothing can be pushed here")),
)]
pub async fn key(State(app): State<App>, _: CallerOrUser<PushesRead>) -> Result<Answer<PushKey>, Problem> {
    Ok(Answer(PushKey { key: keys(&app)?.current().public() }))
}

/// Registers a browser of the acting user.
///
/// Send what `subscription.toJSON()` says. Once more for the same browser changes nothing; for another user it is that user's from then on,
/// so do it at each sign-in. A user has at most 20; the one that was registered longest ago gives way.
#[utoipa::path(
    post, path = "/v1/push/subscriptions", tag = "pushes", operation_id = "register_push_subscription", request_body = NewSubscription,
    params(("X-Acting-User" = String, Header, description = "The end user whose browser it is")),
    responses(
        (status = 200, body = SubscriptionView),
        (status = 400, body = ProblemBody<'static>, description = "`header_invalid`: there is no `X-Acting-User`"),
        (status = 409, body = ProblemBody<'static>, description = "`user_being_erased`: again after `Retry-After`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`"),
        (status = 503, body = ProblemBody<'static>, description = "`not_set_up`: nothing can be pushed here"),
    ),
)]
pub async fn register(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<PushesWrite>,
    Json(new): Json<NewSubscription>,
) -> Result<Answer<SubscriptionView>, Problem> {
    let owner = user_of(&caller)?;
    let keys = keys(&app)?;
    let invalid = |pointer: &str, detail: String| Problem::invalid(vec![Violation::new(pointer, detail)]);
    let subscription = Subscription::read(&new.endpoint, &new.keys.p256dh, &new.keys.auth).map_err(|error| {
        let pointer = match error {
            SubscriptionError::Endpoint => "/endpoint",
            SubscriptionError::PublicKey => "/keys/p256dh",
            SubscriptionError::Secret => "/keys/auth",
        };
        invalid(pointer, error.to_string())
    })?;
    app.config.outbound.url(subscription.endpoint(), Reach::Public).map_err(|error| invalid("/endpoint", error.to_string()))?;
    let key = match &new.application_server_key {
        None => keys.current(),
        Some(public) => {
            let unknown = || invalid("/applicationServerKey", "is no key of ours: subscribe anew with that of GET /v1/push/key".to_owned());
            keys.find_public(public).ok_or_else(unknown)?
        }
    };
    let now = app.clock.now();
    let expires_at = new.expiration_time.map(|milliseconds| {
        let nonsense = || invalid("/expirationTime", "is no time: milliseconds since 1970".to_owned());
        moment(milliseconds).ok_or_else(nonsense)
    });
    let browser = NewBrowser {
        id: app.clock.new_id(),
        tenant: caller.tenant,
        owner,
        subscription: &subscription,
        key: key.id(),
        expires_at: expires_at.transpose()?,
        replaces: new.old_endpoint.as_deref(),
    };
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let id = browsers::register(&mut transaction, &browser, now).await?.ok_or_else(being_erased)?;
    transaction.commit().await?;
    Ok(Answer(SubscriptionView { id }))
}

/// Forgets a browser of the acting user: at logout, before the page unsubscribes.
///
/// One that the user does not have, or has no more, is not found.
#[utoipa::path(
    delete, path = "/v1/push/subscriptions", tag = "pushes", operation_id = "forget_push_subscription", request_body = Forgotten,
    params(("X-Acting-User" = String, Header, description = "The end user whose browser it is")),
    responses(
        (status = 204, description = "It is not pushed to any more"),
        (status = 400, body = ProblemBody<'static>, description = "`header_invalid`: there is no `X-Acting-User`"),
        (status = 404, body = ProblemBody<'static>, description = "`subscription_not_found`"),
    ),
)]
pub async fn forget(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<PushesWrite>,
    Json(gone): Json<Forgotten>,
) -> Result<StatusCode, Problem> {
    let owner = user_of(&caller)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let forgotten = browsers::forget(&mut transaction, caller.tenant, owner, &gone.endpoint).await?;
    transaction.commit().await?;
    if forgotten {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::new(Code::SubscriptionNotFound, "The user has no such browser: it was forgotten before, or is another user's now."))
}

fn user_of<N: Needs>(caller: &Caller<N>) -> Result<&str, Problem> {
    let missing = || Problem::new(Code::HeaderInvalid, "A browser is a user's: say whose by the header X-Acting-User.");
    caller.acting_user.as_deref().ok_or_else(missing)
}

fn keys(app: &App) -> Result<&VapidKeys, Problem> {
    let missing = || Problem::new(Code::NotSetUp, "Nothing can be pushed here: the operator has set no OFFSTAGE_PUSH_KEYS for the API.");
    app.config.push.keys.as_deref().ok_or_else(missing)
}

/// The browsers' milliseconds since 1970 (`DOMHighResTimeStamp`), which may have fractions.
fn moment(milliseconds: f64) -> Option<DateTime<Utc>> {
    // Beyond this no date has a year of four digits.
    let whole = (0.0..=253_402_300_799_000.0).contains(&milliseconds).then(|| milliseconds.trunc())?;
    #[expect(clippy::cast_possible_truncation, reason = "whole, and within the range of an i64")]
    DateTime::from_timestamp_millis(whole as i64)
}
