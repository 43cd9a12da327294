//! `PATCH /v1/reports/{id}`, `POST` and `GET /v1/users/{id}/moderation`: what moderators do.

use axum::{
    Json as Answer,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use shared::{
    content::Content,
    job::JobId,
    kinds::{Kind, NotificationFanOut, Violation},
    ledger::moderation::{self, ModerationAction, NewAction, Notice, ReportStatus},
    tenant,
};
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::{
    ReportOfPath, check_text, not_found,
    report::{BODY_LIMIT, whole},
    view::{Report, Standing},
};
use crate::{
    app::App,
    auth::{Backend, ModerationRead, ModerationWrite},
    extract::{Json, Query},
    follow::Call,
    problem::{Code, Problem, ProblemBody},
    routes::{
        content,
        jobs::{hash_of, idempotency_key},
        moment::Moment,
        page::Page,
        repeat,
        users::{UserOfPath, check_name},
    },
};

/// What a moderator does about a report.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ReportChange {
    /// What is done: `approve`, `reject`, `flag`, `suspend` or `ban`. Whose content it is is told; `suspend` and `ban` need a report that
    /// names them.
    action: Option<ModerationAction>,
    /// What the report becomes. When absent, what the action makes of it: `dismissed` by `approve`, `reviewed` by `flag`, `resolved` by the
    /// others.
    status: Option<ReportStatus>,
    /// Of `suspend`, and of nothing else: until when, in the future and at most ten years ahead.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    until: Option<Moment>,
    /// In the moderator's words; with an action the user is told them. At most 2,000 characters.
    #[schema(min_length = 1, max_length = 2_000)]
    notes: Option<String>,
    /// Which user of the product does it, for the history.
    #[schema(min_length = 1, max_length = 255)]
    moderator: Option<String>,
}

/// What a moderator does about a user.
#[derive(Debug, Deserialize, ToSchema)]
pub struct UserAction {
    /// What is done: `approve`, `reject`, `flag`, `suspend`, `ban`, or `lift`, which ends a suspension or ban.
    action: ModerationAction,
    /// The content it is about; needed by `approve`, `reject` and `flag`.
    content: Option<Content>,
    /// Of `suspend`, and of nothing else: until when, in the future and at most ten years ahead. One who is suspended already is suspended
    /// until then instead.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    until: Option<Moment>,
    /// In the moderator's words; the user is told them. At most 2,000 characters.
    #[schema(min_length = 1, max_length = 2_000)]
    notes: Option<String>,
    /// Which user of the product does it, for the history.
    #[schema(min_length = 1, max_length = 255)]
    moderator: Option<String>,
}

fn check_until(action: Option<ModerationAction>, until: Option<DateTime<Utc>>, now: DateTime<Utc>, wrong: &mut Vec<Violation>) {
    match (action, until) {
        (Some(ModerationAction::Suspend), None) => {
            wrong.push(Violation::new("/until", "is missing: say until when; `ban` suspends for good"));
        }
        (Some(ModerationAction::Suspend), Some(until)) if until <= now => wrong.push(Violation::new("/until", "has passed")),
        (Some(ModerationAction::Suspend), Some(until)) if until > moderation::latest_end(now) => {
            wrong.push(Violation::new("/until", "is more than ten years ahead; `ban` suspends for good"));
        }
        (Some(ModerationAction::Suspend), Some(_)) | (_, None) => {}
        (_, Some(_)) => wrong.push(Violation::new("/until", "is for `suspend` alone; leave it out")),
    }
}

/// Does what an action does to its user, and tells them; answers whether a job was made.
async fn carry_out(
    app: &App,
    connection: &mut PgConnection,
    tenant: i32,
    action: &NewAction<'_>,
    told_by: JobId,
    now: DateTime<Utc>,
) -> Result<bool, Problem> {
    let (Some(user), Some(done)) = (action.user, action.action) else { return Ok(false) };
    match (done, action.until) {
        (ModerationAction::Suspend, Some(until)) => {
            let job = JobId(app.clock.new_id());
            moderation::suspend(&mut *connection, (tenant, user), action.id, (until, job), now).await?;
        }
        (ModerationAction::Ban, _) => moderation::ban(&mut *connection, (tenant, user), action.id, now).await?,
        (ModerationAction::Lift, _) if !moderation::lift(&mut *connection, tenant, user, now).await? => {
            let detail = "This user is neither suspended nor banned at this moment, so there is nothing to lift.";
            return Err(Problem::new(Code::UserNotSuspended, detail));
        }
        _ => {}
    }
    let notice = Notice { user, action: done, content: action.content, until: action.until, notes: action.notes };
    moderation::tell_user(connection, tenant, told_by, notice, now).await?;
    Ok(true)
}

