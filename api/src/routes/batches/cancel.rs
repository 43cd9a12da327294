//! `POST /v1/batches/{id}/cancel`.

use std::time::{Duration, Instant};

use axum::{Json as Answer, extract::State};
use serde::Serialize;
use shared::{
    job::JobId,
    ledger::{
        LedgerError,
        batch::{
            change::{self, Step},
            find,
        },
    },
    random, tenant,
};
use tokio::time::sleep;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{IdOfPath, not_found, read::show, view::Batch};
use crate::{
    app::App,
    auth::{Caller, JobsWrite},
    follow::Call,
    problem::{Code, Problem, ProblemBody},
    routes::jobs::NoBody,
};

/// After so long a request leaves the rest to the next one; well within the deadline of every request.
const WITHIN: Duration = Duration::from_secs(10);

/// The longest pause before jobs are looked at again that moved meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// How often a step is tried that Postgres turned down because it met another one.
const TRIES: u32 = 5;

/// What cancelling a batch did.
#[derive(Debug, Serialize, ToSchema)]
pub struct CancelledBatch {
    /// The batch.
    #[serde(flatten)]
    batch: Batch,
    /// Jobs that this request cancelled before they started.
    jobs_cancelled: i64,
    /// Jobs that run and that this request asked to stop; a success that comes first wins.
    jobs_asked: i64,
    /// Whether there are more, for which there was no time: send the same again.
    more: bool,
}

/// Cancels what of a batch has not ended, and what was to follow it.
///
/// What has not started is cancelled at once, what runs is asked to stop. Jobs that were there before the batch go on.
#[utoipa::path(
    post, path = "/v1/batches/{id}/cancel", tag = "batches", operation_id = "cancel_batch",
    params(
        ("id" = String, Path, description = "The batch's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = CancelledBatch),
        (status = 404, body = ProblemBody<'static>, description = "`batch_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`batch_not_cancellable`: all its jobs have ended"),
    ),
)]
pub async fn cancel(State(app): State<App>, caller: Caller<JobsWrite>, id: IdOfPath, _: NoBody) -> Result<Answer<CancelledBatch>, Problem> {
    let (tenant, owner, id) = (caller.tenant, caller.acting_user.as_deref(), id.batch()?);
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    find::batch(&mut transaction, tenant, owner, id).await?.ok_or_else(not_found)?;
    let noted = change::note_cancel(&mut transaction, tenant, id, app.clock.now()).await?;
    transaction.commit().await?;
    if !noted {
        return Err(Problem::new(Code::BatchNotCancellable, "All jobs of the batch have ended, so there is nothing to cancel."));
    }
    let (mut cancelled, mut asked) = (0, 0);
    let (mut after, mut moved, mut more) = (None, 0, true);
    let until = Instant::now() + WITHIN;
    while Instant::now() < until {
        let step = match step(&app, tenant, id, after).await {
            Ok(step) => step,
            // What was done before is done: it is told, and the rest is there to be asked for again.
            Err(error) if cancelled + asked > 0 => {
                tracing::warn!(error = &error as &dyn std::error::Error, batch = %id, "cancelling a batch was cut short");
                break;
            }
            Err(error) => return Err(error.into()),
        };
        cancelled += i64::try_from(step.cancelled.len()).unwrap_or(0);
        asked += i64::try_from(step.asked.len()).unwrap_or(0);
        moved += step.moved;
        // Whoever waits for one that is cancelled looks by itself; workers are told of those that they run.
        step.asked.iter().for_each(|job| app.follow.tell(*job, Call::Stop));
        after = step.last;
        if after.is_none() {
            more = moved > 0;
            if !more {
                break;
            }
            // Some were on their way from the backlog: once more from the beginning.
            moved = 0;
            sleep(PAUSE.mul_f64(random::fraction())).await;
        }
    }
    tracing::info!(tenant, key = %caller.key, batch = %id, cancelled, asked, more, "cancelled a batch");
    let batch = show(&app, tenant, owner, id).await?;
    Ok(Answer(CancelledBatch { batch, jobs_cancelled: cancelled, jobs_asked: asked, more }))
}

/// A step in a transaction of its own; tried again when Postgres rolled it back because two met (SQLSTATE class 40).
async fn step(app: &App, tenant: i32, batch: Uuid, after: Option<JobId>) -> Result<Step, LedgerError> {
    let mut tries = 1;
    loop {
        let once = async {
            let mut transaction = tenant::transaction(&app.pool, tenant).await?;
            let step = change::cancel_step(&mut transaction, tenant, batch, after, app.clock.now()).await?;
            transaction.commit().await?;
            Ok(step)
        };
        match once.await {
            Err(LedgerError::Unavailable(sqlx::Error::Database(error)))
                if tries < TRIES && error.code().is_some_and(|code| code.starts_with("40")) =>
            {
                tries += 1;
                sleep(PAUSE.mul_f64(random::fraction())).await;
            }
            other => return other,
        }
    }
}
