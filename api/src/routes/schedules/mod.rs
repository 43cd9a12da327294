//! Schedules: made, shown, changed, paused, run at once, previewed. What makes jobs of them is in the worker.
//!
//! What must stay true: schedules are the backend's affair, so a request that acts for an end user is turned away before anything is
//! looked at; one of another tenant does not exist here (404); what the manifest declares is changed there and nowhere else.

mod change;
mod create;
mod find;
mod run;
mod view;

use axum::{
    Router,
    extract::{FromRequestParts, Path},
    http::request::Parts,
    routing::{get, post},
};
use shared::{
    ledger::{
        LedgerError,
        schedule::{FoundSchedule, ScheduleError},
    },
    tenant::Tenant,
};
use std::sync::Arc;
use utoipa::OpenApi;
use uuid::Uuid;

use crate::{
    app::App,
    auth::{Caller, Needs},
    problem::{Code, Problem},
};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(
        create::create, find::list, find::read, find::preview, find::history, change::change, change::delete, change::pause,
        change::resume, run::run
    ),
    tags((name = "schedules", description = "Jobs that the clock makes: cron or intervals, each tick exactly once. For backends: a request with `X-Acting-User` gets 403 `backend_only`")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/schedules", post(create::create).get(find::list))
        .route("/v1/schedules/{id}", get(find::read).patch(change::change).delete(change::delete))
        .route("/v1/schedules/{id}/pause", post(change::pause))
        .route("/v1/schedules/{id}/resume", post(change::resume))
        .route("/v1/schedules/{id}/run", post(run::run))
        .route("/v1/schedules/{id}/preview", get(find::preview))
        .route("/v1/schedules/{id}/history", get(find::history))
}

/// A caller that acts for nobody but its backend.
#[derive(Debug)]
struct Backend<N: Needs>(Caller<N>);

impl<N: Needs> FromRequestParts<App> for Backend<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        if caller.acting_user.is_some() {
            let detail = "Schedules are for the product's backend, not for its users. Leave the header X-Acting-User out.";
            return Err(Problem::new(Code::BackendOnly, detail));
        }
        Ok(Self(caller))
    }
}

/// The `{id}` of an address. What can't be an id names no schedule.
#[derive(Debug, Clone, Copy)]
struct IdOfPath(Option<Uuid>);

impl FromRequestParts<App> for IdOfPath {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, app).await;
        // In the form that we write; others lead nowhere, or one schedule would have several addresses.
        Ok(Self(text.ok().filter(|Path(text)| text.len() == 36).and_then(|Path(text)| Uuid::try_parse(&text).ok())))
    }
}

impl IdOfPath {
    fn schedule(self) -> Result<Uuid, Problem> {
        self.0.ok_or_else(not_found)
    }
}

fn not_found() -> Problem {
    Problem::new(Code::ScheduleNotFound, "There is no such schedule for this key. Check the id.")
}

/// A change of what the manifest declares.
fn check_changeable(held: &FoundSchedule) -> Result<(), ScheduleError> {
    if held.declared { Err(ScheduleError::Declared) } else { Ok(()) }
}

/// The caller's tenant, with its manifest.
async fn tenant(app: &App, id: i32) -> Result<Arc<Tenant>, Problem> {
    app.tenants.get(id).await?.ok_or_else(|| {
        // A key leads to its tenant by a foreign key, so this takes a database changed by hand.
        tracing::error!(tenant = id, "the key's tenant is not in the database");
        Problem::unexplained()
    })
}

impl From<ScheduleError> for Problem {
    fn from(error: ScheduleError) -> Self {
        match error {
            ScheduleError::Ledger(error) => LedgerError::into(error),
            ScheduleError::Missing => not_found(),
            ScheduleError::NameTaken => {
                Self::new(Code::ScheduleNameTaken, "There is a schedule of this name. Change that one, or choose another name.")
            }
            ScheduleError::TooMany => Self::new(Code::ScheduleLimitReached, format!("{}.", capitalised(&error.to_string()))),
            ScheduleError::Declared => {
                let detail = "The product's manifest declares this schedule. Change it there and apply the manifest; here it can be paused, resumed and run.";
                Self::new(Code::ScheduleDeclared, detail)
            }
        }
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + characters.as_str())
}
