//! From a wish to a stored job: the one way in, whichever door the wish came through.
//!
//! What must stay true: everything that is wrong is named at once and nothing is stored; a request repeated under its
//! idempotency key gets the first one's job, also when time or the manifest have moved on and it would not be accepted as
//! new, because its sender can't know whether the first one arrived.

use std::{collections::BTreeSet, time::Duration};

use axum::http::{HeaderMap, HeaderValue, header};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use shared::{
    job::{JobId, Limit, Options, Priority, Reason, State},
    kinds::{Entry, PAYLOAD_LIMIT, Violation},
    ledger::{
        LedgerError,
        find::FoundJob,
        insert::{Arrival, IdempotencyKey, Inserted, NewJob},
    },
    queue::Queue,
    tenant,
};

use super::fingerprint::{Asked as Fingerprinted, fingerprint};
use crate::{
    accept::AcceptError,
    app::App,
    auth,
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
}

/// What became of a wish.
#[derive(Debug)]
pub enum Admitted {
    /// It is a job now.
    Now(Box<FoundJob>),
    /// It was one already.
    Before(JobId),
}

/// Checks a wish and stores it as a job.
///
/// # Errors
/// What is wrong with it, what it contradicts, or that it can't be stored now.
pub async fn admit(app: &App, tenant: i32, acting_user: Option<&str>, headers: &HeaderMap, wish: Wish) -> Result<Admitted, Problem> {
    let payload = wish.payload.to_string();
    if payload.len() > PAYLOAD_LIMIT {
        let detail = format!(
            "The payload has {} bytes of JSON; {PAYLOAD_LIMIT} are allowed. Send large content another way and name it.",
            payload.len()
        );
        return Err(Problem::new(Code::PayloadTooLarge, detail));
    }
    let key = idempotency_key(headers, wish.idempotency_key.as_deref())?;
    let now = app.clock.now();
    let mut violations = Vec::new();
    let named = owner(acting_user, wish.owner.as_deref()).map_err(|violation| violations.push(violation));
    // The rest is looked at as if the owner were right, so that no mistake is named that is none.
    let owner = named.unwrap_or(acting_user.or(wish.owner.as_deref()));
    check_times(&wish, now, &mut violations);
    check_limit(wish.limit.as_ref(), &mut violations);
    check_completion(app, tenant, wish.completion_url.as_deref(), &mut violations).await?;
    let entry = app.kinds.find(&wish.kind);
    let mut queue = None;
    match entry {
        None => violations.push(unknown_kind(app, &wish.kind)),
        Some(entry) => match check_payload(app, tenant, entry, &wish, owner).await? {
            Ok(found) => queue = Some(found),
            Err(found) => violations.extend(found),
        },
    }
    let priority = wish.priority.unwrap_or(Priority::Normal);
    let body_hash = entry.map(|entry| {
        let Wish { payload, run_at, start_by, completion_url, .. } = &wish;
        fingerprint(Fingerprinted {
            kind: entry.name,
            payload,
            run_at: *run_at,
            start_by: *start_by,
            priority,
            owner,
            completion_url: completion_url.as_deref(),
        })
    });
    let (Some(entry), Some(queue), Some(body_hash), true) = (entry, queue, body_hash, violations.is_empty()) else {
        if let (Some(key), Some(body_hash), Ok(owner)) = (key, body_hash, named)
            && let Some(first) = accepted_before(app, tenant, owner, key, body_hash, now).await?
        {
            return Ok(Admitted::Before(first));
        }
        return Err(Problem::invalid(violations));
    };

    let job = NewJob {
        id: JobId(app.clock.new_id()),
        tenant,
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
        idempotency: key.map(|key| IdempotencyKey { key: key.to_owned(), body_hash, expires_at: now + app.config.idempotency }),
        options: Options { limit: wish.limit, completion_url: wish.completion_url },
    };
    let accepted = accepted_as(&job, now);
    match app.acceptor.accept(job).await {
        Ok((Inserted::Accepted, arrival)) => Ok(Admitted::Now(Box::new(accepted.arrived(arrival)))),
        Ok((Inserted::Duplicate(first), _)) => Ok(Admitted::Before(first)),
        Ok((Inserted::Conflict(first), _)) => Err(conflict(first)),
        Err(error) => Err(not_accepted(error, key.is_some())),
    }
}

/// The key of the header or the body, which must agree.
fn idempotency_key<'a>(headers: &'a HeaderMap, of_body: Option<&'a str>) -> Result<Option<&'a str>, Problem> {
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

const KEY_RULE: &str = "must have 1 to 255 visible ASCII characters, as a UUID has";

fn is_key(key: &str) -> bool {
    (1..=LONGEST_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whose job it is to be: the acting user's, or whomever a backend that acts for none names.
fn owner<'a>(acting_user: Option<&'a str>, wished: Option<&'a str>) -> Result<Option<&'a str>, Violation> {
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
async fn check_completion(app: &App, tenant: i32, url: Option<&str>, violations: &mut Vec<Violation>) -> Result<(), Problem> {
    let Some(url) = url else { return Ok(()) };
    let tenant = app.tenants.get(tenant).await?;
    let refused = match tenant.as_ref().and_then(|tenant| tenant.manifest.completion.as_ref()) {
        None => Some("can't be told to anybody: the product's manifest lists no hosts, [completion]".to_owned()),
        Some(completion) => completion.destination(url).err(),
    };
    violations.extend(refused.map(|detail| Violation::new("/completion_url", detail)));
    Ok(())
}

fn unknown_kind(app: &App, kind: &str) -> Violation {
    let known: BTreeSet<_> = app.kinds.entries().map(|entry| entry.name).collect();
    let known: Vec<_> = known.into_iter().collect();
    let named: String = kind.chars().take(100).collect();
    Violation::new("/kind", format!("there is no kind `{named}`; there are: {}", known.join(", ")))
}

/// The queue of a right payload, or what is wrong with it in terms of the request's body.
async fn check_payload(
    app: &App,
    tenant: i32,
    entry: &Entry,
    wish: &Wish,
    owner: Option<&str>,
) -> Result<Result<Queue, Vec<Violation>>, Problem> {
    let Some(tenant) = app.tenants.get(tenant).await? else {
        // A key leads to its tenant by a foreign key, so this takes a database changed by hand.
        tracing::error!(tenant, "the key's tenant is not in the database");
        return Err(Problem::unexplained());
    };
    Ok(match (entry.check)(&wish.payload, &tenant.manifest, owner) {
        Ok(checked) => Ok(checked.queue),
        Err(violations) => {
            let placed = |violation: Violation| Violation { pointer: wish.payload_at.to_owned() + &violation.pointer, ..violation };
            Err(violations.into_iter().map(placed).collect())
        }
    })
}

/// The job that the same request made before, if it did.
async fn accepted_before(
    app: &App,
    tenant: i32,
    owner: Option<&str>,
    key: &str,
    body_hash: [u8; 32],
    now: DateTime<Utc>,
) -> Result<Option<JobId>, LedgerError> {
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    let first = sqlx::query_scalar(
        "SELECT job_id FROM idempotency_key WHERE tenant_id = $1 AND owner = $2 AND key = $3 AND body_hash = $4 AND expires_at > $5",
    )
    .bind(tenant)
    .bind(owner.unwrap_or_default())
    .bind(key)
    .bind(body_hash.as_slice())
    .bind(now)
    .fetch_optional(&mut *transaction)
    .await?;
    Ok(first.map(JobId))
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

fn not_accepted(error: AcceptError, has_key: bool) -> Problem {
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
