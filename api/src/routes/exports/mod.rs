//! Exports: files of a product's data. The door of the kind `export.create`: an export is that job, in an export's words (R11).
//!
//! What must stay true: what belongs to another tenant or user does not exist here; a link to a file is made when it is asked
//! for, lives minutes and is never logged or cached; every link handed out is counted.

mod create;
mod delete;
mod download;
mod find;
mod page_address;
mod read;
mod view;

use axum::{
    Router,
    routing::{get, post},
};
pub use download::{link_lifetime, redirect, unsigned};
use utoipa::OpenApi;

use super::jobs::IdOfPath;
use crate::{
    app::App,
    problem::{Code, Problem},
};
use shared::job::JobId;

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(create::create, read::list, read::read, delete::delete, download::download, page_address::renew, page_address::revoke),
    tags((name = "exports", description = "Files of a product's data, made in the background")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/exports", post(create::create).get(read::list))
        .route("/v1/exports/{id}", get(read::read).delete(delete::delete))
        .route("/v1/exports/{id}/download", get(download::download))
        .route("/v1/exports/{id}/page", post(page_address::renew).delete(page_address::revoke))
}

/// The id of an address.
fn id_of(path: IdOfPath) -> Result<JobId, Problem> {
    path.0.ok_or_else(not_found)
}

fn not_found() -> Problem {
    Problem::new(Code::ExportNotFound, "There is no such export for this key and user. Check the id, and X-Acting-User if it was sent.")
}

/// The address of an export.
fn address(id: JobId) -> String {
    format!("/v1/exports/{id}")
}
