//! Step 1, accept: jobs become rows, in shared batches.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, PgPool, Row};
use uuid::Uuid;

use super::LedgerError;
use crate::{
    job::{JobId, Options, Priority, Reason, State},
    queue::{Queue, keys::Lane, push::Handover},
    random,
};

/// The largest batch of one statement.
pub const BATCH: usize = 1_000;
/// The longest that one insert may take. Locks end it sooner (`accept_jobs`); this is for a server or a network that says
/// nothing at all.
const INSERT_DEADLINE: Duration = Duration::from_secs(10);
/// How often a batch is tried that Postgres turned down in passing (a deadlock between batches, a failover).
const TRIES: u32 = 3;

/// A job about to be accepted: found right, not yet stored.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its id, made by the caller's clock.
    pub id: JobId,
    /// Whose product.
    pub tenant: i32,
    /// Which end user's, if any.
    pub owner: Option<String>,
    /// Whom its data is about; for erasure.
    pub subject: Option<String>,
    /// Its kind.
    pub kind: &'static str,
    /// Its queue.
    pub queue: Queue,
    /// Its priority.
    pub priority: Priority,
    /// The payload as JSON text.
    pub payload: String,
    /// Attempts it may take.
    pub attempts: u16,
    /// When its creator was answered for: the time that its id carries.
    pub created_at: DateTime<Utc>,
    /// When it is due.
    pub run_at: DateTime<Utc>,
    /// When it is no longer worth starting.
    pub start_by: Option<DateTime<Utc>>,
    /// How it is stored: queued (and then pushed by the caller), or waiting for a reason.
    pub state: Arrival,
    /// The key that makes it happen once.
    pub idempotency: Option<IdempotencyKey>,
    /// What it carries beside its payload.
    pub options: Options,
}

/// How a job enters the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Due, and there is room in its queue's window: the caller pushes it once the insert is committed.
    Queued,
    /// The same, and in the lane of those who go first.
    First,
    /// Not now.
    Waiting(Reason),
}

impl Arrival {
    const fn state(self) -> State {
        match self {
            Self::Queued | Self::First => State::Queued,
            Self::Waiting(_) => State::Waiting,
        }
    }

    const fn reason(self) -> Reason {
        match self {
            Self::Queued | Self::First => Reason::None,
            Self::Waiting(reason) => reason,
        }
    }
}

/// A key under which one owner asks for one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The caller's key.
    pub key: String,
    /// SHA-256 of what was asked, to tell a repeat from a mistake.
    pub body_hash: [u8; 32],
    /// When the key is forgotten.
    pub expires_at: DateTime<Utc>,
}

/// What became of a job offered to the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// It is stored.
    Accepted,
    /// The same was asked for before under this key: that job stands.
    Duplicate(JobId),
    /// Something else was asked for before under this key.
    Conflict(JobId),
}

impl NewJob {
    /// What became of it, by who holds its key.
    fn became(&self, holder: Holder) -> Inserted {
        if holder.job == self.id {
            Inserted::Accepted
        } else if holder.body_hash == self.idempotency.as_ref().map(|key| key.body_hash) {
            Inserted::Duplicate(holder.job)
        } else {
            Inserted::Conflict(holder.job)
        }
    }

    fn key(&self) -> Option<(i32, &str, &str)> {
        let key = self.idempotency.as_ref()?;
        Some((self.tenant, self.owner.as_deref().unwrap_or(""), key.key.as_str()))
    }

    /// The handover that must follow the commit, if the job was stored as queued.
    #[must_use]
    pub fn handover(&self) -> Option<Handover> {
        let lane = match self.state {
            Arrival::Queued => Lane::of(self.priority),
            Arrival::First => Lane::First,
            Arrival::Waiting(_) => return None,
        };
        Some(Handover { job: self.id, queue: self.queue, lane })
    }
}

/// Who holds a job's key after the insert: the job itself when it has none.
#[derive(Clone, Copy)]
struct Holder {
    job: JobId,
    body_hash: Option<[u8; 32]>,
}

/// Stores a batch and answers for each member in order. When the batch is refused for its data, it is split until the bad
/// member fails alone.
pub async fn insert(pool: &PgPool, now: DateTime<Utc>, jobs: &[NewJob]) -> Vec<Result<Inserted, Arc<LedgerError>>> {
    // Of several members with one key the first is offered to the database; the others share its holder.
    let mut first_of_key: HashMap<(i32, &str, &str), usize> = HashMap::new();
    let mut stands_for: Vec<usize> = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter().enumerate() {
        stands_for.push(match job.key() {
            Some(key) => *first_of_key.entry(key).or_insert(index),
            None => index,
        });
    }
    let offered: Vec<usize> = stands_for.iter().enumerate().filter(|(index, first)| index == *first).map(|(index, _)| index).collect();

    let mut holders: HashMap<usize, Result<Holder, Arc<LedgerError>>> = HashMap::with_capacity(offered.len());
    let mut parts: Vec<&[usize]> = offered.chunks(BATCH).collect();
    while let Some(part) = parts.pop() {
        let members: Vec<&NewJob> = part.iter().filter_map(|index| jobs.get(*index)).collect();
        match insert_patiently(pool, now, &members).await {
            Ok(found) => holders.extend(part.iter().copied().zip(found.into_iter().map(Ok))),
            Err(error) if error.is_about_data() && part.len() > 1 => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([right, left]);
            }
            Err(error) => {
                let error = Arc::new(error);
                holders.extend(part.iter().map(|index| (*index, Err(Arc::clone(&error)))));
            }
        }
    }

    jobs.iter()
        .zip(stands_for)
        .map(|(job, first)| match holders.get(&first) {
            Some(Ok(holder)) => Ok(job.became(*holder)),
            Some(Err(error)) => Err(Arc::clone(error)),
            // Every offered member got an answer above.
            None => Err(Arc::new(LedgerError::Unavailable(sqlx::Error::WorkerCrashed))),
        })
        .collect()
}

