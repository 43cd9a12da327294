//! Addresses that show one job to whoever has them: `POST` and `DELETE /v1/jobs/{id}/links`, and behind them `GET /j/{token}` and
//! `GET /j/{token}/events`, for browsers, whose `EventSource` can send no key.
//!
//! What must stay true: the token is the only way in; it has some 190 random bits, is looked up by its hash, expires, can be taken back
//! at any time, also from streams that are open, and is never logged. It shows one job, in its end user's words, without its payload,
//! and changes nothing. Any page may ask, and no browser sends credentials along.

use axum::{
    Json as Answer, Router,
    extract::{FromRequest, FromRequestParts, Path, Request, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    kinds::Violation,
    ledger::{
        find,
        links::{self, FoundLink, LinkHash},
    },
    status::{Job, Reader},
    tenant,
};
use tower_http::cors::{Any, CorsLayer};
use utoipa::{OpenApi, ToSchema};

use super::jobs::{Asked, IdOfPath, NoBody, held_versions, missing, stream, tag, view_of};
use crate::{
    app::App,
    auth::{Caller, JobsWrite},
    events::Authority,
    extract::Json,
    follow::Call,
    problem::{Code, Problem, ProblemBody},
};

/// How long an address leads anywhere unless told otherwise.
const LIFE: u32 = 3_600;

/// The longest that one may: a week.
const LONGEST_LIFE: u32 = 7 * 86_400;

/// The shortest: less would be over before a page has loaded.
const SHORTEST_LIFE: u32 = 60;

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(create, revoke, read, follow),
    tags((name = "links", description = "One job, for whoever was given the address; no key needed")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    let asked_by = [header::IF_NONE_MATCH, HeaderName::from_static("last-event-id"), header::CACHE_CONTROL];
    let anybody = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::HEAD])
        .allow_headers(asked_by)
        .expose_headers([header::ETAG, header::RETRY_AFTER]);
    let open =
        Router::new().route("/j/{token}", get(read).options(asked)).route("/j/{token}/events", get(follow).options(asked)).layer(anybody);
    Router::new().route("/v1/jobs/{id}/links", post(create).delete(revoke)).merge(open)
}

/// What a browser asks beforehand is answered by the layer; here are those who ask for no origin.
async fn asked() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// What an address is to be like; the body may be left out.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct NewLink {
    /// For how long it leads to the job, in seconds; an hour when absent, a week at most.
    #[schema(minimum = 60, maximum = 604_800)]
    expires_in_seconds: Option<u32>,
}

/// A body that may be left out.
#[derive(Debug)]
pub struct Perhaps(NewLink);

impl FromRequest<App> for Perhaps {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        if request.headers().contains_key(header::CONTENT_TYPE) {
            return Json::<NewLink>::from_request(request, app).await.map(|Json(link)| Self(link));
        }
        NoBody::from_request(request, app).await.map(|_| Self(NewLink::default()))
    }
}

/// An address of a job.
#[derive(Debug, Serialize, ToSchema)]
pub struct Link {
    /// Shows the job to whoever has it: a secret, shown this once.
    url: String,
    /// The same as a stream of events, for a browser's `EventSource`.
    events_url: String,
    /// When it stops leading anywhere.
    expires_at: DateTime<Utc>,
}

/// Makes an address that shows a job without a key.
///
/// For a browser that is to follow one job: `new EventSource(events_url)`. Whoever has it sees this job's state, progress and result, in
/// the end user's words, and nothing else. A job has twenty at most; the oldest gives way.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/links", tag = "links", operation_id = "create_job_link", request_body = Option<NewLink>,
    params(
        ("id" = String, Path, description = "The job's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 201, body = Link),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    id: IdOfPath,
    Perhaps(new): Perhaps,
) -> Result<(StatusCode, Answer<Link>), Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id.job()? };
    let life = new.expires_in_seconds.unwrap_or(LIFE);
    if !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&life) {
        let detail = format!("is {life}; {SHORTEST_LIFE} to {LONGEST_LIFE} are allowed");
        return Err(Problem::invalid(vec![Violation::new("/expires_in_seconds", detail)]));
    }
    let now = app.clock.now();
    let expires_at = now + TimeDelta::seconds(life.into());
    let token = links::token();
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    if find::version(&mut transaction, asked.tenant, asked.owner, asked.id).await?.is_none() {
        drop(transaction);
        return Err(missing(&app, asked).await);
    }
    links::add(&mut transaction, asked.tenant, asked.id, LinkHash::of(&token), now, expires_at).await?;
    transaction.commit().await?;
    let base = app.config.public_url.as_ref().map(|url| url.as_str().trim_end_matches('/')).unwrap_or_default();
    let url = format!("{base}/j/{token}");
    Ok((StatusCode::CREATED, Answer(Link { events_url: format!("{url}/events"), url, expires_at })))
}

