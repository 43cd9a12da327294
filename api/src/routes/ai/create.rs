//! `POST /v1/ai/{task}`.

use axum::{
    extract::{Path, State},
    http::HeaderMap,
    response::Response,
};
use serde::Deserialize;
use serde_json::Value;
use shared::{job::Priority, kinds::AiRun};
use utoipa::ToSchema;

use crate::{
    app::App,
    auth::{AiWrite, Caller},
    extract::Json,
    problem::{Code, Problem, ProblemBody},
    routes::{
        jobs::{Job, Wish, ask, tenant_of},
        moment::Moment,
    },
};

/// What is put to a model.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewAiRun {
    /// What is put into the question, as the task's input schema in the product's manifest has it.
    #[schema(value_type = Object, example = json!({"prompt": "Write a poem about the sea."}))]
    input: Value,
    /// Whether the answer's words can be followed while they come.
    #[serde(default)]
    #[schema(required = false)]
    stream: bool,
    /// Makes a repeated request harmless: the same key and request lead to the same job for a day. 1 to 255 visible ASCII characters. The
    /// header `Idempotency-Key` does the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
    /// When to run it, at most a year ahead; at once when absent or past.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    run_at: Option<Moment>,
    /// When the answer is no use any more: a job that has not started then expires.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    start_by: Option<Moment>,
    /// Which tasks it goes before; `normal` when absent.
    priority: Option<Priority>,
    /// The end user whose it is; the user of `X-Acting-User` when that is sent, and then no other.
    #[schema(min_length = 1, max_length = 255)]
    owner: Option<String>,
    /// Where to POST the job's view when it has ended, signed by Standard Webhooks. At most 2,000 bytes.
    #[schema(max_length = 2_000)]
    completion_url: Option<String>,
}

impl NewAiRun {
    fn into_wish(self, task: String) -> Wish {
        Wish {
            idempotency_key: self.idempotency_key,
            run_at: self.run_at.map(|moment| moment.0),
            start_by: self.start_by.map(|moment| moment.0),
            priority: self.priority,
            owner: self.owner,
            completion_url: self.completion_url,
            ..Wish::of(&AiRun { task, input: self.input, stream: self.stream })
        }
    }
}

/// Puts a task to a model.
///
/// The model is called in the background; the job's `result` has the answer (`output`), by which model it was made, and what it took.
#[utoipa::path(
    post, path = "/v1/ai/{task}", tag = "ai", operation_id = "create_ai_run", request_body = NewAiRun,
    params(
        ("task" = String, Path, description = "The task, as the product's manifest names it"),
        ("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 202, body = Job, description = "Accepted", headers(("Location" = String, description = "The job's address"))),
        (status = 200, body = Job, description = "Accepted before under this idempotency key; the job as it stands now", headers(("Location" = String, description = "The job's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`kind_not_enabled`: models are switched off, or not on for this user yet"),
        (status = 404, body = ProblemBody<'static>, description = "`ai_task_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request"),
        (status = 413, body = ProblemBody<'static>, description = "`payload_too_large`, `body_too_large`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
        (status = 429, body = ProblemBody<'static>, description = "`backlog_full`: as many jobs of this product wait as may; again after `Retry-After`. `USAGE_LIMIT_EXCEEDED`: it would use more than may be used, with `usage`, `limit` and `resets_at`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<AiWrite>,
    Path(task): Path<String>,
    headers: HeaderMap,
    Json(new): Json<NewAiRun>,
) -> Result<Response, Problem> {
    let is_known = task_is_known(&app, caller.tenant, &task).await?;
    let asked = ask(&app, caller.tenant, caller.acting_user.as_deref(), &headers, new.into_wish(task)).await;
    // A repeat is answered with its job also when the manifest has the task no more.
    asked.map_err(|problem| if is_known { problem } else { task_not_found() })
}

/// Whether the product has a task.
///
/// # Errors
/// [`Problem`].
pub(super) async fn task_is_known(app: &App, tenant: i32, task: &str) -> Result<bool, Problem> {
    Ok(tenant_of(app, tenant).await?.manifest.ai.tasks.contains_key(task))
}

/// There is no such task.
pub(super) fn task_not_found() -> Problem {
    Problem::new(Code::AiTaskNotFound, "This product has no such task; its manifest names them, [ai.tasks.…].")
}
