//! `GET /v1/jobs/{id}/explain`: why a job is not running, and when it should.
//!
//! What must stay true: an answer in every state; each reason named that holds the job up now, and none that does not; what an end user
//! reads names no person and no machine.

use std::time::Duration;

use axum::{Json as Answer, extract::State};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use shared::{
    job::{JobId, Reason, State as Standing},
    ledger::{
        breakers,
        explain::{self, Surroundings},
        find::{self, FoundJob},
        holds::Pause,
    },
    queue::Queue,
    tenant,
    usage::read::{self, OfJob},
};
use utoipa::ToSchema;

use super::{Asked, IdOfPath, missing, view::Reader};
use crate::{
    app::App,
    auth::{Caller, JobsRead},
    problem::{Problem, ProblemBody},
};

/// Why a job is where it is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Explanation {
    #[schema(value_type = String, format = Uuid)]
    id: JobId,
    state: Standing,
    /// The same in one sentence.
    summary: String,
    /// What holds it up now, what weighs most first; empty when it runs or has ended.
    reasons: Vec<Cause>,
    /// When it should run; absent when that depends on somebody.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    expected_at: Option<DateTime<Utc>>,
    /// Live workers that serve its queue.
    workers: i64,
    /// What it has reserved or was charged, by metric; absent where nothing of it is metered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    usage: Vec<JobUsage>,
}

/// What a job uses of a metric.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobUsage {
    /// The metric.
    #[schema(example = "ai_enhancements")]
    metric: String,
    /// What is reserved, while it has not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    reserved: Option<u64>,
    /// What is known to have been used so far, while it has not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    used: Option<u64>,
    /// What it was charged, each time that it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    charged: Option<u64>,
}

impl From<OfJob> for JobUsage {
    fn from(OfJob { metric, reserved, used, is_charged }: OfJob) -> Self {
        if is_charged {
            Self { metric, reserved: None, used: None, charged: Some(used) }
        } else {
            Self { metric, reserved: Some(reserved), used: Some(used), charged: None }
        }
    }
}

/// A reason why a job does not run.
#[derive(Debug, Serialize, ToSchema)]
pub struct Cause {
    code: CauseCode,
    /// For a person: what it is and what ends it.
    message: String,
    /// Since when, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    since: Option<DateTime<Utc>>,
    /// Until when, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    until: Option<DateTime<Utc>>,
    /// Who brought it about; not told to end users.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    by: Option<String>,
    /// Jobs that go before it, counted up to 10,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    ahead: Option<i64>,
}

/// What may hold a job up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CauseCode {
    /// Its `run_at` has not come.
    NotDue,
    /// It failed in passing and is tried again.
    BackingOff,
    /// It asked to be called again later.
    Snoozed,
    /// Its queue, tenant or kind is paused.
    Paused,
    /// Its outward effects are switched off.
    SwitchedOff,
    /// The provider that it calls is left alone for now.
    BreakerOpen,
    /// As many jobs of its key run as may.
    KeyBusy,
    /// As many jobs of its key, its queue or its tenant have started as may.
    RateLimited,
    /// No live worker serves its queue.
    NoWorker,
    /// Others of its product go before it.
    Behind,
    /// It is handed to its queue and waits for a free place.
    InQueue,
}

/// Tells why a job is not running, and when it should.
///
/// Right in every state: of one that has ended it says how and why.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/explain", tag = "jobs", operation_id = "explain_job",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 200, body = Explanation),
        (status = 404, body = ProblemBody<'static>, description = "`job_not_found`: it never was, or is another's"),
        (status = 410, body = ProblemBody<'static>, description = "`job_gone`: it was removed at `gone_at`"),
    ),
)]
pub async fn explain(State(app): State<App>, caller: Caller<JobsRead>, id: IdOfPath) -> Result<Answer<Explanation>, Problem> {
    let asked = Asked { tenant: caller.tenant, owner: caller.acting_user.as_deref(), id: id.job()? };
    let mut transaction = tenant::transaction(&app.pool, asked.tenant).await?;
    let Some(job) = find::job(&mut transaction, asked.tenant, asked.owner, asked.id).await? else {
        drop(transaction);
        return Err(missing(&app, asked).await);
    };
    let around = explain::surroundings(&mut transaction, asked.tenant, &job).await?;
    let usage = read::of_job(&mut transaction, asked.tenant, asked.id).await?;
    drop(transaction);
    let estimate = app.kinds.find(&job.kind).map_or(Duration::ZERO, |entry| entry.estimate);
    let reader = Reader::acting_for(asked.owner);
    let explanation = Explanation::of(&job, &around, caller.tenant, estimate, app.clock.now(), reader);
    Ok(Answer(Explanation { usage: usage.into_iter().map(JobUsage::from).collect(), ..explanation }))
}

