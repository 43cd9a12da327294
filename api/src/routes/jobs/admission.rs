//! From a wish to a stored job: the one way in, whichever door the wish came through.
//!
//! What must stay true: everything that is wrong is named at once and nothing is stored; a request repeated under its
//! idempotency key gets the first one's job, also when time or the manifest have moved on and it would not be accepted as
//! new, because its sender can't know whether the first one arrived.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderValue, header};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{
    job::{JobId, Limit, Options, Priority, Reason, State, Unique},
    kinds::{Entry, PAYLOAD_LIMIT, Violation},
    ledger::{
        LedgerError,
        find::FoundJob,
        insert::{Arrival, DuplicateBy, IdempotencyKey, Inserted, NewJob},
        unique,
    },
    tenant::{self, NotEnabled, Tenant},
};
use utoipa::ToSchema;

pub use shared::status::Duplicate;

use super::{
    fingerprint::{Asked as Fingerprinted, fingerprint, hash_of},
    next::{self, NextJob},
};
use crate::{
    accept::AcceptError,
    app::App,
    auth,
    backlog::Full,
    problem::{Code, Problem},
};

/// How far ahead a job can be planned, and how long after that it may still be started.
const HORIZON: TimeDelta = TimeDelta::days(366);

/// The header of the same meaning as the field `idempotency_key`
/// (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>). Its value is taken as it stands.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The longest idempotency key.
const LONGEST_KEY: usize = 255;

/// When those who met a full house should come again.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// What a request wishes for.
#[derive(Debug)]
pub struct Wish {
    /// The kind's name, or a former one.
    pub kind: String,
    /// The payload.
    pub payload: Value,
    /// Where the payload stands in the request's body, as the beginning of a pointer: `/payload`, or nothing where its
    /// fields are the body's own.
    pub payload_at: &'static str,
    /// See the request.
    pub idempotency_key: Option<String>,
    /// See the request.
    pub run_at: Option<DateTime<Utc>>,
    /// See the request.
    pub start_by: Option<DateTime<Utc>>,
    /// See the request.
    pub priority: Option<Priority>,
    /// See the request.
    pub owner: Option<String>,
    /// See the request.
    pub limit: Option<Limit>,
    /// See the request.
    pub completion_url: Option<String>,
    pub unique: Option<UniqueWish>,
    /// See the request.
    pub then: Vec<NextJob>,
}

impl Wish {
    /// What it asks for beside what every job has, to tell a repeat from a mistake.
    fn extras(&self) -> Option<Value> {
        if self.limit.is_none() && self.unique.is_none() && self.then.is_empty() && self.completion_url.is_none() {
            return None;
        }
        let mut extras = json!({"limit": self.limit, "unique": self.unique, "then": self.then});
        if let (Some(url), Some(extras)) = (&self.completion_url, extras.as_object_mut()) {
            extras.insert("completion_url".to_owned(), url.as_str().into());
        }
        Some(extras)
    }
}

/// What makes a job the only one of its sort for a while. Other than an idempotency key it is about the work and not about the request: a
/// second job is answered with the first whatever else it says.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Unique)]
pub struct UniqueWish {
    /// What they have in common, among jobs of one kind and owner: 1 to 255 visible ASCII characters. The payload when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255, example = "digest:ada")]
    key: Option<String>,
    /// `unfinished`: until it has succeeded, failed, expired or been cancelled. The default.
    #[serde(default, rename = "while", skip_serializing_if = "Option::is_none")]
    lasts_while: Option<While>,
    /// For so many seconds after it was accepted, whatever becomes of it; at most 366 days. Either this or `while`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_622_400)]
    for_seconds: Option<u32>,
}

/// How long a job is unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = UniqueWhile)]
pub enum While {
    /// Until it has ended.
    Unfinished,
}

/// The longest that a job can be unique for, in seconds: 366 days.
const LONGEST_UNIQUE: u32 = 31_622_400;

