//! `DELETE /v1/exports/{id}`.

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use shared::{job::State as Standing, ledger::change::Change, tenant};

use super::{find, id_of, look_up, missing, view::Export};
use crate::{
    app::App,
    auth::{Caller, ExportsWrite},
    problem::{Problem, ProblemBody},
    routes::jobs::{Asked, IdOfPath, NoBody, Reader, restless, stop_job},
};

/// Cancels an export, or deletes its file.
///
/// What is not completed is cancelled: at once, or, while it is being written, within a moment; a file that is finished first is
/// then there, and another `DELETE` removes it. A completed export's file is taken from everybody at once, its page too, and
/// deleted from storage within seconds; a download that has begun may end. The export then is `expired`, its error
/// `file_deleted`. An export that has ended otherwise stays as it is.
#[utoipa::path(
    delete, path = "/v1/exports/{id}", tag = "exports", operation_id = "delete_export",
    params(
        ("id" = String, Path, description = "The export's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = Export, description = "There is no file and there will be none"),
        (status = 202, body = Export, description = "It is being written, and was asked to stop"),
        (status = 404, body = ProblemBody<'static>, description = "`export_not_found`"),
        (status = 410, body = ProblemBody<'static>, description = "`export_gone`: it was removed at `gone_at`"),
    ),
)]
pub async fn delete(State(app): State<App>, caller: Caller<ExportsWrite>, id: IdOfPath, _: NoBody) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id_of(id)? };
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    // A job of another kind is no export, and is not cancelled here.
    look_up(&mut transaction, asked).await?;
    drop(transaction);
    let change = stop_job(&app, asked).await?;
    let now = app.clock.now();
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    let status = match change {
        Change::Missing => return Err(missing(&mut transaction, asked).await),
        Change::Moved => return Err(restless()),
        Change::Asked => StatusCode::ACCEPTED,
        Change::NotFrom(Standing::Succeeded) => {
            find::remove(&mut transaction, asked, now).await?;
            StatusCode::OK
        }
        Change::Done | Change::NotFrom(_) | Change::TooLate(_) | Change::Held(_) | Change::OverLimit => StatusCode::OK,
    };
    let found = look_up(&mut transaction, asked).await?;
    transaction.commit().await?;
    Ok((status, Answer(Export::of(found, now, app.config.public_url.as_ref(), Reader::acting_for(asked.owner)))).into_response())
}