fn shown(at: DateTime<Utc>) -> String {
    at.format("%FT%TZ").to_string()
}

impl Explanation {
    fn of(job: &FoundJob, around: &Surroundings, tenant: i32, estimate: Duration, now: DateTime<Utc>, reader: Reader) -> Self {
        let (reasons, expected_at) = match job.state {
            Standing::Waiting | Standing::Queued => held_up(job, around, tenant, estimate, now, reader),
            _ => (Vec::new(), None),
        };
        let summary = match job.state {
            Standing::Waiting | Standing::Queued => {
                reasons.first().map_or_else(|| "It is on its way.".to_owned(), |cause| cause.message.clone())
            }
            Standing::Running => running(job, around, reader),
            Standing::Succeeded => format!("It succeeded{}.", at(job.finished_at)),
            Standing::Cancelled => format!("It was cancelled{}.", at(job.finished_at)),
            Standing::Expired => {
                let start_by = job.start_by.map_or_else(String::new, |start_by| format!(" by {}", shown(start_by)));
                format!("It had not been started{start_by}, and was not worth starting any more.")
            }
            Standing::Failed => failed(job, reader),
        };
        Self { id: job.id, state: job.state, summary, reasons, expected_at, workers: around.workers, usage: Vec::new() }
    }
}

fn at(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(String::new, |time| format!(" at {}", shown(time)))
}

fn running(job: &FoundJob, around: &Surroundings, reader: Reader) -> String {
    let since = job.started_at.map_or_else(|| "just now".to_owned(), shown);
    let place = match &around.worker {
        Some(worker) if reader == Reader::Backend => format!(", on {worker}"),
        _ => String::new(),
    };
    let asked = if job.cancel_requested { "; it has been asked to stop" } else { "" };
    format!("It runs, since {since}{place}{asked}.")
}

fn failed(job: &FoundJob, reader: Reader) -> String {
    let word = |field: &str| job.error.as_ref().and_then(|error| error.get(field)).and_then(|value| value.as_str());
    let message = match reader {
        Reader::User => word("for_owner").unwrap_or("what makes it failed"),
        Reader::Backend => word("message").unwrap_or("nothing was written down of the reason"),
    };
    let code = word("code").unwrap_or("unknown");
    format!("It failed{} at attempt {} of {}, with `{code}`: {message}", at(job.finished_at), job.attempt, job.attempts_allowed)
}

