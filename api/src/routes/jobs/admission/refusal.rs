//! Why a wish is not a job: what is wrong with it, what it contradicts, what is full or away just now.

use std::time::Duration;

use axum::http::{HeaderValue, header};
use chrono::{DateTime, Utc};
use shared::{
    job::JobId,
    kinds::{PAYLOAD_LIMIT, Violation},
    tenant::NotEnabled,
    usage::Refused,
};

use crate::{
    accept::AcceptError,
    backlog::Full,
    problem::{Code, OverLimit, Problem},
};

/// When those who met a full house should come again.
const COME_AGAIN: Duration = Duration::from_secs(1);

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

/// The tenant's backlog is full.
pub fn backlog_full(full: Full) -> Problem {
    metrics::counter!("offstage_backlog_refused_total").increment(1);
    let Full { limit, waiting, jobs, room_in } = full;
    if jobs > limit {
        let detail = format!("has {jobs} jobs, and {limit} of this product may wait in all; send it in smaller batches");
        return Problem::invalid(vec![Violation::new("/jobs", detail)]);
    }
    let when = match room_in {
        Some(room_in) => format!("By how fast it went down lately there is room in about {} s.", room_in.as_secs().max(1)),
        None => "How fast it goes down is not known yet.".to_owned(),
    };
    let detail = format!(
        "{waiting} jobs of this product wait and {limit} may, so there is no room for {jobs} more. Nothing was accepted; send the same request again later. {when}"
    );
    Problem::new(Code::BacklogFull, detail).retry_after(full.retry_after())
}

pub(super) fn conflict(first: JobId) -> Problem {
    let detail = format!(
        "This idempotency key was used for another request, which made the job {first}. Use a new key, or send that request again."
    );
    let problem = Problem::new(Code::IdempotencyConflict, detail);
    match HeaderValue::try_from(format!("/v1/jobs/{first}")) {
        Ok(location) => problem.with_header(header::LOCATION, location),
        Err(_) => problem,
    }
}

/// It would use more than may be used.
pub fn over_limit(refused: &Refused, now: DateTime<Utc>) -> Problem {
    metrics::counter!("offstage_usage_refused_total", "metric" => refused.metric.clone(), "period" => refused.period.word()).increment(1);
    let detail = format!("Nothing was accepted: {refused}");
    let problem = Problem::new(Code::UsageLimitExceeded, detail).over_limit(OverLimit::from(refused));
    match refused.resets_at.and_then(|at| (at - now).to_std().ok()) {
        // Of what would never fit there is no use in coming again.
        Some(pause) if refused.amount <= refused.limit => problem.retry_after(pause.max(COME_AGAIN)),
        _ => problem,
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
