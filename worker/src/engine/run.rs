//! Step 6, run: the service that an apalis worker calls for each job.
//!
//! The handler runs as a task of its own (a panic ends that task, not the worker; a busy handler holds no other up), which is
//! aborted when the run is dropped or overtaken: by its timeout, by its owner, by the lease's end, by a shutdown that won't wait.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use apalis_core::task::Task;
use shared::{
    job::{Failure, FailureClass, Outcome, Policy, SnoozeBounds},
    ledger::{UNAVAILABLE, claim::ClaimedJob, recover::CRASHES_IN_COMPANY, settle::Settlement},
    queue::Queue,
    random,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc},
    task::{JoinError, JoinHandle},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{
    Engine,
    credits::{Credit, Credits},
    meter, trial,
};
use crate::handlers::{Handler, JobContext, Started};

/// How long a handler that was asked to cancel may take to stop tidily before it is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// Of so many slots one is kept for those who go first, so that they wait for nobody's long job; a queue of fewer slots keeps none.
const KEPT: usize = 16;
/// How long a suspect waits, half as much more or less, before it asks again whether it is its turn.
const SUSPECT_PAUSE: Duration = Duration::from_secs(1);
/// How long a job waits whose kind this replica does not know: a newer replica may, in a rolling upgrade.
const UNKNOWN_KIND_PAUSE: Duration = Duration::from_secs(30);
/// How often it waits so before it fails, since it was accepted or redriven: an hour.
const UNKNOWN_KIND_SNOOZES: SnoozeBounds = SnoozeBounds { times: 120, total: Duration::MAX };
/// The policy of a kind that nobody here knows: all that is done with its jobs is to put them off.
const UNKNOWN_KIND_POLICY: Policy = Policy { deadline: Duration::MAX, snooze: UNKNOWN_KIND_SNOOZES, ..Policy::DEFAULT };

/// What a queue's fetcher hands to its apalis worker.
#[derive(Debug)]
pub enum Work {
    /// A job to run.
    Job(Claimed),
    /// A canary that was sent then, on its way to the settler.
    Canary(Instant),
}

/// How long a job waits whose handler the ledger did not answer, half as much more or less.
const LEDGER_PAUSE: Duration = Duration::from_secs(2);
/// How many runs of a job may go uncounted before such a failure counts after all: something about this job may be at fault.
const UNCOUNTED_RUNS: i32 = 100;

/// A claimed job on its way to its handler.
#[derive(Debug)]
pub struct Claimed {
    /// The claim.
    pub job: Arc<ClaimedJob>,
    /// The right to hold it.
    pub credit: Credit,
    /// Ends with the lease under which it was claimed.
    pub epoch: CancellationToken,
    /// Cancelled when the owner wants it cancelled.
    pub cancelled: CancellationToken,
    /// Came by the lane of those who go first.
    pub goes_first: bool,
}

/// What is on its way to the settler.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "canaries are one in thousands, and a box would cost every run")]
pub enum Finished {
    /// A run's end.
    Run(Ended),
    /// A canary of a queue that was sent then.
    Canary(Queue, Instant),
}

/// A run's end.
#[derive(Debug)]
pub struct Ended {
    /// What to write.
    pub settlement: Settlement,
    /// The claim it ends.
    pub job: Arc<ClaimedJob>,
    /// Returned, by being dropped, once it is written.
    pub _credit: Credit,
}

/// Runs a queue's jobs, so many at a time.
#[derive(Debug, Clone)]
pub struct Runner {
    engine: Arc<Engine>,
    queue: Queue,
    slots: Arc<Semaphore>,
    /// Those slots that are open to everybody; the others are kept for those who go first.
    open: Arc<Semaphore>,
    credits: Arc<Credits>,
    /// Jobs under which workers were lost repeatedly run in processes of their own, so many at a time.
    suspects: Arc<Semaphore>,
    finished: mpsc::Sender<Finished>,
}

