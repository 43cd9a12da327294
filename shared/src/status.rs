//! A job as clients see it: one form, whoever shows it: a poll, a stream of events, a webhook.
//!
//! What must stay true: causes and other people's words for servers are not for clients; a field that is there once stays.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    job::{JobId, Parent, Priority, Reason, ScheduledBy, State},
    kinds::{ExportCreate, Kind, Registry},
    ledger::{
        find::{FoundAttempt, FoundJob},
        insert::DuplicateBy,
    },
};

/// The shortest and the longest pause between two polls that we advise for what is under way. Long-polling
/// (`?wait=20&since=…`) hears of a change at once and is cheaper.
const POLL_UNDER_WAY: (TimeDelta, TimeDelta) = (TimeDelta::milliseconds(500), TimeDelta::seconds(30));

/// The longest for what is past the time that such jobs take: it may end at any moment.
const POLL_OVERDUE: TimeDelta = TimeDelta::seconds(5);

/// For what an operator holds: nothing happens before somebody does something.
const POLL_HELD: TimeDelta = TimeDelta::seconds(30);

/// The same for what waits for its time.
const POLL_NOT_DUE: (TimeDelta, TimeDelta) = (TimeDelta::seconds(1), TimeDelta::seconds(60));

/// A job.
#[derive(Debug, Serialize, ToSchema)]
pub struct Job {
    /// Its id.
    id: JobId,
    /// What kind of work it is.
    kind: String,
    /// The queue it runs in.
    queue: String,
    /// Where it is in its life.
    state: State,
    /// Why it is waiting, while it is.
    #[schema(required)]
    reason: Option<Reason>,
    /// The same in words, with what happens next.
    #[schema(required)]
    explanation: Option<&'static str>,
    /// Its priority.
    priority: Priority,
    /// The end user whose job it is.
    #[schema(required)]
    owner: Option<String>,
    /// Runs that counted so far, the present one included.
    attempt: i16,
    /// Runs that may count.
    attempts_allowed: i16,
    /// Grows with each change; the `ETag`, and what `since` compares with.
    version: i32,
    /// Whether somebody asked to cancel it; a success that comes first wins.
    cancel_requested: bool,
    /// When it was accepted.
    created_at: DateTime<Utc>,
    /// When it is or was due.
    run_at: DateTime<Utc>,
    /// When it is no longer worth starting.
    #[schema(required)]
    start_by: Option<DateTime<Utc>>,
    /// When its latest run began.
    #[schema(required)]
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[schema(required)]
    finished_at: Option<DateTime<Utc>>,
    /// How far the present run is, where its kind tells.
    #[schema(required)]
    progress: Option<Progress>,
    /// What went wrong at the latest run; while the job is not finished, it is tried again.
    #[schema(required)]
    error: Option<Trouble>,
    /// The schedule that made it, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ScheduledBy, required = false)]
    schedule: Option<ScheduledBy>,
    /// What it was asked to do. Left out of lists, of the answer that accepts it, and of what users see of mails, pushes and notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    payload: Option<Value>,
    /// What came of it, once it succeeded and if its kind has results. Left out of lists, and where the payload is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    result: Option<Value>,
    /// Its runs, the latest first, with `?include=attempts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Attempt>, required = false)]
    attempts: Option<Vec<Attempt>>,
    /// The batch that it is a member of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Uuid, required = false)]
    batch: Option<Uuid>,
    /// What it follows: `{"job": …}` or `{"batch": …}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Parent, required = false)]
    parent: Option<Parent>,
    /// What follows it when it succeeds. Left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Followers, required = false)]
    then: Option<Followers>,
    /// In the answer to a request that asked for it again: by what that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Duplicate, required = false)]
    duplicate: Option<Duplicate>,
    /// When to expect something of it.
    #[serde(flatten)]
    outlook: Outlook,
    /// Where to go from here.
    links: Links,
}

/// The jobs that follow a job or a batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct Followers {
    /// Whether they have been made.
    state: FollowersState,
    /// Their kinds, in the order of the request.
    kinds: Vec<String>,
    /// The jobs, once they are made.
    jobs: Vec<JobId>,
}

/// Whether jobs that are to follow have been made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FollowersState {
    /// Not yet: what they follow has not ended, or only just.
    Waiting,
    /// They have been made.
    Created,
    /// They have not been: what they follow did not succeed, or was cancelled. A job that is tried again and succeeds brings them.
    NotCreated,
}

