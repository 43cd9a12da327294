//! What follows a job's end: whoever made it may have asked for more.
//!
//! The statement that ends a followed job leaves a row in `job_ended` (`leave_jobs`). Here it is taken, and what follows is written,
//! in one transaction of the caller's: it happens once, whatever crashes and however many replicas look.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::{LedgerError, claim::options_of};
use crate::job::{JobId, Options, State};

/// An end that somebody follows.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The job.
    pub job: JobId,
    /// Its version then: a redriven job ends again, with a higher one.
    pub version: i32,
    /// Whose product.
    pub tenant: i32,
    /// How it ended.
    pub state: State,
    /// When.
    pub ended_at: DateTime<Utc>,
    /// Its kind.
    pub kind: String,
    /// Whose job it was.
    pub owner: Option<String>,
    /// What it carried.
    pub options: Options,
}

/// Whether there are any.
///
/// # Errors
/// [`LedgerError`].
pub async fn any(pool: &PgPool) -> Result<bool, LedgerError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM job_ended)").fetch_one(pool).await?)
}

/// Takes up to `limit` that nobody else is taking: they are gone with the transaction's commit. Those of jobs that have been removed
/// meanwhile go unseen.
///
/// # Errors
/// [`LedgerError`].
pub async fn take(connection: &mut PgConnection, limit: i64) -> Result<Vec<Ended>, LedgerError> {
    let rows = sqlx::query(
        "WITH picked AS MATERIALIZED (
            SELECT job_id, version FROM job_ended ORDER BY job_id, version LIMIT $1 FOR UPDATE SKIP LOCKED
        ), taken AS (
            DELETE FROM job_ended e USING picked p WHERE e.job_id = p.job_id AND e.version = p.version
            RETURNING e.job_id, e.version, e.tenant_id, e.state, e.ended_at
        )
        SELECT t.job_id, t.version, t.tenant_id, t.state, t.ended_at, j.kind, j.owner, j.options::text AS options
        FROM taken t JOIN job j ON j.id = ANY (ARRAY[t.job_id]) ORDER BY t.job_id, t.version",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let code: i16 = row.try_get("state")?;
            let options: Option<String> = row.try_get("options")?;
            Ok(Ended {
                job: JobId(row.try_get::<Uuid, _>("job_id")?),
                version: row.try_get("version")?,
                tenant: row.try_get("tenant_id")?,
                state: State::from_code(code).ok_or(LedgerError::Unknown { what: "state", value: code.to_string() })?,
                ended_at: row.try_get("ended_at")?,
                kind: row.try_get("kind")?,
                owner: row.try_get("owner")?,
                options: options.map(|options| options_of(&options)).transpose()?.unwrap_or_default(),
            })
        })
        .collect()
}
