//! Exports as the ledger has them: the job, and the file it published.

use chrono::{DateTime, Utc};
use serde_json::Value;
use shared::{
    job::{JobId, Reason, State},
    kinds::{ExportCreate, Kind},
    ledger::{LedgerError, find::FoundJob},
};
use sqlx::{FromRow, PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use crate::routes::{jobs::Asked, page::Page};

/// An export as it stands.
#[derive(Debug)]
pub struct FoundExport {
    pub id: JobId,
    pub dataset: String,
    pub format: String,
    pub filename: Option<String>,
    pub owner: Option<String>,
    pub state: State,
    pub reason: Reason,
    pub created_at: DateTime<Utc>,
    pub run_at: DateTime<Utc>,
    pub start_by: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub progress_done: Option<i64>,
    pub progress_total: Option<i64>,
    pub error: Option<Value>,
    pub file: Option<FoundFile>,
}

/// The file of an export.
#[derive(Debug, FromRow)]
pub struct FoundFile {
    pub object_key: String,
    #[sqlx(rename = "file_name")]
    pub name: String,
    pub content_type: String,
    pub bytes: i64,
    pub sha256: Vec<u8>,
    pub rows: Option<i64>,
    pub expires_at: DateTime<Utc>,
    /// When its owner asked for it to be deleted.
    pub removed_at: Option<DateTime<Utc>>,
    /// When its object was deleted.
    pub deleted_at: Option<DateTime<Utc>>,
    pub downloads: i32,
    /// Opens the file's page; none once that was taken back.
    pub page_token: Option<String>,
}

impl FoundFile {
    /// Whether it can be downloaded.
    pub fn is_there(&self, now: DateTime<Utc>) -> bool {
        self.deleted_at.is_none() && self.removed_at.is_none() && self.expires_at > now
    }
}

impl FoundExport {
    /// Of a job that has just been accepted with this payload.
    pub fn accepted(job: FoundJob, payload: &ExportCreate) -> Self {
        Self {
            id: job.id,
            dataset: payload.subject().to_owned(),
            format: payload.format.name().to_owned(),
            filename: payload.filename.clone(),
            owner: job.owner,
            state: job.state,
            reason: job.reason,
            created_at: job.created_at,
            run_at: job.run_at,
            start_by: job.start_by,
            started_at: None,
            finished_at: None,
            progress_done: None,
            progress_total: None,
            error: None,
            file: None,
        }
    }
}

/// What both statements read. A payload may be large, so its fields are taken out of it.
macro_rules! export_columns {
    () => {
        "SELECT j.id, j.owner, j.created_at, j.start_by, coalesce(j.payload ->> 'dataset', j.payload ->> 'type', j.payload ->> 'metric', j.payload ->> 'view', '') AS dataset,
                coalesce(j.payload ->> 'format', '') AS format, j.payload ->> 'filename' AS filename,
                s.state, s.reason, s.run_at, s.started_at, s.finished_at, s.progress_done, s.progress_total,
                (SELECT a.error FROM job_attempt a WHERE a.job_id = j.id AND s.state = 4 ORDER BY a.run DESC LIMIT 1) AS error,
                f.object_key, f.file_name, f.content_type, f.bytes, f.sha256, f.expires_at, f.removed_at, f.deleted_at, f.downloads,
                convert_from(f.page_token, 'UTF8') AS page_token,
                (SELECT substring(r.result ->> 'rows' FROM '^[0-9]{1,18}$') FROM job_result r WHERE r.job_id = f.job_id)::bigint AS rows
         FROM job j JOIN job_state s ON s.job_id = j.id LEFT JOIN job_file f ON f.job_id = j.id WHERE j.tenant_id = $1 AND "
    };
}

/// One export.
pub async fn export(connection: &mut PgConnection, asked: Asked<'_>) -> Result<Option<FoundExport>, LedgerError> {
    let found = sqlx::query(concat!(export_columns!(), "j.kind = $2 AND j.id = $3 AND ($4::text IS NULL OR j.owner = $4)"))
        .bind(asked.tenant)
        .bind(ExportCreate::NAME)
        .bind(asked.id.0)
        .bind(asked.owner)
        .fetch_optional(connection)
        .await?;
    found.as_ref().map(read).transpose()
}

/// A page of exports, newest first: by the index of an owner's jobs, or by that of a kind's, each asked for by a range of it
/// and by its own order (see `shared::ledger::find::list` for why).
pub async fn list(connection: &mut PgConnection, tenant: i32, owner: Option<&str>, page: Page) -> Result<Vec<FoundExport>, LedgerError> {
    let query = match owner {
        Some(_) => sqlx::query(concat!(
            export_columns!(),
            "j.kind = $2 AND j.owner IS NOT NULL AND j.owner >= $5 AND (j.owner, j.id) < ($5, $3) ORDER BY j.owner DESC, j.id DESC LIMIT $4"
        )),
        None => sqlx::query(concat!(
            export_columns!(),
            "$5::text IS NULL AND j.id = ANY (ARRAY (
                SELECT l.id FROM queues_of($1, $2) AS q (queue) CROSS JOIN LATERAL (
                    SELECT n.id FROM job n
                    WHERE n.tenant_id = $1 AND (n.kind, n.queue) >= ($2, q.queue) AND (n.kind, n.queue, n.id) < ($2, q.queue, $3)
                    ORDER BY n.kind DESC, n.queue DESC, n.id DESC LIMIT $4
                ) l ORDER BY l.id DESC LIMIT $4
             )) ORDER BY j.id DESC"
        )),
    };
    let below = page.after.map_or(Uuid::max(), |after| after.0);
    // Not kept, as there.
    let query = query.persistent(false).bind(tenant).bind(ExportCreate::NAME).bind(below).bind(page.to_read()).bind(owner);
    query.fetch_all(connection).await?.iter().map(read).collect()
}

