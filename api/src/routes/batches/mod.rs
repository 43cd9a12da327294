//! Batches: many jobs asked for at once, followed and cancelled together, with what is to be done when all have ended.
//!
//! What must stay true: a batch of another tenant, or of another user than the one a backend acts for, does not exist here (404);
//! what is answered with 202 is durable, the batch and its jobs together; a batch holds up nobody's single job: few are read and
//! stored at a time, and their jobs wait in the backlog like all others where their queue's window is full.

mod cancel;
mod create;
mod read;
mod view;

pub use create::{Mode, NewBatch, Turn, create_batch};
pub use view::AcceptedBatch;

use axum::{
    Router,
    extract::{FromRequestParts, Path},
    http::request::Parts,
    routing::{get, post},
};
use utoipa::OpenApi;
use uuid::Uuid;

use crate::{
    app::App,
    problem::{Code, Problem},
};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(create::create, read::list, read::read, read::jobs, cancel::cancel),
    tags((name = "batches", description = "Many jobs, asked for and followed together")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/jobs/batch", post(create::create))
        .route("/v1/batches", get(read::list))
        .route("/v1/batches/{id}", get(read::read))
        .route("/v1/batches/{id}/jobs", get(read::jobs))
        .route("/v1/batches/{id}/cancel", post(cancel::cancel))
}

/// The `{id}` of an address. What can't be an id names no batch.
#[derive(Debug, Clone, Copy)]
pub struct IdOfPath(Option<Uuid>);

impl FromRequestParts<App> for IdOfPath {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, app).await;
        // In the form that we write: others lead nowhere, or one batch would have several addresses.
        Ok(Self(text.ok().and_then(|Path(text)| (text.len() == 36).then(|| Uuid::try_parse(&text).ok())?)))
    }
}

impl IdOfPath {
    /// The id.
    ///
    /// # Errors
    /// [`Code::BatchNotFound`].
    pub fn batch(self) -> Result<Uuid, Problem> {
        self.0.ok_or_else(not_found)
    }
}

fn not_found() -> Problem {
    Problem::new(Code::BatchNotFound, "There is no such batch for this key and user. Check the id, and X-Acting-User if it was sent.")
}
