//! Dead letters: `POST /v1/jobs/{id}/discard`, and `POST /v1/jobs/retry` and `/v1/jobs/discard` for all that match a filter.
//!
//! What must stay true: a request changes no more than it was allowed to and says whether there is more; each batch of it is a
//! transaction of its own, so what was done is done, whatever becomes of the rest.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    job::{JobId, State as Standing},
    kinds::Violation,
    ledger::{
        LedgerError,
        dead::{self, Discarded, Filter, Purpose},
        find,
    },
    queue::Queue,
    tenant,
};
use utoipa::ToSchema;

use super::{Asked, IdOfPath, change::NoBody, missing, restless};
use crate::{
    app::App,
    auth::{Caller, JobsWrite},
    extract::Json,
    follow::Call,
    problem::{Code, Problem, ProblemBody},
    routes::moment::Moment,
};

/// Jobs that one request changes unless it says otherwise.
const DEFAULT_LIMIT: i64 = 1_000;

/// The most that one request changes.
const MOST: i64 = 10_000;

/// Where a dry run stops counting.
const MOST_COUNTED: i64 = 100_000;

/// After so long a request leaves the rest to the next one; well within the deadline of every request.
const WITHIN: Duration = Duration::from_secs(10);

/// Which of the states that jobs end in without success.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadState {
    /// Out of attempts, or failed for good.
    #[default]
    Failed,
    /// Cancelled.
    Cancelled,
    /// Not started by its `start_by`.
    Expired,
}

/// Which dead letters. What is left out does not matter; `{}` is all that failed.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct DeadFilter {
    /// The state they are in; `failed` when absent.
    #[serde(default)]
    state: DeadState,
    /// Only this kind's.
    kind: Option<String>,
    /// Only this queue's.
    queue: Option<Queue>,
    /// Only those whose last run failed with this `code`.
    #[schema(example = "source_unavailable")]
    error_code: Option<String>,
    /// Only this end user's; with `X-Acting-User` it is that user's anyhow.
    owner: Option<String>,
    /// Only those that ended then or later.
    #[schema(value_type = Option<DateTime<Utc>>)]
    ended_from: Option<Moment>,
    /// Only those that ended before; now when absent.
    #[schema(value_type = Option<DateTime<Utc>>)]
    ended_before: Option<Moment>,
}

/// What to do with all dead letters that match.
#[derive(Debug, Deserialize, ToSchema)]
pub struct DeadLetters {
    /// Which.
    filter: DeadFilter,
    /// Only tell how many they are.
    #[serde(default)]
    dry_run: bool,
    /// How many to change by this request, 1 to 10,000; 1,000 when absent.
    #[schema(minimum = 1, maximum = 10_000)]
    limit: Option<i64>,
}

/// What was done, or would be.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLettersDone {
    /// Whether nothing was done.
    dry_run: bool,
    /// How many were changed; of a dry run, how many match, counted up to 100,000.
    jobs: i64,
    /// Whether there are more: send the same again, with this `ended_before`.
    more: bool,
    /// The filter's, or the time of this request. A job that is redriven and fails again ends after it, so that repeating the
    /// request comes to an end.
    ended_before: DateTime<Utc>,
}

/// Tries all dead letters again that match, with their kinds' full number of attempts.
///
/// They wait like new work, oldest first, and go on as there is room. Jobs past their `start_by` don't match.
#[utoipa::path(
    post, path = "/v1/jobs/retry", tag = "jobs", operation_id = "retry_jobs", request_body = DeadLetters,
    params(("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for")),
    responses(
        (status = 200, body = DeadLettersDone),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
    ),
)]
pub async fn retry_all(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    Json(wish): Json<DeadLetters>,
) -> Result<Answer<DeadLettersDone>, Problem> {
    change_all(&app, &caller, wish, Purpose::Redrive).await
}

/// Removes all dead letters for good that match, oldest first. They then answer 410.
#[utoipa::path(
    post, path = "/v1/jobs/discard", tag = "jobs", operation_id = "discard_jobs", request_body = DeadLetters,
    params(("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for")),
    responses(
        (status = 200, body = DeadLettersDone),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
    ),
)]
pub async fn discard_all(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    Json(wish): Json<DeadLetters>,
) -> Result<Answer<DeadLettersDone>, Problem> {
    change_all(&app, &caller, wish, Purpose::Discard).await
}

async fn change_all(
    app: &App,
    caller: &Caller<JobsWrite>,
    wish: DeadLetters,
    purpose: Purpose,
) -> Result<Answer<DeadLettersDone>, Problem> {
    let now = app.clock.now();
    let mut violations = Vec::new();
    let limit = wish.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MOST).contains(&limit) {
        violations.push(Violation::new("/limit", format!("is {limit}; 1 to {MOST} are allowed")));
    }
    let filter = filter(app, caller, wish.filter, now, &mut violations);
    if !violations.is_empty() {
        return Err(Problem::invalid(violations));
    }
    let ended_before = filter.ended_before;
    if wish.dry_run {
        let found = count(app, caller.tenant, &filter, purpose, MOST_COUNTED + 1).await?;
        let jobs = found.min(MOST_COUNTED);
        return Ok(Answer(DeadLettersDone { dry_run: true, jobs, more: found > jobs, ended_before }));
    }
    let until = Instant::now() + WITHIN;
    let mut jobs = 0;
    let mut queues = BTreeMap::new();
    while jobs < limit && Instant::now() < until {
        let batch = (limit - jobs).min(dead::BATCH);
        let (done, touched) = match change_some(app, caller.tenant, &filter, purpose, batch).await {
            Ok(changed) => changed,
            // What was done before is done: it is told, and the rest is there to be asked for again.
            Err(error) if jobs > 0 => {
                tracing::warn!(error = &error as &dyn std::error::Error, jobs, "a change of many dead letters was cut short");
                break;
            }
            Err(error) => return Err(error.into()),
        };
        queues.extend(touched);
        jobs += done;
        if done == 0 {
            break;
        }
    }
    // Whoever waits for one of them looks by itself.
    for (queue, job) in queues {
        app.follow.tell(job, Call::Dispatch(queue));
    }
    let more = count(app, caller.tenant, &filter, purpose, 1).await.map_or(true, |left| left > 0);
    tracing::info!(tenant = caller.tenant, key = %caller.key, ?purpose, jobs, more, "changed dead letters by a filter");
    Ok(Answer(DeadLettersDone { dry_run: false, jobs, more, ended_before }))
}

