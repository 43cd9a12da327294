//! `GET /v1/jobs/{id}/stream`.

use axum::{extract::State, http::HeaderMap, response::Response};
use shared::{
    kinds::{AiRun, Kind},
    status::Reader,
};

use crate::{
    app::App,
    auth::{CallerOrUser, JobsRead},
    events::{self, of_words, words_had},
    follow::Latest,
    problem::{Code, Problem, ProblemBody},
    routes::jobs::{Asked, IdOfPath, missing},
};

/// Follows a model's words.
///
/// A stream of server-sent events: `words` with `{"text"}` as the model says them (of a task that was asked for with `stream`; of any other
/// all at its end), `restart` where the answer begins anew and what came before is void (another try, a repair, another round), `ended` with
/// the job's final `state`, and the `error` of one that failed. Who connects again with `Last-Event-ID` gets what comes after it, also after the end, for as long as the job is
/// kept; of a job that failed it is what the model said last. A comment comes every 15 s.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/stream", tag = "ai", operation_id = "follow_words",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that arrived"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "Events"),
        (status = 204, description = "The job has ended, and the caller knows all that was said"),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`; `stream_not_found`: the job is none of a model's"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`: too many streams are open; poll, or come again"),
    ),
)]
pub async fn follow(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<JobsRead>,
    id: IdOfPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id.job()? };
    let mut following = app.follow.streams().follow(asked.tenant, asked.id, false).ok_or_else(events::no_place)?;
    match following.known().await {
        Some(Latest::Seen(seen)) if asked.owner.is_none_or(|owner| seen.job.owner.as_deref() == Some(owner)) => {
            let is_of_a_model = seen.job.kind == AiRun::NAME || AiRun::ALIASES.contains(&seen.job.kind.as_str());
            if !is_of_a_model {
                let detail = "No model speaks in this job; GET /v1/jobs/{id}/events follows it.";
                return Err(Problem::new(Code::StreamNotFound, detail));
            }
        }
        Some(_) => return Err(missing(&app, asked).await),
        None => return Err(events::no_place()),
    }
    let (whose, job) = ((asked.tenant, Reader::acting_for(asked.owner)), asked.id);
    Ok(of_words(app.clone(), following, caller.authority(), whose, job, words_had(&headers)))
}
