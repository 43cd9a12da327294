//! Step 1, accept: jobs become rows, in shared batches.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor, Row};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Kept, LedgerError};
use crate::{
    job::{JobId, Options, Priority, Reason, State},
    kinds::Kind,
    queue::{Queue, keys::Lane, push::Handover},
    random,
    usage::{Refused, accept::Meter},
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
    /// What it may use, where that is metered: then it is accepted by [`crate::usage::accept`].
    pub meter: Option<Box<Meter>>,
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
    /// It was asked for before: that job stands.
    Duplicate(JobId, DuplicateBy),
    /// Something else was asked for before under this key.
    Conflict(JobId),
    /// It would use more than may be used. Nothing of it is stored.
    Refused(Box<Refused>),
}

/// By what a job was found to be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DuplicateBy {
    /// The same request came before under this idempotency key.
    IdempotencyKey,
    /// Another job holds its `unique` key.
    Unique,
}

impl NewJob {
    /// A job that the house itself makes, due at once, by way of the backlog: of no user, with its kind's queue and attempts. Whoever makes
    /// another says what is different.
    #[must_use]
    pub fn of<K: Kind>(id: JobId, tenant: i32, payload: &K, now: DateTime<Utc>) -> Self {
        Self {
            id,
            tenant,
            owner: None,
            subject: None,
            kind: K::NAME,
            queue: K::QUEUE,
            priority: Priority::Normal,
            // Plain fields: nothing that JSON can't say.
            payload: serde_json::to_string(payload).unwrap_or_default(),
            attempts: K::POLICY.attempts,
            created_at: now,
            run_at: now,
            start_by: None,
            state: Arrival::Waiting(Reason::Window),
            idempotency: None,
            options: Options::default(),
            meter: None,
        }
    }

    /// The same job, due later.
    #[must_use]
    pub fn due_at(self, run_at: DateTime<Utc>) -> Self {
        let reason = if run_at > self.created_at { Reason::NotDue } else { Reason::Window };
        Self { run_at, state: Arrival::Waiting(reason), ..self }
    }

    /// What became of it, by who holds its keys. `stood_for`: another one with its idempotency key was offered in its place.
    fn became(&self, holder: Holder, stood_for: bool) -> Inserted {
        if holder.job == self.id {
            Inserted::Accepted
        } else if holder.by_unique && !stood_for {
            Inserted::Duplicate(holder.job, DuplicateBy::Unique)
        } else if holder.body_hash == self.idempotency.as_ref().map(|key| key.body_hash) {
            Inserted::Duplicate(holder.job, DuplicateBy::IdempotencyKey)
        } else {
            Inserted::Conflict(holder.job)
        }
    }

