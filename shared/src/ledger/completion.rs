//! Makes the job that tells an end to its `completion_url`, in the transaction that takes the end: once for each end.

use sqlx::PgConnection;

use super::{
    LedgerError,
    ended::Ended,
    insert::{Arrival, NewJob, insert_within},
};
use crate::{
    clock::Clock,
    job::{JobId, Options, Priority, Reason},
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
    let job = NewJob {
        id: JobId(clock.new_id()),
        tenant: end.tenant,
        // The backend's own: its user asked for the other job.
        owner: None,
        subject: end.owner.clone(),
        kind: CompletionNotify::NAME,
        queue: CompletionNotify::QUEUE,
        priority: Priority::Normal,
        // Plain fields: nothing that JSON can't say.
        payload: serde_json::to_string(&payload).unwrap_or_default(),
        attempts: CompletionNotify::POLICY.attempts,
        created_at: now,
        run_at: now,
        start_by: None,
        state: Arrival::Waiting(Reason::Window),
        idempotency: None,
        options: Options::default(),
    };
    insert_within(connection, now, &[job]).await?;
    Ok(Some(CompletionNotify::QUEUE))
}
