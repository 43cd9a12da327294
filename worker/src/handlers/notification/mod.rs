//! `notification.fan_out`, `notification.tell` and `notification.digest`: something is told to many, chunk by chunk.
//!
//! What must stay true: each recipient is told once by each channel, whatever is killed: a chunk's transaction takes its recipients away and
//! writes inboxes, messages' jobs and log together; the memory that a chunk takes has a bound; nothing is sent in here, and whether somebody
//! wants a message is asked by the job that sends it ([`wanted`]).

mod digest;
mod tell;
mod wanted;
mod words;

use shared::{
    job::{Failure, JobId, Priority, Success},
    kinds::{Kind, NotificationFanOut, NotificationTell, Recipients},
    ledger::{
        LedgerError,
        insert::{NewJob, insert_within},
        notifications::{self, Counted},
        people::audience,
    },
};
use sqlx::PgConnection;
use uuid::Uuid;

pub(super) use digest::run as digest;
pub(super) use wanted::{Wanted, wanted};

use super::{JobContext, export};
use tell::Telling;

/// Recipients of one chunk.
const CHUNK: usize = 1_000;

/// Recipients that one transaction writes down.
const PAGE: i64 = 5_000;

/// Finds out who is to be told. Few are told at once; many in chunks, each by a job of its own.
pub(super) async fn run(payload: NotificationFanOut, context: JobContext) -> Result<Success, Failure> {
    let tenant = export::tenant(&context).await?;
    let (services, job) = (&context.services, &context.job);
    let telling = Telling::new(&context, &services.pool, &tenant, job.id, &payload, job.priority).await?;
    loop {
        let now = services.clock.now();
        let mut transaction = services.pool.begin().await.map_err(LedgerError::from)?;
        let planned = notifications::hold(&mut transaction, job.tenant, job.id, now).await?;
        if planned.is_planned {
            return Ok(Success::default());
        }
        let page = page_of(&mut transaction, job.tenant, &payload.to, &planned.after).await?;
        let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
        if is_last && planned.chunks == 0 && page.len() <= CHUNK {
            notifications::planned(&mut transaction, job.id, page.len(), now).await?;
            let counted = telling.tell(&mut transaction, &page).await?;
            notifications::count(&mut transaction, job.id, counted, now).await?;
        } else {
            let chunks: Vec<&[String]> = page.chunks(CHUNK).collect();
            let numbers = (planned.chunks..).take(chunks.len());
            let jobs: Vec<NewJob> = numbers
                .map(|chunk| {
                    let payload = NotificationTell { trigger: job.id, chunk };
                    new_job::<NotificationTell>(&context, None, job.priority, &payload)
                })
                .collect();
            let chunks: Vec<(JobId, &[String])> = jobs.iter().map(|job| job.id).zip(chunks).collect();
            notifications::plan(&mut transaction, job.tenant, job.id, planned.chunks, &chunks, now).await?;
            insert_within(&mut transaction, now, &jobs).await?;
            if is_last {
                notifications::planned(&mut transaction, job.id, 0, now).await?;
            }
        }
        if matches!(payload.to, Recipients::Users(_)) {
            notifications::strike_names_out(&mut transaction, job.id).await?;
        }
        transaction.commit().await.map_err(LedgerError::from)?;
        if is_last {
            return Ok(Success::default());
        }
    }
}

/// Tells one chunk.
pub(super) async fn tell(payload: NotificationTell, context: JobContext) -> Result<Success, Failure> {
    let (services, job) = (&context.services, &context.job);
    let tenant = export::tenant(&context).await?;
    let mut transaction = services.pool.begin().await.map_err(LedgerError::from)?;
    let taken = notifications::take(&mut transaction, payload.trigger, payload.chunk).await?;
    let asked = notifications::asked(&mut transaction, job.tenant, payload.trigger).await?;
    // Told before, by a run whose end was lost; or what was asked for is gone, and its recipients with it.
    if let (Some(taken), Some((asked, priority))) = (taken, asked) {
        let asked: NotificationFanOut = serde_json::from_str(&asked).map_err(|error| {
            Failure::permanent("payload_invalid", format!("this worker can't read the notification's payload: {error}"))
        })?;
        let priority = Priority::from_code(priority).unwrap_or(Priority::Normal);
        let telling = Telling::new(&context, &mut *transaction, &tenant, payload.trigger, &asked, priority).await?;
        let counted = telling.tell(&mut transaction, &taken.recipients).await?;
        // Who was erased since it was planned is told nothing, and waited for no longer.
        let counted = Counted { told: taken.planned, ..counted };
        notifications::count(&mut transaction, payload.trigger, counted, services.clock.now()).await?;
    }
    transaction.commit().await.map_err(LedgerError::from)?;
    Ok(Success::default())
}

/// Recipients behind `after` in the order of their ids; at most [`PAGE`].
async fn page_of(connection: &mut PgConnection, tenant: i32, to: &Recipients, after: &str) -> Result<Vec<String>, LedgerError> {
    match to {
        Recipients::User(user) => Ok(vec![user.clone()]),
        Recipients::Users(users) => {
            let mut users = users.clone();
            users.sort_unstable();
            users.dedup();
            Ok(users)
        }
        Recipients::Role(role) => audience::users_with_role(connection, tenant, role, Some(after), PAGE).await,
        Recipients::FollowersOf(user) => audience::followers_of(connection, tenant, user, Some(after), PAGE).await,
    }
}

/// A job that this one makes, by way of the backlog.
fn new_job<K: Kind>(context: &JobContext, owner: Option<&str>, priority: Priority, payload: &K) -> NewJob {
    let services = &context.services;
    let job = NewJob::of(JobId(services.clock.new_id()), context.job.tenant, payload, services.clock.now());
    NewJob { owner: owner.map(str::to_owned), subject: owner.map(str::to_owned), priority, ..job }
}

/// A new id.
fn new_id(context: &JobContext) -> Uuid {
    context.services.clock.new_id()
}