/// Counts a download. False where the file has gone meanwhile.
pub async fn count_download(connection: &mut PgConnection, asked: Asked<'_>, now: DateTime<Utc>) -> Result<bool, LedgerError> {
    let counted = sqlx::query(
        "UPDATE job_file SET downloads = downloads + 1 WHERE job_id = $1 AND tenant_id = $2 AND deleted_at IS NULL
           AND removed_at IS NULL AND expires_at > $3",
    )
    .bind(asked.id.0)
    .bind(asked.tenant)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(counted.rows_affected() == 1)
}

/// Takes a file from everybody from now on; the worker's sweep deletes its object. One whose time is over stays expired.
pub async fn remove(connection: &mut PgConnection, asked: Asked<'_>, now: DateTime<Utc>) -> Result<(), LedgerError> {
    sqlx::query(
        "UPDATE job_file SET removed_at = $3
         WHERE job_id = $1 AND tenant_id = $2 AND removed_at IS NULL AND deleted_at IS NULL AND expires_at > $3",
    )
    .bind(asked.id.0)
    .bind(asked.tenant)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives a file's page another address, or none; the one before leads nowhere from now on.
pub async fn set_page(connection: &mut PgConnection, asked: Asked<'_>, token: Option<&str>) -> Result<(), LedgerError> {
    sqlx::query("UPDATE job_file SET page_token = convert_to($3, 'UTF8') WHERE job_id = $1 AND tenant_id = $2")
        .bind(asked.id.0)
        .bind(asked.tenant)
        .bind(token)
        .execute(connection)
        .await?;
    Ok(())
}

fn read(row: &PgRow) -> Result<FoundExport, LedgerError> {
    let unknown = |what: &'static str, code: i16| LedgerError::Unknown { what, value: code.to_string() };
    let (state, reason): (i16, i16) = (row.try_get("state")?, row.try_get("reason")?);
    let has_file = row.try_get::<Option<String>, _>("object_key")?.is_some();
    let file = if has_file { Some(FoundFile::from_row(row)?) } else { None };
    Ok(FoundExport {
        id: JobId(row.try_get("id")?),
        dataset: row.try_get("dataset")?,
        format: row.try_get("format")?,
        filename: row.try_get("filename")?,
        owner: row.try_get("owner")?,
        state: State::from_code(state).ok_or_else(|| unknown("state", state))?,
        reason: Reason::from_code(reason).ok_or_else(|| unknown("reason", reason))?,
        created_at: row.try_get("created_at")?,
        run_at: row.try_get("run_at")?,
        start_by: row.try_get("start_by")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
        progress_done: row.try_get("progress_done")?,
        progress_total: row.try_get("progress_total")?,
        error: row.try_get("error")?,
        file,
    })
}
