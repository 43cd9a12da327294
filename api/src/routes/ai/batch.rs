//! `POST /v1/ai/{task}/batch`.

use axum::{
    extract::{Path, State},
    http::HeaderMap,
    response::Response,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use shared::kinds::{AiRun, Kind};
use utoipa::ToSchema;

use super::create::{NewAiRun, task_is_known, task_not_found};
use crate::{
    app::App,
    auth::{AiWrite, Caller},
    problem::{Problem, ProblemBody},
    routes::{
        batches::{AcceptedBatch, Mode, NewBatch, Turn, create_batch},
        jobs::NextJob,
    },
};

/// What is of the job and not of what is put to the model.
const OF_THE_JOB: [&str; 6] = ["idempotency_key", "run_at", "start_by", "priority", "owner", "completion_url"];

/// Many inputs for one task.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewAiBatch {
    /// What is put to the model, 1 to 5,000 times, each as `POST /v1/ai/{task}` takes it; the body may have 16 MiB.
    #[schema(value_type = Vec<NewAiRun>, min_items = 1, max_items = 5_000)]
    jobs: Vec<Value>,
    /// What is to happen when some of them can't be accepted; `all_or_nothing` when absent.
    #[serde(default)]
    mode: Mode,
    /// A name for people.
    #[schema(min_length = 1, max_length = 200)]
    name: Option<String>,
    /// Jobs to be made once when all of the batch's jobs have ended, however they ended, at most 10.
    #[serde(default)]
    #[schema(required = false, max_items = 10)]
    then: Vec<NextJob>,
    /// Makes a repeated request harmless: the same key and request lead to the same batch for a day. 1 to 255 visible ASCII characters.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
}

/// A run as a job of a batch: what is no field of a job is the payload's affair, which names what it does not know.
fn job(task: &str, run: Value) -> Value {
    let Value::Object(fields) = run else { return run };
    let (mut job, mut payload) = (Map::new(), Map::new());
    for (name, value) in fields {
        let of = if OF_THE_JOB.contains(&name.as_str()) { &mut job } else { &mut payload };
        of.insert(name, value);
    }
    payload.insert("task".to_owned(), task.into());
    job.insert("kind".to_owned(), AiRun::NAME.into());
    job.insert("payload".to_owned(), payload.into());
    job.into()
}

/// Puts a task to a model for many inputs.
///
/// They are jobs of one batch: durable together, followed and cancelled together ([`POST /v1/jobs/batch`]). Each is checked as by itself.
#[utoipa::path(
    post, path = "/v1/ai/{task}/batch", tag = "ai", operation_id = "create_ai_batch", request_body = NewAiBatch,
    params(
        ("task" = String, Path, description = "The task, as the product's manifest names it"),
        ("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 202, body = AcceptedBatch, description = "Accepted", headers(("Location" = String, description = "The batch's address"))),
        (status = 200, body = AcceptedBatch, description = "Accepted before under this idempotency key; the batch as it stands now", headers(("Location" = String, description = "The batch's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`batches_not_enabled`, `kind_not_enabled`"),
        (status = 404, body = ProblemBody<'static>, description = "`ai_task_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key, or a job's, was used for another request"),
        (status = 413, body = ProblemBody<'static>, description = "`body_too_large`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field (`/jobs/17/input/…`)"),
        (status = 429, body = ProblemBody<'static>, description = "`backlog_full`: the product's backlog has no room for all of them; again after `Retry-After`. `USAGE_LIMIT_EXCEEDED`: some, or with `per_item` all, would use more than may be used"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<AiWrite>,
    Path(task): Path<String>,
    headers: HeaderMap,
    turn: Turn<NewAiBatch>,
) -> Result<Response, Problem> {
    caller.may_make(&app.kinds, turn.body.then.iter().flat_map(NextJob::all))?;
    let is_known = task_is_known(&app, caller.tenant, &task).await?;
    let made = turn.map(|NewAiBatch { jobs, mode, name, then, idempotency_key }| {
        let jobs = jobs.into_iter().map(|run| job(&task, run)).collect();
        NewBatch { jobs, mode, name, then, idempotency_key, payload_at: "" }
    });
    let asked = create_batch(&app, caller.tenant, caller.acting_user.as_deref(), &headers, made).await;
    asked.map_err(|problem| if is_known { problem } else { task_not_found() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_names_neither_its_kind_nor_what_follows_it() {
        let made =
            job("enhance", json!({"input": {"a": 1}, "owner": "ada", "kind": "email.send", "then": [], "payload": 1, "task": "other"}));
        assert_eq!(
            (made["kind"].as_str(), made["owner"].as_str(), made["payload"]["task"].as_str()),
            (Some("ai.run"), Some("ada"), Some("enhance"))
        );
        assert!(made.get("then").is_none());
        // The kind's own check refuses what it does not know.
        assert_eq!(made["payload"]["kind"], "email.send");
        assert_eq!(job("enhance", json!(7)), json!(7));
    }
}
