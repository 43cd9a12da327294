//! Feeds (R25): what users did, in the feeds of who follows them and their own, newest first, polled by conditional requests.
//!
//! What must stay true: a feed is one user's, the acting user's or the token's, and of a backend that acts for nobody all that its users did;
//! its tag changes with what it shows and with nothing else.

use axum::{
    Json as Answer, Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shared::{
    content::Content,
    job::JobId,
    kinds::{ActivityFanOut, Kind, Violation, is_link},
    ledger::feeds::{self, Activity, NewActivity, Verb},
    notification::LONGEST_TITLE,
    tenant,
};
use utoipa::{OpenApi, ToSchema};

use super::{
    conditional::holds,
    content,
    jobs::{hash_of, idempotency_key},
    page::Page,
    repeat,
    users::check_name,
};
use crate::{
    app::App,
    auth::{Backend, CallerOrUser, FeedsRead, FeedsWrite, check_user},
    extract::{Json, Query},
    follow::Call,
    problem::{Problem, ProblemBody},
};

/// The most that a request may say, in bytes.
const BODY_LIMIT: usize = 16 * 1024;

/// The longest link, in bytes.
const LONGEST_URL: usize = 1_000;

/// The most data for programs, in bytes of JSON.
const MOST_DATA: usize = 4 * 1024;

/// Activities of a page unless the caller asks otherwise.
const DEFAULT_LIMIT: u32 = 20;

/// When to look at a feed again, in milliseconds: every two minutes (R25).
const POLL_AFTER_MS: u32 = 120_000;

/// To be kept by the asker alone, and not used again without asking.
const CACHED: HeaderValue = HeaderValue::from_static("private, no-cache");

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(create, read), tags((name = "feeds", description = "What users did, for those who follow them")))]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/activities", post(create)).route("/v1/feed", get(read))
}

/// Something that a user did.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewActivityBody {
    /// Who did it.
    #[schema(min_length = 1, max_length = 255, example = "ada")]
    actor: String,
    verb: Verb,
    /// To what. Of the type `user` it is a user by their name.
    object: Content,
    /// Whose that is. Once this user is erased the activity is gone too.
    #[schema(min_length = 1, max_length = 255)]
    user: Option<String>,
    /// In words, on one line; at most 255 characters.
    #[schema(min_length = 1, max_length = 255)]
    title: Option<String>,
    /// What a click opens: an https address, or a path of the page's own; at most 1,000 bytes.
    #[schema(max_length = 1_000)]
    url: Option<String>,
    /// For programs; at most 4 KiB.
    #[serde(default)]
    #[schema(required = false, value_type = Object)]
    data: Map<String, Value>,
    /// Makes a repeated request harmless: the same key and request of one actor lead to the same activity, for as long as that stands. The
    /// header `Idempotency-Key` does the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
}

impl NewActivityBody {
    /// Whose thing it is done to.
    fn user(&self) -> Option<&str> {
        let followed = (self.object.sort == "user").then_some(self.object.id.as_str()).filter(|id| check_user(id).is_ok());
        self.user.as_deref().or(followed)
    }

    fn violations(&self, data: &Value) -> Vec<Violation> {
        let mut wrong = Vec::new();
        check_name("/actor", Some(&self.actor), &mut wrong);
        check_name("/user", self.user.as_deref(), &mut wrong);
        content::check("/object", &self.object, &mut wrong);
        let is_line = |title: &String| (1..=LONGEST_TITLE).contains(&title.trim().chars().count()) && !title.chars().any(char::is_control);
        if self.title.as_ref().is_some_and(|title| !is_line(title)) {
            wrong.push(Violation::new("/title", format!("must have 1 to {LONGEST_TITLE} characters on one line")));
        }
        if self.url.as_ref().is_some_and(|url| url.len() > LONGEST_URL || !is_link(url)) {
            let detail = format!(
                "must be an https:// address, or a path of the page's own that begins with one slash, of at most {LONGEST_URL} bytes"
            );
            wrong.push(Violation::new("/url", detail));
        }
        let text = data.to_string();
        if text.len() > MOST_DATA {
            wrong.push(Violation::new("/data", format!("has {} bytes of JSON; {MOST_DATA} are the most", text.len())));
        }
        if text.contains("\\u0000") {
            wrong.push(Violation::new("/data", "contains a NUL character (\\u0000), which can't be stored; remove it"));
        }
        wrong
    }
}

