//! What became of messages: `GET /v1/deliveries`, of a job or of a user.
//!
//! What must stay true: each message that was not sent says why, also one whose job never ran; a user sees its own alone; no address is in
//! an answer.

use axum::{Json as Answer, Router, extract::State, routing::get};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    job::{JobId, State as Standing},
    kinds::{EmailSend, Kind, PushSend},
    ledger::{
        deliveries::{self, Channel, DeliveryState, FoundDelivery},
        find,
    },
    tenant,
};
use sqlx::PgConnection;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::{jobs::listed_owner, page::Page};
use crate::{
    app::App,
    auth::{Caller, JobsRead},
    extract::Query,
    problem::{Code, Problem, ProblemBody},
};

/// The door's part of the contract.
#[derive(OpenApi)]
#[openapi(paths(list), tags((name = "deliveries", description = "What became of each message")))]
pub struct Contract;

/// The door.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/deliveries", get(list))
}

/// Which messages to list: of a job, or of a user.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// All of this job.
    #[param(format = Uuid)]
    job: Option<String>,
    /// Those for this end user, newest first; with `X-Acting-User` it is that user's anyhow.
    user: Option<String>,
    /// How many of a user's, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A message on its way to a person: a mail, or a push to one browser.
#[derive(Debug, Serialize, ToSchema)]
pub struct Delivery {
    /// The job that sends it.
    #[schema(value_type = String, format = Uuid)]
    job: JobId,
    channel: Channel,
    /// Of a push: which browser.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    browser: Option<Uuid>,
    /// The user it is for, where it is for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    user: Option<String>,
    /// Of a mail: its sort.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    category: Option<String>,
    state: DeliveryState,
    /// Why it was not sent, or is not known, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, example = "recipient_suppressed")]
    why: Option<String>,
    /// The same for a person; not told to end users.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    detail: Option<String>,
    /// Whether that is the end of it; it is tried again otherwise.
    #[serde(rename = "final")]
    is_final: bool,
    /// Whether it may have arrived more than once.
    repeated: bool,
    /// How often it was tried.
    attempts: i16,
    /// When it was tried first.
    created_at: DateTime<Utc>,
    /// When this was learnt.
    changed_at: DateTime<Utc>,
}

/// Messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryPage {
    items: Vec<Delivery>,
    /// Send it as `cursor` for the next page; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

impl Delivery {
    fn of(found: FoundDelivery, for_the_backend: bool) -> Self {
        Self {
            job: found.job,
            channel: found.channel,
            browser: found.device,
            user: found.owner,
            category: found.category,
            state: found.state,
            why: found.why,
            detail: found.detail.filter(|_| for_the_backend),
            is_final: found.is_final,
            repeated: found.repeated,
            attempts: found.attempts,
            created_at: found.created_at,
            changed_at: found.changed_at,
        }
    }
}

/// Tells what became of messages: of one job, or of one user.
///
/// A mail is one, a push one for each browser. What may have arrived although no answer came is `unknown`.
#[utoipa::path(
    get, path = "/v1/deliveries", tag = "deliveries", operation_id = "list_deliveries",
    params(ListQuery, ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for")),
    responses(
        (status = 200, body = DeliveryPage, description = "Empty while nothing was tried"),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`: neither or both of `job` and `user`"),
    ),
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<DeliveryPage>, Problem> {
    let for_the_backend = caller.acting_user.is_none();
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    let one = || Problem::new(Code::QueryInvalid, "Send either `job` or `user`.");
    if query.job.is_some() && query.user.is_some() {
        return Err(one());
    }
    let owner = listed_owner(&caller, query.user)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let (found, next_cursor) = match (query.job, owner) {
        (Some(job), owner) => {
            let no_id = || Problem::new(Code::QueryInvalid, "job: is no job's id.");
            let job = Uuid::try_parse(&job).map(JobId).map_err(|_| no_id())?;
            let mut found = deliveries::of_job(&mut transaction, caller.tenant, owner.as_deref(), job).await?;
            if found.is_empty() {
                found.extend(never_tried(&mut transaction, caller.tenant, owner.as_deref(), job).await?);
            }
            (found, None)
        }
        (None, Some(owner)) => {
            let after = page.after.map(|after| after.0);
            let found = deliveries::of_owner(&mut transaction, caller.tenant, &owner, after, page.to_read()).await?;
            page.cut(found, |delivery| JobId(delivery.id))
        }
        (None, None) => return Err(one()),
    };
    drop(transaction);
    Ok(Answer(DeliveryPage { items: found.into_iter().map(|found| Delivery::of(found, for_the_backend)).collect(), next_cursor }))
}

/// The message of a job that ended before it was ever tried: too late, or not wanted any more.
async fn never_tried(
    connection: &mut PgConnection,
    tenant: i32,
    owner: Option<&str>,
    job: JobId,
) -> Result<Option<FoundDelivery>, Problem> {
    let Some(job) = find::job(connection, tenant, owner, job).await? else { return Ok(None) };
    let channel = match job.kind.as_str() {
        EmailSend::NAME => Channel::Email,
        PushSend::NAME => Channel::Push,
        _ => return Ok(None),
    };
    let (why, detail) = match job.state {
        Standing::Expired => ("expired", "its `send_by` had passed before it could be sent".to_owned()),
        Standing::Cancelled => ("cancelled", "its job was cancelled".to_owned()),
        Standing::Failed => {
            let word = |field: &str| job.error.as_ref().and_then(|error| error.get(field)?.as_str().map(str::to_owned));
            let detail = word("message").unwrap_or_default();
            return Ok(Some(untried(&job, channel, &word("code").unwrap_or_else(|| "failed".to_owned()), detail)));
        }
        _ => return Ok(None),
    };
    Ok(Some(untried(&job, channel, why, detail)))
}

fn untried(job: &find::FoundJob, channel: Channel, why: &str, detail: String) -> FoundDelivery {
    FoundDelivery {
        id: job.id.0,
        job: job.id,
        channel,
        device: None,
        owner: job.owner.clone(),
        category: None,
        state: DeliveryState::NotSent,
        why: Some(why.to_owned()),
        detail: Some(detail),
        is_final: true,
        repeated: false,
        attempts: 0,
        created_at: job.created_at,
        changed_at: job.finished_at.unwrap_or(job.created_at),
    }
}