impl Followers {
    /// Of what is to follow, and did. `in_vain`: what it follows has ended in a way that brings nothing.
    #[must_use]
    pub fn of(kinds: Vec<String>, jobs: Vec<JobId>, in_vain: bool) -> Option<Self> {
        if kinds.is_empty() {
            return None;
        }
        let state = match (jobs.is_empty(), in_vain) {
            (false, _) => FollowersState::Created,
            (true, false) => FollowersState::Waiting,
            (true, true) => FollowersState::NotCreated,
        };
        Some(Self { state, kinds, jobs })
    }
}

/// A job that was there before, and by what it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Duplicate {
    /// The job that stands.
    #[serde(rename = "of")]
    pub first: JobId,
    /// By what the request was found to repeat it.
    pub by: DuplicateBy,
}

/// How much of a job is done.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Progress {
    /// Units done: rows, messages …
    pub done: i64,
    /// Units there are, where that is known.
    #[schema(required)]
    pub total: Option<i64>,
}

impl Progress {
    /// As the ledger has it.
    #[must_use]
    pub fn of(done: Option<i64>, total: Option<i64>) -> Option<Self> {
        done.map(|done| Self { done, total })
    }
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobError)]
pub struct Trouble {
    /// A stable word for programs.
    #[schema(example = "source_unavailable")]
    pub code: String,
    /// What went wrong and what can be done about it.
    pub message: String,
}

impl Trouble {
    /// Of what the ledger keeps, the part that is for its reader: never the causes.
    #[must_use]
    pub fn of(error: &Value, reader: Reader) -> Self {
        let text = |field: &str| error.get(field).and_then(Value::as_str);
        let message = match reader {
            Reader::Backend => text("message"),
            Reader::User => text("for_owner").or_else(|| text("message")),
        };
        Self { code: text("code").unwrap_or_default().to_owned(), message: message.unwrap_or_default().to_owned() }
    }
}

/// For whom a view is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// The product's backend, whose builders know its servers and settings.
    Backend,
    /// One of its end users.
    User,
}

impl Reader {
    /// The reader of a request's answer, by the user it acts for.
    #[must_use]
    pub const fn acting_for(user: Option<&str>) -> Self {
        if user.is_some() { Self::User } else { Self::Backend }
    }
}

/// A run of a job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobAttempt)]
pub struct Attempt {
    /// The run's number, from 1; those that did not count are numbered too.
    run: i32,
    /// The attempt it was counted as.
    #[serde(rename = "attempt")]
    counted_as: i16,
    /// `succeeded`, `retry`, `failed`, `cancelled` or `crashed`.
    outcome: String,
    /// When it began.
    started_at: DateTime<Utc>,
    /// When it ended.
    finished_at: DateTime<Utc>,
    /// What went wrong.
    #[schema(required)]
    error: Option<Trouble>,
}

impl Attempt {
    fn of(found: FoundAttempt, reader: Reader) -> Self {
        let FoundAttempt { run, attempt, started_at, finished_at, outcome, error } = found;
        Self { run, counted_as: attempt, outcome, started_at, finished_at, error: error.as_ref().map(|error| Trouble::of(error, reader)) }
    }
}

/// When something is likely to come of it, and when to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Outlook {
    /// How long it may take to the result, in seconds; `null` once it has ended.
    #[schema(required)]
    pub estimate_seconds: Option<i64>,
    /// How long to wait before asking again, in milliseconds; `null` once it has ended.
    #[schema(required)]
    pub poll_after_ms: Option<i64>,
}

