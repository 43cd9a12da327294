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

use super::jobs::{Asked, IdOfPath};
use crate::{
    app::App,
    problem::{Code, Problem},
};
use find::FoundExport;
use shared::{
    job::JobId,
    kinds::{ExportCreate, Kind},
    ledger::dead,
};
use sqlx::PgConnection;

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

/// The export that is asked for.
async fn look_up(connection: &mut PgConnection, asked: Asked<'_>) -> Result<FoundExport, Problem> {
    match find::export(connection, asked).await? {
        Some(found) => Ok(found),
        None => Err(missing(connection, asked).await),
    }
}

/// Why there is no such export: it is gone, or it never was for this caller.
async fn missing(connection: &mut PgConnection, asked: Asked<'_>) -> Problem {
    match dead::tombstone(connection, asked.tenant, asked.owner, asked.id).await {
        Ok(Some(tombstone)) if tombstone.kind == ExportCreate::NAME => {
            let detail = format!("The export was removed at {}. Ask for it again.", tombstone.gone_at.format("%FT%TZ"));
            Problem::new(Code::ExportGone, detail).gone_at(tombstone.gone_at)
        }
        Ok(_) => not_found(),
        Err(error) => error.into(),
    }
}

fn not_found() -> Problem {
    Problem::new(Code::ExportNotFound, "There is no such export for this key and user. Check the id, and X-Acting-User if it was sent.")
}

/// The address of an export.
fn address(id: JobId) -> String {
    format!("/v1/exports/{id}")
}