/// Everything that holds a job up, and when it should run as far as that is known.
fn held_up(
    job: &FoundJob,
    around: &Surroundings,
    tenant: i32,
    estimate: Duration,
    now: DateTime<Utc>,
    reader: Reader,
) -> (Vec<Cause>, Option<DateTime<Utc>>) {
    let mut causes = Vec::new();
    let mut until = None::<DateTime<Utc>>;
    let mut open_end = false;
    let cause = |code, message: String| Cause { code, message, since: None, until: None, by: None, ahead: None };
    let queue = Queue::from_name(&job.queue);
    let waits = job.state == Standing::Waiting;

    for pause in around.holds.pauses.iter().filter(|pause| queue.is_some_and(|queue| pause.stops(tenant, queue, &job.kind))) {
        open_end = true;
        let by = (reader == Reader::Backend).then(|| if pause.tenant.is_some() { pause.by.clone() } else { "the operator".to_owned() });
        causes.push(Cause { since: Some(pause.at), until: pause.until, by, ..cause(CauseCode::Paused, paused(pause, reader)) });
    }
    if waits && job.reason == Reason::SwitchedOff {
        open_end = true;
        let message = "Outward effects are switched off by the operator. It goes on by itself when they are on again.".to_owned();
        causes.push(cause(CauseCode::SwitchedOff, message));
    }
    if waits && job.reason == Reason::BreakerOpen {
        let held = match &around.forced {
            Some((provider, forced)) => behind_operator(provider, forced, reader),
            None => behind_breaker(around.breaker.as_ref(), now, reader),
        };
        // One that is forced open ends when somebody says so.
        open_end |= held.until.is_none();
        until = until.max(held.until);
        causes.push(held);
    }
    let is_later = waits && job.run_at > now && job.reason != Reason::BreakerOpen;
    if is_later {
        until = Some(job.run_at);
        let (code, message) = match job.reason {
            Reason::BackingOff => {
                let code = job.error.as_ref().and_then(|error| error.get("code")).and_then(|code| code.as_str()).unwrap_or("unknown");
                let message = format!(
                    "Attempt {} of {} failed in passing with `{code}`; it is tried again at {}.",
                    job.attempt,
                    job.attempts_allowed,
                    shown(job.run_at)
                );
                (CauseCode::BackingOff, message)
            }
            Reason::Snoozed => (CauseCode::Snoozed, format!("It could not go on and is called again at {}.", shown(job.run_at))),
            Reason::Limited => (CauseCode::RateLimited, format!("A rate that it shares allows its start at {}.", shown(job.run_at))),
            _ => (CauseCode::NotDue, format!("It is planned for {}.", shown(job.run_at))),
        };
        causes.push(Cause { until, ..cause(code, message) });
    }
    if let Some(key) = around.key.as_ref().filter(|key| !key.is_admitted && waits && !is_later) {
        if let Some(most) = key.running.filter(|most| key.admitted >= i64::from(*most)) {
            open_end = true;
            let message = format!(
                "Of the key `{}`, {} of {most} jobs run or are about to; {} wait before this one.",
                key.name, key.admitted, key.ahead
            );
            causes.push(Cause { ahead: Some(key.ahead), ..cause(CauseCode::KeyBusy, message) });
        } else if let Some(next) = key.next_start.filter(|next| *next > now) {
            let every = key.rate.map_or(0.0, |rate| f64::from(rate.seconds) / f64::from(rate.jobs.max(1)));
            let own = next + seconds(every * key.ahead as f64);
            until = until.max(Some(own));
            let message = format!("The key `{}` allows its next start at {}; {} wait before this one.", key.name, shown(next), key.ahead);
            causes.push(Cause { ahead: Some(key.ahead), until: Some(own), ..cause(CauseCode::RateLimited, message) });
        }
    }
    if let Some(queue) = queue
        && !is_later
    {
        for throttle in around.holds.throttles.iter().filter(|throttle| throttle.bounds(tenant, queue)) {
            let whose = if throttle.tenant.is_some() { "Its product" } else { "Its queue" };
            let rate = throttle.rate;
            let message =
                format!("{whose} may start {} jobs in {} s, with {} at once; it follows in its turn.", rate.jobs, rate.seconds, rate.burst);
            causes.push(Cause { since: Some(throttle.at), ..cause(CauseCode::RateLimited, message) });
        }
    }
    if around.workers == 0 {
        open_end = true;
        causes.push(cause(CauseCode::NoWorker, format!("No live worker serves the queue `{}`: start one that does.", job.queue)));
    }
    let is_behind = waits && !is_later && job.reason != Reason::BreakerOpen;
    if is_behind && around.ahead > 0 {
        let slots = around.workers.max(1) as f64 * queue.map_or(1, Queue::default_concurrency) as f64;
        until = until.max(Some(now + seconds(around.ahead as f64 * estimate.as_secs_f64() / slots)));
        let more = if around.ahead >= explain::COUNTED { " or more" } else { "" };
        let message =
            format!("{}{more} due jobs of the same product and priority go before it in the queue `{}`.", around.ahead, job.queue);
        causes.push(Cause { ahead: Some(around.ahead), ..cause(CauseCode::Behind, message) });
    }
    if !waits && causes.is_empty() {
        causes.push(cause(
            CauseCode::InQueue,
            format!("It is handed to the queue `{}` and starts as soon as a worker has a free place.", job.queue),
        ));
    } else if waits && causes.is_empty() {
        causes.push(cause(CauseCode::Behind, format!("It is its turn next in the queue `{}`.", job.queue)));
    }
    let expected = if open_end { None } else { Some(until.unwrap_or(now).max(now)) };
    (causes, expected)
}