impl Outlook {
    /// The outlook of a job of some kind, thought to take `estimate`, as it stands `now`.
    #[must_use]
    pub fn of(
        state: State,
        reason: Reason,
        run_at: DateTime<Utc>,
        started_at: Option<DateTime<Utc>>,
        estimate: Duration,
        now: DateTime<Utc>,
    ) -> Self {
        if state.is_terminal() {
            return Self { estimate_seconds: None, poll_after_ms: None };
        }
        let until_due = (run_at - now).max(TimeDelta::zero());
        let waits_for_its_time = state == State::Waiting && reason != Reason::Window && until_due > TimeDelta::zero();
        let began = if state == State::Running { started_at.unwrap_or(run_at) } else { run_at };
        let under_way_for = (now - began).max(TimeDelta::zero());
        let whole = TimeDelta::from_std(estimate).unwrap_or(TimeDelta::days(1));
        let left = if state == State::Running { whole - under_way_for } else { whole + until_due };
        let poll = if waits_for_its_time {
            until_due.clamp(POLL_NOT_DUE.0, POLL_NOT_DUE.1)
        } else {
            // About when it should be done; from then on the longer it takes, the longer it may still take.
            let left = whole - under_way_for;
            let overdue = (under_way_for / 4).clamp(POLL_UNDER_WAY.0, POLL_OVERDUE);
            if left > overdue { left.clamp(POLL_UNDER_WAY.0, POLL_UNDER_WAY.1) } else { overdue }
        };
        let poll = if matches!(reason, Reason::SwitchedOff | Reason::BreakerOpen) { POLL_HELD } else { poll };
        let seconds = left.num_seconds() + i64::from(left.subsec_nanos() > 0);
        Self { estimate_seconds: Some(seconds.max(1)), poll_after_ms: Some(poll.num_milliseconds()) }
    }
}

/// Where to go from a job. What its state does not allow is left out.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobLinks)]
pub struct Links {
    /// The job itself.
    #[serde(rename = "self")]
    this: String,
    /// POST here to cancel it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    cancel: Option<String>,
    /// POST here to try it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    retry: Option<String>,
    /// POST here to remove it for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    discard: Option<String>,
    /// The batch that it is a member of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    batch: Option<String>,
    /// The export that it makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    export: Option<String>,
}

/// Why a job waits, for a person.
const fn explanation(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::None => None,
        Reason::NotDue => Some("It is planned for its `run_at`."),
        Reason::BackingOff => Some("Its last run failed in passing, as `error` says; it is tried again at `run_at`."),
        Reason::Window => Some("It is due and waits for its turn: at once where its queue has room, else when there is some."),
        Reason::Snoozed => Some("It could not go on yet and is called again at `run_at`; that uses no attempt."),
        Reason::Limited => Some(
            "Its key, `limit.key`, allows no more jobs to run or to start just now; it follows when one of them has ended or the time has come.",
        ),
        Reason::Paused => Some("Its queue, its tenant or its kind is paused; no attempt is used. It goes on by itself once that is over."),
        Reason::BreakerOpen => Some(
            "The provider that it calls does not answer as it should and is left alone for a while. No attempt is used: it goes on by itself when that one answers again.",
        ),
        Reason::SwitchedOff => Some(
            "Outward effects are switched off by the operator. Nothing is lost and no attempt is used: it goes on by itself when they are on again.",
        ),
    }
}

/// The address of a job.
#[must_use]
pub fn address(id: JobId) -> String {
    format!("/v1/jobs/{id}")
}

