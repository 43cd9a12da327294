//! `GET /v1/batches`, `/v1/batches/{id}` and its jobs.

use axum::{Json as Answer, extract::State};
use serde::Deserialize;
use shared::{
    job::{self, JobId},
    ledger::{self, batch::find},
    tenant,
};

use super::{
    IdOfPath, not_found,
    view::{Batch, BatchPage},
};
use crate::{
    app::App,
    auth::{Caller, JobsRead},
    extract::Query,
    problem::{Problem, ProblemBody},
    routes::{
        jobs::{Job, JobPage, Reader},
        page::Page,
    },
};

/// Which batches to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct BatchListQuery {
    /// How many, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Which of a batch's jobs to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct BatchJobsQuery {
    /// How many, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// Only in this state.
    #[param(inline)]
    state: Option<job::State>,
}

/// Lists batches, newest first.
#[utoipa::path(
    get, path = "/v1/batches", tag = "batches", operation_id = "list_batches",
    params(BatchListQuery, ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for")),
    responses((status = 200, body = BatchPage), (status = 400, body = ProblemBody<'static>, description = "`query_invalid`")),
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Query(query): Query<BatchListQuery>,
) -> Result<Answer<BatchPage>, Problem> {
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let after = page.after.map(|id| id.0);
    let found = find::list(&mut transaction, caller.tenant, caller.acting_user.as_deref(), after, page.to_read()).await?;
    drop(transaction);
    let (found, next_cursor) = page.cut(found, |batch| JobId(batch.id));
    Ok(Answer(BatchPage { items: found.into_iter().map(|batch| Batch::of(batch, None)).collect(), next_cursor }))
}

/// Shows a batch: how many of its jobs are in each state, and what follows.
#[utoipa::path(
    get, path = "/v1/batches/{id}", tag = "batches", operation_id = "read_batch",
    params(
        ("id" = String, Path, description = "The batch's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = Batch),
        (status = 404, body = ProblemBody<'static>, description = "`batch_not_found`: it never was, or is another's, or is gone with its jobs"),
    ),
)]
pub async fn read(State(app): State<App>, caller: Caller<JobsRead>, id: IdOfPath) -> Result<Answer<Batch>, Problem> {
    show(&app, caller.tenant, caller.acting_user.as_deref(), id.batch()?).await.map(Answer)
}

/// A batch with its counts.
///
/// # Errors
/// That there is none.
pub async fn show(app: &App, tenant: i32, owner: Option<&str>, id: uuid::Uuid) -> Result<Batch, Problem> {
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let found = find::batch(&mut transaction, tenant, owner, id).await?.ok_or_else(not_found)?;
    let counts = find::counts(&mut transaction, tenant, id).await?;
    Ok(Batch::of(found, Some(&counts)))
}

/// Lists a batch's jobs, newest first.
#[utoipa::path(
    get, path = "/v1/batches/{id}/jobs", tag = "batches", operation_id = "list_batch_jobs",
    params(
        ("id" = String, Path, description = "The batch's id"),
        BatchJobsQuery,
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = JobPage),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 404, body = ProblemBody<'static>, description = "`batch_not_found`"),
    ),
)]
pub async fn jobs(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    id: IdOfPath,
    Query(query): Query<BatchJobsQuery>,
) -> Result<Answer<JobPage>, Problem> {
    let (id, owner) = (id.batch()?, caller.acting_user.as_deref());
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    if find::batch(&mut transaction, caller.tenant, owner, id).await?.is_none() {
        return Err(not_found());
    }
    let found = ledger::find::of_batch(&mut transaction, caller.tenant, id, query.state, page.after, page.to_read()).await?;
    drop(transaction);
    let (found, next_cursor) = page.cut(found, |job| job.id);
    let (now, reader) = (app.clock.now(), Reader::acting_for(owner));
    let items = found.into_iter().map(|job| Job::of(job, None, &app.kinds, now, reader)).collect();
    Ok(Answer(JobPage { items, next_cursor }))
}