impl Runner {
    pub(super) fn new(engine: Arc<Engine>, queue: Queue, slots: usize, credits: Arc<Credits>, finished: mpsc::Sender<Finished>) -> Self {
        let suspects = Arc::clone(&engine.suspects);
        Self {
            engine,
            queue,
            slots: Arc::new(Semaphore::new(slots)),
            open: Arc::new(Semaphore::new(slots - slots / KEPT)),
            credits,
            suspects,
            finished,
        }
    }

    async fn work(self, work: Work) {
        match work {
            Work::Job(claimed) => self.run(claimed).await,
            Work::Canary(sent) => _ = self.finished.send(Finished::Canary(self.queue, sent)).await,
        }
    }

    async fn run(self, claimed: Claimed) {
        let Claimed { job, mut credit, epoch, cancelled, goes_first } = claimed;
        let claim = (job.id, job.token);
        let (policy, outcome) = tokio::select! {
            biased;
            // Others may have the job now: forget it, unsettled.
            () = epoch.cancelled() => {
                self.engine.held.remove([claim]);
                return;
            }
            ended = self.run_when_free(&job, cancelled, &mut credit, goes_first) => ended,
        };
        let settlement = Settlement::decide(&job, &policy, outcome, self.engine.services.clock.now());
        // The settler outlives all runners; should it be gone, recovery gives the job to another process.
        if self.finished.send(Finished::Run(Ended { settlement, job, _credit: credit })).await.is_err() {
            self.engine.held.remove([claim]);
            tracing::error!(job = %claim.0, "the outcome could not be settled: the settler is gone");
        }
    }

    /// A slot to run in. Who goes first waits for the next one that is free, whichever it is; the others leave some free for them.
    async fn slot(&self, goes_first: bool) -> Option<(SemaphorePermit<'_>, Option<SemaphorePermit<'_>>)> {
        let open = if goes_first { None } else { Some(self.open.acquire().await.ok()?) };
        Some((self.slots.acquire().await.ok()?, open))
    }

    /// Waits for a slot and runs the handler in it; hands the job back when the process stops first.
    async fn run_when_free(
        &self,
        job: &Arc<ClaimedJob>,
        cancelled: CancellationToken,
        credit: &mut Credit,
        goes_first: bool,
    ) -> (Policy, Outcome) {
        // Whoever has to wait for its turn as a suspect waits in the ledger: here it would keep room from others.
        let _turn = if job.crashes >= CRASHES_IN_COMPANY {
            let Ok(turn) = self.suspects.try_acquire() else {
                return (Policy::DEFAULT, Outcome::Deferred(SUSPECT_PAUSE.mul_f64(0.5 + random::fraction())));
            };
            Some(turn)
        } else {
            None
        };
        let _slot = tokio::select! {
            biased;
            () = self.engine.draining.cancelled() => return (Policy::DEFAULT, Outcome::HandedBack),
            () = cancelled.cancelled() => return (Policy::DEFAULT, Outcome::Cancelled),
            slot = self.slot(goes_first) => slot,
        };
        if goes_first {
            // What runs counts like any other, and its place among those who go first is free for the next one.
            *credit = self.credits.take();
        }
        let now = self.engine.services.clock.now();
        if job.start_by.is_some_and(|start_by| start_by < now) {
            return (Policy::DEFAULT, Outcome::Expired);
        }
        let Some(handler) = self.engine.handlers.find(&job.kind) else {
            if job.snoozes >= UNKNOWN_KIND_SNOOZES.times {
                let message = format!("no worker knows the kind `{}`; deploy one that does and retry the job", job.kind);
                return (Policy::DEFAULT, Outcome::Failed(Failure::permanent("kind_unknown", message)));
            }
            tracing::warn!(job = %job.id, kind = job.kind, "this worker doesn't know the kind; the job waits");
            return (UNKNOWN_KIND_POLICY, Outcome::Snoozed(UNKNOWN_KIND_PAUSE));
        };
        if self.engine.switches.stop(job.tenant, &job.kind) && handler.is_outward(&job.payload) {
            return (handler.policy, Outcome::SwitchedOff);
        }
        if self.engine.holds.is_paused(job.tenant, self.queue, &job.kind) {
            return (handler.policy, Outcome::Paused);
        }
        let paced = tokio::select! {
            paced = self.engine.holds.pace(job) => paced,
            () = self.engine.draining.cancelled() => return (handler.policy, Outcome::HandedBack),
            () = cancelled.cancelled() => return (handler.policy, Outcome::Cancelled),
        };
        if let Err(pause) = paced {
            return (handler.policy, Outcome::Paced(pause));
        }
        if let Some(stopped) = meter::stop(&self.engine, job).await {
            return (handler.policy, Self::outcome_for_the_job(job, stopped));
        }
        let waited = (now - job.run_at).to_std().unwrap_or_default();
        metrics::histogram!("offstage_job_wait_seconds", "queue" => self.queue.name()).record(waited.as_secs_f64());
        let began = Instant::now();
        let outcome = self.run_handler(handler, job, cancelled).await;
        let took = began.elapsed();
        self.credits.learn(took, job.payload.len());
        metrics::histogram!("offstage_job_run_seconds", "queue" => self.queue.name(), "kind" => handler.name).record(took.as_secs_f64());
        (handler.policy, Self::outcome_for_the_job(job, outcome))
    }

