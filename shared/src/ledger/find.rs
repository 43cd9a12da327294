//! Step 9's reading side: one job, or a page of them, as clients see it. Every list is read by an index whatever the filter.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};
use uuid::Uuid;

use super::{LedgerError, claim::options_of};
use crate::{
    job::{JobId, Options, Priority, Reason, State},
    queue::Queue,
};

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

/// Which jobs a list shows. Newest first.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this kind's.
    pub kind: Option<String>,
    /// Only in this state.
    pub state: Option<State>,
    /// Only this owner's.
    pub owner: Option<String>,
    /// Accepted at or after.
    pub created_from: Option<DateTime<Utc>>,
    /// Accepted before.
    pub created_before: Option<DateTime<Utc>>,
    /// Only this queue's.
    pub queue: Option<Queue>,
    /// Only those whose last run failed of this; with [`State::Failed`].
    pub error_code: Option<String>,
    /// Ended at or after; with a state that is a dead letter's.
    pub ended_from: Option<DateTime<Utc>>,
    /// Ended before; likewise.
    pub ended_before: Option<DateTime<Utc>>,
    /// Only those before this job in the list's order: the last of the page before.
    pub after: Option<JobId>,
}

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

/// What every list filters by: `$1` tenant, `$2` kind, `$3` state, `$4` owner, `$5` lowest id, `$6` id below which, `$7` and `$8`
/// the exact times, `$9` how many, `$10` queue, `$11` error code, `$12` and `$13` when it ended.
macro_rules! list_conditions {
    () => {
        "j.tenant_id = $1 AND ($3::smallint IS NULL OR s.state = $3) AND j.id >= $5 AND j.id < $6 AND j.created_at >= $7 AND j.created_at < $8
         AND ($10::text IS NULL OR j.queue = $10)
         AND ($12::timestamptz IS NULL OR s.finished_at >= $12) AND ($13::timestamptz IS NULL OR s.finished_at < $13)"
    };
    // Asked of the dead letter's own row, so that those which don't match are passed over without their job.
    (dead) => {
        concat!(
            "($2::text IS NULL OR f.kind = $2) AND ($10::text IS NULL OR f.queue = $10)
             AND ($12::timestamptz IS NULL OR f.ended_at >= $12) AND ($13::timestamptz IS NULL OR f.ended_at < $13) AND ",
            list_conditions!()
        )
    };
    (and_any_code) => {
        concat!(list_conditions!(and_kind), " AND $11::text IS NULL")
    };
    (and_kind) => {
        concat!("($2::text IS NULL OR j.kind = $2) AND ", list_conditions!())
    };
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

/// A page of a tenant's jobs, newest first, at most `limit`. Payloads and results are left out: a page of them could be
/// tens of megabytes.
///
/// The way to the rows is chosen by what narrows most: an owner's index, a state's small table, or the index of each kind in each queue, merged.
/// The index is asked for by a range of its rows and by its own order: told `kind = … ORDER BY id`, the planner likes to walk the
/// primary key from its end, past every job of the other kinds; told a range of kinds and one of ids, Postgres reads the kind's part of
/// the index from its beginning, past every page before the one that is asked for. Ranges of ids alone are told beside: they are what the
/// planner knows the size of.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(connection: &mut PgConnection, tenant: i32, filter: &Filter, limit: i64) -> Result<Vec<FoundJob>, LedgerError> {
    let query = if filter.owner.is_some() {
        sqlx::query(concat!(
            "SELECT ",
            job_columns!(listed),
            " FROM job j JOIN job_state s ON s.job_id = j.id
             WHERE j.owner IS NOT NULL AND (j.owner, j.id) >= ($4, $5) AND (j.owner, j.id) < ($4, $6)
               AND ($11::text IS NULL OR EXISTS (SELECT FROM job_unsuccessful f WHERE f.job_id = j.id AND f.error_code = $11)) AND ",
            list_conditions!(and_kind),
            " ORDER BY j.owner DESC, j.id DESC LIMIT $9"
        ))
    } else {
        match filter.state {
            Some(State::Waiting) => sqlx::query(concat!(
                "SELECT ",
                job_columns!(listed),
                " FROM job_waiting f JOIN job j ON j.id = f.job_id JOIN job_state s ON s.job_id = f.job_id
                 WHERE f.tenant_id = $1 AND $4::text IS NULL AND f.job_id >= $5 AND f.job_id < $6 AND ",
                list_conditions!(and_any_code),
                " ORDER BY f.job_id DESC LIMIT $9"
            )),
            Some(State::Queued | State::Running) => sqlx::query(concat!(
                "SELECT ",
                job_columns!(listed),
                " FROM job_dispatched f JOIN job j ON j.id = f.job_id JOIN job_state s ON s.job_id = f.job_id
                 WHERE f.tenant_id = $1 AND $4::text IS NULL AND f.job_id >= $5 AND f.job_id < $6 AND ",
                list_conditions!(and_any_code),
                " ORDER BY f.job_id DESC LIMIT $9"
            )),
            Some(State::Failed | State::Cancelled | State::Expired) if filter.error_code.is_some() => sqlx::query(concat!(
                "SELECT ",
                job_columns!(listed),
                " FROM job_unsuccessful f JOIN job j ON j.id = f.job_id JOIN job_state s ON s.job_id = f.job_id
                 WHERE f.tenant_id = $1 AND (f.state, f.error_code, f.job_id) >= ($3, $11, $5)
                   AND (f.state, f.error_code, f.job_id) < ($3, $11, $6) AND f.job_id >= $5 AND f.job_id < $6 AND $4::text IS NULL AND ",
                list_conditions!(dead),
                " ORDER BY f.tenant_id DESC, f.state DESC, f.error_code DESC, f.job_id DESC LIMIT $9"
            )),
            Some(State::Failed | State::Cancelled | State::Expired) => sqlx::query(concat!(
                "SELECT ",
                job_columns!(listed),
                " FROM job_unsuccessful f JOIN job j ON j.id = f.job_id JOIN job_state s ON s.job_id = f.job_id
                 WHERE f.tenant_id = $1 AND (f.state, f.job_id) >= ($3, $5) AND (f.state, f.job_id) < ($3, $6)
                   AND f.job_id >= $5 AND f.job_id < $6 AND $4::text IS NULL AND $11::text IS NULL AND ",
                list_conditions!(dead),
                " ORDER BY f.tenant_id DESC, f.state DESC, f.job_id DESC LIMIT $9"
            )),
            Some(State::Succeeded) | None => sqlx::query(concat!(
                "WITH RECURSIVE sorts (kind, queue) AS (
                    (SELECT kind, queue FROM job WHERE tenant_id = $1 ORDER BY kind, queue LIMIT 1)
                    UNION ALL
                    SELECT n.kind, n.queue FROM sorts k CROSS JOIN LATERAL (
                        SELECT j.kind, j.queue FROM job j
                        WHERE j.tenant_id = $1 AND (j.kind, j.queue) > (k.kind, k.queue) ORDER BY j.kind, j.queue LIMIT 1
                    ) n
                 )
                 SELECT p.* FROM sorts k CROSS JOIN LATERAL (
                    SELECT ",
                job_columns!(listed),
                "   FROM job j JOIN job_state s ON s.job_id = j.id
                    WHERE (j.kind, j.queue, j.id) >= (k.kind, k.queue, $5) AND (j.kind, j.queue, j.id) < (k.kind, k.queue, $6) AND ",
                list_conditions!(),
                "   ORDER BY j.kind DESC, j.queue DESC, j.id DESC LIMIT $9
                 ) p WHERE ($2::text IS NULL OR k.kind = $2) AND ($10::text IS NULL OR k.queue = $10) AND $4::text IS NULL AND $11::text IS NULL ORDER BY p.id DESC LIMIT $9"
            )),
        }
    };
    let from = filter.created_from.unwrap_or(DateTime::<Utc>::MIN_UTC);
    let before = filter.created_before.unwrap_or(DateTime::<Utc>::MAX_UTC);
    let below = first_id_after(before).min(filter.after.map_or(Uuid::max(), |id| id.0));
    // Postgres' timestamps end before chrono's.
    let earliest = from.max(DateTime::UNIX_EPOCH);
    let latest = before.min(DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC));
    let rows = query
        // Kept, the statement would get one plan for all that may be asked, after a few uses; see `shared/tests/life/plans.rs`.
        .persistent(false)
        .bind(tenant)
        .bind(filter.kind.as_deref())
        .bind(filter.state.map(State::code))
        .bind(filter.owner.as_deref())
        .bind(first_id(from.checked_sub_signed(LONGEST_ACCEPTANCE).unwrap_or(from)))
        .bind(below)
        .bind(earliest)
        .bind(latest)
        .bind(limit)
        .bind(filter.queue.map(Queue::name))
        .bind(filter.error_code.as_deref())
        .bind(filter.ended_from)
        .bind(filter.ended_before)
        .fetch_all(connection)
        .await?;
    rows.iter().map(found).collect()
}

