//! `POST /v1/notifications` and `GET /v1/notifications/triggers/{id}`: something is told to one, many or all of a role.

use axum::{
    Json as Answer,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::{
    job::{JobId, Priority},
    kinds::{Kind, NotificationFanOut, Recipients},
    ledger::{
        find::{self, FoundJob},
        notifications::{self, Standing},
    },
    status::Trouble,
    tenant,
};
use utoipa::ToSchema;

use crate::{
    app::App,
    auth::{Backend, NotificationsRead, NotificationsWrite},
    extract::Json,
    problem::{Code, Problem, ProblemBody},
    routes::{
        jobs::{Admitted, Asked, IdOfPath, Reader, Wish, admit, gone, missing},
        moment::Moment,
    },
};

/// Something to be told.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewNotification {
    /// What it is: `like`, `follow`, `share`, `comment`, `mention`, `system`, or a type of the product's manifest.
    #[serde(rename = "type")]
    #[schema(example = "comment", pattern = "^[a-z][a-z0-9_]{0,62}$")]
    sort: String,
    /// Whom it is told.
    #[schema(example = json!({"user": "ada"}))]
    to: Recipients,
    /// The title, where the type has no words of its own; templates may use it.
    #[schema(min_length = 1, max_length = 255)]
    title: Option<String>,
    /// The message.
    #[schema(max_length = 4_000)]
    message: Option<String>,
    /// What a click opens: an https address, or a path of the page's own; at most 1,000 bytes.
    #[schema(max_length = 1_000)]
    url: Option<String>,
    /// For programs and for templates; at most 4 KiB.
    #[serde(default)]
    #[schema(required = false, value_type = Object)]
    data: Map<String, Value>,
    /// With what it is gathered, where its type is; with all of the type when absent.
    #[schema(min_length = 1, max_length = 255)]
    digest_key: Option<String>,
    /// When it is no use any more, as a code is after some minutes: what was not sent by then is not, and the log says so.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    send_by: Option<Moment>,
    /// When to tell it, at most a year ahead; at once when absent or past.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    run_at: Option<Moment>,
    /// Which notifications it goes before; `normal` when absent.
    priority: Option<Priority>,
    /// Makes a repeated request harmless: the same key and request lead to the same notification for a day. 1 to 255 visible ASCII
    /// characters. The header `Idempotency-Key` does the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
}

impl NewNotification {
    fn into_wish(self) -> Wish {
        let asked = NotificationFanOut {
            sort: self.sort,
            to: self.to,
            title: self.title,
            message: self.message,
            url: self.url,
            data: self.data,
            digest_key: self.digest_key,
            send_by: self.send_by.map(|moment| moment.0),
            export: None,
        };
        // What is told to one user, or to one's followers, is theirs, and goes with them.
        let owner = match &asked.to {
            Recipients::User(user) | Recipients::FollowersOf(user) => Some(user.clone()),
            Recipients::Users(_) | Recipients::Role(_) => None,
        };
        Wish {
            idempotency_key: self.idempotency_key,
            run_at: self.run_at.map(|moment| moment.0),
            priority: self.priority,
            owner,
            ..Wish::of(&asked)
        }
    }
}

/// How far a notification has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TriggerState {
    /// Nobody has been told yet.
    Waiting,
    /// Some have.
    Telling,
    /// Everybody has: it stands in their inboxes, and pushes and mails are jobs of their own. Or nothing more is under way: then `not_told`
    /// says how many have not, and `error` why.
    Told,
    /// It can't be told; `error` says why.
    Failed,
    /// It was cancelled before it was told.
    Cancelled,
}

/// A notification as its product sees it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Trigger {
    /// Its id: that of its job, by which deliveries of those who could not be told are found.
    #[schema(value_type = String, format = Uuid)]
    id: JobId,
    state: TriggerState,
    /// Recipients known so far; all of them once it is told.
    recipients: i32,
    /// Of these, told.
    told: i32,
    /// Of these, those who were not: the jobs that were to tell them, a thousand each, failed for good or were cancelled. Who tries such a
    /// job again (`ended_job`, or all by `POST /v1/jobs/retry`) tells them.
    not_told: i32,
    /// One of those jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = Option<String>, format = Uuid)]
    ended_job: Option<JobId>,
    /// Rows in inboxes.
    in_app: i32,
    /// Pushes, one for each recipient that has a browser; each is a job.
    pushes: i32,
    /// Mails; each is a job.
    emails: i32,
    /// Put into a digest, from which pushes and mails come when it closes.
    gathered: i32,
    /// Why it failed, or why some were not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    error: Option<Trouble>,
    /// When it was asked for.
    created_at: DateTime<Utc>,
}

