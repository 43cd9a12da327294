//! Queues: how they stand for a product, and its own pauses of them.
//!
//! What must stay true: a product pauses its own jobs and nobody else's; what the operator paused it sees and can't undo; an end user
//! pauses nothing.

use axum::{
    Json as Answer, Router,
    extract::{Path, State},
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    job::Rate,
    kinds::Violation,
    ledger::{
        LedgerError,
        explain::COUNTED,
        holds::{self, Holds, Pause, Scope, Throttle},
        recover::DEAD_AFTER,
    },
    queue::Queue,
    tenant,
};
use sqlx::{PgConnection, Row};
use utoipa::{OpenApi, ToSchema};

use crate::{
    app::App,
    auth::{Caller, JobsRead, JobsWrite},
    extract::MaybeJson,
    follow::Call,
    problem::{Code, Problem, ProblemBody},
};

/// The longest reason, in characters.
const LONGEST_REASON: usize = 500;

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(list, pause, resume), tags((name = "queues", description = "How queues stand, and a product's own pauses of them")))]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/queues", get(list))
        .route("/v1/queues/{queue}/pause", post(pause))
        .route("/v1/queues/{queue}/resume", post(resume))
}

/// A queue as it stands for a product.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueView {
    queue: Queue,
    /// Live workers that serve it.
    workers: i64,
    /// The product's jobs that wait, due or not, counted up to 10,000.
    waiting: i64,
    /// When the longest due of them was due.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    oldest_due: Option<DateTime<Utc>>,
    /// Pauses in force that stop jobs of the product here.
    pauses: Vec<PauseView>,
    /// Bounds on how many start in a time.
    throttles: Vec<ThrottleView>,
}

/// A pause in force.
#[derive(Debug, Serialize, ToSchema)]
pub struct PauseView {
    /// Whether the product set it itself, and can end it.
    own: bool,
    /// The only kind that it stops; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    kind: Option<String>,
    since: DateTime<Utc>,
    by: String,
    reason: String,
    /// When it ends by itself; absent where somebody has to end it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    until: Option<DateTime<Utc>>,
}

/// How many may start in a time.
#[derive(Debug, Serialize, ToSchema)]
pub struct ThrottleView {
    /// Whether it is the product's alone, or shared by all.
    own: bool,
    rate: Rate,
}

/// All queues.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueList {
    items: Vec<QueueView>,
}

/// What to pause, and why.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct PauseWish {
    /// Only this kind; every kind of the queue when absent.
    kind: Option<String>,
    /// For whoever finds it paused; at most 500 characters.
    #[serde(default)]
    reason: String,
}

/// What to resume.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct ResumeWish {
    /// The kind that was paused; absent where the queue was.
    kind: Option<String>,
}

/// Lists the queues as they stand for this product.
#[utoipa::path(get, path = "/v1/queues", tag = "queues", operation_id = "list_queues",
    responses((status = 200, body = QueueList), (status = 403, body = ProblemBody<'static>, description = "`backend_only`: not for end users")))]
pub async fn list(State(app): State<App>, caller: Caller<JobsRead>) -> Result<Answer<QueueList>, Problem> {
    caller.for_the_backend("Queues")?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let holds = holds::read(&mut transaction).await?;
    let mut items = Vec::with_capacity(Queue::ALL.len());
    for queue in Queue::ALL {
        items.push(view(&mut transaction, &holds, caller.tenant, queue).await?);
    }
    Ok(Answer(QueueList { items }))
}

/// Pauses this product's jobs of a queue: none starts until it is resumed. What runs goes on.
#[utoipa::path(post, path = "/v1/queues/{queue}/pause", tag = "queues", operation_id = "pause_queue", request_body = Option<PauseWish>,
    params(("queue" = String, Path, description = "The queue's name")),
    responses(
        (status = 200, body = QueueView, description = "It is paused, by this or before"),
        (status = 404, body = ProblemBody<'static>, description = "`queue_not_found`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`"),
    ))]
pub async fn pause(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    Path(queue): Path<String>,
    MaybeJson(wish): MaybeJson<PauseWish>,
) -> Result<Answer<QueueView>, Problem> {
    caller.for_the_backend("Queues")?;
    let queue = known(&queue)?;
    let mut violations = Vec::new();
    if wish.reason.chars().count() > LONGEST_REASON || wish.reason.chars().any(char::is_control) {
        violations.push(Violation::new("/reason", format!("must have at most {LONGEST_REASON} characters on one line")));
    }
    let names = kind_names(&app, wish.kind.as_deref(), &mut violations);
    if !violations.is_empty() {
        return Err(Problem::invalid(violations));
    }
    let scope = Scope {
        tenant: Some(caller.tenant),
        queue: Some(queue),
        kind: names.as_ref().and_then(|names| names.last()).map(|name| (*name).to_owned()),
    };
    let by = format!("key {}", caller.key);
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    holds::pause(&mut transaction, &scope, names.as_deref(), &by, wish.reason.trim(), app.clock.now()).await?;
    let view = look(&mut transaction, caller.tenant, queue).await?;
    transaction.commit().await.map_err(LedgerError::from)?;
    Ok(Answer(view))
}

/// Resumes what this product paused: what waited goes on within seconds.
#[utoipa::path(post, path = "/v1/queues/{queue}/resume", tag = "queues", operation_id = "resume_queue", request_body = Option<ResumeWish>,
    params(("queue" = String, Path, description = "The queue's name")),
    responses(
        (status = 200, body = QueueView, description = "The product has not paused it any more; what the operator paused is shown"),
        (status = 404, body = ProblemBody<'static>, description = "`queue_not_found`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`"),
    ))]
