//! Jobs: asked for, shown, waited for, listed, cancelled, tried again, discarded.
//!
//! What must stay true: a job of another tenant, or of another user than the one a backend acts for, does not exist here
//! (404); what is answered with 202 is durable; no request waits for Redis.

mod admission;
mod change;
mod create;
mod dead;
mod events;
mod explain;
mod fingerprint;
mod list;
mod next;
mod read;

use axum::{
    Router,
    extract::{FromRequestParts, Path},
    http::request::Parts,
    routing::{get, post},
};
use shared::{
    job::JobId,
    ledger::{
        self, LedgerError,
        dead::Tombstone,
        find::{FoundAttempt, FoundJob},
    },
    status as view, tenant,
};
use utoipa::OpenApi;
use uuid::Uuid;

pub use admission::{
    Admitted, Asker, Duplicate, Examined, KEY_RULE, Refusal, Wish, admit, backlog_full, count_duplicates, examine, idempotency_key, is_key,
    not_accepted, over_limit, tenant_of,
};
pub use change::{NoBody, restless, stop_job};
pub use create::{NewJob, ask, gone};
pub use events::stream;
pub use fingerprint::hash_of;
pub use list::{JobPage, listed_owner};
pub use next::{Check, NextJob};
pub use read::{ended_within, held_versions, tag};
pub use view::{Followers, Job, Outlook, Progress, Reader, Trouble, address as job_address};

use crate::{
    app::App,
    problem::{Code, Problem},
};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(
        create::create, list::list, read::read, change::cancel, change::retry, events::follow_one, events::follow_all, dead::discard,
        dead::retry_all, dead::discard_all, explain::explain
    ),
    tags((name = "jobs", description = "Every kind of work, asked for and followed")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/jobs", post(create::create).get(list::list))
        .route("/v1/jobs/retry", post(dead::retry_all))
        .route("/v1/jobs/discard", post(dead::discard_all))
        .route("/v1/jobs/{id}", get(read::read))
        .route("/v1/jobs/{id}/events", get(events::follow_one))
        .route("/v1/events", get(events::follow_all))
        .route("/v1/jobs/{id}/explain", get(explain::explain))
        .route("/v1/jobs/{id}/cancel", post(change::cancel))
        .route("/v1/jobs/{id}/retry", post(change::retry))
        .route("/v1/jobs/{id}/discard", post(dead::discard))
}

/// Whose job is asked for: of a tenant, and where a backend acts for a user, of that user.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The tenant.
    pub tenant: i32,
    /// The only user whose jobs exist; `None` for all of the tenant's.
    pub owner: Option<&'a str>,
    /// The job.
    pub id: JobId,
}

/// The `{id}` of an address. What can't be an id names no job.
#[derive(Debug, Clone, Copy)]
pub struct IdOfPath(pub Option<JobId>);

impl FromRequestParts<App> for IdOfPath {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, app).await;
        Ok(Self(text.ok().and_then(|Path(text)| id_of(&text))))
    }
}

impl IdOfPath {
    /// The id.
    ///
    /// # Errors
    /// [`Code::JobNotFound`].
    pub fn job(self) -> Result<JobId, Problem> {
        self.0.ok_or_else(not_found)
    }
}

/// An id in the form that we write; others lead nowhere, or one job would have several addresses.
fn id_of(text: &str) -> Option<JobId> {
    (text.len() == 36).then(|| Uuid::try_parse(text).ok().map(JobId))?
}

/// A job's view, with an outlook by what such jobs of its tenant took lately.
pub fn view_of(app: &App, tenant: i32, found: FoundJob, attempts: Option<Vec<FoundAttempt>>, reader: Reader) -> Job {
    let now = app.clock.now();
    let takes = (!found.state.is_terminal()).then(|| app.paces.of(tenant, &found.kind)).flatten();
    Job::of(found, attempts, &app.kinds, now, reader).paced(takes, now)
}

/// Why there is no such job: it is gone, or it never was for this caller.
pub async fn missing(app: &App, asked: Asked<'_>) -> Problem {
    match tombstone(app, asked).await {
        Ok(Some(Tombstone { gone_at, discarded, .. })) => {
            let how = if discarded { "discarded" } else { "removed with other finished history" };
            Problem::new(Code::JobGone, format!("The job was {how} at {}.", gone_at.format("%FT%TZ"))).gone_at(gone_at)
        }
        Ok(None) => not_found(),
        Err(error) => error.into(),
    }
}

async fn tombstone(app: &App, asked: Asked<'_>) -> Result<Option<Tombstone>, LedgerError> {
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    ledger::dead::tombstone(&mut transaction, asked.tenant, asked.owner, asked.id).await
}

fn not_found() -> Problem {
    Problem::new(Code::JobNotFound, "There is no such job for this key and user. Check the id, and X-Acting-User if it was sent.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_form() {
        let id = "0197c2a4-5b6c-7d8e-9f01-23456789abcd";
        assert_eq!(id_of(id).unwrap().to_string(), id);
        for other in ["", "x", &id[1..], &format!("{{{id}}}"), &format!("urn:uuid:{id}"), &id.replace('-', ""), &id.replace('7', "g")] {
            assert_eq!(id_of(other), None, "{other}");
        }
    }
}
