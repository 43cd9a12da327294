//! `PATCH` and `DELETE /v1/schedules/{id}`, `POST …/pause` and `/resume`.

use axum::{Json as Answer, extract::State, http::StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};
use shared::{
    kinds::Violation,
    ledger::schedule::{self, FoundSchedule},
    tenant,
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Backend, IdOfPath, check_changeable,
    create::{BODY_LIMIT, read},
    tenant as tenant_of,
    view::{Schedule, fields_of},
};
use crate::{
    app::App,
    auth::SchedulesWrite,
    extract::{Json, MaybeJson},
    problem::{Problem, ProblemBody},
    routes::jobs::NoBody,
};

/// Changes a schedule.
///
/// A JSON merge patch (RFC 7396): what is sent replaces what was, `null` puts a field back to its default. Where `cron`, `time_zone`,
/// `every_seconds` or `starts_at` change, the next tick is the first one from now on. Jobs that were made stay as they are.
#[utoipa::path(
    patch, path = "/v1/schedules/{id}", tag = "schedules", operation_id = "change_schedule",
    params(("id" = String, Path, description = "The schedule's id")),
    request_body(content = Object, description = "The fields of a new schedule that change", example = json!({"cron": "0 3 * * *", "owner": null})),
    responses(
        (status = 200, body = Schedule),
        (status = 404, body = ProblemBody<'static>, description = "`schedule_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`schedule_declared`: the manifest's; `schedule_name_taken`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
    ),
)]
pub async fn change(
    State(app): State<App>,
    Backend(caller): Backend<SchedulesWrite>,
    id: IdOfPath,
    Json(patch): Json<Map<String, Value>, BODY_LIMIT>,
) -> Result<Answer<Schedule>, Problem> {
    let id = id.schedule()?;
    let tenant = tenant_of(&app, caller.tenant).await?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let held = schedule::hold(&mut transaction, caller.tenant, id).await?;
    check_changeable(&held)?;
    let (name, definition, kind) = read(&app, &tenant.manifest, merged(&held, patch))?;
    caller.may_make(&app.kinds, [(kind, &definition.payload)])?;
    let found = schedule::change(&mut transaction, &held, &name, definition, kind, app.clock.now()).await?;
    transaction.commit().await?;
    Ok(Answer(Schedule::of(found)))
}

/// What a schedule says, with a patch applied. The payload is one field: it is replaced as a whole.
fn merged(held: &FoundSchedule, patch: Map<String, Value>) -> Map<String, Value> {
    let mut fields = fields_of(&held.definition);
    fields.insert("name".to_owned(), Value::String(held.name.clone()));
    for (field, value) in patch {
        if value.is_null() {
            fields.remove(&field);
        } else {
            fields.insert(field, value);
        }
    }
    fields
}

/// Removes a schedule, with its history. Jobs that it made stay.
#[utoipa::path(
    delete, path = "/v1/schedules/{id}", tag = "schedules", operation_id = "delete_schedule",
    params(("id" = String, Path, description = "The schedule's id")),
    responses(
        (status = 204, description = "Removed"),
        (status = 404, body = ProblemBody<'static>, description = "`schedule_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`schedule_declared`: the manifest's"),
    ),
)]
pub async fn delete(
    State(app): State<App>,
    Backend(caller): Backend<SchedulesWrite>,
    id: IdOfPath,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let held = schedule::hold(&mut transaction, caller.tenant, id.schedule()?).await?;
    check_changeable(&held)?;
    schedule::delete(&mut transaction, &held).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who pauses.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = PauseSchedule)]
pub struct Pause {
    /// A name for people; the key's id when absent.
    #[schema(min_length = 1, max_length = 255)]
    by: Option<String>,
}

/// Pauses a schedule. What comes due meanwhile is not missed: it does not exist. Jobs that were made run on.
#[utoipa::path(
    post, path = "/v1/schedules/{id}/pause", tag = "schedules", operation_id = "pause_schedule",
    params(("id" = String, Path, description = "The schedule's id")), request_body = Option<Pause>,
    responses(
        (status = 200, body = Schedule, description = "Paused, by this request or before"),
        (status = 404, body = ProblemBody<'static>, description = "`schedule_not_found`"),
    ),
)]
pub async fn pause(
    State(app): State<App>,
    Backend(caller): Backend<SchedulesWrite>,
    id: IdOfPath,
    MaybeJson(pause): MaybeJson<Pause>,
) -> Result<Answer<Schedule>, Problem> {
    let by = match pause.by {
        None => format!("key {}", caller.key),
        Some(by) if (1..=255).contains(&by.chars().count()) && !by.chars().any(char::is_control) => by,
        Some(_) => {
            return Err(Problem::invalid(vec![Violation::new("/by", "must have 1 to 255 characters, none of them a control character")]));
        }
    };
    set_pause(&app, caller.tenant, id.schedule()?, Some(&by)).await
}

/// Lets a paused schedule go on: its next tick is the first one from now on.
#[utoipa::path(
    post, path = "/v1/schedules/{id}/resume", tag = "schedules", operation_id = "resume_schedule",
    params(("id" = String, Path, description = "The schedule's id")),
    responses(
        (status = 200, body = Schedule, description = "It goes on, by this request or before"),
        (status = 404, body = ProblemBody<'static>, description = "`schedule_not_found`"),
    ),
)]
pub async fn resume(
    State(app): State<App>,
    Backend(caller): Backend<SchedulesWrite>,
    id: IdOfPath,
    _: NoBody,
) -> Result<Answer<Schedule>, Problem> {
    set_pause(&app, caller.tenant, id.schedule()?, None).await
}

async fn set_pause(app: &App, tenant: i32, id: Uuid, by: Option<&str>) -> Result<Answer<Schedule>, Problem> {
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let held = schedule::hold(&mut transaction, tenant, id).await?;
    let found = schedule::pause(&mut transaction, &held, by, app.clock.now()).await?;
    transaction.commit().await?;
    Ok(Answer(Schedule::of(found)))
}
