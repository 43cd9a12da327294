//! Step 9's reading side: one job, or a page of them, as clients see it. Every list is read by an index whatever the filter.

/// The columns that [`FoundJob`] reads, from `j` (job) and `s` (`job_state`): all of them, or without what may be large.
macro_rules! job_columns {
    (whole) => {
        concat!(
            "j.payload, (SELECT r.result FROM job_result r WHERE r.job_id = j.id) AS result, j.options::text AS options,
             CASE WHEN j.options ? 'then' THEN ARRAY (SELECT c.job_id FROM job_child c WHERE c.parent_id = j.id ORDER BY c.position) END AS children, ",
            job_columns!(narrow)
        )
    };
    (followed) => {
        concat!(
            "NULL::jsonb AS payload, CASE WHEN j.id = ANY ($3) THEN (SELECT r.result FROM job_result r WHERE r.job_id = j.id) END AS result,
             (CASE WHEN j.id = ANY ($3) THEN j.options ELSE j.options - 'then' END)::text AS options,
             CASE WHEN j.id = ANY ($3) AND j.options ? 'then'
                  THEN ARRAY (SELECT c.job_id FROM job_child c WHERE c.parent_id = j.id ORDER BY c.position) END AS children, ",
            job_columns!(narrow)
        )
    };
    (listed) => {
        concat!(
            "NULL::jsonb AS payload, NULL::jsonb AS result, (j.options - 'then')::text AS options, NULL::uuid[] AS children, ",
            job_columns!(narrow)
        )
    };
    (narrow) => {
        "j.id, j.kind, j.queue, j.priority, j.owner, j.created_at, j.start_by,
         s.state, s.reason, s.version, s.attempt, s.attempts_allowed, s.cancel_requested, s.run_at, s.started_at, s.finished_at,
         s.progress_done, s.progress_total,
         (SELECT a.error FROM job_attempt a WHERE a.job_id = j.id AND s.state IN (0, 1, 2, 4) ORDER BY a.run DESC LIMIT 1) AS error"
    };
}

mod page;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};
use uuid::Uuid;

pub use page::{Filter, list, of_batch};
pub(super) use page::{first_id, first_id_after};

use super::{LedgerError, claim::options_of};
use crate::job::{JobId, Options, Priority, Reason, State};

/// A job as it stands.
#[derive(Debug, Clone)]
pub struct FoundJob {
    /// Its id.
    pub id: JobId,
    /// Its kind.
    pub kind: String,
    /// Its queue.
    pub queue: String,
    /// Its priority.
    pub priority: Priority,
    /// Which end user's.
    pub owner: Option<String>,
    /// Where it is.
    pub state: State,
    /// Why it waits.
    pub reason: Reason,
    /// Grows with each visible change.
    pub version: i32,
    /// Counted runs so far, the present one included.
    pub attempt: i16,
    /// Counted runs it may take.
    pub attempts_allowed: i16,
    /// Whether somebody asked to cancel it.
    pub cancel_requested: bool,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it is or was due.
    pub run_at: DateTime<Utc>,
    /// When it is no longer worth starting.
    pub start_by: Option<DateTime<Utc>>,
    /// When its latest run began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Units done by the present run.
    pub progress_done: Option<i64>,
    /// Units there are, where known.
    pub progress_total: Option<i64>,
    /// The payload; in a list `None`.
    pub payload: Option<Value>,
    /// The result; in a list `None`.
    pub result: Option<Value>,
    /// What went wrong at the latest run: `{code, class, message, causes}`.
    pub error: Option<Value>,
    /// What it carries beside its payload; in a list without what follows it.
    pub options: Options,
    /// The jobs that followed it; in a list none.
    pub children: Vec<JobId>,
}

/// A run of a job.
#[derive(Debug, Clone)]
pub struct FoundAttempt {
    /// Runs, counted or not, from 1.
    pub run: i32,
    /// The counted attempt it was or would have been.
    pub attempt: i16,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// `succeeded`, `retry`, `failed`, `cancelled` or `crashed`.
    pub outcome: String,
    /// What went wrong.
    pub error: Option<Value>,
}

/// One job of a tenant, and of `owner` where one is given.
///
/// # Errors
/// [`LedgerError`].
pub async fn job(connection: &mut PgConnection, tenant: i32, owner: Option<&str>, id: JobId) -> Result<Option<FoundJob>, LedgerError> {
    let row = sqlx::query(concat!(
        "SELECT ",
        job_columns!(whole),
        " FROM job j JOIN job_state s ON s.job_id = j.id WHERE j.id = $1 AND j.tenant_id = $2 AND ($3::text IS NULL OR j.owner = $3)"
    ))
    .bind(id.0)
    .bind(tenant)
    .bind(owner)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(found).transpose()
}

