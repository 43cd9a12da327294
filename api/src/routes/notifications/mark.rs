//! `POST /v1/notifications/{id}/read`, `…/clicked`, `…/archived`, and `POST /v1/notifications/read` for some or all.

use axum::{Json as Answer, extract::State};
use serde::{Deserialize, Serialize};
use shared::{
    kinds::Violation,
    ledger::inbox::{self, Mark, Notification},
    tenant,
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{IdOfPath, not_found, owner_of};
use crate::{
    app::App,
    auth::{CallerOrUser, NotificationsWrite},
    extract::MaybeJson,
    problem::{Problem, ProblemBody},
    routes::jobs::NoBody,
};

/// The most that one request names.
const MOST_IDS: usize = 1_000;

macro_rules! door {
    ($(#[$doc:meta])* $name:ident, $path:literal, $operation:literal, $mark:expr) => {
        $(#[$doc])*
        #[utoipa::path(
            post, path = $path, tag = "notifications", operation_id = $operation,
            params(
                ("id" = String, Path, description = "The notification's id"),
                ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
            ),
            responses(
                (status = 200, body = Notification, description = "Marked, by this request or before"),
                (status = 404, body = ProblemBody<'static>, description = "`notification_not_found`"),
            ),
        )]
        pub async fn $name(
            State(app): State<App>,
            CallerOrUser(caller): CallerOrUser<NotificationsWrite>,
            IdOfPath(id): IdOfPath,
            _: NoBody,
        ) -> Result<Answer<Notification>, Problem> {
            let id = id.ok_or_else(not_found)?;
            let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
            let marked = inbox::mark(&mut transaction, caller.tenant, owner_of(&caller), id, $mark, app.clock.now()).await?;
            transaction.commit().await?;
            marked.map(Answer).ok_or_else(not_found)
        }
    };
}

door! {
    /// Marks a notification as read.
    read, "/v1/notifications/{id}/read", "read_notification", Mark::Read
}
door! {
    /// Notes that a notification was clicked; then it has been read too.
    clicked, "/v1/notifications/{id}/clicked", "click_notification", Mark::Clicked
}
door! {
    /// Puts a notification away: lists leave it out, and it does not count as unread.
    archived, "/v1/notifications/{id}/archived", "archive_notification", Mark::Archived
}

/// Which notifications to mark.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct ReadNotifications {
    /// Their ids, at most 1,000; none for all of the inbox.
    #[serde(default)]
    #[schema(required = false, max_items = 1_000)]
    ids: Vec<Uuid>,
}

/// What marking did.
#[derive(Debug, Serialize, ToSchema)]
pub struct Marked {
    /// How many were unread until now.
    marked: u64,
    /// How many are unread after it.
    unread_count: i64,
}

/// Marks some notifications as read, or all of the inbox.
///
/// Ids that are not of this inbox are passed over.
#[utoipa::path(
    post, path = "/v1/notifications/read", tag = "notifications", operation_id = "read_notifications", request_body = Option<ReadNotifications>,
    params(("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for")),
    responses((status = 200, body = Marked), (status = 422, body = ProblemBody<'static>, description = "`validation_failed`")),
)]
pub async fn read_many(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<NotificationsWrite>,
    MaybeJson(asked): MaybeJson<ReadNotifications>,
) -> Result<Answer<Marked>, Problem> {
    if asked.ids.len() > MOST_IDS {
        let detail = format!("has {} ids; {MOST_IDS} are the most. Send several requests, or none of them for all", asked.ids.len());
        return Err(Problem::invalid(vec![Violation::new("/ids", detail)]));
    }
    let (tenant, owner, now) = (caller.tenant, owner_of(&caller), app.clock.now());
    let mut marked = 0;
    loop {
        // Page by page: no lock is held longer than one takes. What a request that was cut off has marked stays so.
        let mut transaction = tenant::transaction(&app.pool, tenant).await?;
        let all = if asked.ids.is_empty() {
            let (some, all) = inbox::read_all(&mut transaction, tenant, owner, now).await?;
            marked += some;
            all
        } else {
            marked += inbox::read_some(&mut transaction, tenant, owner, &asked.ids, now).await?;
            true
        };
        let unread_count = if all { inbox::unread(&mut transaction, tenant, owner).await? } else { 0 };
        transaction.commit().await?;
        if all {
            return Ok(Answer(Marked { marked, unread_count }));
        }
    }
}
