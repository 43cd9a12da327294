//! What a request wishes for, and what is wrong with that by itself.

use std::collections::BTreeSet;

use axum::http::{HeaderMap, HeaderValue};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{
    job::{Limit, Priority, Unique},
    kinds::{Kind, Violation},
    tenant::Tenant,
};
use utoipa::ToSchema;

use crate::{
    app::App,
    auth,
    problem::{Code, Problem},
    routes::jobs::{fingerprint::hash_of, next::NextJob},
};

/// How far ahead a job can be planned, and how long after that it may still be started.
const HORIZON: TimeDelta = TimeDelta::days(366);

/// The header of the same meaning as the field `idempotency_key`
/// (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>). Its value is taken as it stands.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The longest idempotency key.
const LONGEST_KEY: usize = 255;

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
    /// For a job of a kind that has a door of its own, whose fields are those of the request; nothing else is wished for.
    pub fn of<K: Kind>(payload: &K) -> Self {
        Self {
            kind: K::NAME.to_owned(),
            // Plain fields: nothing that JSON can't say.
            payload: serde_json::to_value(payload).unwrap_or_default(),
            payload_at: "",
            idempotency_key: None,
            run_at: None,
            start_by: None,
            priority: None,
            owner: None,
            limit: None,
            completion_url: None,
            unique: None,
            then: Vec::new(),
        }
    }

    /// What it asks for beside what every job has, to tell a repeat from a mistake.
    pub(super) fn extras(&self) -> Option<Value> {
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
    pub(super) fn check(&self, payload: &Value, violations: &mut Vec<Violation>) -> Option<Unique> {
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

pub(super) fn check_times(wish: &Wish, now: DateTime<Utc>, violations: &mut Vec<Violation>) {
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
pub(super) fn check_limit(limit: Option<&Limit>, violations: &mut Vec<Violation>) {
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
pub(super) fn check_completion(tenant: &Tenant, url: Option<&str>, violations: &mut Vec<Violation>) {
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

#[cfg(test)]
mod tests {
    use axum::http::header;

    use shared::kinds::ExportCreate;

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
            let wish = Wish { run_at: at(run_at), start_by: at(start_by), ..Wish::of(&ExportCreate::sample()) };
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
