//! `POST /v1/jobs/batch`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json as Answer,
    extract::{FromRequest, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use shared::{
    job::JobId,
    kinds::Violation,
    ledger::{
        batch::{
            find,
            store::{self, NewBatch as Batched, Stored},
        },
        insert::{Arrival, DuplicateBy, IdempotencyKey, Inserted, NewJob as Job},
    },
    tenant::{self, Tenant},
    usage::Refused as Over,
};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use utoipa::ToSchema;
use uuid::Uuid;

use super::view::{AcceptedBatch, Batch, Item, ItemOutcome, address};
use crate::{
    accept::AcceptError,
    app::App,
    auth::{Caller, JobsWrite},
    extract::{Json, read_value},
    problem::{Code, Problem, ProblemBody},
    routes::jobs::{
        Asker, Check, Examined, KEY_RULE, NewJob, NextJob, Refusal, Wish, backlog_full, count_duplicates, examine, hash_of,
        idempotency_key, is_key, not_accepted, over_limit, tenant_of,
    },
};

/// The most jobs of one batch.
const MOST_JOBS: usize = 5_000;

/// The largest body, in bytes: 5,000 jobs of some 3 KiB each.
const LARGEST: usize = 16 * 1024 * 1024;

/// The longest name.
const LONGEST_NAME: usize = 200;

/// The longest that a batch waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// When those who did not get a turn should come again.
const COME_AGAIN: Duration = Duration::from_secs(2);

/// Violations that one answer names in `all_or_nothing`.
const MOST_VIOLATIONS: usize = 100;

/// Violations that are named of one item in `per_item`.
const MOST_OF_ITEM: usize = 10;

/// Items that are looked at before others get the thread.
const AT_ONCE: usize = 100;

/// Jobs to be done, asked for together.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewBatch {
    /// The jobs, 1 to 5,000, each as `POST /v1/jobs` takes it; the body may have 16 MiB.
    #[schema(value_type = Vec<NewJob>, min_items = 1, max_items = 5_000)]
    pub(in crate::routes) jobs: Vec<Value>,
    /// What is to happen when some of them can't be accepted; `all_or_nothing` when absent.
    #[serde(default)]
    pub(in crate::routes) mode: Mode,
    /// A name for people.
    #[schema(min_length = 1, max_length = 200)]
    pub(in crate::routes) name: Option<String>,
    /// Jobs to be made once when all of the batch's jobs have ended, however they ended, at most 10; nested at most 5 deep, 50 in all.
    /// Not when the batch is cancelled.
    #[serde(default)]
    #[schema(required = false, max_items = 10)]
    pub(in crate::routes) then: Vec<NextJob>,
    /// Makes a repeated request harmless: the same key and request lead to the same batch for a day. 1 to 255 visible ASCII characters.
    /// The header `Idempotency-Key` does the same. Each job may have one of its own besides.
    #[schema(min_length = 1, max_length = 255)]
    pub(in crate::routes) idempotency_key: Option<String>,
    /// Where a payload's fields stand in each job, as the beginning of a pointer.
    #[serde(skip, default = "of_payload")]
    #[schema(ignore)]
    pub(in crate::routes) payload_at: &'static str,
}

const fn of_payload() -> &'static str {
    "/payload"
}

/// The kinds and payloads of a job and of all that follow it, as far as they are named.
fn all(job: &Value) -> Vec<(&str, &Value)> {
    let then = job.get("then").and_then(Value::as_array).into_iter().flatten();
    let own = job.get("kind").and_then(Value::as_str).map(|kind| (kind, job.get("payload").unwrap_or(&Value::Null)));
    own.into_iter().chain(then.flat_map(all)).collect()
}

/// What is to happen when some of a batch's jobs can't be accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BatchMode)]
pub enum Mode {
    /// None of them is: the answer names all that is wrong.
    #[default]
    AllOrNothing,
    /// The others are, and the answer tells of each.
    PerItem,
}

impl Mode {
    const fn word(self) -> &'static str {
        match self {
            Self::AllOrNothing => "all_or_nothing",
            Self::PerItem => "per_item",
        }
    }
}

