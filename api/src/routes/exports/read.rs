//! `GET /v1/exports` and `GET /v1/exports/{id}`.

use axum::{
    Json as Answer,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use shared::{
    kinds::{ExportCreate, Kind},
    tenant,
};
use utoipa::ToSchema;

use super::{find, id_of, look_up, view::Export};
use crate::{
    app::App,
    auth::{CallerOrUser, ExportsRead},
    extract::Query,
    problem::{Problem, ProblemBody},
    routes::{
        conditional::holds,
        jobs::{Asked, IdOfPath, Reader, listed_owner},
        page::Page,
    },
};

/// Which exports to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// How many, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// Only this end user's; with `X-Acting-User` it is that user's anyhow.
    owner: Option<String>,
}

/// A page of exports, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExportPage {
    /// The exports.
    items: Vec<Export>,
    /// Send it as `cursor` for the next page; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// Lists exports, newest first.
#[utoipa::path(
    get, path = "/v1/exports", tag = "exports", operation_id = "list_exports",
    params(ListQuery, ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for")),
    responses((status = 200, body = ExportPage), (status = 400, body = ProblemBody<'static>, description = "`query_invalid`")),
)]
pub async fn list(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<ExportsRead>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<ExportPage>, Problem> {
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    let reader = Reader::acting_for(caller.acting_user.as_deref());
    let owner = listed_owner(&caller, query.owner)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = find::list(&mut transaction, caller.tenant, owner.as_deref(), page).await?;
    drop(transaction);
    let (found, next_cursor) = page.cut(found, |export| export.id);
    let now = app.clock.now();
    Ok(Answer(ExportPage {
        items: found.into_iter().map(|export| Export::of(export, now, app.config.public_url.as_ref(), reader)).collect(),
        next_cursor,
    }))
}

/// Shows an export.
#[utoipa::path(
    get, path = "/v1/exports/{id}", tag = "exports", operation_id = "read_export",
    params(
        ("id" = String, Path, description = "The export's id"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = Export, headers(("ETag" = String, description = "Weak, of what the export says"))),
        (status = 304, description = "Nothing changed"),
        (status = 404, body = ProblemBody<'static>, description = "`export_not_found`: it never was, or is another's"),
        (status = 410, body = ProblemBody<'static>, description = "`export_gone`: it was removed at `gone_at`"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<ExportsRead>,
    id: IdOfPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id_of(id)? };
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    let found = look_up(&mut transaction, asked).await?;
    drop(transaction);
    let now = app.clock.now();
    let takes = (!found.state.is_terminal()).then(|| app.paces.of(asked.tenant, ExportCreate::NAME)).flatten();
    let outlook = found.outlook_by(takes, now);
    let export = Export::of(found, now, app.config.public_url.as_ref(), Reader::acting_for(asked.owner)).paced(outlook);
    let tag = export.tag();
    if holds(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(([(header::ETAG, tag)], Answer(export)).into_response())
}
