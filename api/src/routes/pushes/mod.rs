//! Web push: the door of the kind `push.send`, and those at which browsers are registered.
//!
//! What must stay true: a browser belongs to the user who registered it last; no answer shows an endpoint.

mod subscriptions;

use axum::{
    Router,
    extract::State,
    http::HeaderMap,
    response::Response,
    routing::{get, post},
};
use serde::Deserialize;
use shared::{
    job::Priority,
    kinds::{PushSend, PushUrgency, Violation, a_day},
};
use utoipa::{OpenApi, ToSchema};

use super::{
    jobs::{Job, Wish, ask},
    moment::Moment,
};
use crate::{
    app::App,
    auth::{Caller, PushesWrite},
    extract::Json,
    problem::{Problem, ProblemBody},
};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(create, subscriptions::key, subscriptions::register, subscriptions::forget),
    tags((name = "pushes", description = "Web push: messages to a user's browsers"))
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/pushes", post(create))
        .route("/v1/push/key", get(subscriptions::key))
        .route("/v1/push/subscriptions", post(subscriptions::register).delete(subscriptions::forget))
}

/// A message to all browsers of a user.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewPush {
    /// Whose browsers; the user of `X-Acting-User` when that is sent.
    #[schema(min_length = 1, max_length = 255)]
    user: String,
    /// What is shown first.
    #[schema(min_length = 1, max_length = 255)]
    title: String,
    /// What is shown below it. All fields together have 3,993 bytes at most.
    #[serde(default)]
    #[schema(required = false)]
    body: String,
    /// What a click opens: an https address, or a path of the page's own.
    url: Option<String>,
    /// A picture beside it: as `url`.
    icon: Option<String>,
    /// A message takes the place of one of the same tag.
    #[schema(min_length = 1, max_length = 255)]
    tag: Option<String>,
    /// For how long it is worth being shown, in seconds, from when it is due; a day when absent, four weeks at most.
    #[schema(maximum = 2_419_200)]
    ttl: Option<u32>,
    /// Whether it may wake a device; `normal` when absent.
    urgency: Option<PushUrgency>,
    /// Makes a repeated request harmless: the same key and request lead to the same job for a day. 1 to 255 visible ASCII characters. The
    /// header `Idempotency-Key` does the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
    /// When to push it, at most a year ahead; at once when absent or past.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    run_at: Option<Moment>,
    /// When it is no use any more: it is not pushed then, and its job expires.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    send_by: Option<Moment>,
    /// Which pushes it goes before; `normal` when absent.
    priority: Option<Priority>,
    /// Where to POST the view of the push's job when it has ended, signed by Standard Webhooks. At most 2,000 bytes.
    #[schema(max_length = 2_000)]
    completion_url: Option<String>,
}

impl NewPush {
    fn into_wish(self) -> Wish {
        let owner = self.user.clone();
        let push = PushSend {
            user: self.user,
            title: self.title,
            body: self.body,
            url: self.url,
            icon: self.icon,
            tag: self.tag,
            ttl: self.ttl.unwrap_or(a_day()),
            urgency: self.urgency.unwrap_or_default(),
            notification: None,
        };
        Wish {
            idempotency_key: self.idempotency_key,
            run_at: self.run_at.map(|moment| moment.0),
            start_by: self.send_by.map(|moment| moment.0),
            priority: self.priority,
            owner: Some(owner),
            completion_url: self.completion_url,
            ..Wish::of(&push)
        }
    }
}

/// Asks for a message to be pushed to all browsers of a user.
///
/// The job belongs to that user. `GET /v1/deliveries?job=` says what became of it, browser by browser.
#[utoipa::path(
    post, path = "/v1/pushes", tag = "pushes", operation_id = "create_push", request_body = NewPush,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 202, body = Job, description = "Accepted", headers(("Location" = String, description = "The job's address"))),
        (status = 200, body = Job, description = "Accepted before under this idempotency key; the job as it stands now", headers(("Location" = String, description = "The job's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`kind_not_enabled`: pushes are switched off, or not on for this user yet"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request"),
        (status = 413, body = ProblemBody<'static>, description = "`payload_too_large`, `body_too_large`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
        (status = 429, body = ProblemBody<'static>, description = "`backlog_full`: as many jobs of this product wait as may; again after `Retry-After`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<PushesWrite>,
    headers: HeaderMap,
    Json(new): Json<NewPush>,
) -> Result<Response, Problem> {
    if caller.acting_user.as_ref().is_some_and(|acting| *acting != new.user) {
        return Err(Problem::invalid(vec![Violation::new(
            "/user",
            "must be the user of X-Acting-User; leave that header out to push to any user",
        )]));
    }
    ask(&app, caller.tenant, caller.acting_user.as_deref(), &headers, new.into_wish()).await
}
