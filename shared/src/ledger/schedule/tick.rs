//! Due schedules become ticks and jobs. Every replica does this; each takes schedules that nobody else holds.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{FoundSchedule, LedgerError, Notice, found, insert, notify, schedule_columns};
use crate::{
    clock::Clock,
    kinds::Registry,
    ledger::insert::NewJob,
    queue::Queue,
    schedule::{MOST_QUEUED, Overlap, Skipped, TickOutcome, round},
    tenant::{Tenant, Tenants},
};

/// Schedules of one transaction.
pub const BATCH: i64 = 50;

/// For so long a schedule whose kind this program does not know is left to replicas that do (a roll-out is under way); then its ticks are
/// refused.
const UNKNOWN_FOR: TimeDelta = TimeDelta::hours(1);

/// What one look brought.
#[derive(Debug, Default)]
pub struct Looked {
    /// Schedules that were handled.
    pub schedules: usize,
    /// Ticks, by what became of them.
    pub ticks: BTreeMap<&'static str, u64>,
    /// How late each tick that made a job was handled.
    pub late: Vec<TimeDelta>,
    /// Queues whose dispatchers have something to look at.
    pub wake: Vec<Queue>,
    /// Notices that were written.
    pub notices: u64,
    /// Schedules that could not be handled here just now: they should be left alone for a while.
    pub aside: Vec<Uuid>,
}

impl Looked {
    pub(super) fn count(&mut self, outcome: TickOutcome, ticks: usize) {
        *self.ticks.entry(outcome.word()).or_default() += ticks as u64;
    }

    pub(super) fn will_wake(&mut self, queue: Queue) {
        if !self.wake.contains(&queue) {
            self.wake.push(queue);
        }
    }
}

/// What a transaction writes, by column.
#[derive(Default)]
struct Written {
    jobs: Vec<NewJob>,
    rows: Vec<TickRow>,
    schedules: Vec<FoundSchedule>,
    notices: Vec<Notice>,
}

struct TickRow {
    schedule: Uuid,
    tenant: i32,
    due: DateTime<Utc>,
    first: DateTime<Utc>,
    ticks: i32,
    outcome: TickOutcome,
    job: Option<Uuid>,
    detail: Option<String>,
}

/// Handles up to `most` due schedules, those left out that are in `aside`.
///
/// # Errors
/// [`LedgerError`]: nothing was done.
pub async fn tick(
    pool: &PgPool,
    clock: &Clock,
    kinds: &Registry,
    tenants: &Tenants,
    aside: &[Uuid],
    most: i64,
) -> Result<Looked, LedgerError> {
    let mut looked = Looked::default();
    let now = clock.now();
    let mut transaction = pool.begin().await?;
    let rows = sqlx::query(concat!(
        "SELECT ",
        schedule_columns!(),
        " FROM schedule s
         WHERE s.next_at <= $1 AND (s.kind = ANY ($2) OR s.next_at < $3) AND s.id <> ALL ($4)
         ORDER BY s.next_at LIMIT $5 FOR UPDATE SKIP LOCKED"
    ))
    .bind(now)
    .bind(names(kinds))
    .bind(now - UNKNOWN_FOR)
    .bind(aside)
    .bind(most)
    .fetch_all(&mut *transaction)
    .await?;
    if rows.is_empty() {
        return Ok(looked);
    }
    let mut schedules = Vec::with_capacity(rows.len());
    for row in &rows {
        match found(row) {
            Ok(schedule) => schedules.push(schedule),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a schedule can't be read; it does not run here");
                looked.aside.push(sqlx::Row::try_get(row, "id")?);
            }
        }
    }
    let overlapping: Vec<Uuid> = schedules.iter().filter(|one| one.definition.overlap != Overlap::Allow).map(|one| one.id).collect();
    // Asked once the rows are held: nobody makes a tick of theirs meanwhile.
    let busy = busy(&mut transaction, &overlapping).await?;
    let mut written = Written::default();
    for schedule in schedules {
        match tenant_of(tenants, &schedule).await {
            Some(tenant) => handle(schedule, &busy, kinds, &tenant, clock, &mut written, &mut looked),
            None => looked.aside.push(schedule.id),
        }
    }
    written.write(&mut transaction, now).await?;
    transaction.commit().await?;
    looked.schedules = written.schedules.len();
    looked.notices = written.notices.len() as u64;
    Ok(looked)
}

