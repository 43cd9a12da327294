//! Schedules in Postgres: kept, changed, and ticked.
//!
//! What must stay true:
//! - a tick is a row of `schedule_tick`, unique by schedule and due time, and is committed together with its job and with the schedule's
//!   next due time ([`tick`]), by a transaction that holds the schedule's row: so it happens once, with any number of replicas and any
//!   crash;
//! - whoever makes a tick, changes a schedule or counts its failures holds its row first; replicas pass by what another one holds;
//! - a tick is open until its job was seen to have ended ([`follow`]): what overlaps is judged by open ticks, and none of them is pruned.

pub mod declare;
pub mod follow;
pub mod history;
pub mod tick;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    LedgerError,
    insert::{self, Arrival, NewJob},
};
use crate::{
    clock::Clock,
    job::{JobId, Options, Reason, ScheduledBy},
    kinds::{Registry, Violation},
    notification::{ScheduleTold, ScheduleTrouble},
    queue::Queue,
    schedule::{Definition, MOST_SCHEDULES, TickOutcome, Timing, jitter},
    tenant::{Manifest, NotEnabled},
};

/// A schedule as it stands.
#[derive(Debug, Clone)]
pub struct FoundSchedule {
    /// Its id.
    pub id: Uuid,
    /// Whose product's.
    pub tenant: i32,
    /// Its name, unique within its tenant.
    pub name: String,
    /// Whether the tenant's manifest declares it.
    pub declared: bool,
    /// What it says.
    pub definition: Definition,
    /// What an interval counts from.
    pub anchor: DateTime<Utc>,
    /// The next tick's due time.
    pub next_at: Option<DateTime<Utc>>,
    /// The last due time that was handled.
    pub last_at: Option<DateTime<Utc>>,
    /// Ticks that wait for the job of the one before.
    pub queued: i32,
    /// Ticks in a row whose jobs failed.
    pub failures: i32,
    /// When its trouble was told.
    pub told_at: Option<DateTime<Utc>>,
    /// When it was paused.
    pub paused_at: Option<DateTime<Utc>>,
    /// By whom.
    pub paused_by: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When a person last changed it.
    pub updated_at: DateTime<Utc>,
    /// Grows with each change that a person makes.
    pub version: i32,
}

impl FoundSchedule {
    /// When it comes round; `None` where this program can't read what it says of that (a newer one wrote it).
    #[must_use]
    pub fn timing(&self) -> Option<Timing> {
        self.definition.timing(self.anchor).ok()
    }

    /// When the job of a tick is due.
    #[must_use]
    pub fn run_at(&self, due: DateTime<Utc>) -> DateTime<Utc> {
        due.checked_add_signed(jitter(self.id, due, self.definition.jitter())).unwrap_or(due)
    }

    /// The next due time of its timing from now on, if it is not paused.
    fn coming(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if self.paused_at.is_some() {
            return None;
        }
        // Where the clock was put back, what was handled is not handled again.
        self.timing()?.next(self.last_at.map_or(now, |last| last.max(now)))
    }

    /// The job of a tick, or what of its payload its kind and tenant do not take (any more).
    fn job(&self, kinds: &Registry, tenant: &Manifest, tick: Tick, clock: &Clock) -> Result<NewJob, String> {
        let definition = &self.definition;
        let Some(entry) = kinds.find(&definition.kind) else {
            return Err(format!("no worker knows the kind `{}`", definition.kind));
        };
        // Asked at each tick, as of every new job: a kind may be switched off while schedules of it stand.
        tenant.allows(entry.name, definition.owner.as_deref()).map_err(|off| match off {
            NotEnabled::ForTenant => format!("the product's manifest has switched the kind `{}` off", entry.name),
            NotEnabled::ForUser => format!("the kind `{}` is not on for this user yet", entry.name),
        })?;
        let checked = (entry.check)(&definition.payload, tenant, definition.owner.as_deref()).map_err(|violations| told(&violations))?;
        let now = clock.now();
        let arrival = Arrival::Waiting(if tick.run_at > now { Reason::NotDue } else { Reason::Window });
        Ok(NewJob {
            id: JobId(clock.new_id()),
            tenant: self.tenant,
            owner: definition.owner.clone(),
            subject: definition.owner.clone(),
            kind: entry.name,
            queue: checked.queue,
            priority: definition.priority,
            payload: definition.payload.to_string(),
            attempts: entry.policy.attempts,
            created_at: now,
            run_at: tick.run_at,
            start_by: tick.start_by,
            state: arrival,
            idempotency: None,
            options: Options {
                schedule: Some(ScheduledBy { id: self.id, name: self.name.clone(), due_at: tick.due }),
                ..Options::default()
            },
        })
    }