/// The body, read in its turn: each may take some ten times its size in memory while it is looked at.
#[derive(Debug)]
pub struct Turn<B = NewBatch> {
    pub(in crate::routes) body: B,
    permit: OwnedSemaphorePermit,
}

impl<B> Turn<B> {
    /// The same turn, its body read as something else.
    pub(in crate::routes) fn map<T>(self, to: impl FnOnce(B) -> T) -> Turn<T> {
        Turn { body: to(self.body), permit: self.permit }
    }
}

impl<B: DeserializeOwned> FromRequest<App> for Turn<B> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let Ok(Ok(permit)) = timeout(TURN_WITHIN, app.batches.clone().acquire_owned()).await else {
            let detail = "Many batches are arriving at once. Nothing was accepted; send the same request again in a moment.";
            return Err(Problem::new(Code::Overloaded, detail).retry_after(COME_AGAIN));
        };
        let Json(body) = Json::<B, LARGEST>::from_request(request, app).await?;
        Ok(Self { body, permit })
    }
}

/// Asks for many jobs at once.
///
/// They are durable together once the answer is there, and can be followed and cancelled together; a job that is to follow when
/// all have ended is made once. Each is checked as by itself, and may have an idempotency key of its own.
#[utoipa::path(
    post, path = "/v1/jobs/batch", tag = "batches", operation_id = "create_batch", request_body = NewBatch,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 202, body = AcceptedBatch, description = "Accepted", headers(("Location" = String, description = "The batch's address"))),
        (status = 200, body = AcceptedBatch, description = "Accepted before under this idempotency key; the batch as it stands now", headers(("Location" = String, description = "The batch's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`batches_not_enabled`, `kind_not_enabled`"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key, or a job's, was used for another request"),
        (status = 413, body = ProblemBody<'static>, description = "`body_too_large`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field (`/jobs/17/payload/…`)"),
        (status = 429, body = ProblemBody<'static>, description = "`backlog_full`: the product's backlog has no room for all of them; again after `Retry-After`. `USAGE_LIMIT_EXCEEDED`: some, or with `per_item` all, would use more than may be used"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(State(app): State<App>, caller: Caller<JobsWrite>, headers: HeaderMap, turn: Turn) -> Result<Response, Problem> {
    caller.may_make(&app.kinds, turn.body.jobs.iter().flat_map(all).chain(turn.body.then.iter().flat_map(NextJob::all)))?;
    create_batch(&app, caller.tenant, caller.acting_user.as_deref(), &headers, turn).await
}

/// Stores a batch, and answers with it; whoever asks may make the kinds in it.
///
/// # Errors
/// What is wrong with it, what it contradicts, or that it can't be stored now.
pub async fn create_batch(app: &App, tenant: i32, acting_user: Option<&str>, headers: &HeaderMap, turn: Turn) -> Result<Response, Problem> {
    let Turn { body, permit: _permit } = turn;
    let key = idempotency_key(headers, body.idempotency_key.as_deref())?.map(str::to_owned);
    let tenant = tenant_of(app, tenant).await?;
    let now = app.clock.now();
    let key = key.map(|key| IdempotencyKey { key, body_hash: hash_of_batch(&body), expires_at: now + app.config.idempotency });
    let request = Asked { app, tenant: &tenant, acting_user };

    let (then, violations) = request.check_whole(&body);
    let mode = body.mode;
    let asked = body.jobs.len();
    let Looked { mut jobs, places, mut refused } =
        if violations.is_empty() { request.look(body.jobs, body.payload_at).await } else { Looked::default() };
    let problem = if !violations.is_empty() {
        Some(Problem::invalid(violations))
    } else if refused.is_empty() || (mode == Mode::PerItem && !jobs.is_empty()) {
        None
    } else {
        Some(all_refused(refused.iter(), asked, mode))
    };
    if let Some(problem) = problem {
        return request.repeated_or(key.as_ref(), problem).await;
    }
    if !tenant.manifest.allows_batches() {
        let detail =
            "Batches are switched off for this product; its manifest turns them on (`[limits] batches`). Ask for the jobs one by one.";
        return request.repeated_or(key.as_ref(), Problem::new(Code::BatchesNotEnabled, detail)).await;
    }
    let limit = tenant.manifest.backlog(app.config.backlog);
    let mut room = match app.backlogs.enter(tenant.id, limit, jobs.len() as u64) {
        Ok(room) => room,
        Err(full) => return request.repeated_or(key.as_ref(), backlog_full(full)).await,
    };

    let batch = Batched {
        id: app.clock.new_id(),
        tenant: tenant.id,
        owner: acting_user.map(str::to_owned),
        name: body.name,
        created_at: now,
        asked,
        then,
        idempotency: key,
        all_or_nothing: mode == Mode::AllOrNothing,
    };
    let stored = app.acceptor.accept_batch(&batch, &mut jobs, &places).await;
    let stored = stored.map_err(|error| not_accepted(AcceptError::Ledger(error.into()), batch.idempotency.is_some()))?;
    match stored {
        Stored::Accepted(outcomes) => {
            let waiting = |(job, outcome): &(&Job, &Inserted)| **outcome == Inserted::Accepted && matches!(job.state, Arrival::Waiting(_));
            room.wait(jobs.iter().zip(&outcomes).filter(waiting).count() as u64);
            drop(room);
            metrics::counter!("offstage_batches_accepted_total").increment(1);
            tracing::debug!(batch = %batch.id, tenant = tenant.id, jobs = jobs.len(), refused = refused.len(), "a batch was accepted");
            let items = items(&jobs, &outcomes, &places, refused);
            request.answer(batch.id, StatusCode::ACCEPTED, Some(items)).await
        }
        Stored::Repeated(first) => request.answer(first, StatusCode::OK, None).await,
        Stored::Conflict(first) => Err(conflict(first)),
        Stored::Contradicted(contradicted) => {
            let errors = contradicted.into_iter().map(|(place, first)| contradiction(place, first));
            let detail = "Some jobs have idempotency keys that were used for other requests; see `errors`. Nothing was accepted.";
            Err(Problem::new(Code::IdempotencyConflict, detail).with_errors(errors.take(MOST_VIOLATIONS).collect()))
        }
        Stored::OverLimit(over) => {
            let errors = over.iter().map(|(place, over)| beyond(*place, over)).take(MOST_VIOLATIONS).collect();
            // As whoever asked for that one alone is told.
            let problem = over.first().map_or_else(Problem::unexplained, |(_, first)| over_limit(first, now));
            Err(problem.with_errors(errors))
        }
        Stored::Empty(outcomes) => {
            let over = outcomes.iter().find_map(|outcome| if let Inserted::Refused(over) = outcome { Some(over.clone()) } else { None });
            let none_else = refused.is_empty() && outcomes.iter().all(|outcome| matches!(outcome, Inserted::Refused(_)));
            for (outcome, place) in outcomes.iter().zip(&places) {
                match outcome {
                    Inserted::Conflict(first) => {
                        refused.insert(*place, (Code::IdempotencyConflict, vec![contradiction(*place, *first)]));
                    }
                    Inserted::Refused(over) => {
                        refused.insert(*place, (Code::UsageLimitExceeded, vec![beyond(*place, over)]));
                    }
                    Inserted::Accepted | Inserted::Duplicate(..) => {}
                }
            }
            if let Some(over) = over.filter(|_| none_else) {
                let errors = refused.into_values().flat_map(|(_, errors)| errors).take(MOST_VIOLATIONS).collect();
                return Err(over_limit(&over, now).with_errors(errors));
            }
            Err(all_refused(refused.iter(), asked, mode))
        }
    }
}

/// Items that can't be jobs, by their places: why, and what is wrong.
type Refused = BTreeMap<usize, (Code, Vec<Violation>)>;

/// Items that were looked at.
#[derive(Default)]
struct Looked {
    jobs: Vec<Job>,
    places: Vec<usize>,
    refused: Refused,
}

/// Who asks.
#[derive(Clone, Copy)]
struct Asked<'a> {
    app: &'a App,
    tenant: &'a Arc<Tenant>,
    acting_user: Option<&'a str>,
}

impl Asked<'_> {
    /// What is wrong with the request apart from its jobs; and what is to follow.
    fn check_whole(self, body: &NewBatch) -> (Vec<shared::job::Next>, Vec<Violation>) {
        let mut refusal = Refusal::default();
        let then = Check::new(self.app, self.tenant, self.acting_user, &mut refusal).all(&body.then, self.acting_user, "/then");
        match body.jobs.len() {
            0 => refusal.violations.push(Violation::new("/jobs", "is empty; name at least one job")),
            1..=MOST_JOBS => {}
            many => refusal.violations.push(Violation::new("/jobs", format!("names {many} jobs; {MOST_JOBS} are allowed at once"))),
        }
        if body.name.as_ref().is_some_and(|name| name.is_empty() || name.chars().count() > LONGEST_NAME || name.contains('\0')) {
            refusal.violations.push(Violation::new("/name", format!("must have 1 to {LONGEST_NAME} characters, none of them NUL")));
        }
        (then, refusal.into_errors())
    }

    async fn look(self, items: Vec<Value>, payload_at: &'static str) -> Looked {
        let Self { app, tenant, acting_user } = self;
        let mut looked = Looked::default();
        let asker = Asker { tenant, acting_user, now: app.clock.now() };
        for (place, item) in items.into_iter().enumerate() {
            if place % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let examined = read_value::<NewJob>(item).map_err(|violations| Refusal { violations, ..Refusal::default() }).and_then(|new| {
                let wish = Wish { payload_at, ..new.into_wish() };
                let key = wish.idempotency_key.clone();
                if key.as_deref().is_some_and(|key| !is_key(key)) {
                    let violations = vec![Violation::new("/idempotency_key", KEY_RULE)];
                    return Err(Refusal { violations, ..Refusal::default() });
                }
                let Examined { job, .. } = examine(app, asker, key.as_deref(), wish);
                job
            });
            match examined {
                Ok(job) => {
                    looked.jobs.push(job);
                    looked.places.push(place);
                }
                Err(refusal) => {
                    let code = refusal.code();
                    let placed = |violation: Violation| Violation { pointer: format!("/jobs/{place}{}", violation.pointer), ..violation };
                    looked.refused.insert(place, (code, refusal.into_errors().into_iter().take(MOST_OF_ITEM).map(placed).collect()));
                }
            }
        }
        looked
    }

    /// The batch that the same request made before, or a problem: whoever repeats a request can't know whether the first one arrived.
    async fn repeated_or(self, key: Option<&IdempotencyKey>, problem: Problem) -> Result<Response, Problem> {
        let Some(key) = key else { return Err(problem) };
        let owner = self.acting_user.unwrap_or_default();
        let mut transaction = tenant::transaction(&self.app.pool, self.tenant.id).await?;
        let now = self.app.clock.now();
        let before = store::repeated(&mut transaction, self.tenant.id, owner, &key.key, key.body_hash, Some(now)).await?;
        drop(transaction);
        match before {
            Some(Stored::Repeated(first)) => self.answer(first, StatusCode::OK, None).await,
            _ => Err(problem),
        }
    }

    /// A batch as it stands, with what became of its items; `None`: it was there before.
    async fn answer(self, id: Uuid, status: StatusCode, items: Option<Vec<Item>>) -> Result<Response, Problem> {
        let tenant = self.tenant.id;
        let mut transaction = tenant::transaction(&self.app.pool, tenant).await?;
        let Some(found) = find::batch(&mut transaction, tenant, self.acting_user, id).await? else {
            let detail = format!("This idempotency key made the batch {id}, which is gone. Use a new key.");
            return Err(Problem::new(Code::IdempotencyConflict, detail));
        };
        let counts = find::counts(&mut transaction, tenant, id).await?;
        let items = match items {
            Some(items) => items,
            None => find::members(&mut transaction, tenant, id).await?.into_iter().map(member).collect(),
        };
        drop(transaction);
        let accepted = AcceptedBatch { batch: Batch::of(found, Some(&counts)), items };
        Ok((status, [(header::LOCATION, address(id))], Answer(accepted)).into_response())
    }
}

fn member((place, job, before): (i32, JobId, bool)) -> Item {
    let outcome = if before { ItemOutcome::Duplicate } else { ItemOutcome::Accepted };
    Item::job(usize::try_from(place).unwrap_or_default(), outcome, job, None)
}

/// What became of each item, in order.
fn items(jobs: &[Job], outcomes: &[Inserted], places: &[usize], refused: Refused) -> Vec<Item> {
    let stored = jobs.iter().zip(outcomes).zip(places).map(|((job, outcome), place)| match outcome {
        Inserted::Accepted => Item::job(*place, ItemOutcome::Accepted, job.id, None),
        Inserted::Duplicate(first, by) => Item::job(*place, ItemOutcome::Duplicate, *first, Some(*by)),
        Inserted::Conflict(first) => Item::refused(*place, Code::IdempotencyConflict, vec![contradiction(*place, *first)]),
        Inserted::Refused(over) => Item::refused(*place, Code::UsageLimitExceeded, vec![beyond(*place, over)]),
    });
    let mut items: Vec<Item> =
        stored.chain(refused.into_iter().map(|(place, (code, errors))| Item::refused(place, code, errors))).collect();
    items.sort_unstable_by_key(|item| item.index);
    for by in [DuplicateBy::IdempotencyKey, DuplicateBy::Unique] {
        count_duplicates(by, items.iter().filter(|item| item.by == Some(by)).count() as u64);
    }
    items
}

fn contradiction(place: usize, first: JobId) -> Violation {
    Violation::new(
        format!("/jobs/{place}/idempotency_key"),
        format!("was used for another request, which made the job {first}; use a new key"),
    )
}

/// Of one item alone: with `per_item` others may have been accepted beside it.
fn beyond(place: usize, over: &Over) -> Violation {
    Violation::new(format!("/jobs/{place}"), over.to_string())
}

fn conflict(first: Uuid) -> Problem {
    let detail = format!(
        "This idempotency key was used for another request, which made the batch {first}. Use a new key, or send that request again."
    );
    Problem::new(Code::IdempotencyConflict, detail)
}

/// Nothing is accepted, for what is wrong with some, or all, of the items.
fn all_refused<'a>(refused: impl Iterator<Item = (&'a usize, &'a (Code, Vec<Violation>))>, asked: usize, mode: Mode) -> Problem {
    let refused: Vec<_> = refused.collect();
    let of = |wanted: Code| refused.iter().all(|(_, (code, _))| *code == wanted);
    let code = [Code::KindNotEnabled, Code::IdempotencyConflict].into_iter().find(|code| of(*code)).unwrap_or(Code::ValidationFailed);
    let errors: Vec<Violation> = refused.iter().flat_map(|(_, (_, errors))| errors.iter().cloned()).collect();
    let shown = errors.len().min(MOST_VIOLATIONS);
    let detail = format!(
        "{} of {asked} jobs can't be accepted, so none was; see `errors`{}. Correct them and send again{}.",
        refused.len(),
        if shown < errors.len() { format!(" for the first {shown} of {} mistakes", errors.len()) } else { String::new() },
        if mode == Mode::AllOrNothing && refused.len() < asked {
            ", or send `\"mode\": \"per_item\"` to have the others accepted"
        } else {
            ""
        },
    );
    Problem::new(code, detail).with_errors(errors.into_iter().take(MOST_VIOLATIONS).collect())
}

/// What was asked, in 32 bytes: over a form in which the order of fields and white space do not count.
fn hash_of_batch(body: &NewBatch) -> [u8; 32] {
    hash_of(&json!({"jobs": body.jobs, "mode": body.mode.word(), "name": body.name, "then": body.then}))
}