/// When the next schedule is due; `None` where none is.
///
/// # Errors
/// [`LedgerError`].
pub async fn next_due(pool: &PgPool) -> Result<Option<DateTime<Utc>>, LedgerError> {
    Ok(sqlx::query_scalar("SELECT s.next_at FROM schedule s WHERE s.next_at IS NOT NULL ORDER BY s.next_at LIMIT 1")
        .fetch_optional(pool)
        .await?)
}

/// The schedule that a [`tick`] of one would take first.
///
/// # Errors
/// [`LedgerError`].
pub async fn first_due(pool: &PgPool, kinds: &Registry, aside: &[Uuid], now: DateTime<Utc>) -> Result<Option<Uuid>, LedgerError> {
    let first = sqlx::query_scalar(
        "SELECT s.id FROM schedule s WHERE s.next_at <= $1 AND (s.kind = ANY ($2) OR s.next_at < $3) AND s.id <> ALL ($4) ORDER BY s.next_at LIMIT 1",
    );
    Ok(first.bind(now).bind(names(kinds)).bind(now - UNKNOWN_FOR).bind(aside).fetch_optional(pool).await?)
}

/// The names of all kinds that this program knows, former ones too.
pub(super) fn names(kinds: &Registry) -> Vec<&'static str> {
    kinds.entries().flat_map(|entry| entry.aliases.iter().copied().chain([entry.name])).collect()
}

/// Those of `schedules` that have a job which has not ended.
pub(super) async fn busy(connection: &mut PgConnection, schedules: &[Uuid]) -> Result<HashSet<Uuid>, LedgerError> {
    if schedules.is_empty() {
        return Ok(HashSet::new());
    }
    let busy: Vec<Uuid> = sqlx::query_scalar(
        "SELECT DISTINCT t.schedule_id FROM schedule_tick t JOIN job_state j ON j.job_id = t.job_id
         WHERE t.open AND t.schedule_id = ANY ($1) AND j.state IN (0, 1, 2)",
    )
    .bind(schedules)
    .fetch_all(connection)
    .await?;
    Ok(busy.into_iter().collect())
}

/// A schedule's tenant; `None`, and a line in the log, where it can't be read now.
pub(super) async fn tenant_of(tenants: &Tenants, schedule: &FoundSchedule) -> Option<std::sync::Arc<Tenant>> {
    match tenants.get(schedule.tenant).await {
        Ok(Some(tenant)) => Some(tenant),
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(schedule = %schedule.id, error = &error as &dyn std::error::Error, "a schedule's tenant can't be read; trying again");
            None
        }
    }
}