    /// Until when its unique key is its own; `None` for as long as it has not ended.
    fn unique_until(&self) -> Option<DateTime<Utc>> {
        let seconds = self.options.unique.as_ref()?.for_seconds?;
        Some(self.created_at + TimeDelta::seconds(seconds.into()))
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

/// Who holds a job's keys after the insert: the job itself when it has none.
#[derive(Clone, Copy)]
struct Holder {
    job: JobId,
    body_hash: Option<[u8; 32]>,
    /// By its unique key; the hash is then the loser's own.
    by_unique: bool,
}

/// Members of a batch with one idempotency key can't be offered together: the first is, and the others share its holder.
struct Offer {
    /// By place, who is offered in a member's place.
    stands_for: Vec<usize>,
}

impl Offer {
    fn of<'a>(jobs: impl Iterator<Item = &'a NewJob>) -> Self {
        let mut first_of_key: HashMap<(i32, &str, &str), usize> = HashMap::new();
        let stands_for = jobs.enumerate().map(|(index, job)| match job.key() {
            Some(key) => *first_of_key.entry(key).or_insert(index),
            None => index,
        });
        Self { stands_for: stands_for.collect() }
    }

    /// The places of those that are offered.
    fn offered(&self) -> Vec<usize> {
        self.stands_for.iter().enumerate().filter(|(index, first)| index == *first).map(|(index, _)| index).collect()
    }
}

/// Stores a batch and answers for each member in order. When the batch is refused for its data, it is split until the bad
/// member fails alone.
pub async fn insert(connections: &Kept, now: DateTime<Utc>, jobs: &[NewJob]) -> Vec<Result<Inserted, Arc<LedgerError>>> {
    let offer = Offer::of(jobs.iter());
    let offered = offer.offered();

    let mut holders: HashMap<usize, Result<Holder, Arc<LedgerError>>> = HashMap::with_capacity(offered.len());
    let mut parts: Vec<&[usize]> = offered.chunks(BATCH).collect();
    while let Some(part) = parts.pop() {
        let members: Vec<&NewJob> = part.iter().filter_map(|index| jobs.get(*index)).collect();
        match insert_patiently(connections, now, &members).await {
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
        .enumerate()
        .zip(offer.stands_for)
        .map(|((index, job), first)| match holders.get(&first) {
            Some(Ok(holder)) => Ok(job.became(*holder, index != first)),
            Some(Err(error)) => Err(Arc::clone(error)),
            // Every offered member got an answer above.
            None => Err(Arc::new(LedgerError::Unavailable(sqlx::Error::WorkerCrashed))),
        })
        .collect()
}

/// Tries a batch again that was turned down in passing before anything of it was committed.
async fn insert_patiently(connections: &Kept, now: DateTime<Utc>, members: &[&NewJob]) -> Result<Vec<Holder>, LedgerError> {
    let mut tries = 1;
    loop {
        let once = connections.on(async |connection| insert_once(connection, now, members).await);
        let once = tokio::time::timeout(INSERT_DEADLINE, once);
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

/// Stores jobs in a transaction of the caller's, with whatever else it writes, and answers for each in order. All in one statement, so
/// that everybody takes keys in one order.
///
/// # Errors
/// [`LedgerError`]: the transaction is of no use any more.
pub async fn insert_within(connection: &mut PgConnection, now: DateTime<Utc>, jobs: &[NewJob]) -> Result<Vec<Inserted>, LedgerError> {
    insert_these(connection, now, &jobs.iter().collect::<Vec<_>>()).await
}

/// As [`insert_within`], of jobs that stand apart.
pub(crate) async fn insert_these(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    jobs: &[&NewJob],
) -> Result<Vec<Inserted>, LedgerError> {
    let offer = Offer::of(jobs.iter().copied());
    let offered = offer.offered();
    let members: Vec<&NewJob> = offered.iter().filter_map(|index| jobs.get(*index).copied()).collect();
    let holders = insert_once(connection, now, &members).await?;
    let holders: HashMap<usize, Holder> = offered.into_iter().zip(holders).collect();
    let answers = jobs.iter().enumerate().zip(offer.stands_for);
    // Every offered member has a holder.
    Ok(answers.filter_map(|((index, job), first)| Some(job.became(*holders.get(&first)?, index != first))).collect())
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
    // That no two batches wait for each other's keys crosswise is the function's affair: it sorts by key.
    let lost = sqlx::query(
        "SELECT lost_id, winner_id, winner_hash FROM accept_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)",
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
    .bind(column(members, |job| job.options.unique.as_ref().map(|unique| unique.key.as_str())))
    .bind(column(members, NewJob::unique_until))
    .fetch_all(executor)
    .await?;

    let mut winners: HashMap<Uuid, (JobId, Option<[u8; 32]>)> = HashMap::with_capacity(lost.len());
    for row in lost {
        let hash: Option<Vec<u8>> = row.try_get("winner_hash")?;
        let winner = (JobId(row.try_get("winner_id")?), hash.and_then(|hash| hash.try_into().ok()));
        winners.insert(row.try_get("lost_id")?, winner);
    }
    Ok(members
        .iter()
        .map(|job| {
            let own = job.idempotency.as_ref().map(|key| key.body_hash);
            match winners.get(&job.id.0) {
                None => Holder { job: job.id, body_hash: own, by_unique: false },
                Some((winner, None)) => Holder { job: *winner, body_hash: own, by_unique: true },
                Some((winner, hash)) => Holder { job: *winner, body_hash: *hash, by_unique: false },
            }
        })
        .collect())
}
