//! `GET /v1/exports/{id}/download`.

use std::time::Duration;

use axum::{
    extract::State,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use shared::{storage::StorageError, tenant};

use super::{find, id_of, not_found, view::ExportState};
use crate::{
    app::App,
    auth::{Caller, ExportsRead},
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
pub async fn download(State(app): State<App>, caller: Caller<ExportsRead>, id: IdOfPath, method: Method) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id_of(id)? };
    let now = app.clock.now();
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    let found = find::export(&mut transaction, asked).await?.ok_or_else(not_found)?;
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
    let Some(file) = found.file else { return Err(expired()) };
    // No longer than the file itself.
    let left = (file.expires_at - now).to_std().unwrap_or_default();
    let lifetime = LINK_LIFETIME.min(left).max(Duration::from_secs(1));
    // Signing asks nobody: the transaction does not wait for it.
    let link = app.storage.presign_get(&file.object_key, &file.name, &file.content_type, lifetime).await.map_err(unsigned)?;
    // HEAD only asks whether there is one.
    if method == Method::GET {
        if !find::count_download(&mut transaction, asked, now).await? {
            return Err(expired());
        }
        transaction.commit().await?;
    }
    Ok((StatusCode::FOUND, [(header::LOCATION, link), (header::CACHE_CONTROL, "no-store".to_owned())]).into_response())
}

fn expired() -> Problem {
    Problem::new(Code::ExportExpired, "The file has been deleted: files are kept for some days. Ask for the export again.")
}

/// Only settings that can't work keep a link from being signed.
fn unsigned(error: StorageError) -> Problem {
    Problem::internal(error)
}
