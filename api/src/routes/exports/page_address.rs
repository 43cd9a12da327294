//! `POST` and `DELETE /v1/exports/{id}/page`: the address of a file's public page, changed and taken back.

use axum::{Json as Answer, extract::State};
use shared::{ledger::files, tenant};

use super::{download::file_of, find, id_of, look_up, view::Export};
use crate::{
    app::App,
    auth::{Caller, ExportsWrite},
    problem::{Problem, ProblemBody},
    routes::jobs::{Asked, IdOfPath, NoBody, Reader},
};

/// Gives an export's page another address.
///
/// The one before leads nowhere from now on. A file has a page from the start; this is for when its address went to the wrong
/// people, or was taken back and is wanted again.
#[utoipa::path(
    post, path = "/v1/exports/{id}/page", tag = "exports", operation_id = "renew_export_page",
    params(
        ("id" = String, Path, description = "The export's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = Export, description = "The export with its new `page_url`"),
        (status = 404, body = ProblemBody<'static>, description = "`export_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`export_not_completed`"),
        (status = 410, body = ProblemBody<'static>, description = "`export_expired`: the file has been deleted"),
    ),
)]
pub async fn renew(State(app): State<App>, caller: Caller<ExportsWrite>, id: IdOfPath, _: NoBody) -> Result<Answer<Export>, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id_of(id)? };
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    let found = look_up(&mut transaction, asked).await?;
    file_of(found, app.clock.now())?;
    find::set_page(&mut transaction, asked, Some(&files::page_token())).await?;
    let found = look_up(&mut transaction, asked).await?;
    transaction.commit().await?;
    Ok(Answer(Export::of(found, app.clock.now(), app.config.public_url.as_ref(), Reader::acting_for(asked.owner))))
}

/// Takes the address of an export's page back.
///
/// Nobody gets in by it any more; the export itself stays. Links that the page handed out before live on for their minutes.
#[utoipa::path(
    delete, path = "/v1/exports/{id}/page", tag = "exports", operation_id = "revoke_export_page",
    params(
        ("id" = String, Path, description = "The export's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = Export, description = "The export, which has no `page_url` now"),
        (status = 404, body = ProblemBody<'static>, description = "`export_not_found`"),
    ),
)]
pub async fn revoke(State(app): State<App>, caller: Caller<ExportsWrite>, id: IdOfPath, _: NoBody) -> Result<Answer<Export>, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id_of(id)? };
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    // Whose it is comes first: the change itself only asks for the tenant.
    look_up(&mut transaction, asked).await?;
    find::set_page(&mut transaction, asked, None).await?;
    let found = look_up(&mut transaction, asked).await?;
    transaction.commit().await?;
    Ok(Answer(Export::of(found, app.clock.now(), app.config.public_url.as_ref(), Reader::acting_for(asked.owner))))
}
