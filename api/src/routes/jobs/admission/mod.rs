//! From a wish to a stored job: the one way in, whichever door the wish came through.
//!
//! What must stay true: everything that is wrong is named at once and nothing is stored; a request repeated under its
//! idempotency key gets the first one's job, also when time or the manifest have moved on and it would not be accepted as
//! new, because its sender can't know whether the first one arrived.

mod refusal;
mod wish;

use std::sync::Arc;

use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use shared::{
    job::{JobId, Options, Priority, Reason, State},
    kinds::{Entry, PAYLOAD_LIMIT, Violation},
    ledger::{
        LedgerError,
        find::FoundJob,
        insert::{Arrival, DuplicateBy, IdempotencyKey, Inserted, NewJob},
        unique,
    },
    tenant::{self, Tenant},
    usage::accept::Meter,
};

pub use refusal::{Refusal, backlog_full, not_accepted, over_limit};
pub use shared::status::Duplicate;
pub use wish::{KEY_RULE, UniqueWish, Wish, idempotency_key, is_key, owner, unknown_kind};

use super::{
    fingerprint::{Asked as Fingerprinted, fingerprint},
    next,
};
use crate::{app::App, problem::Problem};
use refusal::conflict;
use wish::{check_completion, check_limit, check_times};

/// What became of a wish.
#[derive(Debug)]
pub enum Admitted {
    /// It is a job now.
    Now(Box<FoundJob>),
    /// It was one already.
    Before(Duplicate),
}

/// By what a wish may have been accepted before.
#[derive(Debug, Clone)]
pub struct Marks {
    owner: Option<String>,
    /// Its idempotency key, with the hash of what it asks for.
    key: Option<(String, [u8; 32])>,
    /// Its unique key, with its kind.
    unique: Option<(&'static str, String)>,
}

/// A wish that was looked at.
#[derive(Debug)]
pub struct Examined {
    /// The job that it would be, or why it can't be one.
    pub job: Result<NewJob, Refusal>,
    /// By what it may be there already.
    pub marks: Marks,
}

/// For whom wishes are looked at, and when.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The tenant.
    pub tenant: &'a Arc<Tenant>,
    /// The user that a backend acts for.
    pub acting_user: Option<&'a str>,
    /// The time.
    pub now: DateTime<Utc>,
}

/// The tenant of a number, which a key named.
///
/// # Errors
/// [`Problem`].
pub async fn tenant_of(app: &App, tenant: i32) -> Result<Arc<Tenant>, Problem> {
    if let Some(tenant) = app.tenants.get(tenant).await? {
        return Ok(tenant);
    }
    // A key leads to its tenant by a foreign key, so this takes a database changed by hand.
    tracing::error!(tenant, "the key's tenant is not in the database");
    Err(Problem::unexplained())
}

/// Checks a wish and stores it as a job.
///
/// # Errors
/// What is wrong with it, what it contradicts, or that it can't be stored now.
pub async fn admit(app: &App, tenant: i32, acting_user: Option<&str>, headers: &HeaderMap, wish: Wish) -> Result<Admitted, Problem> {
    let key = idempotency_key(headers, wish.idempotency_key.as_deref())?.map(str::to_owned);
    let key = key.as_deref();
    let tenant = tenant_of(app, tenant).await?;
    let now = app.clock.now();
    let has_key = key.is_some();
    let Examined { job, marks } = examine(app, Asker { tenant: &tenant, acting_user, now }, key, wish);
    let job = match job {
        Ok(job) => job,
        Err(refusal) => {
            if refusal.too_large.is_none()
                && let Some(first) = accepted_before(app, tenant.id, &marks, false, now).await?
            {
                return Ok(Admitted::Before(first));
            }
            return Err(refusal.into_problem());
        }
    };
    let mut place = match app.backlogs.enter(tenant.id, tenant.manifest.backlog(app.config.backlog), 1) {
        Ok(place) => place,
        Err(full) => {
            return match accepted_before(app, tenant.id, &marks, true, now).await? {
                Some(first) => Ok(Admitted::Before(first)),
                None => Err(backlog_full(full)),
            };
        }
    };
    let accepted = accepted_as(&job, now);
    let became = app.acceptor.accept(job).await;
    if let Ok((Inserted::Accepted, Arrival::Waiting(_))) = became {
        place.wait(1);
    }
    drop(place);
    match became {
        Ok((Inserted::Accepted, arrival)) => Ok(Admitted::Now(Box::new(accepted.arrived(arrival)))),
        Ok((Inserted::Duplicate(first, by), _)) => {
            count_duplicates(by, 1);
            Ok(Admitted::Before(Duplicate { first, by }))
        }
        Ok((Inserted::Conflict(first), _)) => Err(conflict(first)),
        Ok((Inserted::Refused(refused), _)) => Err(over_limit(&refused, now)),
        Err(error) => Err(not_accepted(error, has_key)),
    }
}

