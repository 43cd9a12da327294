//! `GET /v1/jobs/{id}/events` and `GET /v1/events`: jobs followed live.

use axum::{extract::State, http::HeaderMap, response::Response};
use serde::Deserialize;
use shared::{ledger::find::FoundJob, queue::Queue};

use super::{Asked, IdOfPath, list::listed_owner, missing, view::Reader};
use crate::{
    app::App,
    auth::{CallerOrUser, JobsRead},
    events::{self, Authority},
    extract::Query,
    follow::{Interest, Latest},
    problem::{Problem, ProblemBody},
};

/// Follows a job.
///
/// A stream of server-sent events: `changed` at each change, `ended` with the final state, then the stream ends. The data is the job as
/// `GET /v1/jobs/{id}` shows it, without its payload; the id is its version. Who connects again with `Last-Event-ID` gets what is newer,
/// or 204 when there is nothing after the end it saw. A comment comes every 15 s. Only the newest state is kept for a slow reader.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", tag = "jobs", operation_id = "follow_job",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that arrived"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "Events"),
        (status = 204, description = "The job has ended, and the caller knows"),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`: too many streams are open; poll, or come again"),
    ),
)]
pub async fn follow_one(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<JobsRead>,
    id: IdOfPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id.job()? };
    stream(app, asked, caller.authority(), Reader::acting_for(asked.owner), &headers).await
}

/// Streams a job that may be shown to whoever asks by `authority`.
///
/// # Errors
/// There is no such job, or no place.
pub async fn stream(app: App, asked: Asked<'_>, authority: Authority, reader: Reader, headers: &HeaderMap) -> Result<Response, Problem> {
    let by_link = matches!(authority, Authority::Link { .. });
    // Before the first reading, or a change between the two would go unheard.
    let mut following = app.follow.streams().follow(asked.tenant, asked.id, by_link).ok_or_else(events::no_place)?;
    let may_see = |job: &FoundJob| asked.owner.is_none_or(|owner| job.owner.as_deref() == Some(owner));
    // Read for all who follow it, and of many jobs together: when thousands connect at once, a statement each would be too many.
    let seen = match following.known().await {
        Some(Latest::Seen(seen)) if may_see(&seen.job) => seen,
        Some(_) => return Err(missing(&app, asked).await),
        None => return Err(events::no_place()),
    };
    let told = events::last_event_id(headers).and_then(|id| i32::try_from(id).ok());
    if seen.job.state.is_terminal() && told.is_some_and(|told| told >= seen.job.version) {
        return Ok(events::nothing_more());
    }
    // A mark beyond the present version is none of this job's.
    let told = told.filter(|told| *told <= seen.job.version);
    Ok(events::of_job(app.clone(), following, authority, reader, told))
}

/// Which jobs to follow.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FollowQuery {
    /// Only this kind's.
    kind: Option<String>,
    /// Only this end user's; with `X-Acting-User` it is that user's anyhow.
    owner: Option<String>,
    /// Only this queue's.
    #[param(inline)]
    queue: Option<Queue>,
}

/// Follows all jobs, or all of a user.
///
/// It begins with every unfinished job, as `changed`, and `snapshot` behind the last of them: what a listener held for unfinished and was
/// not told before it has ended. `complete` is false where there were more than some hundred. From then on `changed` and `ended` come as
/// things happen, as in lists without payloads and results. Who connects again with `Last-Event-ID` gets the same, with the recent
/// jobs that ended meanwhile. A job's events can repeat; its `version` tells. The stream goes on until the client ends it.
#[utoipa::path(
    get, path = "/v1/events", tag = "jobs", operation_id = "follow_jobs",
    params(
        FollowQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that arrived"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "Events"),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`: too many streams are open; poll, or come again"),
    ),
)]
pub async fn follow_all(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<JobsRead>,
    Query(query): Query<FollowQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let interest = Interest {
        owner: listed_owner(&caller, query.owner)?,
        kind: query.kind.map(|kind| app.kinds.find(&kind).map_or(kind, |entry| entry.name.to_owned())),
        queue: query.queue.map(|queue| queue.name().to_owned()),
    };
    let listening = app.follow.streams().listen(caller.tenant, interest).ok_or_else(events::no_place)?;
    let reader = Reader::acting_for(caller.acting_user.as_deref());
    let mark = events::last_event_id(&headers);
    Ok(events::of_jobs(app.clone(), listening, caller.tenant, caller.authority(), reader, mark))
}
