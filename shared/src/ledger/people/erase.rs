//! Erasure (R83): nothing of a user is left, in steps that are each bounded and that may be cut off and begun again anywhere.
//!
//! From the request on ([`request`]) the API shows nothing of the user, whatever door is taken: its row policies ask the table
//! `erasure`. Then the job `user.erase` removes it, in this order:
//!
//! 1. what hangs on the name alone ([`by_name`]), schedules among it, so that nothing new is made;
//! 2. jobs, page by page ([`jobs`]): what has not ended is cancelled, files are withdrawn (the sweeper deletes the objects, and what
//!    lost runs left), and what has neither file nor leftovers any more is buried, without its owner's name on the stone;
//! 3. once no job is left, what hangs on the name again, for jobs that ended meanwhile may have told their owner so;
//! 4. the name itself, in `erasure` ([`finish`]).
//!
//! What must stay true: a new table that holds something of a user is either reached here by its job, or has its line in [`BY_NAME`];
//! the acceptance test that looks for a marker byte by byte fails otherwise, if it puts one there.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};
use uuid::Uuid;

use super::hold;
use crate::{
    clock::Clock,
    job::{JobId, State},
    kinds::UserErase,
    ledger::{
        LedgerError, change, feeds,
        insert::{NewJob, insert_within},
    },
};

/// Rows that one statement removes.
const PAGE: i64 = 1_000;

/// Jobs that one page looks at.
pub const JOBS: i64 = 200;