/// Counts requests that were answered with an earlier one's job.
pub fn count_duplicates(by: DuplicateBy, jobs: u64) {
    let by = match by {
        DuplicateBy::IdempotencyKey => "idempotency_key",
        DuplicateBy::Unique => "unique",
    };
    metrics::counter!("offstage_jobs_duplicate_total", "by" => by).increment(jobs);
}

/// Looks at a wish: everything that is wrong is found at once. `key` is its idempotency key.
pub fn examine(app: &App, asker: Asker<'_>, key: Option<&str>, wish: Wish) -> Examined {
    let Asker { tenant, acting_user, now } = asker;
    let mut refusal = Refusal::default();
    let payload = wish.payload.to_string();
    if payload.len() > PAYLOAD_LIMIT {
        refusal.too_large = Some(payload.len());
        return Examined { job: Err(refusal), marks: Marks { owner: None, key: None, unique: None } };
    }
    let named = owner(acting_user, wish.owner.as_deref()).map_err(|violation| refusal.violations.push(violation));
    // The rest is looked at as if the owner were right, so that no mistake is named that is none.
    let owner = named.unwrap_or(acting_user.or(wish.owner.as_deref())).map(str::to_owned);
    let owner = owner.as_deref();
    check_times(&wish, now, &mut refusal.violations);
    check_limit(wish.limit.as_ref(), &mut refusal.violations);
    check_completion(tenant, wish.completion_url.as_deref(), &mut refusal.violations);
    let unique = wish.unique.as_ref().and_then(|unique| unique.check(&wish.payload, &mut refusal.violations));
    let then = next::Check::new(app, tenant, acting_user, &mut refusal).all(&wish.then, owner, "/then");
    let entry = app.kinds.find(&wish.kind);
    let mut found_right = None;
    match entry {
        None => refusal.violations.push(unknown_kind(app, &wish.kind)),
        Some(entry) => {
            if let Err(why) = tenant.manifest.allows(entry.name, owner) {
                refusal.not_enabled(entry.name, why, if wish.payload_at.is_empty() { "" } else { "/kind" });
            }
            // Whose payload's fields are the request's own comes by the kind's own door.
            let other_door = entry.other_door().filter(|_| !wish.payload_at.is_empty());
            let checked = other_door.is_none().then(|| (entry.check)(&wish.payload, &tenant.manifest, owner));
            refusal.violations.extend(other_door.map(|door| Violation::new("/kind", door)));
            match checked {
                None => {}
                Some(Ok(checked)) => found_right = Some(checked),
                Some(Err(violations)) => {
                    let placed = |violation: Violation| Violation { pointer: wish.payload_at.to_owned() + &violation.pointer, ..violation };
                    refusal.violations.extend(violations.into_iter().map(placed));
                }
            }
        }
    }
    let priority = wish.priority.unwrap_or(Priority::Normal);
    let body_hash = |entry: &Entry| {
        let Wish { payload, run_at, start_by, .. } = &wish;
        let extras = wish.extras();
        fingerprint(Fingerprinted {
            kind: entry.name,
            payload,
            run_at: *run_at,
            start_by: *start_by,
            priority,
            owner,
            extras: extras.as_ref(),
        })
    };
    let hash = if key.is_some() { entry.map(body_hash) } else { None };
    let marks = Marks {
        owner: owner.map(str::to_owned),
        // Under a wrong owner nobody was accepted before.
        key: key.filter(|_| named.is_ok()).zip(hash).map(|(key, hash)| (key.to_owned(), hash)),
        unique: entry.zip(unique.as_ref()).filter(|_| named.is_ok()).map(|(entry, unique)| (entry.name, unique.key.clone())),
    };
    let (Some(entry), Some(checked), true) = (entry, found_right, refusal.is_empty()) else { return Examined { job: Err(refusal), marks } };
    let charges = if checked.is_metered { (entry.charges)(&payload, &tenant.manifest, owner, now) } else { Vec::new() };
    let meter = (!charges.is_empty()).then(|| Box::new(Meter { tenant: Arc::clone(tenant), charges }));
    let remembered = tenant.manifest.idempotency(entry.name).or(entry.idempotency).unwrap_or(app.config.idempotency);
    let job = NewJob {
        id: JobId(app.clock.new_id()),
        tenant: tenant.id,
        owner: owner.map(str::to_owned),
        subject: owner.map(str::to_owned),
        kind: entry.name,
        queue: checked.queue,
        priority,
        payload,
        attempts: entry.policy.attempts,
        created_at: now,
        // What was due before it was asked for is due now.
        run_at: wish.run_at.map_or(now, |run_at| run_at.max(now)),
        start_by: wish.start_by,
        state: Arrival::Queued,
        idempotency: marks.key.clone().map(|(key, body_hash)| IdempotencyKey { key, body_hash, expires_at: now + remembered }),
        options: Options {
            limit: wish.limit,
            completion_url: wish.completion_url,
            unique,
            then,
            metered: checked.is_metered,
            ..Options::default()
        },
        meter,
    };
    Examined { job: Ok(job), marks }
}

