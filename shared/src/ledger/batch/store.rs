//! Storing a batch.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use crate::{
    job::{JobId, Next},
    ledger::{
        LedgerError,
        insert::{IdempotencyKey, Inserted, NewJob, insert_within},
        timed_out,
    },
    random, tenant,
    usage::{
        Refused,
        accept::{Learned, Tried, insert_once},
    },
};

/// The longest that storing a batch may take.
const STORE_DEADLINE: Duration = Duration::from_secs(20);
/// How often a batch is tried that Postgres turned down in passing.
const TRIES: u32 = 3;
/// When the sweep looks for the first time at a batch whose members all tell of their ends.
const FIRST_LOOK: TimeDelta = TimeDelta::minutes(1);

/// A batch about to be accepted.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Its id, made by the caller's clock.
    pub id: Uuid,
    /// Whose product.
    pub tenant: i32,
    /// Which end user asked for it, if any.
    pub owner: Option<String>,
    /// Its name for people.
    pub name: Option<String>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// Items of the request, those included that are not among its jobs.
    pub asked: usize,
    /// What follows when all have ended.
    pub then: Vec<Next>,
    /// The key that makes it happen once.
    pub idempotency: Option<IdempotencyKey>,
    /// Whether a member that contradicts its idempotency key lets the whole batch fail.
    pub all_or_nothing: bool,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// It is there; what became of each job, in order.
    Accepted(Vec<Inserted>),
    /// The same was asked for before under its idempotency key: that batch stands.
    Repeated(Uuid),
    /// Something else was asked for before under its idempotency key.
    Conflict(Uuid),
    /// Nothing was stored: these jobs, by their places, contradict their idempotency keys, which made others.
    Contradicted(Vec<(usize, JobId)>),
    /// Nothing was stored: these jobs, by their places, would use more than may be used.
    OverLimit(Vec<(usize, Refused)>),
    /// Nothing was stored: no job is left that the batch could have.
    Empty(Vec<Inserted>),
}

/// The key under which a batch's idempotency key stands among those of jobs, which have no spaces.
#[must_use]
pub fn key_of(key: &str) -> String {
    format!("batch {key}")
}

