//! `GET /v1/jobs`.

use axum::{Json as Answer, extract::State};
use serde::{Deserialize, Serialize};
use shared::{job, ledger::find, queue::Queue, tenant};
use utoipa::ToSchema;

use super::{
    view::{Job, Reader},
    view_of,
};
use crate::{
    app::App,
    auth::{Caller, CallerOrUser, JobsRead, Needs},
    extract::Query,
    problem::{Code, Problem, ProblemBody},
    routes::{moment::Moment, page::Page},
};

/// Which jobs to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// How many, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// Only this kind's.
    kind: Option<String>,
    /// Only in this state.
    #[param(inline)]
    state: Option<job::State>,
    /// Only this end user's; with `X-Acting-User` it is that user's anyhow.
    owner: Option<String>,
    /// Only those accepted then or later.
    #[param(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    created_from: Option<Moment>,
    /// Only those accepted before.
    #[param(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    created_before: Option<Moment>,
    /// Only this queue's.
    #[param(inline)]
    queue: Option<Queue>,
    /// Only those whose last run failed with this `code`; needs `state=failed`.
    #[param(example = "source_unavailable")]
    error_code: Option<String>,
    /// Only those that ended then or later; needs `state=failed`, `cancelled` or `expired`.
    #[param(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    ended_from: Option<Moment>,
    /// Only those that ended before; likewise.
    #[param(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    ended_before: Option<Moment>,
}

/// A page of jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobPage {
    /// The jobs, without payloads and results.
    pub items: Vec<Job>,
    /// Send it as `cursor` for the next page; `null` at the end.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

/// Lists jobs, newest first.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", operation_id = "list_jobs",
    params(ListQuery, ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for")),
    responses((status = 200, body = JobPage), (status = 400, body = ProblemBody<'static>, description = "`query_invalid`")),
)]
pub async fn list(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<JobsRead>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<JobPage>, Problem> {
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    if query.error_code.is_some() && query.state != Some(job::State::Failed) {
        return Err(Problem::new(Code::QueryInvalid, "error_code: belongs to jobs that failed; add state=failed."));
    }
    let is_dead = matches!(query.state, Some(job::State::Failed | job::State::Cancelled | job::State::Expired));
    if (query.ended_from.is_some() || query.ended_before.is_some()) && !is_dead {
        let detail = "ended_from, ended_before: are for dead letters; add state=failed, state=cancelled or state=expired.";
        return Err(Problem::new(Code::QueryInvalid, detail));
    }
    let filter = find::Filter {
        // A former name finds the jobs of the present one.
        kind: query.kind.map(|kind| app.kinds.find(&kind).map_or(kind, |entry| entry.name.to_owned())),
        state: query.state,
        owner: listed_owner(&caller, query.owner)?,
        created_from: query.created_from.map(|moment| moment.0),
        created_before: query.created_before.map(|moment| moment.0),
        queue: query.queue,
        error_code: query.error_code,
        ended_from: query.ended_from.map(|moment| moment.0),
        ended_before: query.ended_before.map(|moment| moment.0),
        after: page.after,
    };
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = find::list(&mut transaction, caller.tenant, &filter, page.to_read()).await?;
    drop(transaction);
    let (found, next_cursor) = page.cut(found, |job| job.id);
    let reader = Reader::acting_for(caller.acting_user.as_deref());
    let items = found.into_iter().map(|job| view_of(&app, caller.tenant, job, None, reader)).collect();
    Ok(Answer(JobPage { items, next_cursor }))
}

/// Whose things a list shows: the acting user's and nobody else's, or whomever a backend names.
///
/// # Errors
/// [`Code::QueryInvalid`] for another user than the acting one: an empty list would look like an answer.
pub fn listed_owner<N: Needs>(caller: &Caller<N>, asked: Option<String>) -> Result<Option<String>, Problem> {
    match (&caller.acting_user, asked) {
        (Some(acting), Some(asked)) if *acting != asked => {
            Err(Problem::new(Code::QueryInvalid, "owner: must be the user of X-Acting-User, or be left out."))
        }
        (Some(acting), _) => Ok(Some(acting.clone())),
        (None, asked) => Ok(asked),
    }
}
