//! `GET /v1/exports/{id}/download`.

use std::time::Duration;

use axum::{
    extract::State,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use shared::{storage::StorageError, tenant};

use super::{
    find::{self, FoundExport, FoundFile},
    id_of, look_up,
    view::ExportState,
};
use crate::{
    app::App,
    auth::{CallerOrUser, ExportsRead},
    problem::{Code, Problem, ProblemBody},
    routes::jobs::{Asked, IdOfPath},
};

/// How long a link lives: enough to begin a download, also by hand; too short to be passed around.
const LINK_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// Leads to an export's file.
///
/// The answer redirects to a link that lives minutes and needs no key; each one is counted. Ask here again for another.
#[utoipa::path(
    get, path = "/v1/exports/{id}/download", tag = "exports", operation_id = "download_export",
    params(
        ("id" = String, Path, description = "The export's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 302, description = "To the file", headers(("Location" = String, description = "The link"))),
        (status = 404, body = ProblemBody<'static>, description = "`export_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`export_not_completed`: come back after `Retry-After`, if there is one; else it failed or was cancelled"),
        (status = 410, body = ProblemBody<'static>, description = "`export_expired`: the file has been deleted"),
    ),
)]
pub async fn download(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<ExportsRead>,
    id: IdOfPath,
    method: Method,
) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id_of(id)? };
    let now = app.clock.now();
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    let found = look_up(&mut transaction, asked).await?;
    let file = file_of(found, now)?;
    let lifetime = link_lifetime(file.expires_at, now);
    // Signing asks nobody: the transaction does not wait for it.
    let link = app.storage.presign_get(&file.object_key, &file.name, &file.content_type, lifetime).await.map_err(unsigned)?;
    // HEAD only asks whether there is one.
    if method == Method::GET {
        if !find::count_download(&mut transaction, asked, now).await? {
            return Err(expired());
        }
        transaction.commit().await?;
    }
    Ok(redirect(link))
}

/// The file of an export that has one.
pub(super) fn file_of(found: FoundExport, now: DateTime<Utc>) -> Result<FoundFile, Problem> {
    match found.state_at(now) {
        ExportState::Completed => {}
        state @ (ExportState::Pending | ExportState::Processing) => {
            let pause = found.outlook(now).poll_after_ms.and_then(|pause| u64::try_from(pause).ok()).unwrap_or_default();
            let detail = format!("The export is {}; the file is not there yet. Ask for the export until it is completed.", state.word());
            return Err(Problem::new(Code::ExportNotCompleted, detail).retry_after(Duration::from_millis(pause)));
        }
        ExportState::Failed => {
            return Err(Problem::new(
                Code::ExportNotCompleted,
                "The export failed; the export says why. Correct that and ask for it again.",
            ));
        }
        ExportState::Cancelled => {
            return Err(Problem::new(
                Code::ExportNotCompleted,
                "The export was cancelled, so there is no file. Ask for it again if it is wanted.",
            ));
        }
        ExportState::Expired => return Err(expired()),
    }
    found.file.ok_or_else(expired)
}

/// How long a link to a file lives that is kept until `expires_at`: no longer than the file itself.
pub fn link_lifetime(expires_at: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    let left = (expires_at - now).to_std().unwrap_or_default();
    LINK_LIFETIME.min(left).max(Duration::from_secs(1))
}

/// The answer that leads to a file.
pub fn redirect(link: String) -> Response {
    (StatusCode::FOUND, [(header::LOCATION, link), (header::CACHE_CONTROL, "no-store".to_owned())]).into_response()
}

fn expired() -> Problem {
    Problem::new(
        Code::ExportExpired,
        "The file has been deleted: its time was over, or its owner did not want it any more. Ask for the export again.",
    )
}

/// Only settings that can't work keep a link from being signed.
pub fn unsigned(error: StorageError) -> Problem {
    Problem::internal(error)
}
