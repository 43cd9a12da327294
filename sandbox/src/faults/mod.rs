//! Misbehaviour on command, and a record of what was asked.
//!
//! A server of the sandbox describes each request it gets as a [`Request`] and asks its [`Faults`] what to do. Rules are
//! looked through in the order in which they were added; the first that matches and is not used up decides.

mod body;
pub mod tcp;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub(crate) use body::{Body, Metered};

/// Requests that are remembered; older ones are counted but forgotten.
const RECORDS_KEPT: usize = 10_000;
/// Rules at a time.
const RULES_LIMIT: usize = 1_000;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Answers with this HTTP status and the service's usual error body, without doing anything.
    Status(u16),
    /// The same, and when to come back (`Retry-After`).
    Busy {
        /// The status.
        status: u16,
        /// In how many seconds.
        retry_after: u32,
    },
    /// For mail: answers with this code and enhanced code (RFC 3463), without doing anything; by [`Fault::Status`] without the latter. A
    /// 421 closes the connection.
    Reply {
        /// The reply's code, as 550.
        code: u16,
        /// The enhanced code, as `[5, 1, 1]`.
        enhanced: [u16; 3],
    },
    /// Takes the request and never answers, until the rule is cleared or the client goes.
    Hang,
    /// Cuts the connection after this many bytes of the bodies, upwards and downwards together; 0 is at once.
    Drop {
        /// Bytes that still pass.
        after_bytes: u64,
    },
    /// Lets the bodies pass at this rate, upwards and downwards each.
    Slow {
        /// At least 1.
        bytes_per_second: u64,
    },
    /// Does what was asked and then cuts the connection instead of answering: the client can't know that it happened.
    LoseAnswer,
}

/// A fault with what it applies to. `Rule::from(fault)` applies to every request, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What goes wrong.
    pub fault: Fault,
    /// Only this operation, by the protocol's name for it, as in `UploadPart`; every one when absent.
    #[serde(default)]
    pub operation: Option<String>,
    /// Only where the path, as it stands in the request with its percent signs, holds this text.
    #[serde(default)]
    pub path_contains: Option<String>,
    /// Lets this many matching requests pass before it begins.
    #[serde(default)]
    pub skip: u32,
    /// Ends after this many; goes on when absent.
    #[serde(default)]
    pub times: Option<u32>,
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        Self { fault, operation: None, path_contains: None, skip: 0, times: None }
    }
}

impl Rule {
    /// Only this operation, as in `UploadPart`.
    #[must_use]
    pub fn on(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    /// Only where the path holds this text.
    #[must_use]
    pub fn path_contains(mut self, text: impl Into<String>) -> Self {
        self.path_contains = Some(text.into());
        self
    }

    /// Lets `count` matching requests pass before it begins.
    #[must_use]
    pub fn skip(mut self, count: u32) -> Self {
        self.skip = count;
        self
    }

    /// Ends after `count` requests.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.times = Some(count);
        self
    }

    fn matches(&self, request: &Request) -> bool {
        self.operation.as_ref().is_none_or(|operation| *operation == request.operation)
            && self.path_contains.as_ref().is_none_or(|text| request.path.contains(text.as_str()))
    }
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// The protocol's name for it, as in `PutObject`.
    pub operation: String,
    /// The HTTP method.
    pub method: String,
    /// Without the query, which may hold a signature.
    pub path: String,
}

/// A request with what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// What was asked.
    #[serde(flatten)]
    pub request: Request,
    /// The answer's status; `None` while there is no answer, or when there never was one.
    pub status: Option<u16>,
    /// The fault that was applied.
    pub fault: Option<Fault>,
    /// When it came.
    #[serde(skip)]
    pub at: Instant,
}

/// The faults of one service. Clones share them.
#[derive(Debug, Clone)]
pub struct Faults {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    ledger: Mutex<Ledger>,
    /// Raised by `clear`: what hangs lets go.
    cleared: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ledger {
    rules: Vec<Rule>,
    records: VecDeque<Record>,
    /// How many records came before the oldest one kept.
    forgotten: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new()
    }
}