/// A page of a batch's jobs, newest first, at most `limit`; only those in a state where one is given.
///
/// # Errors
/// [`LedgerError`].
pub async fn of_batch(
    connection: &mut PgConnection,
    tenant: i32,
    batch: Uuid,
    state: Option<State>,
    after: Option<JobId>,
    limit: i64,
) -> Result<Vec<FoundJob>, LedgerError> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        job_columns!(listed),
        " FROM batch_member m JOIN job j ON j.id = m.job_id JOIN job_state s ON s.job_id = m.job_id
         WHERE m.batch_id = $1 AND m.tenant_id = $2 AND m.job_id < $3 AND ($4::smallint IS NULL OR s.state = $4)
         ORDER BY m.job_id DESC LIMIT $5"
    ))
    .bind(batch)
    .bind(tenant)
    .bind(after.map_or(Uuid::max(), |job| job.0))
    .bind(state.map(State::code))
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(found).collect()
}

/// The longest between the making of a job's id and its acceptance, generously: a request that takes longer has been given
/// up. A list from a time on looks for ids from that much before it.
const LONGEST_ACCEPTANCE: TimeDelta = TimeDelta::minutes(2);

/// The lowest `UUIDv7` of a time's millisecond (RFC 9562 §5.7: 48 bits of Unix milliseconds lead).
pub(super) fn first_id(time: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(time.timestamp_millis()).unwrap_or(0).min((1 << 48) - 1);
    Uuid::from_u128(u128::from(millis) << 80)
}

/// Higher than every id of a time's millisecond.
pub(super) fn first_id_after(time: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(time.timestamp_millis()).unwrap_or(0).saturating_add(1);
    if millis >= 1 << 48 { Uuid::max() } else { Uuid::from_u128(u128::from(millis) << 80) }
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