/// Tells what a user did.
///
/// It stands in the actor's own feed at once, and comes into those of all who follow them at that moment; whoever follows later does not get
/// it. It stands there for 90 days.
#[utoipa::path(
    post, path = "/v1/activities", tag = "feeds", operation_id = "create_activity", request_body = NewActivityBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same")),
    responses(
        (status = 202, body = Activity, description = "It stands, and is on its way into feeds"),
        (status = 200, body = Activity, description = "It was told before under this idempotency key"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request. `user_being_erased`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
        (status = 503, body = ProblemBody<'static>, description = "`database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    Backend(caller): Backend<FeedsWrite>,
    headers: HeaderMap,
    Json(new): Json<NewActivityBody, BODY_LIMIT>,
) -> Result<Response, Problem> {
    let key = idempotency_key(&headers, new.idempotency_key.as_deref())?;
    let data = Value::Object(new.data.clone());
    let wrong = new.violations(&data);
    if !wrong.is_empty() {
        return Err(Problem::invalid(wrong));
    }
    let (tenant, now) = (caller.tenant, app.clock.now());
    let activity = NewActivity {
        id: app.clock.new_id(),
        actor: &new.actor,
        user: new.user(),
        verb: new.verb,
        object: &new.object,
        title: new.title.as_deref().map(str::trim),
        url: new.url.as_deref(),
        data: &data,
        key: repeat::key_of(&json!(["activity", new.actor]), key),
        body: hash_of(&json!([new.verb, new.object, new.user, new.title, new.url, data])),
    };
    let job = JobId(app.clock.new_id());
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let (id, is_new) = repeat::settled(feeds::add(&mut transaction, tenant, job, &activity, now).await?, activity.id)?;
    let found = feeds::find(&mut transaction, tenant, id).await?.ok_or_else(Problem::unexplained)?;
    transaction.commit().await?;
    if is_new {
        app.follow.tell(job, Call::Dispatch(ActivityFanOut::QUEUE));
    }
    Ok((if is_new { StatusCode::ACCEPTED } else { StatusCode::OK }, Answer(found)).into_response())
}

/// Which part of a feed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FeedQuery {
    /// How many, 1 to 200; 20 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A page of a feed, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedPage {
    items: Vec<Activity>,
    /// Send it as `cursor` for the next page; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
    /// When to look again, in milliseconds; with the `ETag` in `If-None-Match`, which costs next to nothing while nothing is new.
    #[schema(example = 120_000)]
    poll_after_ms: u32,
}

impl FeedPage {
    /// The `ETag`, weak, of what it shows: an activity never changes, so of which they are.
    fn tag(&self) -> String {
        let ids: Vec<_> = self.items.iter().map(|activity| activity.id).collect();
        let hash = hash_of(&json!([ids, self.next_cursor.is_some()]));
        format!("W/\"{}\"", BASE64_URL_SAFE_NO_PAD.encode(hash))
    }
}

/// Shows a feed, newest first.
///
/// What was done by those whom the acting user, or the token's, follows, and by themselves; for a backend that acts for nobody all that its
/// users did. `If-None-Match` with the `ETag` is answered with 304 while nothing changed.
#[utoipa::path(
    get, path = "/v1/feed", tag = "feeds", operation_id = "read_feed",
    params(
        FeedQuery,
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = FeedPage, headers(("ETag" = String, description = "Weak, of what the page shows"))),
        (status = 304, description = "Nothing changed"),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<FeedsRead>,
    headers: HeaderMap,
    Query(query): Query<FeedQuery>,
) -> Result<Response, Problem> {
    let page = Page::new(query.limit.or(Some(DEFAULT_LIMIT)), query.cursor.as_deref())?;
    let below = page.after.map(|after| after.0);
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let items = feeds::page(&mut transaction, caller.tenant, caller.acting_user.as_deref(), below, page.to_read()).await?;
    drop(transaction);
    let (items, next_cursor) = page.cut(items, |activity| JobId(activity.id));
    let feed = FeedPage { items, next_cursor, poll_after_ms: POLL_AFTER_MS };
    let tag = feed.tag();
    let headers_of_both = [(header::ETAG, HeaderValue::try_from(&tag).map_err(Problem::internal)?), (header::CACHE_CONTROL, CACHED)];
    if holds(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, headers_of_both).into_response());
    }
    Ok((headers_of_both, Answer(feed)).into_response())
}
