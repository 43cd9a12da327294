//! What follows the end of a tick's job: the schedule's failures are counted, and the next tick that waits for it has its turn.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::{
    FoundSchedule, LedgerError, Notice, found, insert, notify, schedule_columns,
    tick::{Looked, busy, names, save, tenant_of},
};
use crate::{clock::Clock, job::State, kinds::Registry, ledger::ended::Ended, schedule::TickOutcome, tenant::Tenants};

/// Schedules of one transaction.
const BATCH: i64 = 50;

/// Writes down how the jobs of ticks ended, in the transaction that takes the ends, and tells of schedules that keep failing. Answers how
/// many notices were written.
///
/// # Errors
/// [`LedgerError`].
pub async fn ended(connection: &mut PgConnection, ends: &[Ended], now: DateTime<Utc>) -> Result<u64, LedgerError> {
    let of = |end: &Ended| end.options.schedule.as_ref().map(|by| (by.id, by.due_at));
    let mut ids: Vec<Uuid> = ends.iter().filter_map(of).map(|(id, _)| id).collect();
    if ids.is_empty() {
        return Ok(0);
    }
    // One order for all that hold several.
    ids.sort_unstable();
    ids.dedup();
    let rows = sqlx::query(concat!("SELECT ", schedule_columns!(), " FROM schedule s WHERE s.id = ANY ($1) ORDER BY s.id FOR UPDATE"))
        .bind(&ids)
        .fetch_all(&mut *connection)
        .await?;
    let mut schedules = Vec::with_capacity(rows.len());
    for row in &rows {
        // What a newer program wrote is left to newer programs; its failures go uncounted until they run.
        match found(row) {
            Ok(schedule) => schedules.push(schedule),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a schedule can't be read; a failure of it is not counted");
            }
        }
    }
    let mut notices = Vec::new();
    for end in ends {
        let Some((id, due)) = of(end) else { continue };
        sqlx::query("UPDATE schedule_tick SET open = false, job_state = $3 WHERE schedule_id = $1 AND due_at = $2")
            .bind(id)
            .bind(due)
            .bind(end.state.code())
            .execute(&mut *connection)
            .await?;
        let Some(schedule) = schedules.iter_mut().find(|schedule| schedule.id == id) else { continue };
        match end.state {
            State::Succeeded => (schedule.failures, schedule.told_at) = (0, None),
            State::Failed | State::Expired => {
                schedule.failures = schedule.failures.saturating_add(1);
                notices.extend(Notice::due(schedule, None, now));
            }
            // Somebody wanted it so.
            _ => {}
        }
    }
    save(connection, &schedules).await?;
    notify(connection, &notices, now).await?;
    Ok(notices.len() as u64)
}

/// Makes the jobs of ticks that waited for the one before, of up to [`BATCH`] schedules, one each.
///
/// # Errors
/// [`LedgerError`]: nothing was done.
pub async fn next_queued(pool: &PgPool, clock: &Clock, kinds: &Registry, tenants: &Tenants, aside: &[Uuid]) -> Result<Looked, LedgerError> {
    let mut looked = Looked::default();
    let mut transaction = pool.begin().await?;
    let rows = sqlx::query(concat!(
        "SELECT ",
        schedule_columns!(),
        " FROM schedule s
         WHERE s.queued > 0 AND s.paused_at IS NULL AND s.kind = ANY ($1) AND s.id <> ALL ($2)
           AND NOT EXISTS (SELECT FROM schedule_tick t JOIN job_state j ON j.job_id = t.job_id
                           WHERE t.open AND t.schedule_id = s.id AND j.state IN (0, 1, 2))
         ORDER BY s.id LIMIT $3 FOR UPDATE OF s SKIP LOCKED"
    ))
    .bind(names(kinds))
    .bind(aside)
    .bind(BATCH)
    .fetch_all(&mut *transaction)
    .await?;
    if rows.is_empty() {
        return Ok(looked);
    }
    let mut schedules = Vec::with_capacity(rows.len());
    for row in &rows {
        match found(row) {
            Ok(schedule) => schedules.push(schedule),
            Err(_) => looked.aside.push(row.try_get("id")?),
        }
    }
    let ids: Vec<Uuid> = schedules.iter().map(|one| one.id).collect();
    // Asked anew once the rows are held: another replica may have made one's job between the look and the lock.
    let busy = busy(&mut transaction, &ids).await?;
    schedules.retain(|one| !busy.contains(&one.id));
    for schedule in &mut schedules {
        make(&mut transaction, schedule, clock, kinds, tenants, &mut looked).await?;
    }
    save(&mut transaction, &schedules).await?;
    transaction.commit().await?;
    looked.schedules = schedules.len();
    Ok(looked)
}

async fn make(
    connection: &mut PgConnection,
    schedule: &mut FoundSchedule,
    clock: &Clock,
    kinds: &Registry,
    tenants: &Tenants,
    looked: &mut Looked,
) -> Result<(), LedgerError> {
    let now = clock.now();
    let row = sqlx::query(
        "SELECT due_at FROM schedule_tick WHERE open AND schedule_id = $1 AND job_id IS NULL AND outcome = $2 ORDER BY due_at LIMIT 1",
    )
    .bind(schedule.id)
    .bind(TickOutcome::Queued.code())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else {
        schedule.queued = 0;
        return Ok(());
    };
    let tick = schedule.tick(row.try_get("due_at")?);
    let Some(tenant) = tenant_of(tenants, schedule).await else {
        looked.aside.push(schedule.id);
        return Ok(());
    };
    let (outcome, job, detail) = if tick.is_too_late(now) {
        (TickOutcome::TooLate, None, None)
    } else {
        match schedule.job(kinds, &tenant.manifest, tick, clock) {
            Ok(job) => {
                looked.will_wake(job.queue);
                let id = job.id.0;
                insert::insert_within(connection, now, &[job]).await?;
                (TickOutcome::Job, Some(id), None)
            }
            Err(why) => {
                schedule.failures = schedule.failures.saturating_add(1);
                notify(connection, Notice::due(schedule, None, now).as_slice(), now).await?;
                (TickOutcome::Refused, None, Some(why))
            }
        }
    };
    schedule.queued = (schedule.queued - 1).max(0);
    looked.count(outcome, 1);
    sqlx::query(
        "UPDATE schedule_tick SET outcome = $3, open = $4::uuid IS NOT NULL, job_id = $4, detail = $5, handled_at = $6
         WHERE schedule_id = $1 AND due_at = $2",
    )
    .bind(schedule.id)
    .bind(tick.due)
    .bind(outcome.code())
    .bind(job)
    .bind(detail)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}