    fn tick(&self, due: DateTime<Utc>) -> Tick {
        let run_at = self.run_at(due);
        Tick { due, run_at, start_by: self.definition.start_by(run_at) }
    }
}

/// A due time, and what follows from it.
#[derive(Debug, Clone, Copy)]
struct Tick {
    due: DateTime<Utc>,
    run_at: DateTime<Utc>,
    start_by: Option<DateTime<Utc>>,
}

impl Tick {
    fn is_too_late(&self, now: DateTime<Utc>) -> bool {
        self.start_by.is_some_and(|start_by| start_by <= now)
    }
}

fn told(violations: &[Violation]) -> String {
    let mut text: String =
        violations.iter().map(|violation| format!("/payload{}: {}", violation.pointer, violation.detail)).collect::<Vec<_>>().join("; ");
    if let Some((end, _)) = text.char_indices().nth(1_000) {
        text.truncate(end);
    }
    text
}

/// The columns that [`found`] reads, from `s` (schedule).
macro_rules! schedule_columns {
    () => {
        "s.id, s.tenant_id, s.name, s.declared, s.definition, s.anchor, s.next_at, s.last_at, s.queued, s.failures, s.told_at, s.paused_at,
         s.paused_by, s.created_at, s.updated_at, s.version"
    };
}
use schedule_columns;

fn found(row: &PgRow) -> Result<FoundSchedule, LedgerError> {
    let definition: Value = row.try_get("definition")?;
    let id: Uuid = row.try_get("id")?;
    let definition =
        serde_json::from_value(definition).map_err(|_| LedgerError::Unknown { what: "definition of schedule", value: id.to_string() })?;
    Ok(FoundSchedule {
        id,
        tenant: row.try_get("tenant_id")?,
        name: row.try_get("name")?,
        declared: row.try_get("declared")?,
        definition,
        anchor: row.try_get("anchor")?,
        next_at: row.try_get("next_at")?,
        last_at: row.try_get("last_at")?,
        queued: row.try_get("queued")?,
        failures: row.try_get("failures")?,
        told_at: row.try_get("told_at")?,
        paused_at: row.try_get("paused_at")?,
        paused_by: row.try_get("paused_by")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        version: row.try_get("version")?,
    })
}

fn stored(definition: &Definition) -> Value {
    // Strings, numbers and maps with string keys: nothing in it that JSON can't hold.
    serde_json::to_value(definition).unwrap_or_default()
}

/// Why a schedule could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The tenant has one of that name.
    #[error("there is a schedule of this name")]
    NameTaken,
    /// The tenant has as many as it may.
    #[error("the tenant has {MOST_SCHEDULES} schedules, which are as many as it may have; delete one")]
    TooMany,
    /// The manifest declares it.
    #[error("the tenant's manifest declares this schedule; change it there")]
    Declared,
    /// There is no such schedule.
    #[error("there is no such schedule")]
    Missing,
}

impl From<sqlx::Error> for ScheduleError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(cause) if cause.constraint() == Some("schedule_tenant_id_name_key") => Self::NameTaken,
            _ => Self::Ledger(error.into()),
        }
    }
}

/// One at a time for a tenant's number of schedules, until the transaction ends.
async fn hold_count(connection: &mut PgConnection, tenant: i32) -> Result<i64, LedgerError> {
    // "schedule", so that no other advisory lock is meant.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('schedule'), $1)").bind(tenant).execute(&mut *connection).await?;
    Ok(sqlx::query_scalar("SELECT count(*) FROM schedule WHERE tenant_id = $1").bind(tenant).fetch_one(connection).await?)
}

/// A schedule about to be made, found right.
#[derive(Debug, Clone)]
pub struct NewSchedule {
    /// Its id, made by the caller's clock.
    pub id: Uuid,
    /// Whose product.
    pub tenant: i32,
    /// Its name.
    pub name: String,
    /// Whether the manifest declares it.
    pub declared: bool,
    /// What it says.
    pub definition: Definition,
    /// The name of its kind, not a former one.
    pub kind: &'static str,
}