impl Faults {
    /// None: everything works.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::new(Inner { ledger: Mutex::default(), cleared: watch::Sender::new(0) }) }
    }

    /// From now on, for requests that arrive after this.
    pub fn add(&self, rule: impl Into<Rule>) {
        let mut ledger = self.ledger();
        if ledger.rules.len() < RULES_LIMIT {
            ledger.rules.push(rule.into());
        }
    }

    /// Everything works again. Requests that hang are cut off; slowed ones stay slow.
    pub fn clear(&self) {
        self.ledger().rules.clear();
        self.inner.cleared.send_modify(|generation| *generation += 1);
    }

    /// The rules that are not used up.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        self.ledger().rules.clone()
    }

    /// The latest requests, oldest first; at most 10,000.
    #[must_use]
    pub fn requests(&self) -> Vec<Record> {
        self.ledger().records.iter().cloned().collect()
    }

    /// How many of the remembered requests were for this operation.
    #[must_use]
    pub fn count(&self, operation: &str) -> usize {
        self.ledger().records.iter().filter(|record| record.request.operation == operation).count()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        let mut ledger = self.ledger();
        ledger.forgotten += u64::try_from(ledger.records.len()).unwrap_or_default();
        ledger.records.clear();
    }

    /// Waits until `wanted` holds for the requests so far, looking again at each new one.
    ///
    /// # Errors
    /// The requests so far, when the deadline has passed.
    pub async fn wait_for(&self, deadline: Duration, wanted: impl Fn(&[Record]) -> bool) -> Result<Vec<Record>, Vec<Record>> {
        let end = Instant::now() + deadline;
        loop {
            let requests = self.requests();
            if wanted(&requests) {
                return Ok(requests);
            }
            if Instant::now() > end {
                return Err(requests);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Records a request and says what to do with it, and by which number to report its answer.
    pub(crate) fn decide(&self, request: Request) -> (u64, Option<Fault>) {
        let mut guard = self.ledger();
        let ledger = &mut *guard;
        let mut fault = None;
        for rule in ledger.rules.iter_mut().filter(|rule| rule.matches(&request)) {
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if let Some(times) = rule.times.as_mut() {
                *times = times.saturating_sub(1);
            }
            fault = Some(rule.fault);
            break;
        }
        ledger.rules.retain(|rule| rule.times != Some(0));
        if ledger.records.len() == RECORDS_KEPT {
            ledger.records.pop_front();
            ledger.forgotten += 1;
        }
        ledger.records.push_back(Record { request, status: None, fault, at: Instant::now() });
        let number = ledger.forgotten + u64::try_from(ledger.records.len()).unwrap_or_default() - 1;
        (number, fault)
    }

    /// Notes the answer to a request.
    pub(crate) fn answered(&self, number: u64, status: u16) {
        let mut ledger = self.ledger();
        let index = number.checked_sub(ledger.forgotten).and_then(|index| usize::try_from(index).ok());
        if let Some(record) = index.and_then(|index| ledger.records.get_mut(index)) {
            record.status = Some(status);
        }
    }

    /// Returns when [`Faults::clear`] is called.
    pub(crate) async fn hang(&self) {
        let mut cleared = self.inner.cleared.subscribe();
        // An error means that the service has gone, and with it the reason to hang.
        let _ = cleared.changed().await;
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.inner.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(operation: &str, path: &str) -> Request {
        Request { operation: operation.to_owned(), method: "PUT".to_owned(), path: path.to_owned() }
    }

    #[test]
    fn the_first_matching_rule_decides_until_it_is_used_up() {
        let faults = Faults::new();
        faults.add(Rule::from(Fault::Status(503)).on("UploadPart").skip(1).times(2));
        faults.add(Rule::from(Fault::Hang).path_contains("/b/"));
        let decide = |operation: &str, path: &str| faults.decide(request(operation, path)).1;
        assert_eq!(decide("UploadPart", "/a/key"), None, "skipped");
        assert_eq!(decide("PutObject", "/a/key"), None);
        assert_eq!(decide("UploadPart", "/b/key"), Some(Fault::Status(503)));
        assert_eq!(decide("UploadPart", "/a/key"), Some(Fault::Status(503)));
        assert_eq!(decide("UploadPart", "/a/key"), None, "used up");
        assert_eq!(decide("UploadPart", "/b/key"), Some(Fault::Hang), "the next rule");
        assert_eq!(faults.rules().len(), 1);
        faults.clear();
        assert_eq!(decide("UploadPart", "/b/key"), None);
        assert_eq!(faults.count("UploadPart"), 6);
    }

    #[test]
    fn answers_find_their_request_after_older_ones_are_forgotten() {
        let faults = Faults::new();
        let (lost, _) = faults.decide(request("PutObject", "/lost"));
        for _ in 0..RECORDS_KEPT {
            faults.decide(request("PutObject", "/between"));
        }
        let (newest, _) = faults.decide(request("PutObject", "/last"));
        faults.answered(lost, 500);
        faults.answered(newest, 200);
        let requests = faults.requests();
        assert_eq!(requests.len(), RECORDS_KEPT);
        assert!(requests.iter().all(|record| record.status != Some(500)));
        assert_eq!(requests.last().unwrap().status, Some(200));
    }
}