fn handle(
    mut schedule: FoundSchedule,
    busy: &HashSet<Uuid>,
    kinds: &Registry,
    tenant: &Tenant,
    clock: &Clock,
    written: &mut Written,
    looked: &mut Looked,
) {
    let now = clock.now();
    let (Some(timing), Some(next)) = (schedule.timing(), schedule.next_at) else {
        looked.aside.push(schedule.id);
        return;
    };
    let round = round(&timing, schedule.definition.missed, next, now);
    if let Some(Skipped { first, last, count }) = round.skipped {
        looked.count(TickOutcome::SkippedMissed, count);
        written.rows.push(TickRow {
            schedule: schedule.id,
            tenant: schedule.tenant,
            due: last,
            first,
            ticks: i32::try_from(count).unwrap_or(i32::MAX),
            outcome: TickOutcome::SkippedMissed,
            job: None,
            detail: None,
        });
        schedule.last_at = Some(last);
    }
    let mut is_busy = busy.contains(&schedule.id) || schedule.queued > 0;
    for due in &round.run {
        let tick = schedule.tick(*due);
        let mut detail = None;
        let mut job = None;
        let outcome = if tick.is_too_late(now) {
            TickOutcome::TooLate
        } else {
            match schedule.definition.overlap {
                Overlap::Queue if is_busy && schedule.queued < MOST_QUEUED => {
                    schedule.queued += 1;
                    TickOutcome::Queued
                }
                Overlap::Skip | Overlap::Queue if is_busy => TickOutcome::SkippedOverlap,
                _ => match schedule.job(kinds, &tenant.manifest, tick, clock) {
                    Ok(new) => {
                        is_busy = true;
                        job = Some(new.id.0);
                        looked.late.push(now - *due);
                        looked.will_wake(new.queue);
                        written.jobs.push(new);
                        TickOutcome::Job
                    }
                    Err(why) => {
                        schedule.failures = schedule.failures.saturating_add(1);
                        detail = Some(why);
                        TickOutcome::Refused
                    }
                },
            }
        };
        looked.count(outcome, 1);
        written.rows.push(TickRow {
            schedule: schedule.id,
            tenant: schedule.tenant,
            due: *due,
            first: *due,
            ticks: 1,
            outcome,
            job,
            detail,
        });
        schedule.last_at = Some(*due);
    }
    schedule.next_at = round.next;
    let missed = round.missed.then_some(next);
    written.notices.extend(Notice::due(&mut schedule, missed, now));
    written.schedules.push(schedule);
}

impl Written {
    async fn write(&self, connection: &mut PgConnection, now: DateTime<Utc>) -> Result<(), LedgerError> {
        for jobs in self.jobs.chunks(insert::BATCH) {
            insert::insert_within(connection, now, jobs).await?;
        }
        let rows = &self.rows;
        sqlx::query(
            "INSERT INTO schedule_tick (schedule_id, due_at, tenant_id, first_at, ticks, outcome, open, job_id, detail, handled_at)
             SELECT schedule, due, tenant, first, ticks, outcome, outcome IN (0, 1), job, detail, $9
             FROM unnest($1::uuid[], $2::timestamptz[], $3::integer[], $4::timestamptz[], $5::integer[], $6::smallint[], $7::uuid[], $8::text[])
                  AS t (schedule, due, tenant, first, ticks, outcome, job, detail)",
        )
        .bind(rows.iter().map(|row| row.schedule).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.due).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.tenant).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.first).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.ticks).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.outcome.code()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.job).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.detail.as_deref()).collect::<Vec<_>>())
        .bind(now)
        .execute(&mut *connection)
        .await?;
        save(connection, &self.schedules).await?;
        notify(connection, &self.notices, now).await
    }
}

/// Writes what ticking moves of schedules whose rows are held.
pub(super) async fn save(connection: &mut PgConnection, schedules: &[FoundSchedule]) -> Result<(), LedgerError> {
    sqlx::query(
        "UPDATE schedule s SET next_at = e.next_at, last_at = e.last_at, queued = e.queued, failures = e.failures, told_at = e.told_at
         FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::integer[], $5::integer[], $6::timestamptz[])
              AS e (id, next_at, last_at, queued, failures, told_at)
         WHERE s.id = e.id",
    )
    .bind(schedules.iter().map(|one| one.id).collect::<Vec<_>>())
    .bind(schedules.iter().map(|one| one.next_at).collect::<Vec<_>>())
    .bind(schedules.iter().map(|one| one.last_at).collect::<Vec<_>>())
    .bind(schedules.iter().map(|one| one.queued).collect::<Vec<_>>())
    .bind(schedules.iter().map(|one| one.failures).collect::<Vec<_>>())
    .bind(schedules.iter().map(|one| one.told_at).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
