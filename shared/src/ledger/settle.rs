//! Step 7, settle: the one place where a run's outcome becomes the job's state. In batches; each member counts only if its
//! token still holds the claim.

mod write;

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{
    LedgerError, breakers,
    claim::ClaimedJob,
    insert::insert_within,
    recover::{CRASHES_IN_COMPANY, DEATHS_OF_POISON, POISON_FOR_OWNERS},
};
use crate::{
    job::{Failure, FailureClass, JobId, Outcome, Policy, Priority, PublishedFile, Reason, State},
    notification::{Addressee, reach_owner},
    queue::{Queue, keys::Lane, push::Handover},
    random,
};

/// The largest result that stands in the database, in bytes of JSON (design §3); larger ones belong in a file.
pub const RESULT_LIMIT: usize = 64 * 1024;

/// The longest pause that another side's `Retry-After` may impose on a job.
pub const LONGEST_REQUESTED_PAUSE: Duration = Duration::from_secs(24 * 3_600);

/// What a run's end makes of its job: decided here, written by [`settle`].
#[derive(Debug, Clone)]
pub struct Settlement {
    claim: Claim,
    state: State,
    reason: Reason,
    /// 1 when the run gives its attempt back.
    gives_back: i16,
    /// What is added to the workers lost under it.
    crashes: i16,
    /// 1 when a process of its own died under it.
    died: i16,
    run_at: Option<DateTime<Utc>>,
    /// The pause in seconds, where the handler asked for it.
    snoozed: Option<i32>,
    /// The word in `job_attempt`; `None` when the run leaves no record there: it never began, or its success is in `job_state`.
    outcome: Option<&'static str>,
    error: Option<Value>,
    result: Option<Value>,
    file: Option<PublishedFile>,
    /// Who is told, should the job end by this.
    addressee: Option<Addressee>,
    /// Whether what it used is metered.
    is_metered: bool,
    /// Whether what becomes of it concerns other jobs.
    concerns_others: bool,
    finished_at: DateTime<Utc>,
    /// The circuit breaker that it waits for, and when it gives that up.
    breaker: Option<(String, DateTime<Utc>)>,
}

/// What of a claim a settle needs.
#[derive(Debug, Clone)]
struct Claim {
    id: JobId,
    tenant: i32,
    token: i64,
    handover: Handover,
    priority: Priority,
}

