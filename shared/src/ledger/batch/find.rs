//! Batches as clients see them.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use crate::{
    job::{JobId, State},
    ledger::LedgerError,
};

/// A batch as it stands, without its counts.
#[derive(Debug, Clone)]
pub struct FoundBatch {
    /// Its id.
    pub id: Uuid,
    /// Which end user asked for it.
    pub owner: Option<String>,
    /// Its name for people.
    pub name: Option<String>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Items of the request.
    pub asked: i32,
    /// Its jobs.
    pub members: i32,
    /// Kinds of the jobs that follow.
    pub then: Vec<String>,
    /// When all its jobs had ended for the first time.
    pub finished_at: Option<DateTime<Utc>>,
    /// When somebody cancelled it.
    pub cancel_requested_at: Option<DateTime<Utc>>,
    /// The jobs that followed.
    pub followed_by: Vec<JobId>,
}

/// How many of a batch's jobs are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    by_state: [i64; State::ALL.len()],
    /// Jobs that retention or somebody removed after they had ended.
    pub removed: i64,
}

impl Counts {
    /// How many are in a state.
    #[must_use]
    pub fn of(&self, state: State) -> i64 {
        usize::try_from(state.code()).ok().and_then(|code| self.by_state.get(code)).copied().unwrap_or(0)
    }

    /// How many have ended, those included that are gone.
    #[must_use]
    pub fn ended(&self) -> i64 {
        self.removed + State::ALL.iter().filter(|state| state.is_terminal()).map(|state| self.of(*state)).sum::<i64>()
    }

    /// How many there are.
    #[must_use]
    pub fn all(&self) -> i64 {
        self.removed + self.by_state.iter().sum::<i64>()
    }
}

const COLUMNS: &str =
    "id, owner, name, created_at, asked, members, finished_at, cancel_requested_at, coalesce(followed_by, '{}') AS followed_by,
    ARRAY (SELECT jsonb_array_elements(coalesce(then_jobs, '[]')) ->> 'kind') AS next_kinds";

/// A batch of a tenant, and of `owner` where one is given.
///
/// # Errors
/// [`LedgerError`].
pub async fn batch(connection: &mut PgConnection, tenant: i32, owner: Option<&str>, id: Uuid) -> Result<Option<FoundBatch>, LedgerError> {
    let statement = format!("SELECT {COLUMNS} FROM batch WHERE id = $1 AND tenant_id = $2 AND ($3::text IS NULL OR owner = $3)");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(id).bind(tenant).bind(owner).fetch_optional(connection).await?;
    row.as_ref().map(found).transpose()
}

/// How a batch's jobs stand: at most 5,000 rows by their keys.
///
/// # Errors
/// [`LedgerError`].
pub async fn counts(connection: &mut PgConnection, tenant: i32, batch: Uuid) -> Result<Counts, LedgerError> {
    // Clients poll this: no helpers for some thousand rows.
    sqlx::raw_sql("SET LOCAL max_parallel_workers_per_gather = 0").execute(&mut *connection).await?;
    let rows: Vec<(Option<i16>, i64)> = sqlx::query_as(
        "SELECT s.state, count(*) FROM batch_member m LEFT JOIN job_state s ON s.job_id = m.job_id
         WHERE m.batch_id = $1 AND m.tenant_id = $2 GROUP BY s.state",
    )
    .bind(batch)
    .bind(tenant)
    .fetch_all(connection)
    .await?;
    let mut counts = Counts::default();
    for (state, jobs) in rows {
        match state {
            None => counts.removed += jobs,
            Some(code) => match usize::try_from(code).ok().and_then(|code| counts.by_state.get_mut(code)) {
                Some(count) => *count += jobs,
                None => return Err(LedgerError::Unknown { what: "state", value: code.to_string() }),
            },
        }
    }
    Ok(counts)
}

/// A page of a tenant's batches, newest first; of `owner`'s where one is given.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(
    connection: &mut PgConnection,
    tenant: i32,
    owner: Option<&str>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<FoundBatch>, LedgerError> {
    // By the index's own order, as lists of jobs are read.
    let by = if owner.is_some() {
        "tenant_id = $1 AND owner IS NOT NULL AND owner >= $2 AND owner <= $2 AND id < $3 ORDER BY owner DESC, id DESC"
    } else {
        "tenant_id = $1 AND $2::text IS NULL AND id < $3 ORDER BY id DESC"
    };
    let statement = format!("SELECT {COLUMNS} FROM batch WHERE {by} LIMIT $4");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(tenant)
        .bind(owner)
        .bind(after.unwrap_or(Uuid::max()))
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(found).collect()
}

/// The jobs of a batch by their places in the request, with whether each was there before.
///
/// # Errors
/// [`LedgerError`].
pub async fn members(connection: &mut PgConnection, tenant: i32, batch: Uuid) -> Result<Vec<(i32, JobId, bool)>, LedgerError> {
    let rows: Vec<(i32, Uuid, bool)> =
        sqlx::query_as("SELECT position, job_id, before FROM batch_member WHERE batch_id = $1 AND tenant_id = $2 ORDER BY position")
            .bind(batch)
            .bind(tenant)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(|(place, job, before)| (place, JobId(job), before)).collect())
}

fn found(row: &PgRow) -> Result<FoundBatch, LedgerError> {
    let followed_by: Vec<Uuid> = row.try_get("followed_by")?;
    Ok(FoundBatch {
        id: row.try_get("id")?,
        owner: row.try_get("owner")?,
        name: row.try_get("name")?,
        created_at: row.try_get("created_at")?,
        asked: row.try_get("asked")?,
        members: row.try_get("members")?,
        then: row.try_get("next_kinds")?,
        finished_at: row.try_get("finished_at")?,
        cancel_requested_at: row.try_get("cancel_requested_at")?,
        followed_by: followed_by.into_iter().map(JobId).collect(),
    })
}
