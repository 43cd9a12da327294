//! How each kind of job is done: one file a kind, of the same name as its contract in `shared/src/kinds`.
//!
//! A handler is an `async fn run(payload, context) -> Result<Success, Failure>`, or `Result<Success, Interrupt>` where it may
//! also put its job off. It may be dropped at any await (timeout, cancellation, a lost lease) and run again elsewhere, so what
//! it writes to storage of ours goes through [`JobContext::intend`], what leaves the house through
//! [`JobContext::intend_outward`], and it holds no state but what it can lose. Errors classify themselves into a [`Failure`]; the
//! handler just uses `?`.

mod activity;
mod ai;
mod byok;
mod completion;
mod email;
mod export;
mod gathered;
mod metric;
mod notification;
mod probe;
mod push;
mod stats;
mod summary;
mod suspension;
mod user;
#[cfg(test)]
pub(crate) mod workbench;

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::TryFutureExt;
use secrecy::SecretString;
use serde_json::Value;
use shared::{
    clock::Clock,
    config::{Probe, Sources},
    job::{Failure, Interrupt, Policy, Success},
    kinds::{
        ActivityFanOut, AiRun, ByokCheck, CompletionNotify, EmailSend, ExportCreate, Kind, MetricRebuild, NotificationDigest,
        NotificationFanOut, NotificationTell, ProbeRun, PushSend, Registry, StatsRefresh, SummaryRefresh, SuspensionEnd, UserErase,
    },
    ledger::{
        LedgerError, UNAVAILABLE,
        checkpoint::{self, CHECKPOINT_LIMIT},
        claim::ClaimedJob,
        deliveries::Noted,
        effects::{self, Intent, Intention, Reach},
        rollups::ask::Turns,
    },
    mail::RecipientKey,
    queue::read::reconnect_pause,
    random,
    tenant::Tenants,
    usage::calls::{MadeCall, Spent},
    vault::VaultKeys,
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::clients::Clients;
pub use ai::Followers;
use gathered::Gathered;
pub use metric::Rebuilds;

/// How long a receipt is offered to a ledger that does not answer: longer than a restart or a failover of Postgres.
const RECEIPT_WITHIN: Duration = Duration::from_secs(60);

/// What handlers may use, one for the process.
#[derive(Debug)]
pub struct Services {
    /// The ledger.
    pub pool: PgPool,
    /// What runs write down of messages at the same time.
    pub gathered: Messages,
    /// Business time.
    pub clock: Clock,
    /// Tenants and what their manifests declare.
    pub tenants: Tenants,
    /// The outside world.
    pub clients: Clients,
    /// The keys that wrap what users entrusted to us.
    pub vault_keys: Option<VaultKeys>,
    /// By which recipients of mail are known.
    pub recipient_key: Option<RecipientKey>,
    /// Under which address people reach the API.
    pub public_url: Option<Url>,
    /// The product's keys for models, by the variables that hold them.
    pub ai_keys: BTreeMap<String, SecretString>,
    /// The way of models' words to who follows them.
    pub followers: Followers,
    /// Turns of those who have tables of metrics computed.
    pub turns: Turns,
    /// Places of those who count metrics' days anew.
    pub rebuilds: Rebuilds,
    /// Addresses of the sources that datasets read.
    pub sources: Sources,
    /// What probes may do.
    pub probe: Probe,
}

/// What runs write down of messages, many at a time.
#[derive(Debug)]
pub struct Messages {
    /// Before each: that it is about to be sent.
    intentions: Gathered<Intention>,
    /// Behind each: what came of it.
    notes: Gathered<Noted>,
    /// Behind each call of a model: what it took.
    calls: Gathered<Spent>,
}

impl Messages {
    /// Starts the tasks behind it, which end with it.
    #[must_use]
    pub fn start(pool: &PgPool, clock: &Clock) -> Self {
        Self {
            intentions: Gathered::start(pool.clone(), clock.clone()),
            notes: Gathered::start(pool.clone(), clock.clone()),
            calls: Gathered::start(pool.clone(), clock.clone()),
        }
    }
}

/// One run of one job, as its handler sees it.
#[derive(Debug, Clone)]
pub struct JobContext {
    /// The claim: id, tenant, owner, attempt …
    pub job: Arc<ClaimedJob>,
    /// What it may use.
    pub services: Arc<Services>,
    /// Cancelled when the owner wants the job cancelled: stop soon and tidily; who does not is dropped.
    pub cancelled: CancellationToken,
}

impl JobContext {
    /// Notes how far the job is, for whoever follows it. Answers `false` when the claim is gone: stop then.
    ///
    /// # Errors
    /// A transient [`Failure`] when the ledger does not answer; progress is a courtesy, so a caller may well ignore it.
    pub async fn progress(&self, done: u64, total: Option<u64>) -> Result<bool, Failure> {
        Ok(effects::progress(&self.services.pool, &self.job, done, total, self.services.clock.now()).await?)
    }

    /// Writes down what this run is about to do outside, before it does it; and fences it off when its claim is gone.
    ///
    /// # Errors
    /// A transient [`Failure`] when the ledger does not answer or the claim is gone.
    pub async fn intend(&self, key: &str, intent: &Value) -> Result<Intent, Failure> {
        match self.say(key, intent, Reach::Ours).await? {
            Intent::Fenced => Err(claim_lost()),
            Intent::Unknown => {
                self.count_unknown();
                Ok(Intent::Unknown)
            }
            known => Ok(known),
        }
    }

    /// As [`Self::intend`], for a step that leaves the house (a mail, a push, a call that costs money): asks the switches too,
    /// in the same statement, so that after a switch went off no such step begins.
    ///
    /// # Errors
    /// [`Interrupt::SwitchedOff`], or a transient [`Failure`] as [`Self::intend`] has.
    pub async fn intend_outward(&self, key: &str, intent: &Value) -> Result<Intent, Interrupt> {
        match self.say(key, intent, Reach::Outward).await? {
            Intent::Fenced => Err(claim_lost().into()),
            Intent::SwitchedOff => Err(Interrupt::SwitchedOff),
            Intent::Unknown => {
                self.count_unknown();
                Ok(Intent::Unknown)
            }
            known => Ok(known),
        }
    }

    async fn say(&self, key: &str, intent: &Value, reach: Reach) -> Result<Intent, Failure> {
        let intention = Intention::of(&self.job, key, intent, reach);
        self.services.gathered.intentions.send(intention).await.map_err(|error| unavailable(&error))
    }

    /// Lists an effect as unknown: it was begun, and its answer did not come.
    ///
    /// # Errors
    /// A transient [`Failure`] when the ledger does not answer: the effect is then known as intended only.
    pub async fn unknown(&self, key: &str) -> Result<(), Failure> {
        effects::unknown(&self.services.pool, self.job.id, key).await?;
        self.count_unknown();
        Ok(())
    }

    fn count_unknown(&self) {
        metrics::counter!("offstage_effects_unknown_total", "kind" => self.job.kind.clone()).increment(1);
    }

    /// Writes down what the outside answered, for as long as it takes within [`RECEIPT_WITHIN`], also when the run is dropped
    /// meanwhile: what has no receipt is done again.
    ///
    /// # Errors
    /// A transient [`Failure`] when the ledger does not answer: the effect is then known as intended only.
    pub async fn receipt(&self, key: &str, receipt: &Value) -> Result<(), Failure> {
        let (services, job) = (Arc::clone(&self.services), self.job.id);
        let (key, receipt) = (key.to_owned(), receipt.clone());
        patiently(move || {
            let (services, key, receipt) = (Arc::clone(&services), key.clone(), receipt.clone());
            async move { effects::receipt(&services.pool, job, &key, &receipt, services.clock.now()).await.map_err(Arc::new) }
        })
        .await
    }

    /// Writes down that a message was taken: what the outside answered, and its row of the delivery log, both or neither; as patiently as
    /// [`Self::receipt`].
    ///
    /// # Errors
    /// As [`Self::receipt`].
    async fn taken(&self, key: &str, receipt: &Value, noted: Noted) -> Result<(), Failure> {
        let services = Arc::clone(&self.services);
        let noted = Noted { receipt: Some((key.to_owned(), receipt.clone())), ..noted };
        patiently(move || {
            let (services, noted) = (Arc::clone(&services), noted.clone());
            async move { services.gathered.notes.send(noted).await }
        })
        .await
    }

    /// Writes down a call of a model and, where there is one, its answer as its step's receipt, both or neither; as patiently as
    /// [`Self::receipt`]: it has cost what it cost.
    ///
    /// # Errors
    /// As [`Self::receipt`].
    async fn spent(&self, made: MadeCall, answer: Option<Value>) -> Result<(), Failure> {
        let services = Arc::clone(&self.services);
        let spent = Spent { made, answer };
        patiently(move || {
            let (services, spent) = (Arc::clone(&services), spent.clone());
            async move { services.gathered.calls.send(spent).await }
        })
        .await
    }

    /// Writes down what came of a message that was not taken, or may not have been.
    ///
    /// # Errors
    /// A transient [`Failure`] when the ledger does not answer.
    async fn note(&self, noted: Noted) -> Result<(), Failure> {
        self.services.gathered.notes.send(noted).await.map_err(|error| unavailable(&error))
    }

    /// Saves a small state for the next attempt, in the place of any before. `keeps` names an object whose unfinished upload the next
    /// attempt goes on with: no sweep takes it away while the job has not ended.
    ///
    /// # Errors
    /// A transient [`Failure`] when the ledger does not answer or the claim is gone; a permanent one for a state that is too large.
    pub async fn checkpoint(&self, state: &Value, keeps: Option<&str>) -> Result<(), Failure> {
        let size = state.to_string().len();
        if size > CHECKPOINT_LIMIT {
            let message =
                format!("a checkpoint of {size} bytes is too large, {CHECKPOINT_LIMIT} are allowed; this is a fault in the product");
            return Err(Failure::permanent("checkpoint_too_large", message));
        }
        if checkpoint::save(&self.services.pool, &self.job, state, keeps, self.services.clock.now()).await? {
            return Ok(());
        }
        Err(Failure::transient("claim_lost", "another worker took this job over; this run stops"))
    }

    /// What an earlier attempt saved.
    ///
    /// # Errors
    /// A transient [`Failure`] when the ledger does not answer.
    pub async fn saved(&self) -> Result<Option<Value>, Failure> {
        // A first run has no earlier one.
        if self.job.runs <= 1 { Ok(None) } else { Ok(checkpoint::find(&self.services.pool, self.job.id).await?) }
    }

    /// Forgets what was saved: the next attempt begins anew. Answers `false` when there was nothing, or the claim is gone.
    ///
    /// # Errors
    /// A transient [`Failure`] when the ledger does not answer.
    pub async fn forget_checkpoint(&self) -> Result<bool, Failure> {
        Ok(checkpoint::forget(&self.services.pool, &self.job).await?)
    }

    /// Strikes an effect out that was undone.
    ///
    /// # Errors
    /// A transient [`Failure`] when the ledger does not answer.
    pub async fn forget_effect(&self, key: &str) -> Result<(), Failure> {
        Ok(effects::forget(&self.services.pool, self.job.id, key).await?)
    }
}

/// Writes something down for as long as it takes within [`RECEIPT_WITHIN`], also when whoever waits for it is dropped.
async fn patiently<F>(write: impl Fn() -> F + Send + 'static) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Arc<LedgerError>>> + Send,
{
    let writing = tokio::spawn(async move {
        let began = Instant::now();
        let mut failures = 0;
        loop {
            match write().await {
                Err(error) if error.is_transient() && began.elapsed() < RECEIPT_WITHIN => {
                    failures += 1;
                    tokio::time::sleep(reconnect_pause(failures, random::fraction())).await;
                }
                written => return written,
            }
        }
    });
    match writing.await {
        Ok(written) => written.map_err(|error| unavailable(&error)),
        Err(_) => Err(Failure::transient(UNAVAILABLE, "the process ends before the outside's answer could be written down")),
    }
}

/// For a run that asked the ledger together with others.
fn unavailable(error: &LedgerError) -> Failure {
    if error.is_about_data() {
        // It is refused again however often: what the outside did for it would be done, and paid, each time.
        return Failure::permanent("receipt_refused", "the database refused what the outside answered; see the causes").caused_by(error);
    }
    Failure::transient(UNAVAILABLE, "the job database did not answer; the job is tried again").caused_by(error)
}

fn claim_lost() -> Failure {
    Failure::transient("claim_lost", "another worker took this job over; this run stops")
}

/// A run under way.
pub type Run = Pin<Box<dyn Future<Output = Result<Success, Interrupt>> + Send>>;

/// A kind's handler, its payload's type forgotten.
#[derive(Clone)]
pub struct Handler {
    /// The kind's name.
    pub name: &'static str,
    /// The kind's policy.
    pub policy: Policy,
    run: Arc<dyn Fn(JobContext) -> Started + Send + Sync>,
    is_outward: fn(&str) -> bool,
}

/// A run that was begun, and how long it may take.
pub struct Started {
    /// The run; nothing happens until it is polled.
    pub run: Run,
    /// The longest that it may take.
    pub timeout: Duration,
}

impl Handler {
    fn of<K: Kind, F, E>(run: fn(K, JobContext) -> F) -> Self
    where
        F: Future<Output = Result<Success, E>> + Send + 'static,
        E: Into<Interrupt> + 'static,
    {
        let run = move |context: JobContext| match serde_json::from_str::<K>(&context.job.payload) {
            Ok(payload) => Started { timeout: payload.timeout(), run: Box::pin(run(payload, context).map_err(Into::into)) },
            Err(error) => {
                let failure = Failure::permanent("payload_invalid", format!("this worker can't read the job's payload: {error}"));
                Started { timeout: K::POLICY.timeout, run: Box::pin(std::future::ready(Err(failure.into()))) }
            }
        };
        // A payload that can't be read has no effect, and fails of that.
        let is_outward = |payload: &str| K::OUTWARD && serde_json::from_str::<K>(payload).is_ok_and(|payload| payload.is_outward());
        Self { name: K::NAME, policy: K::POLICY, run: Arc::new(run), is_outward }
    }

    /// Whether a job with this payload has effects outside the installation. Reads the payload: ask only when it matters.
    #[must_use]
    pub fn is_outward(&self, payload: &str) -> bool {
        (self.is_outward)(payload)
    }

    /// Starts a run; nothing happens until it is polled.
    #[must_use]
    pub fn start(&self, context: JobContext) -> Started {
        (self.run)(context)
    }
}

/// The handlers of this process, by kind and by a kind's former names.
#[derive(Clone)]
pub struct Handlers {
    by_name: HashMap<&'static str, Handler>,
}

impl Handlers {
    /// All handlers; `probe.run`'s only where the installation allows it.
    #[must_use]
    pub fn new(probe: bool) -> Self {
        let mut handlers = vec![
            Handler::of::<ActivityFanOut, _, _>(activity::run),
            Handler::of::<AiRun, _, _>(ai::run),
            Handler::of::<ByokCheck, _, _>(byok::run),
            Handler::of::<CompletionNotify, _, _>(completion::run),
            Handler::of::<EmailSend, _, _>(email::run),
            Handler::of::<ExportCreate, _, _>(export::run),
            Handler::of::<MetricRebuild, _, _>(metric::run),
            Handler::of::<NotificationDigest, _, _>(notification::digest),
            Handler::of::<NotificationFanOut, _, _>(notification::run),
            Handler::of::<NotificationTell, _, _>(notification::tell),
            Handler::of::<PushSend, _, _>(push::run),
            Handler::of::<StatsRefresh, _, _>(stats::run),
            Handler::of::<SummaryRefresh, _, _>(summary::run),
            Handler::of::<SuspensionEnd, _, _>(suspension::run),
            Handler::of::<UserErase, _, _>(user::run),
        ];
        if probe {
            handlers.push(Handler::of::<ProbeRun, _, _>(probe::run));
        }
        let registry = Registry::new(probe);
        let mut by_name = HashMap::new();
        for handler in handlers {
            for alias in registry.find(handler.name).map_or(&[][..], |entry| entry.aliases) {
                by_name.insert(*alias, handler.clone());
            }
            by_name.insert(handler.name, handler);
        }
        Self { by_name }
    }

    /// The handler of a kind.
    #[must_use]
    pub fn find(&self, kind: &str) -> Option<&Handler> {
        self.by_name.get(kind)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_has_a_handler_and_every_handler_a_kind() {
        for probe in [false, true] {
            let registry = Registry::new(probe);
            let kinds: BTreeSet<_> = registry.entries().flat_map(|entry| entry.aliases.iter().copied().chain([entry.name])).collect();
            let handlers: BTreeSet<_> = Handlers::new(probe).by_name.into_keys().collect();
            assert_eq!(kinds, handlers);
        }
    }
}