fn seconds(seconds: f64) -> TimeDelta {
    let bounded = Duration::try_from_secs_f64(seconds).unwrap_or_default().min(Duration::from_secs(366 * 24 * 3_600));
    TimeDelta::from_std(bounded).unwrap_or_default()
}

/// An operator keeps it open: the provider need not be ill. Of what is set for all products its words are not one product's.
fn behind_operator(provider: &str, forced: &breakers::Override, reader: Reader) -> Cause {
    let backend = reader == Reader::Backend;
    let message = if backend {
        let why = if forced.tenant.is_some() && !forced.reason.is_empty() { format!(": {}", forced.reason) } else { String::new() };
        let since = shown(forced.at);
        format!(
            "An operator keeps the circuit breaker of the provider `{provider}` open since {since}{why}. It goes on by itself when that is lifted. No attempt is used."
        )
    } else {
        "What it needs is held back for now. It goes on by itself when that is over.".to_owned()
    };
    let by = Some(forced.by.clone()).filter(|_| backend && forced.tenant.is_some());
    Cause { code: CauseCode::BreakerOpen, message, since: Some(forced.at), until: None, by, ahead: None }
}

fn behind_breaker(standing: Option<&breakers::Standing>, now: DateTime<Utc>, reader: Reader) -> Cause {
    let again = standing.and_then(|standing| standing.until).filter(|again| *again > now);
    let (since, message) = (standing.map(|standing| standing.since), breaker_open(standing, again, reader));
    Cause { code: CauseCode::BreakerOpen, message, since, until: again, by: None, ahead: None }
}

fn breaker_open(standing: Option<&breakers::Standing>, again: Option<DateTime<Utc>>, reader: Reader) -> String {
    let Some(standing) = standing.filter(|_| reader == Reader::Backend) else {
        return "The provider that it calls does not answer as it should. It goes on by itself when that one answers again.".to_owned();
    };
    let whose = if standing.credential == "own" { "the user's own key" } else { "the platform's key" };
    let why = format!("{} of {} calls had failed and {} had been slow", standing.failures, standing.calls, standing.slow);
    let then = again.map_or_else(|| "it goes on as calls succeed".to_owned(), |again| format!("one call is tried at {}", shown(again)));
    format!(
        "The circuit breaker of the provider `{}` with {whose} is {} since {}: {why}; {then}. No attempt is used.",
        standing.provider,
        standing.phase.replace('_', " "),
        shown(standing.since)
    )
}

fn paused(pause: &Pause, reader: Reader) -> String {
    let what = match (&pause.queue, &pause.kind) {
        (Some(queue), Some(kind)) => format!("`{kind}` in the queue `{queue}` is paused"),
        (Some(queue), None) => format!("The queue `{queue}` is paused"),
        (None, Some(kind)) => format!("`{kind}` is paused"),
        (None, None) => "All work is paused".to_owned(),
    };
    let scope = if pause.tenant.is_some() { " for this product" } else { "" };
    let why = if reader == Reader::Backend && pause.tenant.is_some() && !pause.reason.is_empty() {
        format!(": {}", pause.reason)
    } else {
        String::new()
    };
    let until =
        pause.until.map_or_else(|| "once that is over".to_owned(), |until| format!("at {}, or once that is ended sooner", shown(until)));
    format!("{what}{scope}{why}. It goes on by itself {until}.")
}