/// Acts on a report.
///
/// An action, another status, or both; it is kept in the history of the report and of the user whose content it is. That user is told of an
/// action by the type `moderation`: in the inbox and by mail unless the manifest declares it otherwise. A suspension ends by itself at its
/// moment, and they are told that too.
#[utoipa::path(
    patch, path = "/v1/reports/{id}", tag = "moderation", operation_id = "change_report", request_body = ReportChange,
    params(
        ("id" = String, Path, description = "The report's id"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request harmless: the same key and request for one report are done once"),
    ),
    responses(
        (status = 200, body = Report, description = "Done, by this request or before under its idempotency key"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`report_not_found`"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request. `user_being_erased`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
    ),
)]
pub async fn on_report(
    State(app): State<App>,
    Backend(caller): Backend<ModerationWrite>,
    ReportOfPath(id): ReportOfPath,
    headers: HeaderMap,
    Json(change): Json<ReportChange, BODY_LIMIT>,
) -> Result<Answer<Report>, Problem> {
    let key = idempotency_key(&headers, None)?;
    let (tenant, now) = (caller.tenant, app.clock.now());
    let until = change.until.map(|moment| moment.0);
    let key = repeat::key_of(&json!(["act", id]), key);
    let notes = change.notes.as_deref().map(str::trim);
    let body = hash_of(&json!([change.action, change.status, until, notes, change.moderator]));
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let found = moderation::find(&mut transaction, tenant, id).await?.ok_or_else(not_found)?;
    if moderation::was_done(&mut transaction, tenant, key, body).await? {
        return Ok(Answer(whole(&mut transaction, tenant, id).await?.ok_or_else(not_found)?));
    }
    let mut wrong = Vec::new();
    match change.action {
        None if change.status.is_none() => wrong.push(Violation::new("", "says nothing: send an `action`, a `status`, or both")),
        Some(ModerationAction::Lift | ModerationAction::End) => {
            wrong.push(Violation::new(
                "/action",
                "must be approve, reject, flag, suspend or ban; a suspension is lifted by POST /v1/users/{id}/moderation",
            ));
        }
        Some(ModerationAction::Suspend | ModerationAction::Ban) if found.user.is_none() => {
            wrong.push(Violation::new("/action", "needs a user, and the report names none; POST /v1/users/{id}/moderation does it"));
        }
        _ => {}
    }
    check_until(change.action, until, now, &mut wrong);
    check_text("/notes", change.notes.as_deref(), &mut wrong);
    check_name("/moderator", change.moderator.as_deref(), &mut wrong);
    if !wrong.is_empty() {
        return Err(Problem::invalid(wrong));
    }
    let status = change.status.or_else(|| change.action.map(ModerationAction::status));
    let action = NewAction {
        id: app.clock.new_id(),
        report: Some(id),
        user: found.user.as_deref(),
        content: Some(&found.content),
        action: change.action,
        status,
        until,
        notes,
        moderator: change.moderator.as_deref(),
        key,
        body,
    };
    let told_by = JobId(app.clock.new_id());
    let (_, is_new) = repeat::settled(moderation::act(&mut transaction, tenant, &action, now).await?, action.id)?;
    let mut is_told = false;
    if is_new {
        if let Some(status) = status {
            moderation::change_status(&mut transaction, tenant, id, status, now).await?;
        }
        is_told = carry_out(&app, &mut transaction, tenant, &action, told_by, now).await?;
    }
    let report = whole(&mut transaction, tenant, id).await?.ok_or_else(not_found)?;
    transaction.commit().await?;
    if is_told {
        app.follow.tell(told_by, Call::Dispatch(NotificationFanOut::QUEUE));
    }
    Ok(Answer(report))
}