/// The job that the same request made before, if it did; `also_unique`: or that holds its unique key.
async fn accepted_before(
    app: &App,
    tenant: i32,
    marks: &Marks,
    also_unique: bool,
    now: DateTime<Utc>,
) -> Result<Option<Duplicate>, LedgerError> {
    let Marks { owner, key, unique } = marks;
    if key.is_none() && !(also_unique && unique.is_some()) {
        return Ok(None);
    }
    let owner = owner.as_deref().unwrap_or_default();
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    if let Some((key, body_hash)) = key {
        let first: Option<uuid::Uuid> = sqlx::query_scalar(
            "SELECT job_id FROM idempotency_key WHERE tenant_id = $1 AND owner = $2 AND key = $3 AND body_hash = $4 AND expires_at > $5",
        )
        .bind(tenant)
        .bind(owner)
        .bind(key)
        .bind(body_hash.as_slice())
        .bind(now)
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(first) = first {
            return Ok(Some(Duplicate { first: JobId(first), by: DuplicateBy::IdempotencyKey }));
        }
    }
    let Some((kind, key)) = unique.as_ref().filter(|_| also_unique) else { return Ok(None) };
    let key = (tenant, owner.to_owned(), (*kind).to_owned(), key.clone());
    let holder = unique::holder(&mut transaction, &key, now).await?;
    Ok(holder.map(|first| Duplicate { first, by: DuplicateBy::Unique }))
}

/// A job as its insert leaves it, but for what the insert decides.
struct Accepted(FoundJob);

fn accepted_as(job: &NewJob, now: DateTime<Utc>) -> Accepted {
    Accepted(FoundJob {
        id: job.id,
        kind: job.kind.to_owned(),
        queue: job.queue.name().to_owned(),
        priority: job.priority,
        owner: job.owner.clone(),
        state: State::Queued,
        reason: Reason::None,
        version: 1,
        attempt: 0,
        attempts_allowed: i16::try_from(job.attempts).unwrap_or(i16::MAX),
        cancel_requested: false,
        created_at: now,
        run_at: job.run_at,
        start_by: job.start_by,
        started_at: None,
        finished_at: None,
        progress_done: None,
        progress_total: None,
        payload: None,
        result: None,
        error: None,
        options: job.options.clone(),
        children: Vec::new(),
    })
}

impl Accepted {
    fn arrived(self, arrival: Arrival) -> FoundJob {
        match arrival {
            Arrival::Queued | Arrival::First => self.0,
            Arrival::Waiting(reason) => FoundJob { state: State::Waiting, reason, ..self.0 },
        }
    }
}
