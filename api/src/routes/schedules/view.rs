//! A schedule and its ticks as clients see them.

use chrono::{DateTime, FixedOffset, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use shared::{
    job::{JobId, State},
    ledger::schedule::{FoundSchedule, history::FoundTick},
    schedule::{Definition, TickOutcome},
};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::routes::jobs::job_address;

/// Who made a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ScheduleSource)]
pub enum Source {
    /// A request.
    Api,
    /// The product's manifest, with which alone it changes.
    Manifest,
}

/// A schedule.
#[derive(Debug, Serialize, ToSchema)]
pub struct Schedule {
    /// Its id.
    id: Uuid,
    /// Its name, unique in the product.
    name: String,
    /// Who made it.
    source: Source,
    /// What it does, and when.
    #[serde(flatten)]
    #[schema(value_type = Definition)]
    definition: Map<String, Value>,
    /// The next tick's due time, before jitter; `null` while it is paused, or where none comes any more.
    #[schema(required)]
    next_due_at: Option<DateTime<Utc>>,
    /// The same as the clock of its time zone shows it.
    #[schema(required)]
    next_due_local: Option<DateTime<FixedOffset>>,
    /// Since when and by whom it is paused.
    #[schema(required)]
    paused: Option<Paused>,
    /// Ticks in a row whose jobs failed.
    failures: i32,
    /// Ticks that wait for the job of the one before to end.
    queued: i32,
    /// Grows with each change that a person makes.
    version: i32,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When a person last changed it.
    updated_at: DateTime<Utc>,
    /// Where to go from here.
    links: Links,
}

/// A pause.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SchedulePause)]
pub struct Paused {
    /// Since when.
    at: DateTime<Utc>,
    /// By whom.
    by: String,
}

/// Where to go from a schedule.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScheduleLinks)]
pub struct Links {
    /// The schedule itself.
    #[serde(rename = "self")]
    this: String,
    /// What became of its ticks.
    history: String,
    /// Its next due times.
    preview: String,
}

/// The address of a schedule.
pub fn address(id: Uuid) -> String {
    format!("/v1/schedules/{id}")
}

impl Schedule {
    /// The view of a schedule in a list: without its payload, since a page of those could be tens of megabytes.
    pub fn listed(found: FoundSchedule) -> Self {
        let mut view = Self::of(found);
        view.definition.remove("payload");
        view
    }

    /// The view of a schedule as found.
    pub fn of(found: FoundSchedule) -> Self {
        let this = address(found.id);
        let next_due_local = found.next_at.and_then(|next| Some(found.timing()?.local(next)));
        let paused = found.paused_at.map(|at| Paused { at, by: found.paused_by.unwrap_or_default() });
        Self {
            id: found.id,
            name: found.name,
            source: if found.declared { Source::Manifest } else { Source::Api },
            definition: fields_of(&found.definition),
            next_due_at: found.next_at,
            next_due_local,
            paused,
            failures: found.failures,
            queued: found.queued,
            version: found.version,
            created_at: found.created_at,
            updated_at: found.updated_at,
            links: Links { history: format!("{this}/history"), preview: format!("{this}/preview"), this },
        }
    }
}

/// A definition, field by field.
pub fn fields_of(definition: &Definition) -> Map<String, Value> {
    match serde_json::to_value(definition) {
        Ok(Value::Object(fields)) => fields,
        // A definition is a struct, which becomes an object.
        _ => Map::new(),
    }
}

/// A due time to come.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScheduleComing)]
pub struct Coming {
    /// When the tick is due.
    due_at: DateTime<Utc>,
    /// The same as the clock of the schedule's time zone shows it.
    due_local: DateTime<FixedOffset>,
    /// When its job is due: with the jitter of this very tick.
    run_at: DateTime<Utc>,
}

impl Coming {
    /// The next `count` due times after a moment.
    pub fn of(found: &FoundSchedule, after: DateTime<Utc>, count: usize) -> Vec<Self> {
        let Some(timing) = found.timing() else { return Vec::new() };
        let due = std::iter::successors(timing.next(after), |due| timing.next(*due));
        due.take(count).map(|due_at| Self { due_at, due_local: timing.local(due_at), run_at: found.run_at(due_at) }).collect()
    }
}

/// What became of a tick.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScheduleTick)]
pub struct Tick {
    /// When it was due, before jitter; of ticks missed in a row, which share a line, the last of them.
    due_at: DateTime<Utc>,
    /// The first due time that the line is for.
    first_due_at: DateTime<Utc>,
    /// How many due times it is for.
    ticks: i32,
    /// What became of it.
    outcome: TickOutcome,
    /// Whether somebody wished it to run at once.
    manual: bool,
    /// When it was handled.
    handled_at: DateTime<Utc>,
    /// The job.
    #[schema(required)]
    job_id: Option<JobId>,
    /// Where the job is; how it ended, where it is gone.
    #[schema(required)]
    job_state: Option<State>,
    /// Why no job could be made.
    #[schema(required)]
    detail: Option<String>,
    /// The job's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    job: Option<String>,
}

impl From<FoundTick> for Tick {
    fn from(found: FoundTick) -> Self {
        Self {
            due_at: found.due_at,
            first_due_at: found.first_at,
            ticks: found.ticks,
            outcome: found.outcome,
            manual: found.manual,
            handled_at: found.handled_at,
            job_id: found.job,
            job_state: found.job_state,
            detail: found.detail,
            job: found.job.map(job_address),
        }
    }
}