impl UniqueWish {
    fn check(&self, payload: &Value, violations: &mut Vec<Violation>) -> Option<Unique> {
        let before = violations.len();
        if self.key.as_deref().is_some_and(|key| !is_key(key)) {
            violations.push(Violation::new("/unique/key", KEY_RULE));
        }
        if self.lasts_while.is_some() && self.for_seconds.is_some() {
            violations.push(Violation::new("/unique", "has both `while` and `for_seconds`; send one of the two"));
        }
        if let Some(seconds) = self.for_seconds.filter(|seconds| !(1..=LONGEST_UNIQUE).contains(seconds)) {
            violations.push(Violation::new("/unique/for_seconds", format!("is {seconds}; 1 to {LONGEST_UNIQUE} are allowed")));
        }
        // With a space: no key that a caller names can be the same.
        let key = || self.key.clone().unwrap_or_else(|| format!("payload {}", hex::encode(hash_of(payload))));
        (violations.len() == before).then(|| Unique { key: key(), for_seconds: self.for_seconds })
    }
}

/// What became of a wish.
#[derive(Debug)]
pub enum Admitted {
    /// It is a job now.
    Now(Box<FoundJob>),
    /// It was one already.
    Before(Duplicate),
}

/// What keeps a wish from being a job.
#[derive(Debug, Default)]
pub struct Refusal {
    /// What is wrong with it.
    pub violations: Vec<Violation>,
    /// Kinds that are not on, and where they are named.
    pub off: Vec<Violation>,
    /// The payload's size in bytes, where it is too large.
    pub too_large: Option<usize>,
}

impl Refusal {
    /// A kind that is not on.
    pub fn not_enabled(&mut self, kind: &str, why: NotEnabled, at: &str) {
        let detail = match why {
            NotEnabled::ForTenant => format!("`{kind}` is switched off for this product; its manifest turns it on"),
            NotEnabled::ForUser => format!("`{kind}` is being introduced step by step and is not on for this user yet"),
        };
        self.off.push(Violation::new(at, detail));
    }

    /// Whether there is nothing.
    pub const fn is_empty(&self) -> bool {
        self.violations.is_empty() && self.off.is_empty() && self.too_large.is_none()
    }

    /// The code that says best what it is.
    pub const fn code(&self) -> Code {
        if self.too_large.is_some() {
            Code::PayloadTooLarge
        } else if self.violations.is_empty() && !self.off.is_empty() {
            Code::KindNotEnabled
        } else {
            Code::ValidationFailed
        }
    }

    /// All that is wrong, by place.
    pub fn into_errors(self) -> Vec<Violation> {
        let too_large = self.too_large.map(|bytes| Violation::new("/payload", too_large(bytes)));
        too_large.into_iter().chain(self.violations).chain(self.off).collect()
    }

    /// As it is answered.
    pub fn into_problem(self) -> Problem {
        match self.code() {
            Code::PayloadTooLarge => Problem::new(Code::PayloadTooLarge, too_large(self.too_large.unwrap_or_default())),
            Code::KindNotEnabled => {
                let detail = self.off.first().map(|first| format!("{}: {}.", first.pointer, first.detail)).unwrap_or_default();
                Problem::new(Code::KindNotEnabled, detail).with_errors(self.off)
            }
            _ => Problem::invalid(self.into_errors()),
        }
    }
}