/// The version of a job, if the tenant (and `owner` where one is given) has it: what a waiting client asks again and again.
///
/// # Errors
/// [`LedgerError`].
pub async fn version(connection: &mut PgConnection, tenant: i32, owner: Option<&str>, id: JobId) -> Result<Option<i32>, LedgerError> {
    let version = sqlx::query_scalar(
        "SELECT s.version FROM job j JOIN job_state s ON s.job_id = j.id WHERE j.id = $1 AND j.tenant_id = $2 AND ($3::text IS NULL OR j.owner = $3)",
    )
    .bind(id.0)
    .bind(tenant)
    .bind(owner)
    .fetch_optional(connection)
    .await?;
    Ok(version)
}

/// The versions of those of `ids` that the tenant has.
///
/// # Errors
/// [`LedgerError`].
pub async fn versions(connection: &mut PgConnection, tenant: i32, ids: &[Uuid]) -> Result<Vec<(JobId, i32)>, LedgerError> {
    let rows: Vec<(Uuid, i32)> = sqlx::query_as("SELECT job_id, version FROM job_state WHERE job_id = ANY ($1) AND tenant_id = $2")
        .bind(ids)
        .bind(tenant)
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(|(id, version)| (JobId(id), version)).collect())
}

/// Those of `ids` that the tenant has, as their followers are shown them: without payloads, and with results of `with_result` alone.
///
/// # Errors
/// [`LedgerError`].
pub async fn followed(
    connection: &mut PgConnection,
    tenant: i32,
    ids: &[Uuid],
    with_result: &[Uuid],
) -> Result<Vec<FoundJob>, LedgerError> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        job_columns!(followed),
        " FROM job j JOIN job_state s ON s.job_id = ANY (ARRAY[j.id]) WHERE j.id = ANY ($1) AND j.tenant_id = $2"
    ))
    .bind(ids)
    .bind(tenant)
    .bind(with_result)
    .fetch_all(connection)
    .await?;
    rows.iter().map(found).collect()
}

/// Where the tenants' jobs among `ids` belong; others are left out.
///
/// # Errors
/// [`LedgerError`].
pub async fn tenants(pool: &PgPool, ids: &[Uuid], tenants: &[i32]) -> Result<Vec<(JobId, i32)>, LedgerError> {
    let rows: Vec<(Uuid, i32)> =
        sqlx::query_as("SELECT job_id, tenant_id FROM tenants_of_jobs($1, $2)").bind(ids).bind(tenants).fetch_all(pool).await?;
    Ok(rows.into_iter().map(|(id, tenant)| (JobId(id), tenant)).collect())
}

/// The runs of a job of this tenant, the latest first, at most 100.
///
/// # Errors
/// [`LedgerError`].
pub async fn attempts(connection: &mut PgConnection, tenant: i32, id: JobId) -> Result<Vec<FoundAttempt>, LedgerError> {
    let rows = sqlx::query(
        "SELECT run, attempt, started_at, finished_at, outcome, error FROM job_run WHERE job_id = $1 AND tenant_id = $2 ORDER BY run DESC LIMIT 100",
    )
    .bind(id.0)
    .bind(tenant)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(FoundAttempt {
                run: row.try_get("run")?,
                attempt: row.try_get("attempt")?,
                started_at: row.try_get("started_at")?,
                finished_at: row.try_get("finished_at")?,
                outcome: row.try_get("outcome")?,
                error: row.try_get("error")?,
            })
        })
        .collect()
}

fn found(row: &PgRow) -> Result<FoundJob, LedgerError> {
    let coded = |what: &'static str, code: i16| LedgerError::Unknown { what, value: code.to_string() };
    let state: i16 = row.try_get("state")?;
    let reason: i16 = row.try_get("reason")?;
    let priority: i16 = row.try_get("priority")?;
    let options: Option<String> = row.try_get("options")?;
    let children: Option<Vec<Uuid>> = row.try_get("children")?;
    Ok(FoundJob {
        id: JobId(row.try_get("id")?),
        kind: row.try_get("kind")?,
        queue: row.try_get("queue")?,
        priority: Priority::from_code(priority).ok_or_else(|| coded("priority", priority))?,
        owner: row.try_get("owner")?,
        state: State::from_code(state).ok_or_else(|| coded("state", state))?,
        reason: Reason::from_code(reason).ok_or_else(|| coded("reason", reason))?,
        version: row.try_get("version")?,
        attempt: row.try_get("attempt")?,
        attempts_allowed: row.try_get("attempts_allowed")?,
        cancel_requested: row.try_get("cancel_requested")?,
        created_at: row.try_get("created_at")?,
        run_at: row.try_get("run_at")?,
        start_by: row.try_get("start_by")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
        progress_done: row.try_get("progress_done")?,
        progress_total: row.try_get("progress_total")?,
        payload: row.try_get("payload")?,
        result: row.try_get("result")?,
        error: row.try_get("error")?,
        options: options.map(|options| options_of(&options)).transpose()?.unwrap_or_default(),
        children: children.unwrap_or_default().into_iter().map(JobId).collect(),
    })
}