impl Job {
    /// With an outlook by what such jobs took lately, where that is known.
    #[must_use]
    pub fn paced(mut self, takes: Option<Duration>, now: DateTime<Utc>) -> Self {
        if let Some(takes) = takes {
            self.outlook = Outlook::of(self.state, self.reason.unwrap_or(Reason::None), self.run_at, self.started_at, takes, now);
        }
        self
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The view of a job as found, at a time.
    #[must_use]
    pub fn of(found: FoundJob, attempts: Option<Vec<FoundAttempt>>, kinds: &Registry, now: DateTime<Utc>, reader: Reader) -> Self {
        let state = found.state;
        let estimate = kinds.find(&found.kind).map_or(Duration::ZERO, |entry| entry.estimate);
        let this = address(found.id);
        let is_dead = matches!(state, State::Failed | State::Cancelled | State::Expired);
        let is_withheld = reader == Reader::User && kinds.find(&found.kind).is_some_and(|entry| entry.confidential);
        let may_run_again = is_dead && found.start_by.is_none_or(|start_by| start_by > now);
        let links = Links {
            cancel: (!state.is_terminal()).then(|| format!("{this}/cancel")),
            retry: may_run_again.then(|| format!("{this}/retry")),
            discard: is_dead.then(|| format!("{this}/discard")),
            batch: found.options.batch.map(|batch| format!("/v1/batches/{batch}")),
            export: (found.kind == ExportCreate::NAME).then(|| format!("/v1/exports/{}", found.id)),
            this,
        };
        Self {
            id: found.id,
            outlook: Outlook::of(state, found.reason, found.run_at, found.started_at, estimate, now),
            kind: found.kind,
            queue: found.queue,
            state,
            reason: (state == State::Waiting).then_some(found.reason),
            explanation: (state == State::Waiting).then(|| explanation(found.reason)).flatten(),
            priority: found.priority,
            owner: found.owner,
            attempt: found.attempt,
            attempts_allowed: found.attempts_allowed,
            version: found.version,
            cancel_requested: found.cancel_requested,
            created_at: found.created_at,
            run_at: found.run_at,
            start_by: found.start_by,
            started_at: found.started_at,
            finished_at: found.finished_at,
            progress: Progress::of(found.progress_done, found.progress_total),
            error: found.error.as_ref().map(|error| Trouble::of(error, reader)),
            schedule: found.options.schedule,
            payload: found.payload.filter(|_| !is_withheld),
            result: found.result.filter(|_| !is_withheld),
            batch: found.options.batch,
            parent: found.options.parent,
            then: Followers::of(found.options.then.into_iter().map(|next| next.kind).collect(), found.children, is_dead),
            duplicate: None,
            attempts: attempts.map(|attempts| attempts.into_iter().map(|attempt| Attempt::of(attempt, reader)).collect()),
            links,
        }
    }

    /// The same, told as what was there before a request for it.
    #[must_use]
    pub fn found_by(self, duplicate: Option<Duplicate>) -> Self {
        Self { duplicate, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_follows_the_state() {
        let now = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let of = |state, reason, due_in_ms: i64, started_ago_ms: Option<i64>| {
            let started_at = started_ago_ms.map(|ago| now - TimeDelta::milliseconds(ago));
            let outlook = Outlook::of(state, reason, now + TimeDelta::milliseconds(due_in_ms), started_at, Duration::from_secs(5), now);
            (outlook.estimate_seconds, outlook.poll_after_ms)
        };
        assert_eq!(of(State::Queued, Reason::None, 0, None), (Some(5), Some(5_000)), "about when it should be done");
        assert_eq!(
            of(State::Queued, Reason::None, -8_000, Some(60_000)),
            (Some(5), Some(2_000)),
            "it has been due for 8 s; its last run is past"
        );
        assert_eq!(of(State::Running, Reason::None, -9_000, Some(1_500)), (Some(4), Some(3_500)));
        assert_eq!(of(State::Running, Reason::None, -9_000, Some(60_000)), (Some(1), Some(5_000)));
        assert_eq!(of(State::Waiting, Reason::NotDue, 90_500, None), (Some(96), Some(60_000)));
        assert_eq!(of(State::Waiting, Reason::BackingOff, 1_200, Some(9_000)), (Some(7), Some(1_200)));
        assert_eq!(of(State::Waiting, Reason::BackingOff, 10, Some(9_000)), (Some(6), Some(1_000)));
        assert_eq!(of(State::Waiting, Reason::NotDue, -10, None), (Some(5), Some(4_990)), "due, and about to be dispatched");
        assert_eq!(of(State::Waiting, Reason::Window, -8_000, None), (Some(5), Some(2_000)));
        for state in [State::Succeeded, State::Failed, State::Cancelled, State::Expired] {
            assert_eq!(of(state, Reason::None, 0, None), (None, None));
        }
    }

    #[test]
    fn causes_are_not_for_clients() {
        let kept = serde_json::json!({"code": "panic", "class": "permanent", "message": "It broke.", "causes": ["10.0.0.7 refused"]});
        assert_eq!(
            serde_json::to_value(Trouble::of(&kept, Reader::Backend)).unwrap(),
            serde_json::json!({"code": "panic", "message": "It broke."})
        );
        let kept =
            serde_json::json!({"code": "c", "message": "The bucket `b` at 10.0.0.7 is gone.", "for_owner": "It could not be stored."});
        let read = |reader| Trouble::of(&kept, reader).message;
        assert_eq!((read(Reader::User), read(Reader::Backend).contains("10.0.0.7")), ("It could not be stored.".to_owned(), true));
        assert_eq!(serde_json::to_value(Trouble::of(&Value::Null, Reader::User)).unwrap()["code"], "");
    }
}