fn too_large(bytes: usize) -> String {
    format!("The payload has {bytes} bytes of JSON; {PAYLOAD_LIMIT} are allowed. Send large content another way and name it.")
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
    pub tenant: &'a Tenant,
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

/// The tenant's backlog is full.
pub fn backlog_full(full: Full) -> Problem {
    metrics::counter!("offstage_backlog_refused_total").increment(1);
    let Full { limit, room_in, .. } = full;
    let when = match room_in {
        Some(room_in) => format!("By how fast it went down lately there is room in about {} s.", room_in.as_secs().max(1)),
        None => "How fast it goes down is not known yet.".to_owned(),
    };
    let detail =
        format!("As many jobs of this product wait as may, {limit}. Nothing was accepted; send the same request again later. {when}");
    Problem::new(Code::BacklogFull, detail).retry_after(full.retry_after())
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
    let mut queue = None;
    match entry {
        None => refusal.violations.push(unknown_kind(app, &wish.kind)),
        Some(entry) => {
            if let Err(why) = tenant.manifest.allows(entry.name, owner) {
                refusal.not_enabled(entry.name, why, if wish.payload_at.is_empty() { "" } else { "/kind" });
            }
            match (entry.check)(&wish.payload, &tenant.manifest, owner) {
                Ok(checked) => queue = Some(checked.queue),
                Err(violations) => {
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
    let (Some(entry), Some(queue), true) = (entry, queue, refusal.is_empty()) else { return Examined { job: Err(refusal), marks } };
    let remembered = tenant.manifest.idempotency(entry.name).or(entry.idempotency).unwrap_or(app.config.idempotency);
    let job = NewJob {
        id: JobId(app.clock.new_id()),
        tenant: tenant.id,
        owner: owner.map(str::to_owned),
        subject: owner.map(str::to_owned),
        kind: entry.name,
        queue,
        priority,
        payload,
        attempts: entry.policy.attempts,
        created_at: now,
        // What was due before it was asked for is due now.
        run_at: wish.run_at.map_or(now, |run_at| run_at.max(now)),
        start_by: wish.start_by,
        state: Arrival::Queued,
        idempotency: marks.key.clone().map(|(key, body_hash)| IdempotencyKey { key, body_hash, expires_at: now + remembered }),
        options: Options { limit: wish.limit, completion_url: wish.completion_url, unique, then, ..Options::default() },
    };
    Examined { job: Ok(job), marks }
}

/// The key of the header or the body, which must agree.
///
/// # Errors
/// What is wrong with it.
pub fn idempotency_key<'a>(headers: &'a HeaderMap, of_body: Option<&'a str>) -> Result<Option<&'a str>, Problem> {
    let invalid = |detail: &str| Problem::new(Code::HeaderInvalid, format!("Idempotency-Key {detail}."));
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let of_header = values.next().map(HeaderValue::as_bytes);
    if values.next().is_some() {
        return Err(invalid("is there several times; send it once"));
    }
    let of_header = match of_header {
        None => None,
        Some(bytes) => Some(std::str::from_utf8(bytes).ok().filter(|key| is_key(key)).ok_or_else(|| invalid(KEY_RULE))?),
    };
    match (of_header, of_body) {
        (_, Some(of_body)) if !is_key(of_body) => Err(Problem::invalid(vec![Violation::new("/idempotency_key", KEY_RULE)])),
        (Some(of_header), Some(of_body)) if of_header != of_body => {
            let detail = "differs from the header Idempotency-Key; send one of the two";
            Err(Problem::invalid(vec![Violation::new("/idempotency_key", detail)]))
        }
        (of_header, of_body) => Ok(of_header.or(of_body)),
    }
}

/// What a key must be.
pub const KEY_RULE: &str = "must have 1 to 255 visible ASCII characters, as a UUID has";

/// Whether it can be a key.
pub fn is_key(key: &str) -> bool {
    (1..=LONGEST_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whose job it is to be: the acting user's, or whomever a backend that acts for none names.
///
/// # Errors
/// What is wrong with it.
pub fn owner<'a>(acting_user: Option<&'a str>, wished: Option<&'a str>) -> Result<Option<&'a str>, Violation> {
    match (acting_user, wished) {
        (Some(acting), Some(wished)) if acting != wished => {
            Err(Violation::new("/owner", "must be the user of X-Acting-User; leave it out, or leave that header out to act for any user"))
        }
        (None, Some(wished)) => match auth::check_user(wished) {
            Ok(()) => Ok(Some(wished)),
            Err(detail) => Err(Violation::new("/owner", detail)),
        },
        (acting, _) => Ok(acting),
    }
}

fn check_times(wish: &Wish, now: DateTime<Utc>, violations: &mut Vec<Violation>) {
    let mut wrong = |pointer: &str, detail: String| violations.push(Violation::new(pointer, detail));
    let shown = |time: DateTime<Utc>| time.format("%FT%TZ");
    if let Some(run_at) = wish.run_at
        && run_at - now > HORIZON
    {
        wrong("/run_at", format!("is more than {} days ahead; the latest now is {}", HORIZON.num_days(), shown(now + HORIZON)));
    }
    if let Some(start_by) = wish.start_by {
        let due = wish.run_at.unwrap_or(now);
        if start_by <= now {
            wrong("/start_by", format!("has passed; it is {} now", shown(now)));
        } else if start_by <= due {
            wrong("/start_by", format!("must be after run_at, {}", shown(due)));
        } else if start_by - due.max(now) > HORIZON {
            wrong("/start_by", format!("is more than {} days after the job is due; leave it out", HORIZON.num_days()));
        }
    }
}

/// The bounds of a limit: wide enough for any product, and none that would make its jobs wait for ever.
fn check_limit(limit: Option<&Limit>, violations: &mut Vec<Violation>) {
    let Some(limit) = limit else { return };
    let mut wrong = |pointer: &'static str, message: &str| violations.push(Violation::new(pointer, message));
    if !is_key(&limit.key) {
        wrong("/limit/key", KEY_RULE);
    }
    if limit.running.is_none() && limit.rate.is_none() {
        wrong("/limit", "limits nothing; say how many may be `running`, or their `rate`");
    }
    if limit.running.is_some_and(|running| !(1..=10_000).contains(&running)) {
        wrong("/limit/running", "must be 1 to 10000");
    }
    if let Some(rate) = limit.rate {
        if !(1..=1_000_000).contains(&rate.jobs) {
            wrong("/limit/rate/jobs", "must be 1 to 1000000");
        }
        if !(1..=86_400).contains(&rate.seconds) {
            wrong("/limit/rate/seconds", "must be 1 to 86400, a day");
        }
        if !(1..=10_000).contains(&rate.burst) {
            wrong("/limit/rate/burst", "must be 1 to 10000");
        }
    }
}

/// Its end may be told to hosts that the product's manifest lists, and to nobody else.
fn check_completion(tenant: &Tenant, url: Option<&str>, violations: &mut Vec<Violation>) {
    let Some(url) = url else { return };
    let refused = match &tenant.manifest.completion {
        None => Some("can't be told to anybody: the product's manifest lists no hosts, [completion]".to_owned()),
        Some(completion) => completion.destination(url).err(),
    };
    violations.extend(refused.map(|detail| Violation::new("/completion_url", detail)));
}

/// There is no such kind.
pub fn unknown_kind(app: &App, kind: &str) -> Violation {
    let known: BTreeSet<_> = app.kinds.entries().map(|entry| entry.name).collect();
    let known: Vec<_> = known.into_iter().collect();
    let named: String = kind.chars().take(100).collect();
    Violation::new("/kind", format!("there is no kind `{named}`; there are: {}", known.join(", ")))
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

fn conflict(first: JobId) -> Problem {
    let detail = format!(
        "This idempotency key was used for another request, which made the job {first}. Use a new key, or send that request again."
    );
    let problem = Problem::new(Code::IdempotencyConflict, detail);
    match HeaderValue::try_from(format!("/v1/jobs/{first}")) {
        Ok(location) => problem.with_header(header::LOCATION, location),
        Err(_) => problem,
    }
}

/// What could not be stored.
pub fn not_accepted(error: AcceptError, has_key: bool) -> Problem {
    match error {
        AcceptError::Overloaded => {
            let detail =
                "More jobs are arriving than can be stored just now. Nothing was accepted; send the same request again in a moment.";
            Problem::new(Code::Overloaded, detail).retry_after(COME_AGAIN)
        }
        AcceptError::Ledger(error) if error.is_transient() => {
            let detail = if has_key {
                "The database does not answer. Send the same request again with the same idempotency key: it is accepted once."
            } else {
                "The database does not answer, and whether the job was stored is not known. Look for it before you send the request again; with an Idempotency-Key you could send it again at once."
            };
            Problem::new(Code::DatabaseUnavailable, detail).retry_after(2 * COME_AGAIN).because(error)
        }
        AcceptError::Ledger(error) if error.is_about_data() => {
            let detail = "holds what the database can't store, such as a number of too many digits";
            Problem::invalid(vec![Violation::new("", detail)]).because(error)
        }
        AcceptError::Ledger(error) => Problem::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(header: Option<&str>, body: Option<&str>) -> Result<Option<String>, Code> {
        let headers =
            header.map(|value| (header::HeaderName::from_static(IDEMPOTENCY_KEY), HeaderValue::from_bytes(value.as_bytes()).unwrap()));
        let headers: HeaderMap = headers.into_iter().collect();
        idempotency_key(&headers, body).map(|key| key.map(str::to_owned)).map_err(|problem| problem.code())
    }

    #[test]
    fn a_key_comes_by_header_or_body() {
        assert_eq!(key(None, None), Ok(None));
        for (header, body) in [(Some("k"), None), (None, Some("k")), (Some("k"), Some("k"))] {
            assert_eq!(key(header, body), Ok(Some("k".into())));
        }
        assert_eq!(key(Some("a"), Some("b")), Err(Code::ValidationFailed));
        for wrong in ["", "a b", "é", &"k".repeat(256)] {
            assert_eq!(key(Some(wrong), None), Err(Code::HeaderInvalid), "{wrong}");
            assert_eq!(key(None, Some(wrong)), Err(Code::ValidationFailed), "{wrong}");
        }
        assert!(key(None, Some(&"k".repeat(255))).is_ok());
    }

    #[test]
    fn a_user_owns_what_is_asked_for_them_and_a_backend_may_name_anybody() {
        assert_eq!(owner(Some("ada"), None), Ok(Some("ada")));
        assert_eq!(owner(Some("ada"), Some("ada")), Ok(Some("ada")));
        assert_eq!(owner(None, Some("ada")), Ok(Some("ada")));
        assert_eq!(owner(None, None), Ok(None));
        assert_eq!(owner(Some("ada"), Some("eve")).unwrap_err().pointer, "/owner");
        assert_eq!(owner(None, Some("a b")).unwrap_err().pointer, "/owner");
    }

    #[test]
    fn times_follow_each_other_within_the_horizon() {
        let now = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let wrong = |run_at: Option<i64>, start_by: Option<i64>| {
            let at = |hours: Option<i64>| hours.map(|hours| now + TimeDelta::hours(hours));
            let wish = Wish {
                kind: String::new(),
                payload: Value::Null,
                payload_at: "",
                idempotency_key: None,
                run_at: at(run_at),
                start_by: at(start_by),
                priority: None,
                owner: None,
                limit: None,
                completion_url: None,
                unique: None,
                then: Vec::new(),
            };
            let mut violations = Vec::new();
            check_times(&wish, now, &mut violations);
            violations.into_iter().map(|violation| violation.pointer).collect::<Vec<_>>()
        };
        let year = 366 * 24;
        for (run_at, start_by) in
            [(None, None), (Some(-1), None), (Some(year), Some(2 * year)), (None, Some(1)), (Some(1), Some(2)), (Some(-9_000), Some(year))]
        {
            assert_eq!(wrong(run_at, start_by), Vec::<String>::new(), "{run_at:?} {start_by:?}");
        }
        assert_eq!(wrong(Some(year + 1), None), ["/run_at"]);
        for (run_at, start_by) in [
            (None, Some(0)),
            (None, Some(-1)),
            (Some(2), Some(1)),
            (Some(2), Some(2)),
            (Some(-2), Some(-1)),
            (None, Some(year + 1)),
            (Some(2), Some(year + 3)),
        ] {
            assert_eq!(wrong(run_at, start_by), ["/start_by"], "{run_at:?} {start_by:?}");
        }
    }
}