impl Settlement {
    /// Decides by outcome, policy and attempts.
    #[must_use]
    pub fn decide(job: &ClaimedJob, policy: &Policy, outcome: Outcome, now: DateTime<Utc>) -> Self {
        let claim = Claim {
            id: job.id,
            tenant: job.tenant,
            token: job.token,
            handover: Handover { job: job.id, queue: job.queue, lane: Lane::of(job.priority) },
            priority: job.priority,
        };
        let addressee = Addressee::of(job.id, &job.kind, job.owner.as_deref(), &job.payload);
        let options = job.options.as_ref();
        let plain = Self {
            addressee,
            is_metered: options.is_some_and(|options| options.metered),
            concerns_others: options.is_some_and(|options| options.concerns_others()),
            ..Self::plain(claim, now)
        };
        match outcome {
            Outcome::Succeeded(success) => {
                let size = success.result.as_ref().map_or(0, |result| result.to_string().len());
                if size > RESULT_LIMIT {
                    let failure = Failure::permanent(
                        "result_too_large",
                        format!("the result has {size} bytes of JSON, {RESULT_LIMIT} are allowed; write it to a file instead"),
                    );
                    return plain.failed(&failure);
                }
                Self { result: success.result, file: success.file, ..plain }
            }
            Outcome::Failed(failure) => {
                if failure.class == FailureClass::Permanent || job.attempt >= job.attempts_allowed {
                    return plain.failed(&failure);
                }
                let own = policy.backoff.pause(job.attempt, random::fraction());
                let pause = own.max(failure.retry_after.unwrap_or_default().min(LONGEST_REQUESTED_PAUSE));
                let run_at = later(now, pause);
                if let Some(deadline) = passed(job, policy, run_at) {
                    let failure = Failure {
                        message: format!(
                            "the next try would have begun after the job's deadline, {}; the last one failed with `{}`: {}",
                            deadline.format("%FT%TZ"),
                            failure.code,
                            failure.message
                        ),
                        for_owner: failure.for_owner.map(|words| format!("it took too long; the last try: {words}")),
                        code: "deadline_exceeded",
                        ..failure
                    };
                    return plain.failed(&failure);
                }
                let error = Some(error_json(&failure));
                Self { state: State::Waiting, reason: Reason::BackingOff, run_at: Some(run_at), outcome: Some("retry"), error, ..plain }
            }
            Outcome::Snoozed(pause) => {
                let pause = pause.min(LONGEST_REQUESTED_PAUSE);
                let run_at = later(now, pause);
                if let Some(failure) = no_snooze(job, policy, pause, run_at) {
                    return plain.failed(&failure);
                }
                let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
                Self { snoozed: Some(i32::try_from(seconds).unwrap_or(i32::MAX)), ..plain.put_off(Reason::Snoozed, Some(run_at)) }
            }
            Outcome::Deferred(pause) => plain.put_off(Reason::Snoozed, Some(later(now, pause.min(LONGEST_REQUESTED_PAUSE)))),
            // When it was due stays; the release finds it by its reason.
            Outcome::SwitchedOff => plain.put_off(Reason::SwitchedOff, None),
            Outcome::Paused => plain.put_off(Reason::Paused, None),
            Outcome::BreakerOpen(ref breaker) | Outcome::BreakerProbed(ref breaker) => {
                let gives_up = breakers::gives_up(policy, job.counted_from);
                if now >= gives_up {
                    return plain.failed(&breakers::given_up(gives_up));
                }
                let snoozed = matches!(outcome, Outcome::BreakerProbed(_)).then_some(0);
                Self { breaker: Some((breaker.clone(), gives_up)), snoozed, ..plain.put_off(Reason::BreakerOpen, None) }
            }
            Outcome::Paced(pause) => plain.put_off(Reason::Limited, Some(later(now, pause.min(LONGEST_REQUESTED_PAUSE)))),
            Outcome::Expired => Self { state: State::Expired, gives_back: 1, outcome: None, ..plain },
            Outcome::Cancelled => Self { state: State::Cancelled, outcome: Some("cancelled"), ..plain },
            Outcome::HandedBack => Self { state: State::Queued, gives_back: 1, ..plain },
            Outcome::Died(how) => plain.died(job, policy, &how),
            Outcome::Stuck(held) => {
                let message = format!(
                    "the run kept a thread of its worker for {} s without letting go; it runs in a process of its own next",
                    held.as_secs()
                );
                let error = Some(error_json(&Failure::transient("worker_stuck", message)));
                // Proved, and not by accident: it is a suspect at once.
                let crashes = i16::try_from(CRASHES_IN_COMPANY.saturating_sub(job.crashes).max(1)).unwrap_or(1);
                Self { state: State::Queued, gives_back: 1, crashes, outcome: Some("crashed"), error, ..plain }
            }
        }
    }

    /// An outcome of no job: `id` must be none's. Writing it runs the statement and changes nothing, which proves that outcomes can be
    /// written.
    #[must_use]
    pub fn of_nothing(id: JobId) -> Self {
        // Any queue and priority will do: there is no row to take them.
        let handover = Handover { job: id, queue: Queue::Analytics, lane: Lane::Normal };
        Self::plain(Claim { id, tenant: 0, token: 0, handover, priority: Priority::Normal }, DateTime::UNIX_EPOCH)
    }

    /// A success that says nothing, which the others differ from.
    const fn plain(claim: Claim, now: DateTime<Utc>) -> Self {
        Self {
            claim,
            state: State::Succeeded,
            reason: Reason::None,
            gives_back: 0,
            crashes: 0,
            died: 0,
            run_at: None,
            snoozed: None,
            outcome: None,
            error: None,
            result: None,
            file: None,
            addressee: None,
            is_metered: false,
            concerns_others: false,
            finished_at: now,
            breaker: None,
        }
    }

    /// Whether it is a success that leaves nothing but its result.
    fn is_plain_success(&self) -> bool {
        self.state == State::Succeeded && self.file.is_none() && self.notification().is_none()
    }

    /// A process of the job's own died under it.
    fn died(self, job: &ClaimedJob, policy: &Policy, how: &str) -> Self {
        let deaths = job.deaths.saturating_add(1);
        if deaths >= DEATHS_OF_POISON {
            let message = format!(
                "each of the {deaths} processes of its own that this job was given died under it, the last one {how}; look at its log before retrying it"
            );
            return Self { died: 1, ..self.failed(&Failure::permanent("poison", message)) };
        }
        let failure = Failure::transient("process_died", format!("the process of its own in which this job ran died: {how}"));
        let run_at = later(self.finished_at, policy.backoff.pause(deaths, random::fraction()));
        Self { died: 1, outcome: Some("crashed"), error: Some(error_json(&failure)), ..self.put_off(Reason::BackingOff, Some(run_at)) }
    }

