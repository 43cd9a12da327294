//! A job of a schedule at once, because somebody wishes it.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use super::{FoundSchedule, LedgerError, Tick, insert};
use crate::{
    clock::Clock,
    job::JobId,
    kinds::{Entry, Registry},
    queue::Queue,
    schedule::TickOutcome,
    tenant::Manifest,
};

/// What a wish to run now brought.
#[derive(Debug, Clone)]
pub struct RanNow {
    /// The job.
    pub job: JobId,
    /// The queue whose dispatchers to wake.
    pub queue: Queue,
}

/// Makes a job of a schedule now, whatever it overlaps and also while it is paused, in the transaction that [holds](hold) it. The inner
/// error says why its payload is not taken.
///
/// # Errors
/// [`LedgerError`].
pub async fn run_now(
    connection: &mut PgConnection,
    held: &FoundSchedule,
    kinds: &Registry,
    tenant: &Manifest,
    clock: &Clock,
) -> Result<Result<RanNow, String>, LedgerError> {
    // A wish is a wish, whoever declared the schedule.
    if let Some(door) = kinds.find(&held.definition.kind).and_then(Entry::other_door) {
        return Ok(Err(door));
    }
    let now = clock.now();
    // Never a whole second, which is where ticks of cron and of intervals are.
    let due: DateTime<Utc> = sqlx::query_scalar(
        "SELECT greatest($2::timestamptz, max(t.due_at)) + interval '1 microsecond' FROM schedule_tick t WHERE t.schedule_id = $1 AND t.due_at <= $2 + interval '1 second'",
    )
    .bind(held.id)
    .bind(now)
    .fetch_one(&mut *connection)
    .await?;
    let due = if due.timestamp_subsec_micros() == 0 { due + TimeDelta::microseconds(1) } else { due };
    let tick = Tick { due, run_at: now, start_by: held.definition.start_by(now) };
    let job = match held.job(kinds, tenant, tick, clock) {
        Ok(job) => job,
        Err(why) => return Ok(Err(why)),
    };
    let ran = RanNow { job: job.id, queue: job.queue };
    insert::insert_within(connection, now, &[job]).await?;
    sqlx::query(
        "INSERT INTO schedule_tick (schedule_id, due_at, tenant_id, outcome, manual, open, first_at, handled_at, job_id)
         VALUES ($1, $2, $3, $4, true, true, $2, $5, $6)",
    )
    .bind(held.id)
    .bind(due)
    .bind(held.tenant)
    .bind(TickOutcome::Job.code())
    .bind(now)
    .bind(ran.job.0)
    .execute(connection)
    .await?;
    Ok(Ok(ran))
}
