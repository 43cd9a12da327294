//! `POST /v1/jobs/{id}/cancel` and `/retry`.

use std::time::Duration;

use axum::{
    Json as Answer,
    body::{self, Body},
    extract::{FromRequest, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use shared::{
    job::State as Standing,
    kinds::Violation,
    ledger::{
        LedgerError,
        change::{self, Change, Meters, Retried},
        find::{self, FoundJob},
    },
    queue::Queue,
    random, tenant,
    usage::Refused,
};
use tokio::time::{sleep, timeout};

use super::{
    Asked, IdOfPath, missing, not_found, over_limit,
    view::{Job, Reader},
    view_of,
};
use crate::{
    app::App,
    auth::{Caller, JobsWrite},
    extract,
    follow::Call,
    problem::{Code, Problem, ProblemBody},
};

/// How often a change is tried that Postgres turned down because it met another one.
const TRIES: u32 = 5;

/// When to come again to a job that too many change at once.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Cancels a job.
///
/// What has not started is cancelled at once. What runs is asked to stop, which takes a moment; a success that comes first wins.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "jobs", operation_id = "cancel_job",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = Job, description = "Cancelled"),
        (status = 202, body = Job, description = "It runs, and was asked to stop"),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`job_not_cancellable`: it has ended"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
    ),
)]
pub async fn cancel(State(app): State<App>, caller: Caller<JobsWrite>, id: IdOfPath, _: NoBody) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id.job()? };
    let Changed { change, found, .. } = stop(&app, asked).await?;
    match change {
        Change::Done | Change::Asked => {}
        Change::NotFrom(state) => {
            let detail = format!("The job has {}, so there is nothing to cancel.", ended(state));
            return Err(Problem::new(Code::JobNotCancellable, detail));
        }
        Change::Moved => return Err(restless()),
        Change::TooLate(_) | Change::Held(_) | Change::OverLimit | Change::Missing => return Err(missing(&app, asked).await),
    }
    let status = if change == Change::Asked { StatusCode::ACCEPTED } else { StatusCode::OK };
    answer(&app, asked, status, found)
}

/// Cancels a job for another door that shows it in other words, and tells those who must know.
///
/// # Errors
/// [`LedgerError`].
pub async fn stop_job(app: &App, asked: Asked<'_>) -> Result<Change, LedgerError> {
    Ok(stop(app, asked).await?.change)
}

async fn stop(app: &App, asked: Asked<'_>) -> Result<Changed, LedgerError> {
    let changed = change(app, asked, Wish::Cancel).await?;
    match changed.change {
        Change::Done => app.follow.tell(asked.id, Call::Nothing),
        Change::Asked => app.follow.tell(asked.id, Call::Stop),
        Change::NotFrom(_) | Change::TooLate(_) | Change::Held(_) | Change::OverLimit | Change::Missing | Change::Moved => {}
    }
    Ok(changed)
}

/// Tries a job again that failed, was cancelled or expired, with its kind's full number of attempts.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/retry", tag = "jobs", operation_id = "retry_job",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 202, body = Job, description = "It waits to run again"),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`job_not_retryable`: it has not ended, has succeeded, is past its `start_by`, or another job holds its unique key"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
        (status = 429, body = ProblemBody<'static>, description = "`USAGE_LIMIT_EXCEEDED`: it would use more than may be used, with `usage`, `limit` and `resets_at`"),
    ),
)]
pub async fn retry(State(app): State<App>, caller: Caller<JobsWrite>, id: IdOfPath, _: NoBody) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id.job()? };
    let Changed { change, queue, over, found } = change(&app, asked, Wish::Retry).await?;
    let refused = |detail: String| Err(Problem::new(Code::JobNotRetryable, detail));
    match change {
        Change::Done => {
            metrics::counter!("offstage_jobs_redriven_total").increment(1);
            app.follow.tell(asked.id, queue.map_or(Call::Nothing, Call::Dispatch));
        }
        Change::NotFrom(Standing::Succeeded) => return refused("The job has succeeded. To do it once more, ask for a new job.".into()),
        Change::NotFrom(state) => {
            return refused(format!("The job is {}: it has not ended yet. Wait for it, or cancel it first.", state.word()));
        }
        Change::Held(holder) => {
            return refused(format!("The job {holder} has its unique key and has not ended. Wait for that one, or cancel it first."));
        }
        Change::TooLate(start_by) => {
            return refused(format!("The job was to be started by {}, which has passed. Ask for a new job.", start_by.format("%FT%TZ")));
        }
        Change::Moved => return Err(restless()),
        Change::OverLimit => return Err(over.map_or_else(Problem::unexplained, |over| over_limit(&over, app.clock.now()))),
        Change::Asked | Change::Missing => return Err(missing(&app, asked).await),
    }
    answer(&app, asked, StatusCode::ACCEPTED, found)
}

