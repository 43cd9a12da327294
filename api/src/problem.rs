//! The only error that clients see: RFC 9457 `application/problem+json`.
//!
//! What must stay true: a [`Code`] is permanent once released; `detail` tells a person what to do; nothing of the inside
//! (SQL, addresses, causes) is in an answer. The cause goes to the log, once, with the request's id, which the answer
//! carries too.

use std::{borrow::Cow, error::Error, fmt::Write, sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{kinds::Violation, ledger::LedgerError, tenant::TenantError, usage::Refused};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, Type},
    },
};

/// The media type of a problem (RFC 9457 §6.1).
pub const CONTENT_TYPE: &str = "application/problem+json";

/// Declares the codes with their status and title, so that the three can't drift apart.
macro_rules! codes {
    ($($(#[$doc:meta])* $member:ident = $word:literal, $status:ident, $title:literal;)+) => {
        /// What went wrong, for programs. Permanent.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        pub enum Code { $($(#[$doc])* #[serde(rename = $word)] $member,)+ }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$member,)+];

            /// The word in answers.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$member => $word,)+ }
            }

            /// The status that it is answered with.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$member => StatusCode::$status,)+ }
            }

            /// The same short sentence each time it occurs.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$member => $title,)+ }
            }
        }
    };
}

/// Its words, as they are in answers: a derive does not see through the macro.
impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let words = Self::ALL.iter().map(|code| code.word());
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(words))
            .description(Some("What went wrong, for programs. Permanent; new ones may be added."))
            .into()
    }
}

impl ToSchema for Code {}