/// Takes all addresses of a job back.
///
/// Nobody gets in by them any more, and streams that were opened by them end.
#[utoipa::path(
    delete, path = "/v1/jobs/{id}/links", tag = "links", operation_id = "revoke_job_links",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 204, description = "There are none any more"),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
    ),
)]
pub async fn revoke(State(app): State<App>, caller: Caller<JobsWrite>, id: IdOfPath, _: NoBody) -> Result<StatusCode, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id.job()? };
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    if find::version(&mut transaction, asked.tenant, asked.owner, asked.id).await?.is_none() {
        drop(transaction);
        return Err(missing(&app, asked).await);
    }
    links::revoke(&mut transaction, asked.tenant, asked.id).await?;
    transaction.commit().await?;
    // Streams that were opened by them look again.
    app.follow.tell(asked.id, Call::Nothing);
    Ok(StatusCode::NO_CONTENT)
}

/// The `{token}` of an address, if it can be one.
#[derive(Debug)]
pub struct Token(Option<String>);

impl FromRequestParts<App> for Token {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, app).await;
        let legal = |text: &String| text.len() == links::TOKEN_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Ok(Self(text.ok().map(|Path(text)| text).filter(legal)))
    }
}

async fn look_up(app: &App, token: Option<&str>) -> Result<(LinkHash, FoundLink), Problem> {
    let unknown =
        || Problem::new(Code::LinkNotFound, "This address leads nowhere: its time is over, it was taken back, or it is incomplete.");
    let hash = LinkHash::of(token.ok_or_else(unknown)?);
    let link = links::find(&app.pool, hash, app.clock.now()).await?.ok_or_else(unknown)?;
    Ok((hash, link))
}

/// Shows the job of an address.
///
/// `If-None-Match` with the `ETag` is answered with 304 while nothing changed.
#[utoipa::path(
    get, path = "/j/{token}", tag = "links", operation_id = "read_job_by_link", security(()),
    params(
        ("token" = String, Path, description = "As in a link's `url`"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer"),
    ),
    responses(
        (status = 200, body = Job, description = "The job, without its payload", headers(("ETag" = String, description = "Weak, of the version"))),
        (status = 304, description = "Nothing changed"),
        (status = 404, body = ProblemBody<'static>, description = "`link_not_found`"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
    ),
)]
pub async fn read(State(app): State<App>, Token(token): Token, headers: HeaderMap) -> Result<Response, Problem> {
    let (_, link) = look_up(&app, token.as_deref()).await?;
    let asked = Asked { tenant: link.tenant, owner: None, id: link.job };
    let mut transaction = tenant::lookup(&app.pool, asked.tenant).await?;
    let found = find::followed(&mut transaction, asked.tenant, &[asked.id.0], &[asked.id.0]).await?;
    drop(transaction);
    let Some(found) = found.into_iter().next() else { return Err(missing(&app, asked).await) };
    let tag = tag(found.version, Reader::User);
    if held_versions(&headers, Reader::User).contains(&found.version) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let job = view_of(&app, asked.tenant, found, None, Reader::User);
    Ok(([(header::ETAG, tag)], Answer(job)).into_response())
}

/// Follows the job of an address.
///
/// As `GET /v1/jobs/{id}/events`, for a browser's `EventSource`. Close it at `ended`; one that connects again all the same is answered
/// with 204, by which a browser leaves off.
#[utoipa::path(
    get, path = "/j/{token}/events", tag = "links", operation_id = "follow_job_by_link", security(()),
    params(
        ("token" = String, Path, description = "As in a link's `events_url`"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that arrived"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "Events"),
        (status = 204, description = "The job has ended, and the caller knows"),
        (status = 404, body = ProblemBody<'static>, description = "`link_not_found`"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`: too many streams are open; come again"),
    ),
)]
pub async fn follow(State(app): State<App>, Token(token): Token, headers: HeaderMap) -> Result<Response, Problem> {
    let (hash, link) = look_up(&app, token.as_deref()).await?;
    let asked = Asked { tenant: link.tenant, owner: None, id: link.job };
    stream(app, asked, Authority::Link { hash, expires_at: link.expires_at }, Reader::User, &headers).await
}
