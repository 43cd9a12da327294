//! `POST /v1/exports`.

use axum::{
    Json as Answer,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use shared::{
    job::Priority,
    keys::Scope,
    kinds::{ExportCreate, ExportFormat},
    tenant,
};
use utoipa::ToSchema;

use super::{
    address,
    find::{self, FoundExport},
    view::Export,
};
use crate::{
    app::App,
    auth::{Caller, ExportsWrite},
    extract::Json,
    problem::{Problem, ProblemBody},
    routes::{
        jobs::{Admitted, Asked, Reader, Wish, admit, gone},
        moment::Moment,
    },
};

/// An export to be made.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewExport {
    /// A dataset that the product declares. Unknown ones are answered with the list. Exactly one of this, `type`, `metric` and `view` is sent.
    #[schema(example = "prompts")]
    dataset: Option<String>,
    /// `full`: every dataset that the caller may read, in one file (`json`, `markdown`) or a zip; else the same as `dataset`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// A metric that the product declares: its numbers by period and group, as `GET /v1/analytics/{metric}` has them. The span and the groups
    /// stand in `params`. Needs the scope `analytics:read` too.
    #[schema(example = "response_time")]
    metric: Option<String>,
    /// A view that the product declares: all its metrics, in one file (`json`, `markdown`) or a zip. The span stands in `params`. Needs the
    /// scope `analytics:read` too.
    #[schema(example = "performance")]
    view: Option<String>,
    /// The file's format.
    format: ExportFormat,
    /// Values of the dataset's parameters, by name. The one that is bound to the owner can't be set. Of a metric or a view: `from`, `to`,
    /// `granularity`, `tz`; of a metric also `group_by` (a list) and `top`.
    #[schema(value_type = Option<Object>, example = json!({"since": "2026-01-01T00:00:00Z"}))]
    params: Option<Map<String, Value>>,
    /// The name to save the file under, without its ending, at most 60 characters; the dataset's name when absent.
    #[schema(min_length = 1, max_length = 60)]
    filename: Option<String>,
    /// `csv`: whether the file begins with a byte order mark, by which Excel knows UTF-8; no when absent.
    bom: Option<bool>,
    /// `csv`: whether an apostrophe goes before texts that a spreadsheet would run as formulas; yes when absent.
    escape_formulas: Option<bool>,
    /// Whether the owner is notified in the product when the file is ready, or there will be none; yes when absent.
    notify: Option<bool>,
    /// Makes a repeated request harmless: the same key and request lead to the same export for a day. 1 to 255 visible ASCII
    /// characters. The header `Idempotency-Key` does the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
    /// When to make it, at most a year ahead; at once when absent or past.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    run_at: Option<Moment>,
    /// When it is no longer worth starting: then it expires.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    start_by: Option<Moment>,
    /// Which exports it goes before; `normal` when absent.
    priority: Option<Priority>,
    /// The end user whose export it is, and whose rows it holds; the user of `X-Acting-User` when that is sent, and then no
    /// other. 1 to 255 characters without spaces.
    #[schema(min_length = 1, max_length = 255)]
    owner: Option<String>,
    /// Where to POST the view of the export's job when it has ended, signed by Standard Webhooks: an https address on a host that the
    /// product's manifest lists. At most 2,000 bytes.
    #[schema(max_length = 2_000, example = "https://hooks.example.com/offstage")]
    completion_url: Option<String>,
}

impl NewExport {
    fn split(self) -> (ExportCreate, Wish) {
        let export = ExportCreate {
            dataset: self.dataset,
            kind: self.kind,
            metric: self.metric,
            view: self.view,
            format: self.format,
            params: self.params.unwrap_or_default(),
            filename: self.filename,
            bom: self.bom.unwrap_or_default(),
            escape_formulas: self.escape_formulas,
            notify: self.notify,
        };
        let wish = Wish {
            idempotency_key: self.idempotency_key,
            run_at: self.run_at.map(|moment| moment.0),
            start_by: self.start_by.map(|moment| moment.0),
            priority: self.priority,
            owner: self.owner,
            completion_url: self.completion_url,
            ..Wish::of(&export)
        };
        (export, wish)
    }
}

/// Asks for an export.
///
/// The file is made in the background; ask for the export until it is `completed`, then download it.
#[utoipa::path(
    post, path = "/v1/exports", tag = "exports", operation_id = "create_export", request_body = NewExport,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 202, body = Export, description = "Accepted", headers(("Location" = String, description = "The export's address"))),
        (status = 200, body = Export, description = "Accepted before under this idempotency key; the export as it stands now", headers(("Location" = String, description = "The export's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`kind_not_enabled`: exports are switched off, or not on for this user yet; `scope_missing`"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request"),
        (status = 413, body = ProblemBody<'static>, description = "`payload_too_large`, `body_too_large`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
        (status = 429, body = ProblemBody<'static>, description = "`backlog_full`: as many jobs of this product wait as may; again after `Retry-After`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<ExportsWrite>,
    headers: HeaderMap,
    Json(new): Json<NewExport>,
) -> Result<Response, Problem> {
    let (export, wish) = new.split();
    if export.is_of_metrics() {
        caller.must_have(Scope::AnalyticsRead)?;
    }
    let acting_user = caller.acting_user.as_deref();
    let mut duplicate = None;
    let (status, found) = match admit(&app, caller.tenant, acting_user, &headers, wish).await? {
        Admitted::Now(job) => (StatusCode::ACCEPTED, FoundExport::accepted(*job, &export)),
        Admitted::Before(before) => {
            let id = before.first;
            duplicate = Some(before);
            let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
            let asked = Asked { tenant: caller.tenant, owner: acting_user, id };
            (StatusCode::OK, find::export(&mut transaction, asked).await?.ok_or_else(|| gone(id))?)
        }
    };
    let location = address(found.id);
    let export = Export::of(found, app.clock.now(), app.config.public_url.as_ref(), Reader::acting_for(acting_user)).found_by(duplicate);
    Ok((status, [(header::LOCATION, location)], Answer(export)).into_response())
}