impl Trigger {
    fn of(found: &FoundJob, standing: Option<Standing>) -> Self {
        let (id, state, created_at) = (found.id, found.state, found.created_at);
        let standing = standing.unwrap_or_default();
        let Standing { is_planned, recipients, told, in_app, pushes, emails, gathered, not_told, ended, error } = standing;
        let error = found.error.as_ref().or(error.as_ref()).map(|error| Trouble::of(error, Reader::Backend));
        let is_over = is_planned && told.saturating_add(not_told) >= recipients;
        let state = match state {
            shared::job::State::Failed | shared::job::State::Expired => TriggerState::Failed,
            shared::job::State::Cancelled => TriggerState::Cancelled,
            _ if is_over && not_told > 0 && told == 0 => TriggerState::Failed,
            _ if is_over => TriggerState::Told,
            _ if recipients > 0 || is_planned => TriggerState::Telling,
            _ => TriggerState::Waiting,
        };
        Self { id, state, recipients, told, not_told, ended_job: ended, in_app, pushes, emails, gathered, error, created_at }
    }
}

/// Tells something.
///
/// To one user, a list, all of a role or all who follow somebody. It stands in each recipient's inbox once, and goes by push and mail as its
/// type and each user's preferences have it, asked when it is about to be sent. `GET /v1/deliveries` says what was not sent, and why.
#[utoipa::path(
    post, path = "/v1/notifications", tag = "notifications", operation_id = "create_notification", request_body = NewNotification,
    params(("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same")),
    responses(
        (status = 202, body = Trigger, description = "Accepted", headers(("Location" = String, description = "Where it says how far it is"))),
        (status = 200, body = Trigger, description = "Accepted before under this idempotency key; as it stands now", headers(("Location" = String, description = "Where it says how far it is"))),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`, `kind_not_enabled`"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
        (status = 429, body = ProblemBody<'static>, description = "`backlog_full`: as many jobs of this product wait as may; again after `Retry-After`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    Backend(caller): Backend<NotificationsWrite>,
    headers: HeaderMap,
    Json(new): Json<NewNotification>,
) -> Result<Response, Problem> {
    let (status, id) = match admit(&app, caller.tenant, None, &headers, new.into_wish()).await? {
        Admitted::Now(job) => (StatusCode::ACCEPTED, job.id),
        Admitted::Before(before) => (StatusCode::OK, before.first),
    };
    let trigger = look_up(&app, caller.tenant, id).await?.ok_or_else(|| gone(id))?;
    Ok((status, [(header::LOCATION, format!("/v1/notifications/triggers/{id}"))], Answer(trigger)).into_response())
}

/// Says how far a notification is.
#[utoipa::path(
    get, path = "/v1/notifications/triggers/{id}", tag = "notifications", operation_id = "read_notification_trigger",
    params(("id" = String, Path, description = "The id that `POST /v1/notifications` answered with")),
    responses(
        (status = 200, body = Trigger),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed with other finished history"),
    ),
)]
pub async fn read(State(app): State<App>, Backend(caller): Backend<NotificationsRead>, id: IdOfPath) -> Result<Answer<Trigger>, Problem> {
    let id = id.job()?;
    match look_up(&app, caller.tenant, id).await? {
        Some(trigger) => Ok(Answer(trigger)),
        None => Err(missing(&app, Asked { tenant: caller.tenant, owner: None, id }).await),
    }
}

async fn look_up(app: &App, tenant: i32, id: JobId) -> Result<Option<Trigger>, Problem> {
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let Some(found) = find::job(&mut transaction, tenant, None, id).await? else { return Ok(None) };
    if found.kind != NotificationFanOut::NAME {
        return Err(Problem::new(Code::JobNotFound, "That job is no notification; GET /v1/jobs/{id} shows it."));
    }
    let standing = notifications::standing(&mut transaction, tenant, id).await?;
    drop(transaction);
    Ok(Some(Trigger::of(&found, standing)))
}