/// A batch, in a transaction of its own: how many, and whose dispatchers should look, with one job of each.
async fn change_some(
    app: &App,
    tenant: i32,
    filter: &Filter,
    purpose: Purpose,
    limit: i64,
) -> Result<(i64, BTreeMap<Queue, JobId>), LedgerError> {
    let now = app.clock.now();
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let (jobs, queues) = match purpose {
        Purpose::Redrive => {
            let redriven = dead::redrive(&mut transaction, tenant, filter, now, limit).await?;
            metrics::counter!("offstage_jobs_redriven_total").increment(redriven.len() as u64);
            (redriven.len(), redriven.into_iter().filter_map(|(job, queue)| Some((queue?, job))).collect())
        }
        Purpose::Discard => {
            let discarded = dead::discard(&mut transaction, tenant, filter, now, limit).await?;
            metrics::counter!("offstage_jobs_discarded_total").increment(discarded.len() as u64);
            (discarded.len(), BTreeMap::new())
        }
    };
    transaction.commit().await?;
    Ok((i64::try_from(jobs).unwrap_or(i64::MAX), queues))
}

async fn count(app: &App, tenant: i32, filter: &Filter, purpose: Purpose, most: i64) -> Result<i64, LedgerError> {
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    dead::count(&mut transaction, tenant, filter, purpose, app.clock.now(), most).await
}

fn filter(app: &App, caller: &Caller<JobsWrite>, asked: DeadFilter, now: DateTime<Utc>, violations: &mut Vec<Violation>) -> Filter {
    let owner = match (&caller.acting_user, asked.owner) {
        (Some(acting), Some(asked)) if *acting != asked => {
            violations.push(Violation::new("/filter/owner", "must be the user of X-Acting-User, or be left out"));
            None
        }
        (Some(acting), _) => Some(acting.clone()),
        (None, asked) => asked,
    };
    // Nothing that is stored holds one, and Postgres takes none to compare with either.
    for (pointer, text) in [("/filter/kind", &asked.kind), ("/filter/error_code", &asked.error_code), ("/filter/owner", &owner)] {
        if text.as_ref().is_some_and(|text| text.contains('\0')) {
            violations.push(Violation::new(pointer, "contains a NUL character (\\u0000), which nothing here does; leave it out"));
        }
    }
    if asked.state != DeadState::Failed && asked.error_code.is_some() {
        violations.push(Violation::new("/filter/error_code", "belongs to jobs that failed; leave it out, or leave `state` out"));
    }
    Filter {
        state: match asked.state {
            DeadState::Failed => Standing::Failed,
            DeadState::Cancelled => Standing::Cancelled,
            DeadState::Expired => Standing::Expired,
        },
        // A former name finds the jobs of the present one.
        kind: asked.kind.map(|kind| app.kinds.find(&kind).map_or(kind, |entry| entry.name.to_owned())),
        queue: asked.queue,
        error_code: asked.error_code,
        owner,
        ended_from: asked.ended_from.map(|moment| moment.0),
        ended_before: asked.ended_before.map_or(now, |moment| moment.0.min(now)),
    }
}

/// Removes a dead letter for good.
///
/// The job is gone with its payload, its runs and its result; it then answers 410. Only what failed, was cancelled or expired can
/// be discarded.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/discard", tag = "jobs", operation_id = "discard_job",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`job_not_discardable`: it has not ended, or has succeeded"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was gone before"),
    ),
)]
pub async fn discard(State(app): State<App>, caller: Caller<JobsWrite>, id: IdOfPath, _: NoBody) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id.job()? };
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    // Whose a job is never changes, so it may be asked before anything is locked.
    if asked.owner.is_some() && find::version(&mut transaction, asked.tenant, asked.owner, asked.id).await?.is_none() {
        drop(transaction);
        return Err(missing(&app, asked).await);
    }
    let discarded = dead::discard_one(&mut transaction, asked.tenant, asked.id, app.clock.now()).await?;
    transaction.commit().await?;
    match discarded {
        Discarded::Done => {
            metrics::counter!("offstage_jobs_discarded_total").increment(1);
            app.follow.tell(asked.id, Call::Nothing);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Discarded::NotFrom(state) => {
            let detail = format!("The job is {}; only what failed, was cancelled or expired can be discarded.", state.word());
            Err(Problem::new(Code::JobNotDiscardable, detail))
        }
        Discarded::Moved => Err(restless()),
        Discarded::Missing => Err(missing(&app, asked).await),
    }
}