/// Makes a schedule in the caller's transaction.
///
/// # Errors
/// [`ScheduleError`].
pub async fn create(connection: &mut PgConnection, new: &NewSchedule, now: DateTime<Utc>) -> Result<FoundSchedule, ScheduleError> {
    if hold_count(connection, new.tenant).await? >= MOST_SCHEDULES {
        return Err(ScheduleError::TooMany);
    }
    let next = new.definition.timing(now).ok().and_then(|timing| timing.next(now));
    let row = sqlx::query(concat!(
        "INSERT INTO schedule AS s (id, tenant_id, declared, anchor, next_at, created_at, updated_at, name, kind, definition)
         VALUES ($1, $2, $3, $4, $5, $4, $4, $6, $7, $8) RETURNING ",
        schedule_columns!()
    ))
    .bind(new.id)
    .bind(new.tenant)
    .bind(new.declared)
    .bind(now)
    .bind(next)
    .bind(&new.name)
    .bind(new.kind)
    .bind(stored(&new.definition))
    .fetch_one(connection)
    .await?;
    Ok(found(&row)?)
}

/// One schedule of a tenant.
///
/// # Errors
/// [`LedgerError`].
pub async fn find(connection: &mut PgConnection, tenant: i32, id: Uuid) -> Result<Option<FoundSchedule>, LedgerError> {
    let row = sqlx::query(concat!("SELECT ", schedule_columns!(), " FROM schedule s WHERE s.id = $1 AND s.tenant_id = $2"))
        .bind(id)
        .bind(tenant)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(found).transpose()
}

/// One schedule of a tenant, held until the caller's transaction ends.
///
/// # Errors
/// [`ScheduleError::Missing`], [`ScheduleError::Ledger`].
pub async fn hold(connection: &mut PgConnection, tenant: i32, id: Uuid) -> Result<FoundSchedule, ScheduleError> {
    let row = sqlx::query(concat!("SELECT ", schedule_columns!(), " FROM schedule s WHERE s.id = $1 AND s.tenant_id = $2 FOR UPDATE"))
        .bind(id)
        .bind(tenant)
        .fetch_optional(connection)
        .await?;
    Ok(found(&row.ok_or(ScheduleError::Missing)?)?)
}

/// Which schedules a list shows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this kind's.
    pub kind: Option<String>,
    /// Only the one of this name.
    pub name: Option<String>,
    /// Only those that are paused, or that are not.
    pub paused: Option<bool>,
    /// Only those before this one in the list's order.
    pub after: Option<Uuid>,
}

/// A page of a tenant's schedules, newest first.
///
/// # Errors
/// [`LedgerError`].
pub async fn list(connection: &mut PgConnection, tenant: i32, filter: &Filter, limit: i64) -> Result<Vec<FoundSchedule>, LedgerError> {
    // A tenant has a bounded number of them, so what does not match is passed over.
    let rows = sqlx::query(concat!(
        "SELECT ",
        schedule_columns!(),
        " FROM schedule s WHERE s.tenant_id = $1 AND s.id < $2 AND ($3::text IS NULL OR s.kind = $3) AND ($4::text IS NULL OR s.name = $4)
          AND ($5::boolean IS NULL OR (s.paused_at IS NOT NULL) = $5)
          ORDER BY s.tenant_id DESC, s.id DESC LIMIT $6"
    ))
    .bind(tenant)
    .bind(filter.after.unwrap_or(Uuid::max()))
    .bind(filter.kind.as_deref())
    .bind(filter.name.as_deref())
    .bind(filter.paused)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(found).collect()
}