    fn failed(self, failure: &Failure) -> Self {
        Self { state: State::Failed, outcome: Some("failed"), error: Some(error_json(failure)), ..self }
    }

    /// Waits, without having used an attempt.
    fn put_off(self, reason: Reason, run_at: Option<DateTime<Utc>>) -> Self {
        Self { state: State::Waiting, reason, gives_back: 1, run_at, ..self }
    }

    /// What went wrong, as the ledger keeps it.
    #[must_use]
    pub const fn error(&self) -> Option<&Value> {
        self.error.as_ref()
    }

    /// The job it settles.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.claim.id
    }

    /// The product, and what its end tells the job's owner.
    fn told(&self) -> Option<(i32, Value)> {
        Some((self.claim.tenant, self.notification()?))
    }

    /// What its end tells the job's owner.
    fn notification(&self) -> Option<Value> {
        let poison = self.error.as_ref().filter(|error| error.get("code").is_some_and(|code| code == "poison"));
        let for_owners = poison.map(|_| json!({ "message": POISON_FOR_OWNERS }));
        self.addressee.as_ref()?.told(self.state, self.file.as_ref(), for_owners.as_ref().or(self.error.as_ref()))
    }

    /// Whether its end is told to somebody by more than the row that it writes.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.notification().is_some()
    }

    fn matters_to_others(&self) -> bool {
        self.is_metered || self.concerns_others || self.is_told()
    }

    /// Fails the job in place of an outcome that the database would not take.
    #[must_use]
    pub fn refused(self) -> Self {
        let failure = Failure::permanent("result_refused", "the database refused the job's result or error; see the worker's log");
        Self {
            state: State::Failed,
            outcome: Some("failed"),
            error: Some(error_json(&failure)),
            result: None,
            file: None,
            run_at: None,
            snoozed: None,
            gives_back: 0,
            reason: Reason::None,
            breaker: None,
            ..self
        }
    }
}