codes! {
    /// The body is no JSON.
    JsonMalformed = "json_malformed", BAD_REQUEST, "The body is not JSON";
    /// The body broke off.
    BodyIncomplete = "body_incomplete", BAD_REQUEST, "The body could not be read";
    /// A query parameter is unknown or ill-typed.
    QueryInvalid = "query_invalid", BAD_REQUEST, "The query is not valid";
    /// A header is ill-formed.
    HeaderInvalid = "header_invalid", BAD_REQUEST, "A header is not valid";
    /// There is no API key.
    KeyMissing = "key_missing", UNAUTHORIZED, "An API key is needed";
    /// What was sent can't be an API key.
    KeyMalformed = "key_malformed", UNAUTHORIZED, "That is not an API key";
    /// No such API key exists.
    KeyUnknown = "key_unknown", UNAUTHORIZED, "There is no such API key";
    /// The API key ended.
    KeyExpired = "key_expired", UNAUTHORIZED, "The API key expired";
    /// The API key was revoked.
    KeyRevoked = "key_revoked", UNAUTHORIZED, "The API key was revoked";
    /// What was sent is no token of this installation.
    TokenInvalid = "token_invalid", UNAUTHORIZED, "That is not a token";
    /// The token's time is over.
    TokenExpired = "token_expired", UNAUTHORIZED, "The token expired";
    /// A hook's signature is missing, wrong or old.
    SignatureInvalid = "signature_invalid", UNAUTHORIZED, "The signature is not valid";
    /// The API key may not do this.
    ScopeMissing = "scope_missing", FORBIDDEN, "The API key lacks a scope";
    /// The door is the backend's, and the request acts for an end user.
    BackendOnly = "backend_only", FORBIDDEN, "This is for the product's backend only";
    /// The door is not open to users' tokens.
    TokenNotAllowed = "token_not_allowed", FORBIDDEN, "A user's token may not do this";
    /// The installation has no key to sign tokens with.
    TokensNotEnabled = "tokens_not_enabled", FORBIDDEN, "Tokens are not enabled";
    /// The kind is switched off, or not on for this user yet.
    KindNotEnabled = "kind_not_enabled", FORBIDDEN, "The kind is not enabled";
    /// The product may not ask for batches.
    BatchesNotEnabled = "batches_not_enabled", FORBIDDEN, "Batches are not enabled";
    /// There is nothing at this address.
    RouteNotFound = "route_not_found", NOT_FOUND, "There is nothing at this address";
    /// There is no such job, or it is another's.
    JobNotFound = "job_not_found", NOT_FOUND, "There is no such job";
    /// There is no such batch, or it is another's.
    BatchNotFound = "batch_not_found", NOT_FOUND, "There is no such batch";
    /// The product has no such task for models.
    AiTaskNotFound = "ai_task_not_found", NOT_FOUND, "There is no such task";
    /// No model speaks in the job.
    StreamNotFound = "stream_not_found", NOT_FOUND, "There are no words to follow";
    /// There is no such queue.
    QueueNotFound = "queue_not_found", NOT_FOUND, "There is no such queue";
    /// There is no such export, or it is another's.
    ExportNotFound = "export_not_found", NOT_FOUND, "There is no such export";
    /// There is no such schedule, or it is another's.
    ScheduleNotFound = "schedule_not_found", NOT_FOUND, "There is no such schedule";
    /// There is no such user.
    UserNotFound = "user_not_found", NOT_FOUND, "There is no such user";
    /// A report does not exist for this tenant.
    ReportNotFound = "report_not_found", NOT_FOUND, "There is no such report";
    /// There is no such notification, or it is another's.
    NotificationNotFound = "notification_not_found", NOT_FOUND, "There is no such notification";
    /// The manifest declares no such statistic.
    StatisticNotFound = "statistic_not_found", NOT_FOUND, "There is no such statistic";
    /// There is no such suppression, or it is another's.
    SuppressionNotFound = "suppression_not_found", NOT_FOUND, "There is no such suppression";
    /// There is no such metric, or it is not for this reader.
    MetricNotFound = "metric_not_found", NOT_FOUND, "There is no such metric";
    /// There is no such view, or it is not for this reader.
    ViewNotFound = "view_not_found", NOT_FOUND, "There is no such view";
    /// There is no such provider of whom keys could be brought.
    ByokProviderUnknown = "byok_provider_unknown", NOT_FOUND, "There is no such provider";
    /// The user has brought no key for this provider.
    ByokKeyNotFound = "byok_key_not_found", NOT_FOUND, "There is no such key";
    /// The user has no such browser.
    SubscriptionNotFound = "subscription_not_found", NOT_FOUND, "There is no such subscription";
    /// An address that shows a job leads nowhere, or nowhere any more.
    LinkNotFound = "link_not_found", NOT_FOUND, "The address leads nowhere";
    /// The address does not know the method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "The method is not allowed here";
    /// The body did not arrive in time.
    BodyTimeout = "body_timeout", REQUEST_TIMEOUT, "The body took too long";
    /// The idempotency key was used for another request.
    IdempotencyConflict = "idempotency_conflict", CONFLICT, "The idempotency key was used for another request";
    /// The job has ended.
    JobNotCancellable = "job_not_cancellable", CONFLICT, "The job can't be cancelled any more";
    /// The batch has finished.
    BatchNotCancellable = "batch_not_cancellable", CONFLICT, "The batch can't be cancelled any more";
    /// The job has not ended, or there is no use in trying it again.
    JobNotRetryable = "job_not_retryable", CONFLICT, "The job can't be tried again";
    /// The export has no file, or none yet.
    ExportNotCompleted = "export_not_completed", CONFLICT, "The export is not completed";
    /// The job's present state is not one that can be discarded.
    JobNotDiscardable = "job_not_discardable", CONFLICT, "The job can't be discarded";
    /// The tenant has a schedule of this name.
    ScheduleNameTaken = "schedule_name_taken", CONFLICT, "There is a schedule of this name";
    /// The tenant has as many schedules as it may.
    ScheduleLimitReached = "schedule_limit_reached", CONFLICT, "There are as many schedules as may be";
    /// The manifest declares the schedule.
    ScheduleDeclared = "schedule_declared", CONFLICT, "The schedule is declared by the manifest";
    /// No reading of that time waits to be believed.
    ReadingNotFlagged = "reading_not_flagged", CONFLICT, "There is no such flagged reading";
    /// The user is neither suspended nor banned.
    UserNotSuspended = "user_not_suspended", CONFLICT, "The user is not suspended";
    /// A user of this name is being erased.
    UserBeingErased = "user_being_erased", CONFLICT, "The user is being erased";
    /// The job was discarded, or pruned with other history.
    JobGone = "job_gone", GONE, "The job is gone";
    /// The export was discarded, or pruned with other history.
    ExportGone = "export_gone", GONE, "The export is gone";
    /// The export's file has been deleted after its time.
    ExportExpired = "export_expired", GONE, "The export's file has been deleted";
    /// The job's payload is too large.
    PayloadTooLarge = "payload_too_large", PAYLOAD_TOO_LARGE, "The payload is too large";
    /// The body is too large.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// The body's media type or encoding is not read here.
    ContentTypeUnsupported = "content_type_unsupported", UNSUPPORTED_MEDIA_TYPE, "The body's type is not supported";
    /// The body is JSON and says something that can't be.
    ValidationFailed = "validation_failed", UNPROCESSABLE_ENTITY, "The input is not valid";
    /// As many jobs of the tenant wait as may.
    BacklogFull = "backlog_full", TOO_MANY_REQUESTS, "The backlog is full";
    /// Events come faster than they can be stored.
    IngestOverloaded = "ingest_overloaded", TOO_MANY_REQUESTS, "Events come too fast";
    /// There have been enough inquiries of the address.
    InquiryLimitExceeded = "inquiry_limit_exceeded", TOO_MANY_REQUESTS, "There have been enough inquiries";
    /// There have been enough wishes for the statistic.
    RefreshLimitExceeded = "refresh_limit_exceeded", TOO_MANY_REQUESTS, "It was refreshed often enough";
    /// As much of something is used as may be. In capitals, as products' clients know it (R44).
    UsageLimitExceeded = "USAGE_LIMIT_EXCEEDED", TOO_MANY_REQUESTS, "A usage limit is reached";
    /// The user's keys were checked as often as they may.
    ByokLimitExceeded = "byok_limit_exceeded", TOO_MANY_REQUESTS, "Keys were checked often enough";
    /// A mistake of ours.
    Internal = "internal", INTERNAL_SERVER_ERROR, "Something went wrong on our side";
    /// More is asked at once than can be served.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "Too much is asked at once";
    /// The database does not answer.
    DatabaseUnavailable = "database_unavailable", SERVICE_UNAVAILABLE, "The service is not available now";
    /// The operator has not set up what this needs.
    NotSetUp = "not_set_up", SERVICE_UNAVAILABLE, "This is not set up here";
    /// The request took longer than any may.
    DeadlineExceeded = "deadline_exceeded", SERVICE_UNAVAILABLE, "The request took too long";
}

