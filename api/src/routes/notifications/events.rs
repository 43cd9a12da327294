//! `GET /v1/notifications/events`: an inbox followed live.

use axum::{extract::State, http::HeaderMap, response::Response};

use super::owner_of;
use crate::{
    app::App,
    auth::{CallerOrUser, NotificationsRead},
    events,
    problem::{Problem, ProblemBody},
};

/// Follows an inbox.
///
/// A stream of server-sent events. `inbox` comes first, with `unread_count`: the caller lists the inbox then, and what comes after is new
/// to it. Then `notification` for each new one, as in lists. Who connects again with `Last-Event-ID` is told what came meanwhile, or
/// `inbox` once more where that was too much, which is what comes to a slow reader too. None is missed; one can come twice to who
/// connects again, and is known by its id. Browsers read it by `fetch` with the token in a header, since `EventSource` sends none.
#[utoipa::path(
    get, path = "/v1/notifications/events", tag = "notifications", operation_id = "follow_notifications",
    params(
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that arrived"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "Events"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`: too many streams are open; poll, or come again"),
    ),
)]
pub async fn follow(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<NotificationsRead>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let listener = app.follow.inboxes().listen(caller.tenant, owner_of(&caller)).await?.ok_or_else(events::no_place)?;
    let mark = events::last_event_id(&headers);
    Ok(events::of_inbox(app.clone(), listener, caller.authority(), mark))
}
