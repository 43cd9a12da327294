//! `POST /v1/schedules`.

use axum::{
    Json as Answer,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};
use shared::{
    kinds::{Entry, Violation},
    ledger::schedule::{self, NewSchedule},
    schedule::{Definition, check_name},
    tenant::{self, Manifest},
};
use utoipa::ToSchema;

use super::{
    Backend, tenant as tenant_of,
    view::{Schedule, address},
};
use crate::{
    app::App,
    auth::SchedulesWrite,
    extract::{self, Json},
    problem::{Problem, ProblemBody},
};

/// A schedule to be kept.
#[derive(ToSchema)]
#[schema(as = NewSchedule)]
#[expect(dead_code, reason = "the contract's; what is sent is read field by field")]
pub struct Asked {
    /// Its name, unique in the product: a lower-case letter, then lower-case letters, digits and `_`, at most 63.
    #[schema(example = "nightly_export", max_length = 63)]
    name: String,
    #[schema(inline)]
    #[serde(flatten)]
    definition: Definition,
}

/// The most that a request may say: a payload, and some words around it.
pub const BODY_LIMIT: usize = 300 * 1024;

/// Makes a schedule.
///
/// The payload is held to its kind's contract now, and again at each tick.
#[utoipa::path(
    post, path = "/v1/schedules", tag = "schedules", operation_id = "create_schedule", request_body = Asked,
    responses(
        (status = 201, body = Schedule, description = "Kept", headers(("Location" = String, description = "The schedule's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 409, body = ProblemBody<'static>, description = "`schedule_name_taken`, `schedule_limit_reached`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    Backend(caller): Backend<SchedulesWrite>,
    Json(fields): Json<Map<String, Value>, BODY_LIMIT>,
) -> Result<Response, Problem> {
    let tenant = tenant_of(&app, caller.tenant).await?;
    let (name, definition, kind) = read(&app, &tenant.manifest, fields)?;
    caller.may_make(&app.kinds, [(kind, &definition.payload)])?;
    let new = NewSchedule { id: app.clock.new_id(), tenant: caller.tenant, name, declared: false, definition, kind };
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = schedule::create(&mut transaction, &new, app.clock.now()).await?;
    transaction.commit().await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, address(found.id))], Answer(Schedule::of(found))).into_response())
}

/// Reads the fields of a schedule to the letter: its name, its definition, and its kind's name.
pub fn read(app: &App, manifest: &Manifest, mut fields: Map<String, Value>) -> Result<(String, Definition, &'static str), Problem> {
    let mut wrong = Vec::new();
    let name = match fields.remove("name") {
        Some(Value::String(name)) => {
            wrong.extend(check_name(&name).err().map(|detail| Violation::new("/name", detail)));
            name
        }
        other => {
            wrong.push(Violation::new("/name", if other.is_none() { "is missing" } else { "must be text" }));
            String::new()
        }
    };
    let definition = match extract::parse::<Definition>(Value::Object(fields).to_string().as_bytes()) {
        Ok(definition) => definition,
        Err(problem) => {
            wrong.extend(problem.errors().iter().cloned());
            return Err(Problem::invalid(wrong));
        }
    };
    wrong.extend(definition.violations(&app.kinds, manifest));
    let entry = app.kinds.find(&definition.kind);
    // The manifest's own schedules come round by another way than this.
    wrong.extend(entry.and_then(Entry::other_door).map(|door| Violation::new("/kind", door)));
    match entry {
        Some(entry) if wrong.is_empty() => Ok((name, definition, entry.name)),
        _ => Err(Problem::invalid(wrong)),
    }
}
