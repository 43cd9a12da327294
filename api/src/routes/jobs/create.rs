//! `POST /v1/jobs`.

use axum::{
    Json as Answer,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::Value;
use shared::job::{JobId, Limit, Priority};
use utoipa::ToSchema;

use super::{
    Asked,
    admission::{Admitted, UniqueWish, Wish, admit},
    next::NextJob,
    read,
    view::{Job, Reader, address},
    view_of,
};
use crate::{
    app::App,
    auth::{Caller, JobsWrite},
    extract::Json,
    problem::{Code, Problem, ProblemBody},
    routes::moment::Moment,
};

/// A job to be done.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewJob {
    /// What kind of work: one of those this installation has. Unknown ones are answered with the list.
    #[schema(example = "export.create")]
    kind: String,
    /// What to do, as the kind wants it; at most 256 KiB.
    #[schema(value_type = Object, example = json!({"dataset": "prompts", "format": "csv"}))]
    payload: Value,
    /// Makes a repeated request harmless: the same key and request lead to the same job for a day (or as long as the kind says). 1 to 255 visible ASCII
    /// characters. The header `Idempotency-Key` does the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
    /// When to run it, at most a year ahead; at once when absent or past.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    run_at: Option<Moment>,
    /// When it is no longer worth starting: then it expires.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    start_by: Option<Moment>,
    /// Which jobs of its queue it goes before; `normal` when absent.
    priority: Option<Priority>,
    /// The end user whose job it is; the user of `X-Acting-User` when that is sent, and then no other. 1 to 255 characters
    /// without spaces.
    #[schema(min_length = 1, max_length = 255)]
    owner: Option<String>,
    /// A key that it shares with other jobs, and how many of those may run or start at a time.
    limit: Option<Limit>,
    /// Where to POST the job's view when it has ended, signed by Standard Webhooks: an https address on a host that the product's
    /// manifest lists. At most 2,000 bytes.
    #[schema(max_length = 2_000, example = "https://hooks.example.com/offstage")]
    completion_url: Option<String>,
    /// Makes it the only one of its sort for a while: a second one is answered with the first (200, `duplicate`).
    unique: Option<UniqueWish>,
    /// Jobs to be made when it succeeds, at most 10; nested at most 5 deep, 50 in all, with 256 KiB of payloads together. When it ends
    /// otherwise they are not made, unless it is tried again and succeeds then.
    #[serde(default)]
    #[schema(required = false, max_items = 10)]
    then: Vec<NextJob>,
}

impl NewJob {
    /// What it wishes for.
    pub fn into_wish(self) -> Wish {
        Wish {
            kind: self.kind,
            payload: self.payload,
            payload_at: "/payload",
            idempotency_key: self.idempotency_key,
            run_at: self.run_at.map(|moment| moment.0),
            start_by: self.start_by.map(|moment| moment.0),
            priority: self.priority,
            owner: self.owner,
            limit: self.limit,
            completion_url: self.completion_url,
            unique: self.unique,
            then: self.then,
        }
    }
}

/// Asks for a job.
///
/// It is durable once the answer is there; it will be done, or shown to have failed.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", operation_id = "create_job", request_body = NewJob,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 202, body = Job, description = "Accepted", headers(("Location" = String, description = "The job's address"))),
        (status = 200, body = Job, description = "It was accepted before, by its idempotency key or its `unique` key, as `duplicate` says; that job as it stands now", headers(("Location" = String, description = "The job's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`kind_not_enabled`: the kind is switched off, or not on for this user yet"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request"),
        (status = 413, body = ProblemBody<'static>, description = "`payload_too_large`, `body_too_large`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
        (status = 429, body = ProblemBody<'static>, description = "`backlog_full`: as many jobs of this product wait as may; again after `Retry-After`. `USAGE_LIMIT_EXCEEDED`: it would use more than may be used, with `usage`, `limit` and `resets_at`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    headers: HeaderMap,
    Json(new): Json<NewJob>,
) -> Result<Response, Problem> {
    caller.may_make(&app.kinds, std::iter::once((new.kind.as_str(), &new.payload)).chain(new.then.iter().flat_map(NextJob::all)))?;
    ask(&app, caller.tenant, caller.acting_user.as_deref(), &headers, new.into_wish()).await
}

/// Stores a wish, and answers with its job: what every door does behind which there is a job and nothing else.
///
/// # Errors
/// What is wrong with it, what it contradicts, or that it can't be stored now.
pub async fn ask(app: &App, tenant: i32, acting_user: Option<&str>, headers: &HeaderMap, wish: Wish) -> Result<Response, Problem> {
    let mut duplicate = None;
    let (status, found) = match admit(app, tenant, acting_user, headers, wish).await? {
        Admitted::Now(job) => (StatusCode::ACCEPTED, *job),
        Admitted::Before(before) => {
            let id = before.first;
            duplicate = Some(before);
            let asked = Asked { tenant, owner: acting_user, id };
            (StatusCode::OK, read::find(app, asked).await?.ok_or_else(|| gone(id))?)
        }
    };
    let location = address(found.id);
    let job = view_of(app, tenant, found, None, Reader::acting_for(acting_user)).found_by(duplicate);
    Ok((status, [(header::LOCATION, location)], Answer(job)).into_response())
}

/// The key outlived its job: somebody erased it.
pub fn gone(first: JobId) -> Problem {
    Problem::new(Code::IdempotencyConflict, format!("This idempotency key made the job {first}, which has been erased. Use a new key."))
}