/// So many changes at once that ours found no gap.
pub fn restless() -> Problem {
    let detail = "The job is being changed by many requests at once. Nothing was done by this one; send it again in a moment.";
    Problem::new(Code::Overloaded, detail).retry_after(COME_AGAIN)
}

/// How a state is told of something that ended.
const fn ended(state: Standing) -> &'static str {
    match state {
        Standing::Failed => "failed",
        Standing::Expired => "expired",
        Standing::Cancelled => "been cancelled",
        _ => "succeeded",
    }
}

/// What is asked of a job.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Cancel,
    Retry,
}

/// What became of it, and the job afterwards.
struct Changed {
    change: Change,
    /// The queue whose dispatcher should look.
    queue: Option<Queue>,
    /// Which limit leaves no room.
    over: Option<Refused>,
    found: Option<FoundJob>,
}

/// Changes a job. When it moved meanwhile, or Postgres rolled the change back because two transactions met (SQLSTATE class
/// 40), it is tried again: both wishes find their own effect when they are repeated, so nothing happens twice.
async fn change(app: &App, asked: Asked<'_>, wish: Wish) -> Result<Changed, LedgerError> {
    let mut tries = 1;
    loop {
        let changed = change_once(app, asked, wish, app.clock.now()).await;
        let met = match &changed {
            Ok(changed) => changed.change == Change::Moved,
            Err(LedgerError::Unavailable(sqlx::Error::Database(error))) => error.code().is_some_and(|code| code.starts_with("40")),
            Err(_) => false,
        };
        if !met || tries == TRIES {
            return changed;
        }
        tries += 1;
        sleep(PAUSE.mul_f64(random::fraction())).await;
    }
}

async fn change_once(app: &App, asked: Asked<'_>, wish: Wish, now: DateTime<Utc>) -> Result<Changed, LedgerError> {
    let Asked { tenant, owner, id } = asked;
    let product = app.tenants.get(tenant).await.ok().flatten();
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    // Whose a job is never changes, so it may be asked before anything is locked.
    if owner.is_some() && find::version(&mut transaction, tenant, owner, id).await?.is_none() {
        return Ok(Changed { change: Change::Missing, queue: None, over: None, found: None });
    }
    let Retried { change, queue, over } = match wish {
        Wish::Cancel => change::cancel(&mut transaction, tenant, id, now).await?.into(),
        Wish::Retry => {
            // Whose manifest can't be read now reserves when it starts.
            let meters = product.as_ref().map(|product| Meters { kinds: &app.kinds, manifest: &product.manifest });
            change::retry(&mut transaction, tenant, id, meters, now).await?
        }
    };
    if [Change::Moved, Change::OverLimit].contains(&change) {
        return Ok(Changed { change, queue: None, over, found: None });
    }
    let found = find::job(&mut transaction, tenant, owner, id).await?;
    transaction.commit().await?;
    Ok(Changed { change, queue, over, found })
}

fn answer(app: &App, asked: Asked<'_>, status: StatusCode, found: Option<FoundJob>) -> Result<Response, Problem> {
    let job = view_of(app, asked.tenant, found.ok_or_else(not_found)?, None, Reader::acting_for(asked.owner));
    Ok((status, Answer(job)).into_response())
}

/// A request that says everything by its address: its body is empty, or `{}`, which some clients always send.
#[derive(Debug)]
pub struct NoBody;

/// More than this is not looked at.
const MOST_BODY: usize = 4_096;

/// The longest that a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

impl FromRequest<App> for NoBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &App) -> Result<Self, Problem> {
        check_empty(request.into_body()).await.map(|()| Self)
    }
}

async fn check_empty(body: Body) -> Result<(), Problem> {
    #[derive(Deserialize)]
    struct Nothing {}

    let bytes = match timeout(BODY_DEADLINE, body::to_bytes(body, MOST_BODY)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return Err(Problem::invalid(vec![Violation::new("", "must be empty: the address says everything")])),
        Err(_) => return Err(Problem::new(Code::BodyTimeout, "The body did not arrive in time; this request needs none.")),
    };
    if bytes.trim_ascii().is_empty() {
        return Ok(());
    }
    extract::parse::<Nothing>(&bytes).map(|Nothing {}| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_nothing_or_an_empty_object() {
        for body in ["", " \n", "{}", " { } "] {
            assert!(check_empty(Body::from(body)).await.is_ok(), "{body}");
        }
        for (body, code) in [
            ("{\"force\": true}", Code::ValidationFailed),
            ("force=true", Code::JsonMalformed),
            ("[1]", Code::ValidationFailed),
            ("null", Code::ValidationFailed),
            (&" ".repeat(MOST_BODY + 1), Code::ValidationFailed),
        ] {
            assert_eq!(check_empty(Body::from(body.to_owned())).await.unwrap_err().code(), code, "{body}");
        }
    }
}
