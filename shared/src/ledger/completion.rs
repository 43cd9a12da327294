//! Makes the job that tells an end to its `completion_url`, in the transaction that takes the end: once for each end.

use sqlx::PgConnection;

use super::{
    LedgerError,
    ended::Ended,
    insert::{NewJob, insert_within},
};
use crate::{
    clock::Clock,
    job::JobId,
    kinds::{CompletionNotify, Kind},
    queue::Queue,
};

/// Makes that job, if somebody is to be told; answers the queue that it waits in.
///
/// # Errors
/// [`LedgerError`]: the transaction is of no use any more.
pub async fn tell(connection: &mut PgConnection, end: &Ended, clock: &Clock) -> Result<Option<Queue>, LedgerError> {
    let Some(url) = end.options.completion_url.clone() else { return Ok(None) };
    let payload = CompletionNotify { job: end.job, version: end.version, state: end.state, ended_at: end.ended_at, url };
    let now = clock.now();
    // The backend's own: its user asked for the other job.
    let job = NewJob { subject: end.owner.clone(), ..NewJob::of(JobId(clock.new_id()), end.tenant, &payload, now) };
    insert_within(connection, now, &[job]).await?;
    Ok(Some(CompletionNotify::QUEUE))
}