/// Tries a batch again that was turned down in passing before anything of it was committed.
async fn insert_patiently(pool: &PgPool, now: DateTime<Utc>, members: &[&NewJob]) -> Result<Vec<Holder>, LedgerError> {
    let mut tries = 1;
    loop {
        let once = tokio::time::timeout(INSERT_DEADLINE, insert_once(pool, now, members));
        match once.await.unwrap_or_else(|_| Err(super::timed_out())) {
            // Only what Postgres itself rolled back: after a lost connection the insert may have been committed, and the
            // caller, who was promised nothing, decides.
            Err(LedgerError::Unavailable(sqlx::Error::Database(error)))
                if tries < TRIES && error.code().is_some_and(|code| code.starts_with("40")) =>
            {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(10).mul_f64(random::fraction())).await;
            }
            other => return other,
        }
    }
}

/// Stores jobs in a transaction of the caller's, with whatever else it writes; at most [`BATCH`], no two with one key.
///
/// # Errors
/// [`LedgerError`]: the transaction is of no use any more.
pub async fn insert_within(connection: &mut PgConnection, now: DateTime<Utc>, jobs: &[NewJob]) -> Result<Vec<Inserted>, LedgerError> {
    let members: Vec<&NewJob> = jobs.iter().collect();
    let holders = insert_once(connection, now, &members).await?;
    Ok(jobs.iter().zip(holders).map(|(job, holder)| job.became(holder)).collect())
}

/// Proves that jobs can be stored, by storing none: the function runs, with its rights and its locks.
///
/// # Errors
/// [`LedgerError`]: what would keep a job from being stored.
pub async fn prove(connection: &mut PgConnection, now: DateTime<Utc>) -> Result<(), LedgerError> {
    insert_once(connection, now, &[]).await.map(drop)
}

async fn insert_once(executor: impl PgExecutor<'_>, now: DateTime<Utc>, members: &[&NewJob]) -> Result<Vec<Holder>, LedgerError> {
    fn column<'a, T>(members: &[&'a NewJob], value: impl Fn(&'a NewJob) -> T) -> Vec<T> {
        members.iter().map(|job| value(job)).collect()
    }
    // In order of id, so that no two batches wait for each other's keys crosswise is the function's affair (it sorts by key).
    let lost = sqlx::query(
        "SELECT lost_id, winner_id, winner_hash FROM accept_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)",
    )
    .bind(now)
    .bind(column(members, |job| job.id.0))
    .bind(column(members, |job| job.tenant))
    .bind(column(members, |job| job.owner.as_deref()))
    .bind(column(members, |job| job.subject.as_deref()))
    .bind(column(members, |job| job.kind))
    .bind(column(members, |job| job.queue.name()))
    .bind(column(members, |job| job.priority.code()))
    .bind(column(members, |job| job.payload.as_str()))
    .bind(column(members, |job| i16::try_from(job.attempts).unwrap_or(i16::MAX)))
    .bind(column(members, |job| job.created_at))
    .bind(column(members, |job| job.run_at))
    .bind(column(members, |job| job.start_by))
    .bind(column(members, |job| job.state.state().code()))
    .bind(column(members, |job| job.state.reason().code()))
    .bind(column(members, |job| job.idempotency.as_ref().map(|key| key.key.as_str())))
    .bind(column(members, |job| job.idempotency.as_ref().map(|key| key.body_hash.as_slice())))
    .bind(column(members, |job| job.idempotency.as_ref().map(|key| key.expires_at)))
    .bind(column(members, |job| job.options.to_json()))
    .bind(column(members, |job| job.options.is_followed()))
    .fetch_all(executor)
    .await?;

    let mut winners: HashMap<Uuid, Holder> = HashMap::with_capacity(lost.len());
    for row in lost {
        let hash: Vec<u8> = row.try_get("winner_hash")?;
        let holder = Holder { job: JobId(row.try_get("winner_id")?), body_hash: hash.try_into().ok() };
        winners.insert(row.try_get("lost_id")?, holder);
    }
    Ok(members
        .iter()
        .map(|job| {
            let own = Holder { job: job.id, body_hash: job.idempotency.as_ref().map(|key| key.body_hash) };
            winners.get(&job.id.0).copied().unwrap_or(own)
        })
        .collect())
}
