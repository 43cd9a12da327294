//! Tasks for models: the doors of the kind `ai.run`. No model is called in here: what is accepted is a job (R3).
//!
//! What must stay true: an input that a task does not take is refused here, before anything is stored or counted.

mod batch;
mod create;
mod words;

use axum::{
    Router,
    routing::{get, post},
};
use utoipa::OpenApi;

use crate::app::App;

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(create::create, batch::create, words::follow), tags((name = "ai", description = "Tasks that are put to models")))]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/ai/{task}", post(create::create))
        .route("/v1/ai/{task}/batch", post(batch::create))
        .route("/v1/jobs/{id}/stream", get(words::follow))
}