/// Acts on a user, with or without content of theirs that it is about.
///
/// As `PATCH /v1/reports/{id}` does, for what nobody reported; and `lift`, which ends a suspension or ban.
#[utoipa::path(
    post, path = "/v1/users/{id}/moderation", tag = "moderation", operation_id = "moderate_user", request_body = UserAction,
    params(
        ("id" = String, Path, description = "The user's name at the product"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request harmless: the same key and request for one user are done once"),
    ),
    responses(
        (status = 201, body = Standing, description = "Done; how they stand now"),
        (status = 200, body = Standing, description = "Done before under this idempotency key; how they stand now"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`user_not_found`: no user can be called so"),
        (status = 409, body = ProblemBody<'static>, description = "`user_not_suspended`: there is nothing to lift. `idempotency_conflict`, `user_being_erased`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
    ),
)]
pub async fn on_user(
    State(app): State<App>,
    Backend(caller): Backend<ModerationWrite>,
    UserOfPath(user): UserOfPath,
    headers: HeaderMap,
    Json(asked): Json<UserAction, BODY_LIMIT>,
) -> Result<(StatusCode, Answer<Standing>), Problem> {
    let key = idempotency_key(&headers, None)?;
    let (tenant, now) = (caller.tenant, app.clock.now());
    let until = asked.until.map(|moment| moment.0);
    let key = repeat::key_of(&json!(["moderate", user]), key);
    let notes = asked.notes.as_deref().map(str::trim);
    let body = hash_of(&json!([asked.action, asked.content, until, notes, asked.moderator]));
    let page = Page::new(None, None)?;
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    if moderation::was_done(&mut transaction, tenant, key, body).await? {
        return Ok((StatusCode::OK, Answer(look_up(&mut transaction, tenant, user, page, now).await?)));
    }
    let mut wrong = Vec::new();
    match asked.action {
        ModerationAction::End => {
            wrong.push(Violation::new("/action", "must be approve, reject, flag, suspend, ban or lift; suspensions end by themselves"));
        }
        ModerationAction::Approve | ModerationAction::Reject | ModerationAction::Flag if asked.content.is_none() => {
            wrong.push(Violation::new("/content", "is missing: say which content this is about"));
        }
        _ => {}
    }
    if let Some(content) = &asked.content {
        content::check("/content", content, &mut wrong);
    }
    check_until(Some(asked.action), until, now, &mut wrong);
    check_text("/notes", asked.notes.as_deref(), &mut wrong);
    check_name("/moderator", asked.moderator.as_deref(), &mut wrong);
    if !wrong.is_empty() {
        return Err(Problem::invalid(wrong));
    }
    let action = NewAction {
        id: app.clock.new_id(),
        report: None,
        user: Some(&user),
        content: asked.content.as_ref(),
        action: Some(asked.action),
        status: None,
        until,
        notes,
        moderator: asked.moderator.as_deref(),
        key,
        body,
    };
    let told_by = JobId(app.clock.new_id());
    let (_, is_new) = repeat::settled(moderation::act(&mut transaction, tenant, &action, now).await?, action.id)?;
    let is_told = is_new && carry_out(&app, &mut transaction, tenant, &action, told_by, now).await?;
    let standing = look_up(&mut transaction, tenant, user, page, now).await?;
    transaction.commit().await?;
    if is_told {
        app.follow.tell(told_by, Call::Dispatch(NotificationFanOut::QUEUE));
    }
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Answer(standing)))
}

/// Where a page of the history begins.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// How many of the history, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Shows how a user stands, and what was done about them.
#[utoipa::path(
    get, path = "/v1/users/{id}/moderation", tag = "moderation", operation_id = "read_user_moderation",
    params(("id" = String, Path, description = "The user's name at the product"), HistoryQuery),
    responses(
        (status = 200, body = Standing, description = "Also of somebody of whom nothing is known: they are active"),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 404, body = ProblemBody<'static>, description = "`user_not_found`: no user can be called so"),
    ),
)]
pub async fn of_user(
    State(app): State<App>,
    Backend(caller): Backend<ModerationRead>,
    UserOfPath(user): UserOfPath,
    Query(query): Query<HistoryQuery>,
) -> Result<Answer<Standing>, Problem> {
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    Ok(Answer(look_up(&mut transaction, caller.tenant, user, page, app.clock.now()).await?))
}

async fn look_up(connection: &mut PgConnection, tenant: i32, user: String, page: Page, now: DateTime<Utc>) -> Result<Standing, Problem> {
    let standing = moderation::standing(&mut *connection, tenant, &user, now).await?;
    let after = page.after.map(|after| after.0);
    let history = moderation::history_of_user(connection, tenant, &user, after, page.to_read()).await?;
    let (history, next_cursor) = page.cut(history, |action| JobId(action.id));
    Ok(Standing::of(user, standing, history, next_cursor))
}