/// An error as a client will see it. Cheap to pass around: `Result<_, Problem>` stays small.
#[derive(Clone, Debug)]
pub struct Problem(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<Violation>,
    headers: HeaderMap,
    gone_at: Option<DateTime<Utc>>,
    over: Option<OverLimit>,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

/// Which limit is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverLimit {
    metric: String,
    scope: &'static str,
    period: &'static str,
    usage: u64,
    limit: u64,
    resets_at: Option<DateTime<Utc>>,
}

impl From<&Refused> for OverLimit {
    fn from(refused: &Refused) -> Self {
        Self {
            metric: refused.metric.clone(),
            scope: if refused.of_product { "product" } else { "user" },
            period: refused.period.word(),
            usage: refused.used,
            limit: refused.limit,
            resets_at: refused.resets_at,
        }
    }
}

impl Problem {
    /// A problem with what the caller can do about it.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        Self(Box::new(Parts { code, detail, errors: Vec::new(), headers: HeaderMap::new(), gone_at: None, over: None, cause: None }))
    }

    /// Input that says something that can't be; each violation with its place.
    #[must_use]
    pub fn invalid(errors: Vec<Violation>) -> Self {
        let detail = match errors.as_slice() {
            [one] if one.pointer.is_empty() => one.detail.clone(),
            [one] => format!("{}: {}", one.pointer, one.detail),
            several => format!("{} fields are not valid; see `errors`, correct them and send again", several.len()),
        };
        Self::new(Code::ValidationFailed, detail).with_errors(errors)
    }

    /// A mistake of ours; the cause is logged.
    #[must_use]
    pub fn internal(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::new(Code::Internal, INTERNAL).because(cause)
    }

    /// A mistake of ours whose cause has been logged.
    #[must_use]
    pub fn unexplained() -> Self {
        Self::new(Code::Internal, INTERNAL)
    }

    /// The fields at fault.
    #[must_use]
    pub fn with_errors(mut self, errors: Vec<Violation>) -> Self {
        self.0.errors = errors;
        self
    }

    /// What the log should say.
    #[must_use]
    pub fn because(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.0.cause = Some(Arc::new(cause));
        self
    }

    /// When to try again, rounded up to whole seconds (RFC 9110 §10.2.3).
    #[must_use]
    pub fn retry_after(self, pause: Duration) -> Self {
        let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
        self.with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// A header of the answer.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    /// When what was asked for went.
    #[must_use]
    pub fn gone_at(mut self, gone_at: DateTime<Utc>) -> Self {
        self.0.gone_at = Some(gone_at);
        self
    }

    /// Which limit is reached.
    #[must_use]
    pub fn over_limit(mut self, over: OverLimit) -> Self {
        self.0.over = Some(over);
        self
    }

    /// What went wrong.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.0.code
    }

    /// The fields at fault.
    #[must_use]
    pub fn errors(&self) -> &[Violation] {
        &self.0.errors
    }

    /// What lay beneath, for the log: the whole chain in one line.
    #[must_use]
    pub fn cause(&self) -> Option<String> {
        self.0.cause.as_ref().map(|cause| chain(cause.as_ref()))
    }

    /// The answer, for a request.
    #[must_use]
    pub fn answer(&self, request_id: Option<&str>) -> Response {
        let Parts { code, detail, errors, headers, gone_at, over, .. } = &*self.0;
        let over = over.as_ref();
        let body = ProblemBody {
            kind: format!("urn:offstage:problem:{}", code.word()),
            title: code.title(),
            status: code.status().as_u16(),
            code: *code,
            detail,
            errors,
            gone_at: *gone_at,
            metric: over.map(|over| over.metric.as_str()),
            scope: over.map(|over| over.scope),
            period: over.map(|over| over.period),
            usage: over.map(|over| over.usage),
            limit: over.map(|over| over.limit),
            resets_at: over.and_then(|over| over.resets_at),
            request_id,
        };
        // Strings and numbers: there is nothing in it that JSON can't hold.
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (code.status(), json).into_response();
        response.headers_mut().extend(headers.clone());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        response
    }
}

