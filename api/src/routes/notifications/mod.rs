//! Inboxes: what users were told in the product, listed, marked, followed live (R20, R21); and the doors by which a backend tells them.
//!
//! What must stay true: an inbox is one owner's, the acting user's or the token's, and of a backend that acts for nobody its own; the
//! number of unread ones is counted with each answer.

mod events;
mod list;
mod mark;
mod trigger;

use axum::{
    Router,
    extract::{FromRequestParts, Path},
    http::request::Parts,
    routing::{get, post},
};
use utoipa::OpenApi;
use uuid::Uuid;

use crate::{
    app::App,
    auth::{Caller, Needs},
    problem::{Code, Problem},
};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(trigger::create, trigger::read, list::list, events::follow, mark::read_many, mark::read, mark::clicked, mark::archived),
    tags((name = "notifications", description = "What users were told in the product. Of the acting user, or the token's; without either the backend's own inbox")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/notifications", get(list::list).post(trigger::create))
        .route("/v1/notifications/triggers/{id}", get(trigger::read))
        .route("/v1/notifications/events", get(events::follow))
        .route("/v1/notifications/read", post(mark::read_many))
        .route("/v1/notifications/{id}/read", post(mark::read))
        .route("/v1/notifications/{id}/clicked", post(mark::clicked))
        .route("/v1/notifications/{id}/archived", post(mark::archived))
}

/// Whose inbox: a notification to nobody in particular is the backend's, whose name there is the empty text.
fn owner_of<N: Needs>(caller: &Caller<N>) -> &str {
    caller.acting_user.as_deref().unwrap_or_default()
}

/// The `{id}` of an address. What can't be an id names no notification.
#[derive(Debug, Clone, Copy)]
struct IdOfPath(Option<Uuid>);

impl FromRequestParts<App> for IdOfPath {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, app).await;
        // In the form that we write; others lead nowhere, or one notification would have several addresses.
        Ok(Self(text.ok().filter(|Path(text)| text.len() == 36).and_then(|Path(text)| Uuid::try_parse(&text).ok())))
    }
}

fn not_found() -> Problem {
    Problem::new(Code::NotificationNotFound, "There is no such notification for this user. Check the id, and X-Acting-User if it was sent.")
}
