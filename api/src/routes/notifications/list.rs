//! `GET /v1/notifications`.

use axum::{Json as Answer, extract::State};
use serde::{Deserialize, Serialize};
use shared::{
    ledger::inbox::{self, Notification},
    tenant,
};
use utoipa::ToSchema;

use super::owner_of;
use crate::{
    app::App,
    auth::{CallerOrUser, NotificationsRead},
    extract::Query,
    problem::{Code, Problem, ProblemBody},
};

/// Notifications of a page unless the caller asks otherwise (R21).
const DEFAULT_LIMIT: u32 = 20;

/// The most of a page.
const MOST: u32 = 200;

/// As far down as a page may begin: what is passed over is read too.
const FARTHEST: u32 = 10_000;

/// Which notifications to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// How many, 1 to 200; 20 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// How many to pass over, at most 10,000.
    #[param(maximum = 10_000)]
    offset: Option<u32>,
    /// Only those that were not read.
    unread_only: Option<bool>,
}

/// A page of an inbox, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct InboxPage {
    /// The notifications, without those that were archived.
    items: Vec<Notification>,
    /// How many of the inbox are unread, as of the same moment.
    unread_count: i64,
    /// Whether more follow.
    has_more: bool,
}

/// Lists an inbox, newest first.
#[utoipa::path(
    get, path = "/v1/notifications", tag = "notifications", operation_id = "list_notifications",
    params(ListQuery, ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for")),
    responses((status = 200, body = InboxPage), (status = 400, body = ProblemBody<'static>, description = "`query_invalid`")),
)]
pub async fn list(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<NotificationsRead>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<InboxPage>, Problem> {
    let (limit, offset) = (query.limit.unwrap_or(DEFAULT_LIMIT), query.offset.unwrap_or(0));
    if !(1..=MOST).contains(&limit) {
        return Err(Problem::new(Code::QueryInvalid, format!("limit: is {limit}; 1 to {MOST} are allowed.")));
    }
    if offset > FARTHEST {
        return Err(Problem::new(Code::QueryInvalid, format!("offset: is {offset}; {FARTHEST} is as far as it goes.")));
    }
    let unread_only = query.unread_only.unwrap_or(false);
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    // One more than shown tells whether more follow.
    let (mut items, unread_count) =
        inbox::list(&mut transaction, caller.tenant, owner_of(&caller), unread_only, i64::from(limit) + 1, offset.into()).await?;
    drop(transaction);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = items.len() > limit;
    items.truncate(limit);
    Ok(Answer(InboxPage { items, unread_count, has_more }))
}