const INTERNAL: &str = "This is our mistake, not yours. Trying again may help; if it doesn't, tell the operator the request_id.";

/// An error and all beneath it, outermost first.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Writing to a string can't fail.
        _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

impl IntoResponse for Problem {
    /// The edge (`crate::edge`) finds the problem in the answer's extensions, adds the request's id and logs the cause.
    fn into_response(self) -> Response {
        let mut response = self.answer(None);
        response.extensions_mut().insert(self);
        response
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        if error.is_transient() {
            let detail =
                "The database does not answer. Nothing was changed unless you are told so; send the same request again in a moment.";
            Self::new(Code::DatabaseUnavailable, detail).retry_after(Duration::from_secs(2)).because(error)
        } else {
            Self::internal(error)
        }
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        LedgerError::from(error).into()
    }
}

impl From<TenantError> for Problem {
    fn from(error: TenantError) -> Self {
        match error {
            TenantError::Ledger(error) => error.into(),
            error @ TenantError::Manifest { .. } => Self::internal(error),
        }
    }
}

/// An error (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// `urn:offstage:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:offstage:problem:validation_failed")]
    kind: String,
    /// The same short sentence for each problem of this code.
    #[schema(example = "The input is not valid")]
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 422)]
    status: u16,
    /// What went wrong, for programs. Codes are permanent; new ones may be added.
    code: Code,
    /// What went wrong this time and what to do about it.
    #[schema(example = "/kind: is missing")]
    detail: &'a str,
    /// The fields at fault.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<Violation>, required = false)]
    errors: &'a [Violation],
    /// When what was asked for went; with 410 of a job or an export that is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    gone_at: Option<DateTime<Utc>>,
    /// Which metric may not be used further; this and what follows with 429 `USAGE_LIMIT_EXCEEDED`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, example = "ai_enhancements")]
    metric: Option<&'a str>,
    /// Whose limit it is: the `user`'s, or the `product`'s for all of them together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, example = "user")]
    scope: Option<&'static str>,
    /// Over which period: `hour`, `day`, `month`, `total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, example = "month")]
    period: Option<&'static str>,
    /// What is used, jobs that have not ended included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, example = 10)]
    usage: Option<u64>,
    /// The most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, example = 10)]
    limit: Option<u64>,
    /// When the next period begins; absent where it never does, and where the limit is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    resets_at: Option<DateTime<Utc>>,
    /// The request's id, as in the header `X-Request-Id`: tell it to the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_distinct_words_of_failure() {
        let words: HashSet<_> = Code::ALL.iter().map(|code| code.word()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for code in Code::ALL {
            // Capitals are the products' own words.
            let is_own = *code == Code::UsageLimitExceeded;
            let is_letter = if is_own { u8::is_ascii_uppercase } else { u8::is_ascii_lowercase };
            assert!(code.word().bytes().all(|byte| is_letter(&byte) || byte == b'_'), "{}", code.word());
            assert!(code.status().is_client_error() || code.status().is_server_error());
            assert_eq!(serde_json::to_value(code).unwrap(), code.word());
        }
    }

    #[test]
    fn the_cause_is_for_the_log_only() {
        let inner = std::io::Error::other("10.0.0.7 refused");
        let problem = Problem::from(LedgerError::Unavailable(sqlx::Error::Io(inner)));
        assert_eq!(problem.code(), Code::DatabaseUnavailable);
        assert!(problem.cause().unwrap().contains("10.0.0.7 refused"));
        let answer = problem.into_response();
        assert_eq!(answer.headers()[header::RETRY_AFTER], "2");
        assert_eq!(answer.headers()[header::CONTENT_TYPE], CONTENT_TYPE);
    }

    #[test]
    fn pauses_are_rounded_up() {
        let header = |pause| Problem::unexplained().retry_after(pause).answer(None).headers()[header::RETRY_AFTER].clone();
        assert_eq!(header(Duration::from_millis(1)), "1");
        assert_eq!(header(Duration::from_secs(3)), "3");
        assert_eq!(header(Duration::from_millis(3_001)), "4");
    }
}