pub async fn resume(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    Path(queue): Path<String>,
    MaybeJson(wish): MaybeJson<ResumeWish>,
) -> Result<Answer<QueueView>, Problem> {
    caller.for_the_backend("Queues")?;
    let queue = known(&queue)?;
    let mut violations = Vec::new();
    let names = kind_names(&app, wish.kind.as_deref(), &mut violations);
    if !violations.is_empty() {
        return Err(Problem::invalid(violations));
    }
    let scope = Scope {
        tenant: Some(caller.tenant),
        queue: Some(queue),
        kind: names.and_then(|names| names.last().map(|name| (*name).to_owned())),
    };
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    holds::resume(&mut transaction, &scope, &format!("key {}", caller.key), app.clock.now()).await?;
    let view = look(&mut transaction, caller.tenant, queue).await?;
    transaction.commit().await.map_err(LedgerError::from)?;
    app.follow.nudge(Call::Dispatch(queue));
    Ok(Answer(view))
}

fn known(name: &str) -> Result<Queue, Problem> {
    Queue::from_name(name).filter(|queue| Queue::ALL.contains(queue)).ok_or_else(|| {
        Problem::new(Code::QueueNotFound, format!("There is no such queue; there are: {}.", Queue::ALL.map(Queue::name).join(", ")))
    })
}

/// A kind's former names and, last, its name; `None` for every kind.
fn kind_names(app: &App, kind: Option<&str>, violations: &mut Vec<Violation>) -> Option<Vec<&'static str>> {
    let kind = kind?;
    let entry = app.kinds.find(kind);
    if entry.is_none() {
        violations.push(Violation::new("/kind", "there is no such kind"));
    }
    entry.map(|entry| entry.aliases.iter().copied().chain([entry.name]).collect())
}

async fn look(connection: &mut PgConnection, tenant: i32, queue: Queue) -> Result<QueueView, LedgerError> {
    let holds = holds::read(connection).await?;
    view(connection, &holds, tenant, queue).await
}

async fn view(connection: &mut PgConnection, holds: &Holds, tenant: i32, queue: Queue) -> Result<QueueView, LedgerError> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM worker w WHERE $2 = ANY (w.queues) AND w.seen_at >= clock_timestamp() - make_interval(secs => $3)) AS workers,
                (SELECT count(*) FROM (SELECT FROM job_waiting w WHERE w.queue = $2 AND w.priority IN (0, 1, 2) AND w.tenant_id = $1 LIMIT $4) c) AS waiting,
                (SELECT min(oldest) FROM unnest(ARRAY[0, 1, 2]::smallint[]) AS p (priority) CROSS JOIN LATERAL (
                    SELECT w.run_at AS oldest FROM job_waiting w
                    WHERE w.queue = $2 AND w.priority = p.priority AND w.tenant_id = $1 AND w.run_at < 'infinity' ORDER BY w.run_at LIMIT 1
                ) o) AS oldest",
    )
    .bind(tenant)
    .bind(queue.name())
    .bind(DEAD_AFTER.as_secs_f64())
    .bind(COUNTED)
    .fetch_one(connection)
    .await?;
    let concerns = |pause: &&Pause| pause.queue.as_deref().is_none_or(|named| named == queue.name());
    let pause_view = |pause: &Pause| PauseView {
        own: pause.tenant.is_some(),
        kind: pause.kind.clone(),
        since: pause.at,
        by: if pause.tenant.is_some() { pause.by.clone() } else { "the operator".to_owned() },
        reason: pause.reason.clone(),
        until: pause.until,
    };
    let throttle_view = |throttle: &Throttle| ThrottleView { own: throttle.tenant.is_some(), rate: throttle.rate };
    Ok(QueueView {
        queue,
        workers: row.try_get("workers")?,
        waiting: row.try_get("waiting")?,
        oldest_due: row.try_get("oldest")?,
        pauses: holds.pauses.iter().filter(concerns).map(pause_view).collect(),
        throttles: holds.throttles.iter().filter(|throttle| throttle.bounds(tenant, queue)).map(throttle_view).collect(),
    })
}
