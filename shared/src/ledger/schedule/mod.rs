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
mod keep;
mod run;
pub mod tick;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

pub use keep::{Filter, NewSchedule, ScheduleError, change, create, delete, find, hold, list, pause};
pub use run::{RanNow, run_now};

use super::{
    LedgerError,
    insert::{self, Arrival, NewJob},
};
use crate::{
    clock::Clock,
    job::{JobId, Options, Reason, ScheduledBy},
    kinds::{Registry, Violation},
    notification::{ScheduleTold, ScheduleTrouble},
    schedule::{Definition, Timing, jitter},
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
        // What was kept before its kind had a door of its own makes no way round that door.
        if let Some(door) = entry.other_door().filter(|_| !self.declared) {
            return Err(door);
        }
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
                // It reserves when it starts: nobody is here who could be told that there is no room.
                metered: checked.is_metered,
                ..Options::default()
            },
            meter: None,
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