    /// What of a run's end is the job's own: that the ledger did not answer its handler is not.
    fn outcome_for_the_job(job: &ClaimedJob, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Failed(failure)
                if failure.code == UNAVAILABLE
                    && failure.class != FailureClass::Permanent
                    && job.runs - i32::from(job.attempt) < UNCOUNTED_RUNS =>
            {
                tracing::warn!(job = %job.id, causes = ?failure.causes, "the ledger did not answer the handler; the job waits, no attempt counted");
                Outcome::Deferred(LEDGER_PAUSE.mul_f64(0.5 + random::fraction()))
            }
            outcome => outcome,
        }
    }

    async fn run_handler(&self, handler: &Handler, job: &Arc<ClaimedJob>, cancelled: CancellationToken) -> Outcome {
        let context = JobContext { job: Arc::clone(job), services: Arc::clone(&self.engine.services), cancelled: cancelled.clone() };
        let Started { run, timeout } = handler.start(context);
        let (overdue, bounds) = (&self.engine.overdue, Bounds { name: handler.name, timeout, cancel_grace: CANCEL_GRACE });
        if job.crashes >= CRASHES_IN_COMPANY {
            drop(run);
            let trial = trial::run(Arc::clone(job), cancelled.clone(), self.engine.draining.clone());
            let bounds = Bounds { timeout: timeout + trial::START_WITHIN, ..bounds };
            return supervise(trial, &bounds, &cancelled, overdue).await;
        }
        supervise(self.engine.polls.watch(Arc::clone(job), run), &bounds, &cancelled, overdue).await
    }
}

/// What a run is held to.
struct Bounds {
    name: &'static str,
    timeout: Duration,
    /// How long it may go on once it was asked to stop.
    cancel_grace: Duration,
}

/// Runs a handler in a task of its own to its end, or to whatever ends it first.
async fn supervise<R>(run: R, bounds: &Bounds, cancelled: &CancellationToken, overdue: &CancellationToken) -> Outcome
where
    R: Future<Output: Into<Outcome> + Send + 'static> + Send + 'static,
{
    let mut task = AbortOnDrop(tokio::spawn(run));
    tokio::select! {
        biased;
        ended = &mut task => outcome_of(ended),
        () = tokio::time::sleep(bounds.timeout) => {
            let Bounds { name, timeout, .. } = bounds;
            Outcome::Failed(Failure::transient("timeout", format!("ran longer than the {timeout:?} that `{name}` may take")))
        }
        () = overdue.cancelled() => Outcome::HandedBack,
        // Asked first, dropped after a grace time. A success that comes first wins.
        () = cancelled.cancelled() => match tokio::time::timeout(bounds.cancel_grace, &mut task).await.map(outcome_of) {
            Ok(Outcome::Succeeded(success)) => Outcome::Succeeded(success),
            _ => Outcome::Cancelled,
        },
    }
}

