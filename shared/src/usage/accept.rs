//! Jobs that are metered, accepted with what they may use reserved: in one transaction, a batch of them at a time.
//!
//! Requests that race for one counter are admitted together, in the order in which they came: one statement locks each counter once for
//! all of them. Those over a limit are refused singly.
//!
//! What must stay true: who is accepted has a reservation, and nobody else has; a request that repeats an accepted one reserves
//! nothing, so it is found before anything is reserved. That look may err, because an earlier request is committed meanwhile or a key
//! expires: then nothing is kept, and the batch begins again with what was learned.
//!
//! Counters are locked before the keys of `accept_jobs`, here and by everybody.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};

use super::{
    Charge, Standing, own_keys,
    reserve::{Wanted, before, reserve},
};
use crate::{
    ledger::{
        Kept, LedgerError,
        insert::{Inserted, NewJob, insert_these},
        timed_out,
    },
    random,
    tenant::Tenant,
};

/// The longest that one batch may take. Locks end it sooner.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often a batch is begun again: for what Postgres turned down in passing, and for what was learned on the way.
const TRIES: u32 = 6;

/// What a job that is about to be accepted may use.
#[derive(Debug, Clone)]
pub struct Meter {
    /// Whose limits hold.
    pub tenant: Arc<Tenant>,
    /// What it may use at most.
    pub charges: Vec<Charge>,
}

/// Which jobs of a batch were accepted before, as far as is known.
#[derive(Debug, Clone, Default)]
pub struct Learned(Option<Vec<bool>>);

/// What one try came to.
#[derive(Debug)]
pub enum Tried {
    /// What became of each job, in order. The transaction is to be committed.
    Done(Vec<Inserted>),
    /// Something was learned. The transaction is to be rolled back, and the batch to be begun again.
    Again(Learned),
}

/// Stores a batch of jobs of any tenants, and answers for each in order. When the batch is refused for its data, it is split until the bad
/// member fails alone.
pub async fn insert(connections: &Kept, now: DateTime<Utc>, jobs: &[NewJob]) -> Vec<Result<Inserted, Arc<LedgerError>>> {
    let mut answers = Vec::with_capacity(jobs.len());
    let all: Vec<&NewJob> = jobs.iter().collect();
    let mut parts: Vec<&[&NewJob]> = vec![&all];
    while let Some(part) = parts.pop() {
        match insert_patiently(connections, now, part).await {
            Ok(inserted) => answers.extend(inserted.into_iter().map(Ok)),
            Err(error) if error.is_about_data() && part.len() > 1 => {
                let (left, right) = part.split_at(part.len() / 2);
                // The left one is next, so that the answers stay in order.
                parts.extend([right, left]);
            }
            Err(error) => {
                let error = Arc::new(error);
                answers.extend(part.iter().map(|_| Err(Arc::clone(&error))));
            }
        }
    }
    answers
}

async fn insert_patiently(connections: &Kept, now: DateTime<Utc>, jobs: &[&NewJob]) -> Result<Vec<Inserted>, LedgerError> {
    let mut learned = Learned::default();
    for _ in 0..TRIES {
        let known = learned.clone();
        let once = connections.on(async |connection| {
            let mut transaction = connection.begin().await?;
            let tried = insert_once(&mut transaction, now, jobs, known).await?;
            match tried {
                Tried::Done(_) => transaction.commit().await?,
                Tried::Again(_) => transaction.rollback().await?,
            }
            Ok(tried)
        });
        match tokio::time::timeout(DEADLINE, once).await.unwrap_or_else(|_| Err(timed_out())) {
            Ok(Tried::Done(inserted)) => return Ok(inserted),
            Ok(Tried::Again(more)) => learned = more,
            // Only what Postgres itself rolled back: see `ledger::insert`.
            Err(LedgerError::Unavailable(sqlx::Error::Database(error))) if error.code().is_some_and(|code| code.starts_with("40")) => {
                tokio::time::sleep(Duration::from_millis(10).mul_f64(random::fraction())).await;
            }
            Err(error) => return Err(error),
        }
    }
    // Requests of one key that come and go all the time; nothing was stored.
    Err(timed_out())
}

/// Stores some jobs in a transaction of the caller's, with what those of them may use that are metered.
///
/// # Errors
/// [`LedgerError`]: the transaction is of no use any more.
pub async fn insert_once(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    jobs: &[&NewJob],
    Learned(known): Learned,
) -> Result<Tried, LedgerError> {
    let looked_up = before(connection, now, jobs).await?;
    let repeats: Vec<bool> = match known {
        Some(known) => known,
        None => looked_up.iter().map(|before| before.is_repeat).collect(),
    };
    let mut wanted = Vec::new();
    let mut places = Vec::new();
    let charges: Vec<(i32, Option<&str>, &[Charge])> = jobs
        .iter()
        .zip(&repeats)
        .map(|(job, is_repeat)| {
            let charges = job.meter.as_ref().filter(|_| !is_repeat).map_or(&[][..], |meter| &meter.charges);
            (job.tenant, job.owner.as_deref(), charges)
        })
        .collect();
    let charges = own_keys::without(connection, &charges).await?;
    for (place, (((job, before), is_repeat), charges)) in jobs.iter().zip(&looked_up).zip(&repeats).zip(&charges).enumerate() {
        let Some(meter) = job.meter.as_ref().filter(|_| !is_repeat) else { continue };
        let standing = Standing { owner: job.owner.as_deref(), plan: before.plan.as_deref(), add_ons: &before.add_ons };
        wanted.push(Wanted::of(job.id, job.tenant, &meter.tenant.manifest, &standing, charges, now));
        places.push(place);
    }
    let mut outcomes: Vec<Option<Inserted>> = vec![None; jobs.len()];
    for (place, refused) in places.iter().zip(reserve(connection, now, &wanted).await?) {
        if let (Some(outcome), Some(refused)) = (outcomes.get_mut(*place), refused) {
            *outcome = Some(Inserted::Refused(Box::new(refused)));
        }
    }
    let offered: Vec<&NewJob> = jobs.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_none()).map(|(job, _)| *job).collect();
    let mut inserted = insert_these(connection, now, &offered).await?.into_iter();
    let mut learned = repeats.clone();
    for ((outcome, job), known) in outcomes.iter_mut().zip(jobs).zip(&mut learned).filter(|((outcome, _), _)| outcome.is_none()) {
        // There is one for each that was offered.
        let became = inserted.next().ok_or_else(timed_out)?;
        if job.meter.is_some() {
            *known = became != Inserted::Accepted;
        }
        *outcome = Some(became);
    }
    if learned != repeats {
        return Ok(Tried::Again(Learned(Some(learned))));
    }
    Ok(Tried::Done(outcomes.into_iter().flatten().collect()))
}