/// Writes one outcome whose whole meaning the database does not take: what it means to others is left out as far as it is refused, and
/// answered. A reservation that is left by it is found by the sweep ([`crate::usage::settle::lapse`]).
///
/// # Errors
/// [`LedgerError`]: it is not written; where it is about data, the outcome itself is refused.
pub async fn settle_alone(connection: &mut PgConnection, settlement: &Settlement) -> Result<(Vec<Settled>, Vec<LedgerError>), LedgerError> {
    let (batch, now) = ([settlement], settlement.finished_at);
    let mut transaction = connection.begin().await?;
    let settled = write::outcomes(&mut transaction, &batch).await?;
    let left: Vec<Uuid> = settled.iter().filter(|settled| settled.state != State::Queued).map(|settled| settled.job.0).collect();
    let mut refused = Vec::new();
    for part in [Part::Usage, Part::Others, Part::Owner] {
        // A savepoint each: what is refused takes nothing else with it.
        let mut within = transaction.begin().await?;
        let done = match part {
            Part::Usage => super::settle_usage(&mut within, &left, now).await,
            Part::Others => super::leave_jobs(&mut within, &left, now).await,
            Part::Owner => tell(&mut within, &batch, &settled, now).await,
        };
        match done {
            Ok(()) => within.commit().await?,
            Err(error) if error.is_about_data() => {
                within.rollback().await?;
                refused.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    transaction.commit().await?;
    Ok((settled, refused))
}

/// What an outcome means to others.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// What was reserved for the job.
    Usage,
    /// Who waits for its limiting key, or for its end.
    Others,
    /// Who is told.
    Owner,
}

/// Makes the jobs that tell owners of ends by other channels than the inbox, where that stands by now.
async fn tell(connection: &mut PgConnection, batch: &[&Settlement], settled: &[Settled], now: DateTime<Utc>) -> Result<(), LedgerError> {
    let mut jobs = Vec::new();
    for settlement in batch {
        let ended = settled.iter().any(|settled| settled.job == settlement.job() && settled.state == settlement.state);
        let Some(((tenant, told), true)) = settlement.told().zip(Some(ended)) else { continue };
        jobs.extend(reach_owner(tenant, settlement.job(), settlement.state, &told, now));
    }
    if !jobs.is_empty() {
        insert_within(connection, now, &jobs).await?;
    }
    Ok(())
}

fn later(now: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    now + TimeDelta::from_std(pause).unwrap_or(TimeDelta::days(1))
}

/// The job's deadline, if a run that begins then is too late for it.
fn passed(job: &ClaimedJob, policy: &Policy, run_at: DateTime<Utc>) -> Option<DateTime<Utc>> {
    policy.deadline_of(job.counted_from).filter(|deadline| run_at > *deadline)
}

/// Why a job may not be snoozed for so long, if it may not.
fn no_snooze(job: &ClaimedJob, policy: &Policy, pause: Duration, run_at: DateTime<Utc>) -> Option<Failure> {
    let bounds = policy.snooze;
    if job.snoozes >= bounds.times {
        let message = format!("it has been put off {} times, which is as often as its kind allows, and asked for it again", job.snoozes);
        return Some(Failure::permanent("snoozed_too_often", message));
    }
    let total = job.snoozed.saturating_add(pause);
    if total > bounds.total {
        let message = format!(
            "with the pause it asked for it would have been put off for {} s in all; its kind allows {} s",
            total.as_secs(),
            bounds.total.as_secs()
        );
        return Some(Failure::permanent("snoozed_too_long", message));
    }
    passed(job, policy, run_at).map(|deadline| {
        let deadline = deadline.format("%FT%TZ");
        Failure::permanent("deadline_exceeded", format!("it asked to be called again after the job's deadline, {deadline}"))
    })
}

fn error_json(failure: &Failure) -> Value {
    // Postgres stores no NUL; what the outside said may hold one.
    let clean = |text: &str| text.replace('\0', "\u{fffd}").chars().take(4_000).collect::<String>();
    json!({
        "code": failure.code,
        "class": failure.class,
        "message": clean(&failure.message),
        "for_owner": failure.for_owner.as_deref().map(clean),
        "causes": failure.causes.iter().map(|cause| clean(cause)).collect::<Vec<_>>(),
    })
}

/// A job as a settle left it.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The job.
    pub job: JobId,
    /// Its state now: a retry of a job that was to be cancelled is cancelled.
    pub state: State,
    /// Why it waits, if it does.
    pub reason: Reason,
    /// When it runs again, if it waits.
    pub run_at: DateTime<Utc>,
    /// The handover that must follow, if it was handed back.
    pub handover: Option<Handover>,
}

/// Writes a batch. Who is missing in the answer had lost its claim; its outcome changed nothing.
///
/// Jobs that are metered, and those that concern others, cost a statement more of each, in one transaction with the first.
///
/// # Errors
/// [`LedgerError`]: nothing of the batch is known to be written; settling again is harmless, since the token is gone with
/// the first time.
pub async fn settle(connection: &mut PgConnection, batch: &[Settlement]) -> Result<Vec<Settled>, LedgerError> {
    // One order for all batches that lock several rows, so that they queue up and don't deadlock.
    let mut batch: Vec<&Settlement> = batch.iter().collect();
    batch.sort_unstable_by_key(|settlement| settlement.claim.id);
    let Some(now) = batch.iter().filter(|settlement| settlement.matters_to_others()).map(|settlement| settlement.finished_at).max() else {
        return write::outcomes(connection, &batch).await;
    };
    let mut transaction = connection.begin().await?;
    let settled = write::outcomes(&mut transaction, &batch).await?;
    let left: HashSet<JobId> = settled.iter().filter(|settled| settled.state != State::Queued).map(|settled| settled.job).collect();
    let left_of = |concerns: fn(&Settlement) -> bool| -> Vec<Uuid> {
        batch
            .iter()
            .filter(|settlement| concerns(settlement) && left.contains(&settlement.job()))
            .map(|settlement| settlement.job().0)
            .collect()
    };
    // Counters before limiting keys, as those who accept jobs take them.
    super::settle_usage(&mut transaction, &left_of(|settlement| settlement.is_metered), now).await?;
    super::leave_jobs(&mut transaction, &left_of(|settlement| settlement.concerns_others), now).await?;
    tell(&mut transaction, &batch, &settled, now).await?;
    transaction.commit().await?;
    Ok(settled)
}