/// Stores a batch with its jobs, each with its place in the request; acts for one tenant.
///
/// # Errors
/// [`LedgerError`]. After one that is transient nobody knows whether it is stored.
pub async fn store(pool: &PgPool, now: DateTime<Utc>, batch: &NewBatch, jobs: &[NewJob], places: &[usize]) -> Result<Stored, LedgerError> {
    let mut tries = 1;
    let mut learned = Learned::default();
    loop {
        let once = tokio::time::timeout(STORE_DEADLINE, store_once(pool, now, batch, jobs, places, learned.clone()));
        match once.await.unwrap_or_else(|_| Err(timed_out())) {
            Ok(Err(more)) if tries < TRIES => {
                tries += 1;
                learned = more;
            }
            // Keys that come and go all the time; nothing was stored.
            Ok(Err(_)) => return Err(timed_out()),
            Ok(Ok(stored)) => return Ok(stored),
            // Only what Postgres itself rolled back.
            Err(LedgerError::Unavailable(sqlx::Error::Database(error)))
                if tries < TRIES && error.code().is_some_and(|code| code.starts_with("40")) =>
            {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(20).mul_f64(random::fraction())).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What one try came to; or what was learned by it, and nothing was stored.
type Once = Result<Stored, Learned>;

async fn store_once(
    pool: &PgPool,
    now: DateTime<Utc>,
    batch: &NewBatch,
    jobs: &[NewJob],
    places: &[usize],
    learned: Learned,
) -> Result<Once, LedgerError> {
    let mut transaction = tenant::transaction(pool, batch.tenant).await?;
    if let Some(key) = &batch.idempotency
        && let Some(before) = take_key(&mut transaction, now, batch, key).await?
    {
        return Ok(Ok(before));
    }
    let inserted = if jobs.iter().any(|job| job.meter.is_some()) {
        let all: Vec<&NewJob> = jobs.iter().collect();
        match insert_once(&mut transaction, now, &all, learned).await? {
            Tried::Done(inserted) => inserted,
            Tried::Again(learned) => {
                transaction.rollback().await?;
                return Ok(Err(learned));
            }
        }
    } else {
        insert_within(&mut transaction, now, jobs).await?
    };
    if batch.all_or_nothing {
        let over = inserted.iter().zip(places).filter_map(|(inserted, place)| match inserted {
            // The others are given back, so none of them was used.
            Inserted::Refused(refused) => Some((*place, refused.as_ref().clone().together())),
            _ => None,
        });
        let over: Vec<_> = over.collect();
        if !over.is_empty() {
            transaction.rollback().await?;
            return Ok(Ok(Stored::OverLimit(over)));
        }
        let contradicted = inserted.iter().zip(places).filter_map(|(inserted, place)| match inserted {
            Inserted::Conflict(first) => Some((*place, *first)),
            Inserted::Accepted | Inserted::Duplicate(..) | Inserted::Refused(_) => None,
        });
        let contradicted: Vec<_> = contradicted.collect();
        if !contradicted.is_empty() {
            transaction.rollback().await?;
            return Ok(Ok(Stored::Contradicted(contradicted)));
        }
    }
    let members = jobs.iter().zip(&inserted).zip(places).filter_map(|((job, inserted), place)| match inserted {
        Inserted::Accepted => Some((job.id, *place, false)),
        Inserted::Duplicate(first, _) => Some((*first, *place, true)),
        Inserted::Conflict(_) | Inserted::Refused(_) => None,
    });
    let members: Vec<(JobId, usize, bool)> = members.collect();
    if members.is_empty() {
        transaction.rollback().await?;
        return Ok(Ok(Stored::Empty(inserted)));
    }
    write(&mut transaction, batch, &members, now).await?;
    transaction.commit().await?;
    Ok(Ok(Stored::Accepted(inserted)))
}

/// Takes the batch's idempotency key; answers what it led to before, if it did.
async fn take_key(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    batch: &NewBatch,
    key: &IdempotencyKey,
) -> Result<Option<Stored>, LedgerError> {
    let owner = batch.owner.as_deref().unwrap_or_default();
    let taken = sqlx::query(
        "INSERT INTO idempotency_key AS k (tenant_id, owner, key, job_id, body_hash, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT ON CONSTRAINT idempotency_key_pkey DO UPDATE
            SET job_id = excluded.job_id, body_hash = excluded.body_hash, expires_at = excluded.expires_at WHERE k.expires_at <= $7",
    )
    .bind(batch.tenant)
    .bind(owner)
    .bind(key_of(&key.key))
    .bind(batch.id)
    .bind(key.body_hash.as_slice())
    .bind(key.expires_at)
    .bind(now)
    .execute(&mut *connection)
    .await?;
    if taken.rows_affected() == 1 {
        return Ok(None);
    }
    // The row is locked: it can't expire and be tidied away between the two.
    Ok(Some(match repeated(connection, batch.tenant, owner, &key.key, key.body_hash, None).await? {
        Some(before) => before,
        None => return Err(timed_out()),
    }))
}

/// The batch that a key made before, if it has not expired by `now` where that matters.
///
/// # Errors
/// [`LedgerError`].
pub async fn repeated(
    connection: &mut PgConnection,
    tenant: i32,
    owner: &str,
    key: &str,
    body_hash: [u8; 32],
    now: Option<DateTime<Utc>>,
) -> Result<Option<Stored>, LedgerError> {
    let row = sqlx::query(
        "SELECT job_id, body_hash FROM idempotency_key
         WHERE tenant_id = $1 AND owner = $2 AND key = $3 AND ($4::timestamptz IS NULL OR expires_at > $4)",
    )
    .bind(tenant)
    .bind(owner)
    .bind(key_of(key))
    .bind(now)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (first, hash): (Uuid, Vec<u8>) = (row.try_get("job_id")?, row.try_get("body_hash")?);
    Ok(Some(if hash == body_hash { Stored::Repeated(first) } else { Stored::Conflict(first) }))
}

async fn write(
    connection: &mut PgConnection,
    batch: &NewBatch,
    members: &[(JobId, usize, bool)],
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let mut distinct: Vec<JobId> = members.iter().map(|(job, ..)| *job).collect();
    distinct.sort_unstable();
    distinct.dedup();
    // A member that was there before does not tell of its end: it must be looked at. A witness does tell.
    let telling = members.iter().filter(|(_, _, before)| !before).map(|(job, ..)| *job).max();
    let any_before = members.iter().any(|(_, _, before)| *before);
    let then = if batch.then.is_empty() { None } else { serde_json::to_string(&batch.then).ok() };
    sqlx::query(
        "INSERT INTO batch (id, tenant_id, owner, name, created_at, asked, members, then_jobs, witness, look_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9, $10)",
    )
    .bind(batch.id)
    .bind(batch.tenant)
    .bind(batch.owner.as_deref())
    .bind(batch.name.as_deref())
    .bind(batch.created_at)
    .bind(count(batch.asked))
    .bind(count(distinct.len()))
    .bind(then)
    .bind(telling.map(|job| job.0))
    .bind(if any_before { now } else { now + FIRST_LOOK })
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO batch_member (batch_id, job_id, tenant_id, position, before)
         SELECT $1, job, $2, position, before FROM unnest($3::uuid[], $4::integer[], $5::boolean[]) AS m (job, position, before)
         ON CONFLICT DO NOTHING",
    )
    .bind(batch.id)
    .bind(batch.tenant)
    .bind(members.iter().map(|(job, ..)| job.0).collect::<Vec<_>>())
    .bind(members.iter().map(|(_, place, _)| count(*place)).collect::<Vec<_>>())
    .bind(members.iter().map(|(_, _, before)| *before).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
