//! `GET /v1/schedules`, `/{id}`, `/{id}/preview` and `/{id}/history`.

use axum::{Json as Answer, extract::State};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    job::JobId,
    ledger::schedule::{self, Filter, FoundSchedule, ScheduleError, history},
    tenant,
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Backend, IdOfPath,
    view::{Coming, Schedule, Tick},
};
use crate::{
    app::App,
    auth::SchedulesRead,
    extract::Query,
    problem::{Code, Problem, ProblemBody},
    routes::page::Page,
};

/// Due times that a preview shows.
const PREVIEWED: usize = 10;

/// Which schedules to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// How many, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// Only the one of this name.
    name: Option<String>,
    /// Only this kind's.
    kind: Option<String>,
    /// Only those that are paused, or that are not.
    paused: Option<bool>,
}

/// A page of schedules, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct SchedulePage {
    /// The schedules, without their payloads.
    items: Vec<Schedule>,
    /// Send it as `cursor` for the next page; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// Lists schedules, newest first.
#[utoipa::path(
    get, path = "/v1/schedules", tag = "schedules", operation_id = "list_schedules", params(ListQuery),
    responses((status = 200, body = SchedulePage), (status = 400, body = ProblemBody<'static>, description = "`query_invalid`")),
)]
pub async fn list(
    State(app): State<App>,
    Backend(caller): Backend<SchedulesRead>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<SchedulePage>, Problem> {
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    let filter = Filter {
        kind: query.kind.map(|kind| app.kinds.find(&kind).map_or(kind, |entry| entry.name.to_owned())),
        name: query.name,
        paused: query.paused,
        after: page.after.map(|after| after.0),
    };
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = schedule::list(&mut transaction, caller.tenant, &filter, page.to_read()).await?;
    drop(transaction);
    let (found, next_cursor) = page.cut(found, |schedule| JobId(schedule.id));
    let items = found.into_iter().map(Schedule::listed).collect();
    Ok(Answer(SchedulePage { items, next_cursor }))
}

async fn look_up(app: &App, tenant: i32, id: Uuid) -> Result<FoundSchedule, Problem> {
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    Ok(schedule::find(&mut transaction, tenant, id).await?.ok_or(ScheduleError::Missing)?)
}

/// Shows a schedule.
#[utoipa::path(
    get, path = "/v1/schedules/{id}", tag = "schedules", operation_id = "read_schedule",
    params(("id" = String, Path, description = "The schedule's id")),
    responses((status = 200, body = Schedule), (status = 404, body = ProblemBody<'static>, description = "`schedule_not_found`")),
)]
pub async fn read(State(app): State<App>, Backend(caller): Backend<SchedulesRead>, id: IdOfPath) -> Result<Answer<Schedule>, Problem> {
    Ok(Answer(Schedule::of(look_up(&app, caller.tenant, id.schedule()?).await?)))
}

/// When a schedule comes round.
#[derive(Debug, Serialize, ToSchema)]
pub struct SchedulePreview {
    /// Its next ten due times; fewer where no more come.
    items: Vec<Coming>,
    /// Whether it is paused: then this is when it would come round.
    paused: bool,
}

/// Shows a schedule's next ten due times, as they are now planned.
#[utoipa::path(
    get, path = "/v1/schedules/{id}/preview", tag = "schedules", operation_id = "preview_schedule",
    params(("id" = String, Path, description = "The schedule's id")),
    responses((status = 200, body = SchedulePreview), (status = 404, body = ProblemBody<'static>, description = "`schedule_not_found`")),
)]
pub async fn preview(
    State(app): State<App>,
    Backend(caller): Backend<SchedulesRead>,
    id: IdOfPath,
) -> Result<Answer<SchedulePreview>, Problem> {
    let found = look_up(&app, caller.tenant, id.schedule()?).await?;
    Ok(Answer(SchedulePreview { items: Coming::of(&found, app.clock.now(), PREVIEWED), paused: found.paused_at.is_some() }))
}

/// Which ticks to show.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// How many, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A page of ticks, latest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct TickPage {
    /// The ticks. The newest thousand, of the last 90 days, are kept.
    items: Vec<Tick>,
    /// Send it as `cursor` for the next page; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// Shows what became of a schedule's ticks, latest first.
#[utoipa::path(
    get, path = "/v1/schedules/{id}/history", tag = "schedules", operation_id = "list_schedule_ticks",
    params(("id" = String, Path, description = "The schedule's id"), HistoryQuery),
    responses(
        (status = 200, body = TickPage),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 404, body = ProblemBody<'static>, description = "`schedule_not_found`"),
    ),
)]
pub async fn history(
    State(app): State<App>,
    Backend(caller): Backend<SchedulesRead>,
    id: IdOfPath,
    Query(query): Query<HistoryQuery>,
) -> Result<Answer<TickPage>, Problem> {
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    let before = page.after.map(moment_of).transpose()?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = schedule::find(&mut transaction, caller.tenant, id.schedule()?).await?.ok_or(ScheduleError::Missing)?;
    let ticks = history::ticks(&mut transaction, caller.tenant, found.id, before, page.to_read()).await?;
    drop(transaction);
    let (ticks, next_cursor) = page.cut(ticks, |tick| key_of(tick.due_at));
    Ok(Answer(TickPage { items: ticks.into_iter().map(Tick::from).collect(), next_cursor }))
}

/// A due time as a page's cursor carries it: those hold 128 bits.
fn key_of(due: DateTime<Utc>) -> JobId {
    JobId(Uuid::from_u128(u128::try_from(due.timestamp_micros()).unwrap_or(0)))
}

/// And back.
fn moment_of(key: JobId) -> Result<DateTime<Utc>, Problem> {
    let micros = i64::try_from(key.0.as_u128()).ok();
    // Postgres' timestamps end before chrono's.
    let moment = micros.and_then(DateTime::from_timestamp_micros).filter(|moment| moment.timestamp() < 253_402_300_799);
    moment.ok_or_else(|| Problem::new(Code::QueryInvalid, "cursor: is not one of this list; send its `next_cursor` as it stands."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_due_time_survives_its_cursor() {
        let due = DateTime::from_timestamp_micros(1_767_225_600_000_001).unwrap();
        assert_eq!(moment_of(key_of(due)).unwrap(), due);
        for other in [Uuid::max(), Uuid::from_u128(1 << 62)] {
            assert_eq!(moment_of(JobId(other)).unwrap_err().code(), Code::QueryInvalid);
        }
    }
}
