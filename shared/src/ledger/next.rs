//! What follows: jobs made from a [`Next`] when what they follow has ended, in the transaction that takes the end from `job_ended` or
//! marks the batch as finished. So they are made once, whatever crashes.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    LedgerError,
    ended::Ended,
    insert::{Arrival, NewJob, insert_within},
};
use crate::{
    clock::Clock,
    job::{JobId, Next, Options, Parent, Reason, State},
    kinds::Registry,
    queue::Queue,
};

/// Makes jobs of what was kept for later.
#[derive(Debug)]
pub struct Maker<'a> {
    /// The kinds.
    pub kinds: &'a Registry,
    /// Business time.
    pub clock: &'a Clock,
}

/// What was made.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Made {
    /// The jobs, in the order of what was asked for.
    pub jobs: Vec<JobId>,
    /// The queues that got work by it.
    pub queues: Vec<Queue>,
}

impl Maker<'_> {
    /// Whether this program knows all kinds that are directly next. One that does not leaves them to another replica: a newer program
    /// accepted them.
    #[must_use]
    pub fn knows(&self, next: &[Next]) -> bool {
        next.iter().all(|next| self.kinds.find(&next.kind).is_some())
    }

    /// Makes the jobs that follow a job's end, where it succeeded. `None`: their kinds are not known here.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn follow(&self, connection: &mut PgConnection, end: &Ended) -> Result<Option<Made>, LedgerError> {
        let next = end.options.then.as_slice();
        if next.is_empty() || end.state != State::Succeeded {
            return Ok(Some(Made::default()));
        }
        if !self.knows(next) {
            return Ok(None);
        }
        let made = self.make(connection, end.tenant, end.owner.as_deref(), Parent::Job(end.job), next).await?;
        sqlx::query(
            "INSERT INTO job_child (parent_id, position, job_id, tenant_id)
             SELECT $1, (position - 1)::smallint, id, $3 FROM unnest($2::uuid[]) WITH ORDINALITY AS c (id, position)",
        )
        .bind(end.job.0)
        .bind(made.jobs.iter().map(|job| job.0).collect::<Vec<Uuid>>())
        .bind(end.tenant)
        .execute(connection)
        .await?;
        Ok(Some(made))
    }

    /// Makes jobs; `owner` is whose they are where they don't say. Kinds that are not known here are left out, see [`Self::knows`].
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn make(
        &self,
        connection: &mut PgConnection,
        tenant: i32,
        owner: Option<&str>,
        parent: Parent,
        next: &[Next],
    ) -> Result<Made, LedgerError> {
        let now = self.clock.now();
        let jobs: Vec<NewJob> = next.iter().filter_map(|next| self.job(tenant, owner, parent, next, now)).collect();
        insert_within(connection, now, &jobs).await?;
        let mut queues: Vec<Queue> = jobs.iter().map(|job| job.queue).collect();
        queues.sort_unstable();
        queues.dedup();
        Ok(Made { jobs: jobs.iter().map(|job| job.id).collect(), queues })
    }

    fn job(&self, tenant: i32, owner: Option<&str>, parent: Parent, next: &Next, now: DateTime<Utc>) -> Option<NewJob> {
        let kind = self.kinds.find(&next.kind)?;
        let owner = next.owner.as_deref().or(owner).map(str::to_owned);
        // By way of the backlog, like all work of its tenant.
        let reason = if next.delay_seconds > 0 { Reason::NotDue } else { Reason::Window };
        Some(NewJob {
            id: JobId(self.clock.new_id()),
            tenant,
            subject: owner.clone(),
            owner,
            kind: kind.name,
            queue: next.queue,
            priority: next.priority,
            payload: next.payload.to_string(),
            attempts: kind.policy.attempts,
            created_at: now,
            run_at: now + TimeDelta::seconds(next.delay_seconds.into()),
            start_by: None,
            state: Arrival::Waiting(reason),
            idempotency: None,
            options: Options {
                parent: Some(parent),
                then: next.then.clone(),
                // It reserves when it starts: nobody is here who could be told that there is no room.
                metered: (kind.is_metered)(&next.payload),
                ..Options::default()
            },
            meter: None,
        })
    }
}

/// Puts an end back that could not be acted upon here, in the transaction that took it.
///
/// # Errors
/// [`LedgerError`].
pub async fn put_back(connection: &mut PgConnection, end: &Ended) -> Result<(), LedgerError> {
    sqlx::query("INSERT INTO job_ended (job_id, version, tenant_id, state, ended_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING")
        .bind(end.job.0)
        .bind(end.version)
        .bind(end.tenant)
        .bind(end.state.code())
        .bind(end.ended_at)
        .execute(connection)
        .await?;
    Ok(())
}