/// What is done to rows of a user.
#[derive(Debug, Clone, Copy)]
enum Erased {
    /// They go.
    Deleted,
    /// They stay, and these columns of theirs are set so.
    Set(&'static str),
}

/// What hangs on a user's name alone: the table, what is done to its rows (deleted, or set so), and by which of its columns they are found,
/// each by an index (`$1` is the tenant, `$2` the user). **A table that holds rows of users is added here**, and a user's are gone with them.
const BY_NAME: &[(&str, Erased, &str)] = &[
    ("end_user", Erased::Deleted, "tenant_id = $1 AND id = $2"),
    ("end_user_role", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("follow", Erased::Deleted, "tenant_id = $1 AND followed = $2"),
    ("follow", Erased::Deleted, "tenant_id = $1 AND follower = $2"),
    ("preference", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("own_key", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("own_key_check", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("own_key_deletion", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("quiet_hours", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("notification_recipient", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("notification_digest", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("notification_sending", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    // What the manifest declares is the operator's, and made anew when it is applied.
    ("schedule", Erased::Deleted, "tenant_id = $1 AND NOT declared AND definition ->> 'owner' = $2"),
    ("notification", Erased::Deleted, "tenant_id = $1 AND owner = $2"),
    ("push_subscription", Erased::Deleted, "tenant_id = $1 AND owner = $2"),
    ("ai_cache", Erased::Deleted, "tenant_id = $1 AND owner = $2"),
    ("delivery", Erased::Deleted, "tenant_id = $1 AND owner = $2"),
    ("idempotency_key", Erased::Deleted, "tenant_id = $1 AND owner = $2"),
    ("job_unique", Erased::Deleted, "tenant_id = $1 AND owner = $2"),
    // Of what others did, and of what was done to others, the rest stays: it is theirs.
    ("report", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("report", Erased::Set("reporter = NULL, details = NULL, key_hash = NULL"), "tenant_id = $1 AND reporter = $2"),
    ("moderation_action", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("moderation_action", Erased::Set("moderator = NULL"), "tenant_id = $1 AND moderator = $2"),
    ("suspension", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("feed_entry", Erased::Deleted, "tenant_id = $1 AND owner = $2"),
    // In others' feeds an entry without its activity is no entry any more; it names nothing, and goes when its time is over.
    ("activity", Erased::Deleted, "tenant_id = $1 AND actor = $2"),
    ("activity", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("event", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    // What all came to stays, it names nobody; in sets of uniques a hash stays, by which nobody is found.
    ("metric_day", Erased::Deleted, "tenant_id = $1 AND user_id = $2"),
    ("ai_usage_day", Erased::Deleted, "tenant_id = $1 AND scope = $2"),
    // What was paid for stays in the product's books; whose it was does not.
    ("ai_call", Erased::Set("owner = NULL, job_id = NULL, step = NULL, reported_id = NULL"), "tenant_id = $1 AND owner = $2"),
    ("usage_counter", Erased::Deleted, "tenant_id = $1 AND scope = $2"),
    ("usage_reservation", Erased::Deleted, "tenant_id = $1 AND scope = $2"),
    ("usage_charge", Erased::Deleted, "tenant_id = $1 AND scope = $2"),
    // That a job was there may be told to the backend, whose it was not.
    ("job_tombstone", Erased::Set("owner = NULL"), "tenant_id = $1 AND owner = $2"),
];

/// Asks for a user to be erased, in the caller's transaction: from its commit on nothing of theirs is shown. Answers the job that does
/// it, which may have been asked for before.
///
/// # Errors
/// [`LedgerError`]: the transaction is of no use any more.
pub async fn request(connection: &mut PgConnection, tenant: i32, user: &str, clock: &Clock) -> Result<JobId, LedgerError> {
    hold(connection, tenant, user).await?;
    // What is being written into feeds is written before this, or knows of it.
    feeds::hold(connection, tenant, feeds::Hold::Alone).await?;
    let now = clock.now();
    let id = JobId(clock.new_id());
    let insert = "INSERT INTO erasure AS e (job_id, tenant_id, user_id, requested_at) VALUES ($1, $2, $3, $4)
                  ON CONFLICT (tenant_id, user_id) DO UPDATE SET user_id = e.user_id RETURNING job_id";
    let held: Uuid = sqlx::query_scalar(insert).bind(id.0).bind(tenant).bind(user).bind(now).fetch_one(&mut *connection).await?;
    let held = JobId(held);
    sqlx::query("DELETE FROM end_user_role WHERE tenant_id = $1 AND user_id = $2")
        .bind(tenant)
        .bind(user)
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM end_user WHERE tenant_id = $1 AND id = $2").bind(tenant).bind(user).execute(&mut *connection).await?;
    if held != id {
        let code: Option<i16> = sqlx::query_scalar("SELECT state FROM job_state WHERE job_id = $1 AND tenant_id = $2")
            .bind(held.0)
            .bind(tenant)
            .fetch_optional(&mut *connection)
            .await?;
        match code.map(State::from_code) {
            // It failed, or somebody cancelled it: it goes on where it stopped.
            Some(Some(State::Failed | State::Cancelled | State::Expired)) => {
                change::retry(connection, tenant, held, None, now).await?;
                return Ok(held);
            }
            Some(_) => return Ok(held),
            // Discarded: another one takes its place.
            None => {
                let update = "UPDATE erasure SET job_id = $3 WHERE tenant_id = $1 AND user_id = $2";
                sqlx::query(update).bind(tenant).bind(user).bind(id.0).execute(&mut *connection).await?;
            }
        }
    }
    // Its user is not to be found in it: what it does is done to its own row too.
    let job = NewJob::of(id, tenant, &UserErase {}, now);
    insert_within(connection, now, &[job]).await?;
    Ok(id)
}

/// Whom a job erases; `None` once that is done.
///
/// # Errors
/// [`LedgerError`].
pub async fn whom(pool: &PgPool, tenant: i32, job: JobId) -> Result<Option<String>, LedgerError> {
    let user = sqlx::query_scalar("SELECT user_id FROM erasure WHERE job_id = $1 AND tenant_id = $2");
    Ok(user.bind(job.0).bind(tenant).fetch_optional(pool).await?)
}

/// Removes a part of what hangs on the name alone; answers how many rows that were: call again until none.
///
/// # Errors
/// [`LedgerError`].
pub async fn by_name(pool: &PgPool, tenant: i32, user: &str) -> Result<u64, LedgerError> {
    let mut rows = 0;
    for (table, erased, found) in BY_NAME {
        let change = match erased {
            Erased::Deleted => format!("DELETE FROM {table}"),
            Erased::Set(columns) => format!("UPDATE {table} SET {columns}"),
        };
        // Words of this file, all of them. The condition twice: of a table in partitions a place is none by itself.
        let statement = format!("{change} WHERE {found} AND ctid = ANY (ARRAY (SELECT ctid FROM {table} WHERE {found} LIMIT {PAGE}))");
        let done = sqlx::query(AssertSqlSafe(statement)).bind(tenant).bind(user).execute(pool).await?;
        rows += done.rows_affected();
    }
    Ok(rows + batches(pool, tenant, user).await?)
}

/// Batches whose members are gone, with what should have followed them.
async fn batches(pool: &PgPool, tenant: i32, user: &str) -> Result<u64, LedgerError> {
    let done = sqlx::query(
        "WITH doomed AS MATERIALIZED (
            SELECT b.id FROM batch b
            WHERE b.tenant_id = $1 AND b.owner = $2
              AND NOT EXISTS (SELECT FROM batch_member m JOIN job j ON j.id = m.job_id WHERE m.batch_id = b.id)
            LIMIT 20
         ), members AS (DELETE FROM batch_member m USING doomed d WHERE m.batch_id = d.id)
         DELETE FROM batch b USING doomed d WHERE b.id = d.id",
    );
    Ok(done.bind(tenant).bind(user).execute(pool).await?.rows_affected())
}

/// What came of a page of jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Jobs that are gone.
    pub gone: Vec<JobId>,
    /// Jobs that are still there: they run, their objects stand, or something is yet to follow their end.
    pub left: u64,
    /// The last one looked at; `None` at the end.
    pub next: Option<JobId>,
}

/// Works on the jobs of a user, and those about them, that come after `after`: a page of [`JOBS`].
///
/// # Errors
/// [`LedgerError`].
pub async fn jobs(pool: &PgPool, tenant: i32, user: &str, after: Option<JobId>, now: DateTime<Utc>) -> Result<Page, LedgerError> {
    // Each by its index; `subject` has one where it says something else than `owner`.
    let rows = sqlx::query(
        "WITH page AS MATERIALIZED (
            (SELECT id FROM job WHERE tenant_id = $1 AND owner = $2 AND id > $3 ORDER BY tenant_id, owner, id LIMIT $4)
            UNION
            (SELECT id FROM job WHERE tenant_id = $1 AND subject = $2 AND subject IS DISTINCT FROM owner AND id > $3
             ORDER BY tenant_id, subject, id LIMIT $4)
            ORDER BY id LIMIT $4
         )
         SELECT p.id, s.state FROM page p LEFT JOIN job_state s ON s.job_id = p.id ORDER BY p.id",
    )
    .bind(tenant)
    .bind(user)
    .bind(after.map_or(Uuid::nil(), |after| after.0))
    .bind(JOBS)
    .fetch_all(pool)
    .await?;
    let mut ids: Vec<Uuid> = Vec::with_capacity(rows.len());
    for row in &rows {
        let (id, code): (Uuid, Option<i16>) = (row.try_get("id")?, row.try_get("state")?);
        if !code.and_then(State::from_code).is_none_or(State::is_terminal) {
            let mut transaction = pool.begin().await?;
            // What runs is asked to stop: its worker hears of it with its next heartbeat.
            change::cancel(&mut transaction, tenant, JobId(id), now).await?;
            transaction.commit().await?;
        }
        ids.push(id);
    }
    if ids.is_empty() {
        return Ok(Page { gone: Vec::new(), left: 0, next: None });
    }
    let gone = bury(pool, tenant, &ids, now).await?;
    let left = u64::try_from(ids.len().saturating_sub(gone.len())).unwrap_or(u64::MAX);
    let more = i64::try_from(ids.len()).is_ok_and(|found| found >= JOBS);
    Ok(Page { gone, left, next: ids.last().copied().filter(|_| more).map(JobId) })
}

async fn bury(pool: &PgPool, tenant: i32, ids: &[Uuid], now: DateTime<Utc>) -> Result<Vec<JobId>, LedgerError> {
    // The sweeper deletes what is withdrawn.
    sqlx::query(
        "UPDATE job_file SET removed_at = coalesce(removed_at, $2), page_token = NULL WHERE job_id = ANY ($1) AND deleted_at IS NULL",
    )
    .bind(ids)
    .bind(now)
    .execute(pool)
    .await?;
    // A file's own effects are no leftovers; without the file's row they would look like some.
    sqlx::query(
        "UPDATE effect e SET published = true FROM job_file f
         WHERE e.job_id = ANY ($1) AND NOT e.published AND f.job_id = e.job_id AND f.object_key = e.intent ->> 'key'",
    )
    .bind(ids)
    .execute(pool)
    .await?;
    let mut transaction = pool.begin().await?;
    // An object's key ends in the name that the user gave the file: its effect must have been struck out before the job goes.
    let ready: Vec<Uuid> = sqlx::query_scalar(
        "SELECT e.id FROM unnest($1::uuid[]) AS e (id)
         WHERE NOT EXISTS (SELECT FROM effect f WHERE f.job_id = e.id AND NOT f.published AND (f.key LIKE 'object:%' OR f.key LIKE 'upload:%'))",
    )
    .bind(ids)
    .fetch_all(&mut *transaction)
    .await?;
    // A limiting key may be named after a user; one that others wait behind is not this user's alone.
    let limits: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT options #>> '{limit,key}' FROM job WHERE id = ANY ($1) AND options ? 'limit'")
            .bind(&ready)
            .fetch_all(&mut *transaction)
            .await?;
    let gone: Vec<Uuid> =
        sqlx::query_scalar("SELECT bury_jobs($1, $2, false, $3)").bind(tenant).bind(&ready).bind(now).fetch_all(&mut *transaction).await?;
    for statement in [
        "UPDATE job_tombstone SET owner = NULL WHERE job_id = ANY ($1)",
        "DELETE FROM job_link WHERE job_id = ANY ($1)",
        "DELETE FROM job_checkpoint WHERE job_id = ANY ($1)",
        "DELETE FROM job_limited WHERE job_id = ANY ($1)",
        "DELETE FROM job_held WHERE job_id = ANY ($1)",
    ] {
        sqlx::query(statement).bind(&gone).execute(&mut *transaction).await?;
    }
    sqlx::query(
        "DELETE FROM limit_key k WHERE k.tenant_id = $1 AND k.name = ANY ($2)
         AND NOT EXISTS (SELECT FROM job_limited l WHERE l.key_id = k.id)",
    )
    .bind(tenant)
    .bind(limits)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(gone.into_iter().map(JobId).collect())
}

/// Forgets whom a job erased. After that the name may be somebody's again.
///
/// # Errors
/// [`LedgerError`].
pub async fn finish(pool: &PgPool, tenant: i32, job: JobId) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM erasure WHERE job_id = $1 AND tenant_id = $2").bind(job.0).bind(tenant).execute(pool).await?;
    Ok(())
}