/// What a task that ran a handler came to; a panic fails the job.
pub(super) fn outcome_of(ended: Result<impl Into<Outcome>, JoinError>) -> Outcome {
    match ended {
        Ok(result) => result.into(),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => {
                let said = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
                let said: String = said.unwrap_or_else(|| "no message".into()).chars().take(1_000).collect();
                Outcome::Failed(Failure::transient("panic", format!("the handler panicked: {said}; this is a fault in the product")))
            }
            // Aborted by nobody but us, and then nobody looks; a runtime that shuts down hands back.
            Err(_) => Outcome::HandedBack,
        },
    }
}

impl Service<Task<Work>> for Runner {
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, task: Task<Work>) -> Self::Future {
        let runner = self.clone();
        Box::pin(async move {
            runner.work(task.args).await;
            Ok(())
        })
    }
}

/// A spawned task that ends with its owner: tokio's own handle would let it run on.
#[derive(Debug)]
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use shared::job::{FailureClass, Success};

    use super::*;
    use crate::handlers::Run;

    const SOON: Duration = Duration::from_millis(30);
    /// Longer than any test waits.
    const NEVER: Duration = Duration::from_secs(3_600);

    async fn ends(run: Run, timeout: Duration, cancelled: &CancellationToken) -> Outcome {
        let bounds = Bounds { name: "probe.run", timeout, cancel_grace: SOON };
        let never = CancellationToken::new();
        let ended = supervise(run, &bounds, cancelled, &never);
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it comes to an end")
    }

    /// Ignores everything; tells when it is dropped.
    fn stubborn() -> (Run, tokio::sync::oneshot::Receiver<()>) {
        let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
        let run: Run = Box::pin(async move {
            let _alive = alive;
            std::future::pending().await
        });
        (run, dropped)
    }

    #[tokio::test]
    async fn a_run_that_takes_too_long_fails_in_passing_and_is_dropped() {
        let (run, dropped) = stubborn();
        let Outcome::Failed(failure) = ends(run, SOON, &CancellationToken::new()).await else { panic!("it did not fail") };
        assert_eq!((failure.class, failure.code), (FailureClass::Transient, "timeout"));
        assert_eq!(failure.message, "ran longer than the 30ms that `probe.run` may take");
        assert!(dropped.await.is_err(), "nothing of it runs on");
    }

    #[tokio::test]
    async fn a_handler_that_ignores_the_wish_to_cancel_is_dropped_after_the_grace_time() {
        let (run, dropped) = stubborn();
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        assert!(matches!(ends(run, NEVER, &cancelled).await, Outcome::Cancelled));
        assert!(dropped.await.is_err(), "nothing of it runs on");
    }

    #[tokio::test]
    async fn who_is_asked_to_stop_may_still_succeed_and_does_not_fail() {
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let asked = cancelled.clone();
        let tidy: Run = Box::pin(async move {
            asked.cancelled().await;
            tokio::task::yield_now().await;
            Ok(Success::default())
        });
        assert!(matches!(ends(tidy, NEVER, &cancelled).await, Outcome::Succeeded(_)));
        let stops: Run = Box::pin(async move {
            tokio::task::yield_now().await;
            Err(Failure::transient("cancelled", "it was cancelled").into())
        });
        assert!(matches!(ends(stops, NEVER, &cancelled).await, Outcome::Cancelled | Outcome::Failed(_)));
    }

    #[tokio::test]
    async fn a_panic_says_what_it_said() {
        let run: Run = Box::pin(async { panic!("no paper in tray {}", 2) });
        let Outcome::Failed(failure) = ends(run, NEVER, &CancellationToken::new()).await else { panic!("it did not fail") };
        assert_eq!((failure.class, failure.code), (FailureClass::Transient, "panic"));
        assert!(failure.message.contains("no paper in tray 2"), "{}", failure.message);
    }

    #[tokio::test]
    async fn at_the_end_of_a_shutdown_s_grace_the_job_is_handed_back() {
        let (run, dropped) = stubborn();
        let overdue = CancellationToken::new();
        overdue.cancel();
        let bounds = Bounds { name: "probe.run", timeout: NEVER, cancel_grace: SOON };
        assert!(matches!(supervise(run, &bounds, &CancellationToken::new(), &overdue).await, Outcome::HandedBack));
        assert!(dropped.await.is_err());
    }
}