/// Gives a schedule another name and definition, in the transaction that [holds](hold) it. Its next tick moves where its timing changed.
///
/// # Errors
/// [`ScheduleError`].
pub async fn change(
    connection: &mut PgConnection,
    held: &FoundSchedule,
    name: &str,
    definition: Definition,
    kind: &str,
    now: DateTime<Utc>,
) -> Result<FoundSchedule, ScheduleError> {
    let before = &held.definition;
    let same_timing = (&before.cron, &before.time_zone, before.every_seconds, before.starts_at)
        == (&definition.cron, &definition.time_zone, definition.every_seconds, definition.starts_at);
    let (anchor, next) = if same_timing {
        (held.anchor, held.next_at)
    } else {
        // A new interval counts from the change, as a new schedule would.
        let anew = FoundSchedule { definition: definition.clone(), anchor: now, ..held.clone() };
        (now, anew.coming(now))
    };
    let row = sqlx::query(concat!(
        "UPDATE schedule s SET name = $2, kind = $3, definition = $4, anchor = $5, next_at = $6, updated_at = $7, version = s.version + 1
         WHERE s.id = $1 RETURNING ",
        schedule_columns!()
    ))
    .bind(held.id)
    .bind(name)
    .bind(kind)
    .bind(stored(&definition))
    .bind(anchor)
    .bind(next)
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(found(&row)?)
}

/// Removes a schedule with its history; jobs that it made stay.
///
/// # Errors
/// [`LedgerError`].
pub async fn delete(connection: &mut PgConnection, held: &FoundSchedule) -> Result<(), LedgerError> {
    sqlx::query("DELETE FROM schedule WHERE id = $1").bind(held.id).execute(connection).await?;
    Ok(())
}

/// Pauses a schedule (`by` whom) or lets it go on (`None`), in the transaction that [holds](hold) it. What comes due in a pause is not
/// missed: it does not exist. Done again, it changes nothing.
///
/// # Errors
/// [`ScheduleError`].
pub async fn pause(
    connection: &mut PgConnection,
    held: &FoundSchedule,
    by: Option<&str>,
    now: DateTime<Utc>,
) -> Result<FoundSchedule, ScheduleError> {
    if held.paused_at.is_some() == by.is_some() {
        return Ok(held.clone());
    }
    let next = by.map_or_else(|| FoundSchedule { paused_at: None, ..held.clone() }.coming(now), |_| None);
    let row = sqlx::query(concat!(
        "UPDATE schedule s SET paused_at = CASE WHEN $2::text IS NOT NULL THEN $4::timestamptz END, paused_by = $2, next_at = $3,
                               updated_at = $4, version = s.version + 1
         WHERE s.id = $1 RETURNING ",
        schedule_columns!()
    ))
    .bind(held.id)
    .bind(by)
    .bind(next)
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(found(&row)?)
}

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

/// A notice about a schedule, for its owner or the tenant's backend.
#[derive(Debug, Clone)]
struct Notice {
    tenant: i32,
    owner: String,
    told: ScheduleTold,
}

impl Notice {
    /// The notice that is due: of a missed tick, or of too many failures in a row; one until the schedule succeeds again. Marks the
    /// schedule as told.
    fn due(schedule: &mut FoundSchedule, missed: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Self> {
        let enough = i32::from(schedule.definition.notify_after_failures);
        let trouble = match missed {
            _ if schedule.told_at.is_some() => return None,
            Some(due_at) => ScheduleTrouble::Missed { due_at },
            None if enough > 0 && schedule.failures >= enough => ScheduleTrouble::Failing { failures: schedule.failures },
            None => return None,
        };
        schedule.told_at = Some(now);
        let told = trouble.told(schedule.id, &schedule.name);
        tracing::warn!(schedule = %schedule.id, tenant = schedule.tenant, "{}", told.message);
        Some(Self { tenant: schedule.tenant, owner: schedule.definition.owner.clone().unwrap_or_default(), told })
    }
}

async fn notify(connection: &mut PgConnection, notices: &[Notice], now: DateTime<Utc>) -> Result<(), LedgerError> {
    if notices.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO notification (tenant_id, owner, type, title, message, data, created_at)
         SELECT tenant, owner, 'system', title, message, data::jsonb, $6
         FROM unnest($1::integer[], $2::text[], $3::text[], $4::text[], $5::text[]) AS n (tenant, owner, title, message, data)",
    )
    .bind(notices.iter().map(|notice| notice.tenant).collect::<Vec<_>>())
    .bind(notices.iter().map(|notice| notice.owner.as_str()).collect::<Vec<_>>())
    .bind(notices.iter().map(|notice| notice.told.title.as_str()).collect::<Vec<_>>())
    .bind(notices.iter().map(|notice| notice.told.message.as_str()).collect::<Vec<_>>())
    .bind(notices.iter().map(|notice| notice.told.data.to_string()).collect::<Vec<_>>())
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}
