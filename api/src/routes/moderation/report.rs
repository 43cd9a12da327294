//! `POST`, `GET /v1/reports` and `GET /v1/reports/{id}`.

use axum::{
    Json as Answer,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use shared::{
    content::Content,
    job::JobId,
    kinds::{Kind, NotificationFanOut, Violation},
    ledger::{
        LedgerError,
        moderation::{self, Listed, NewReport, ReportReason, ReportStatus},
    },
    tenant,
};
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ReportOfPath, check_text, not_found,
    view::{Report, ReportPage},
};
use crate::{
    app::App,
    auth::{Backend, Caller, ModerationRead, ReportsWrite, check_user},
    extract::{Json, Query},
    follow::Call,
    problem::{Code, Problem, ProblemBody},
    routes::{
        content,
        jobs::{hash_of, idempotency_key},
        page::Page,
        repeat,
        users::check_name,
    },
};

/// The most that a request may say, in bytes.
pub const BODY_LIMIT: usize = 16 * 1024;

/// The most of a report's history that is shown with it.
const SHOWN: i64 = 100;

/// A report on content.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewReportBody {
    /// What is reported.
    content: Content,
    /// Whose content it is: whom moderators can act on, and who is told of it.
    #[schema(min_length = 1, max_length = 255, example = "user-42")]
    user: Option<String>,
    reason: ReportReason,
    /// In the reporter's words; at most 2,000 characters.
    #[schema(min_length = 1, max_length = 2_000)]
    details: Option<String>,
    /// Who reports; the user of `X-Acting-User` when that is sent, and then nobody else. The product itself when absent.
    #[schema(min_length = 1, max_length = 255)]
    reporter: Option<String>,
    /// Makes a repeated request harmless: the same key and request of one reporter lead to the same report, for as long as that stands. The
    /// header `Idempotency-Key` does the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
}

impl NewReportBody {
    fn violations(&self, acting_user: Option<&str>) -> Vec<Violation> {
        let mut wrong = Vec::new();
        content::check("/content", &self.content, &mut wrong);
        check_name("/user", self.user.as_deref(), &mut wrong);
        check_name("/reporter", self.reporter.as_deref(), &mut wrong);
        check_text("/details", self.details.as_deref(), &mut wrong);
        if acting_user.is_some_and(|acting| self.reporter.as_deref().is_some_and(|named| named != acting)) {
            wrong.push(Violation::new("/reporter", "is another user than X-Acting-User; leave it out"));
        }
        wrong
    }
}

/// Reports content.
///
/// All users of the role `moderator` are told, by the type `report`: in the inbox and by push unless the manifest declares it otherwise. It
/// is `pending` until a moderator acts on it.
#[utoipa::path(
    post, path = "/v1/reports", tag = "moderation", operation_id = "create_report", request_body = NewReportBody,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user who reports"),
    ),
    responses(
        (status = 201, body = Report, description = "It stands, and moderators are being told", headers(("Location" = String, description = "The report's address"))),
        (status = 200, body = Report, description = "It was made before under this idempotency key; whoever acts for a user sees how far it is"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request. `user_being_erased`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
        (status = 503, body = ProblemBody<'static>, description = "`database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<ReportsWrite>,
    headers: HeaderMap,
    Json(new): Json<NewReportBody, BODY_LIMIT>,
) -> Result<Response, Problem> {
    let key = idempotency_key(&headers, new.idempotency_key.as_deref())?.map(str::to_owned);
    let wrong = new.violations(caller.acting_user.as_deref());
    if !wrong.is_empty() {
        return Err(Problem::invalid(wrong));
    }
    let (tenant, now) = (caller.tenant, app.clock.now());
    let reporter = caller.acting_user.as_deref().or(new.reporter.as_deref());
    let details = new.details.as_deref().map(str::trim);
    let report = NewReport {
        id: app.clock.new_id(),
        reporter,
        user: new.user.as_deref(),
        content: &new.content,
        reason: new.reason,
        details,
        key: repeat::key_of(&json!(["report", reporter]), key.as_deref()),
        body: hash_of(&json!([new.content, new.user, new.reason, details])),
    };
    let job = JobId(app.clock.new_id());
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let (id, is_new) = repeat::settled(moderation::add(&mut transaction, tenant, &report, now).await?, report.id)?;
    if is_new {
        moderation::tell_moderators(&mut transaction, tenant, job, &report, now).await?;
    }
    let found = moderation::find(&mut transaction, tenant, id).await?.ok_or_else(not_found)?;
    transaction.commit().await?;
    if is_new {
        app.follow.tell(job, Call::Dispatch(NotificationFanOut::QUEUE));
    }
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(header::LOCATION, format!("/v1/reports/{id}"))], Answer(Report::from(found))).into_response())
}

/// Which reports to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only those of this status: `pending`, `reviewed`, `resolved` or `dismissed`.
    status: Option<ReportStatus>,
    /// Only those on this user's content.
    user: Option<String>,
    /// How many, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists reports, newest first.
#[utoipa::path(
    get, path = "/v1/reports", tag = "moderation", operation_id = "list_reports", params(ListQuery),
    responses(
        (status = 200, body = ReportPage),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
    ),
)]
pub async fn list(
    State(app): State<App>,
    Backend(caller): Backend<ModerationRead>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<ReportPage>, Problem> {
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    if let Some(Err(detail)) = query.user.as_deref().map(check_user) {
        return Err(Problem::new(Code::QueryInvalid, format!("user: {detail}.")));
    }
    let listed = Listed { status: query.status, user: query.user.as_deref(), after: page.after.map(|after| after.0) };
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = moderation::list(&mut transaction, caller.tenant, listed, page.to_read()).await?;
    drop(transaction);
    let (found, next_cursor) = page.cut(found, |report| JobId(report.id));
    Ok(Answer(ReportPage { items: found.into_iter().map(Report::from).collect(), next_cursor }))
}

/// Shows a report, with what was done about it.
#[utoipa::path(
    get, path = "/v1/reports/{id}", tag = "moderation", operation_id = "read_report",
    params(("id" = String, Path, description = "The report's id")),
    responses(
        (status = 200, body = Report),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`report_not_found`"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    Backend(caller): Backend<ModerationRead>,
    ReportOfPath(id): ReportOfPath,
) -> Result<Answer<Report>, Problem> {
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    Ok(Answer(whole(&mut transaction, caller.tenant, id).await?.ok_or_else(not_found)?))
}

/// A report with its history.
pub async fn whole(connection: &mut PgConnection, tenant: i32, id: Uuid) -> Result<Option<Report>, LedgerError> {
    let Some(found) = moderation::find(&mut *connection, tenant, id).await? else { return Ok(None) };
    let history = moderation::history_of_report(connection, tenant, id, SHOWN).await?;
    Ok(Some(Report::from(found).with(history)))
}
