//! Circuit breakers (R40): a provider that fails is left alone for a while, by the whole fleet, and tried again by one call.
//!
//! One breaker for each provider and credential: the platform's key that ran dry says nothing of a user's own, and the other way round. Its
//! state is Redis' ([`shared`]), so a replica of little traffic knows what the others found out; while Redis is away each process goes by
//! what it sees itself ([`circuit`]): it fails to local, not to closed.
//!
//! What must stay true:
//! - while a breaker is closed its decision costs no exchange: what is known here is asked. A trip comes by pub/sub, and by each report; who
//!   missed both looks within [`LOOK_EVERY`];
//! - a failure is told at once, and its caller told where the breaker stands after it; successes go along by the batch, within [`FLUSH_EVERY`];
//! - a call that is dropped counts nothing, and a probe that is dropped, or whose worker dies, gives its place back;
//! - an operator's word (forced open, metrics only) goes before everything.
//!
//! What counts as a failure is the caller's to say; [`Permit::ignored`] is for what proves nothing of the provider.

pub(crate) mod circuit;
mod permit;
mod shared;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use ::shared::{
    queue::{
        Commands, Redis,
        signal::{self, Channel, Signal},
    },
    random,
    tenant::BreakerSettings,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use circuit::{ALL, Answer, Circuit, Event, Millis, RAMP, Rules};
pub use circuit::{Counts, Phase};
pub use permit::Permit;

/// How soon successes are told.
const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// How often what is in use is looked at without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Breakers looked at in one go.
const LOOKED_AT: usize = 200;
/// How long Redis is left alone after it did not answer.
const AWAY_FOR: Duration = Duration::from_secs(1);
/// A breaker that nobody asked for so long is forgotten here.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Breakers known at a time; with more, those not in use just now are forgotten sooner.
const MOST_KNOWN: usize = 20_000;
/// How much longer than its call's deadline a probe is leased: what it takes to report.
const LEASE_BEYOND: Duration = Duration::from_secs(5);
/// Transitions that wait to be written down; what is beyond is in the log alone.
const TRANSITIONS: usize = 1_000;

/// What becomes of a call, in metrics.
pub const OUTCOMES: [&str; 5] = ["succeeded", "failed", "slow", "ignored", "refused"];

/// By which key a provider is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Credential {
    /// The platform's.
    Platform,
    /// A user's own, by its row.
    Own(Uuid),
}

impl Credential {
    /// Its word in metrics, rows and the log.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Own(_) => "own",
        }
    }
}

/// What has a breaker of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BreakerKey {
    /// Whose provider.
    pub tenant: i32,
    /// The provider, as the manifest calls it.
    pub provider: String,
    /// By which key it is called.
    pub credential: Credential,
}

impl fmt::Display for BreakerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.credential {
            Credential::Platform => write!(f, "{}:{}:platform", self.tenant, self.provider),
            Credential::Own(row) => write!(f, "{}:{}:{}", self.tenant, self.provider, row.simple()),
        }
    }
}

/// A call that wants to begin.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Whose breaker it asks.
    pub key: &'a BreakerKey,
    /// How that one is set.
    pub settings: BreakerSettings,
    /// The longest that the call takes.
    pub deadline: Duration,
}

/// A call that may not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The breaker's name: what its job waits for.
    pub breaker: String,
    /// In how long asking again may help; `None` where an operator has to say so.
    pub again_in: Option<Duration>,
}

/// What an operator has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No call goes through.
    ForcedOpen,
    /// All go through, and are counted as ever.
    MetricsOnly,
}

/// An operator's word on breakers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Whose; `None` for every tenant's.
    pub tenant: Option<i32>,
    /// Which provider's; `None` for every provider's.
    pub provider: Option<String>,
    /// What is set.
    pub mode: Mode,
}

/// A change of a breaker that this process brought about.
#[derive(Debug, Clone)]
pub struct Transition {
    /// Which one.
    pub key: BreakerKey,
    /// Where it stands now.
    pub phase: Phase,
    /// For how long it is open, if it is.
    pub open_for: Option<Duration>,
    /// The window's calls then.
    pub counts: Counts,
}

/// Every breaker that this process has met. Clones share them.
#[derive(Debug, Clone)]
pub struct Breakers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    redis: Option<Redis>,
    connection: Option<Commands>,
    known: Mutex<HashMap<String, Known>>,
    overrides: RwLock<Arc<Vec<Override>>>,
    away_until: Mutex<Option<Instant>>,
    /// The zero of the local clock.
    began: Instant,
    transitions: mpsc::Sender<Transition>,
    written_by: Mutex<Option<mpsc::Receiver<Transition>>>,
}

/// A breaker as it is known here.
#[derive(Debug)]
struct Known {
    key: BreakerKey,
    rules: Rules,
    /// What this process sees itself.
    local: Circuit,
    /// What Redis said last, and how long it had still to be so then.
    fleet: Option<Heard>,
    /// Successes that are not told yet, of this epoch.
    pending: (u64, Counts),
    used: Instant,
    looked: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    phase: Phase,
    epoch: u64,
    until: Instant,
}

impl Breakers {
    /// Without `redis` each process is alone, as it is while Redis is away.
    #[must_use]
    pub fn new(redis: Option<Redis>) -> Self {
        let (transitions, written_by) = mpsc::channel(TRANSITIONS);
        Self(Arc::new(Inner {
            connection: redis.as_ref().map(Redis::commands),
            redis,
            known: Mutex::default(),
            overrides: RwLock::default(),
            away_until: Mutex::new(None),
            began: Instant::now(),
            transitions,
            written_by: Mutex::new(Some(written_by)),
        }))
    }

    /// Asks whether a call may begin now.
    ///
    /// # Errors
    /// [`Refused`]: the breaker is open, or tries another call, or lets only some through.
    pub async fn admit(&self, call: &Call<'_>) -> Result<Permit, Refused> {
        let name = call.key.to_string();
        let mode = self.mode(call.key);
        if mode == Some(Mode::ForcedOpen) {
            count(call.key, "refused");
            return Err(Refused { breaker: name, again_in: None });
        }
        let (fleet, local_epoch) = {
            let mut known = self.known();
            let now = self.now();
            let entry = entry(&mut known, &name, call);
            let rules = entry.rules;
            (entry.fleet, entry.local.take(Event::Look, now, &rules, &RAMP).epoch)
        };
        let slow_after = call.settings.slow_after(call.deadline);
        let permit = |epochs, probe| Permit {
            breakers: self.clone(),
            name: name.clone(),
            epochs,
            probe,
            slow_after,
            began: Instant::now(),
            reported: false,
        };
        if mode == Some(Mode::MetricsOnly) {
            return Ok(permit((fleet.map(|heard| heard.epoch), local_epoch), None));
        }
        if !self.is_away() {
            if let Some(heard) = fleet.filter(|heard| heard.phase == Phase::Closed) {
                return Ok(permit((Some(heard.epoch), local_epoch), None));
            }
            if let Some(heard) = fleet.filter(|heard| heard.phase == Phase::Open && heard.until > Instant::now()) {
                count(call.key, "refused");
                return Err(Refused { breaker: name, again_in: Some(heard.until.saturating_duration_since(Instant::now())) });
            }
        }
        let token = token();
        let event = Event::Ask { token, lease: millis(call.deadline + LEASE_BEYOND) };
        if let Some((answer, wait)) = self.tell(&name, event).await {
            return match answer.granted {
                0 => {
                    count(call.key, "refused");
                    Err(Refused { breaker: name, again_in: Some(wait) })
                }
                granted => Ok(permit((Some(answer.epoch), local_epoch), (granted == 2).then_some((token, true)))),
            };
        }
        let (answer, wait) = self.take_here(&name, event);
        match answer.granted {
            0 => {
                count(call.key, "refused");
                Err(Refused { breaker: name, again_in: Some(wait) })
            }
            granted => Ok(permit((None, answer.epoch), (granted == 2).then_some((token, false)))),
        }
    }

    /// How many of the jobs that wait for a breaker may go on now; `None` for as many as there are. Asked again within a second it answers
    /// with what is left of that second.
    pub async fn draw(&self, name: &str) -> Option<u64> {
        let forced = {
            let known = self.known();
            // One that is not known here is known by its name all the same.
            known.get(name).map_or_else(|| self.mode_by_name(name), |entry| self.mode(&entry.key))
        };
        match forced {
            Some(Mode::ForcedOpen) => return Some(0),
            Some(Mode::MetricsOnly) => return None,
            None => {}
        }
        let answer = match self.tell(name, Event::Draw).await {
            Some((answer, _)) => answer,
            None => self.take_here(name, Event::Draw).0,
        };
        (answer.granted < ALL).then_some(answer.granted)
    }

    /// Takes over what operators have set.
    pub fn set(&self, overrides: Vec<Override>) {
        let mut set = self.0.overrides.write().unwrap_or_else(PoisonError::into_inner);
        if **set != overrides {
            tracing::warn!(overrides = overrides.len(), "what operators set of circuit breakers has changed");
            *set = Arc::new(overrides);
        }
    }

    /// What changed by this process; who writes it down takes it, once.
    #[must_use]
    pub fn transitions(&self) -> Option<mpsc::Receiver<Transition>> {
        self.0.written_by.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Hears of trips, tells of successes and looks at what is in use, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut signals = self.0.redis.clone().map(|redis| signal::listen(redis, &[Channel::Breakers], stop.clone()));
        let mut ticks = tokio::time::interval(FLUSH_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let heard = async {
                match &mut signals {
                    Some(signals) => signals.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                signal = heard => match signal {
                    Some(Signal::Breaker(name)) => {
                        if self.known().contains_key(&name) {
                            self.tell(&name, Event::Look).await;
                        }
                    }
                    // Anything may have been missed.
                    Some(Signal::Subscribed) => self.known().values_mut().for_each(|entry| entry.looked = self.0.began),
                    Some(_) => {}
                    None => signals = None,
                },
                _ = ticks.tick() => self.tick().await,
            }
        }
    }

    /// Tells of what waits to be told, looks at what was not looked at for long, and forgets what nobody uses.
    async fn tick(&self) {
        let now = Instant::now();
        let due: Vec<(String, Event)> = {
            let mut known = self.known();
            let patience = if known.len() > MOST_KNOWN { LOOK_EVERY } else { FORGOTTEN_AFTER };
            known.retain(|_, entry| now.duration_since(entry.used) < patience || entry.pending.1.calls > 0);
            for phase in Phase::ALL {
                let count = known.values().filter(|entry| entry.fleet.map_or(Phase::Closed, |heard| heard.phase) == phase).count();
                metrics::gauge!("offstage_breakers", "phase" => phase.word()).set(count as f64);
            }
            if self.is_away() {
                return;
            }
            let is_due = |entry: &Known| {
                entry.pending.1.calls > 0
                    || (now.duration_since(entry.looked) >= LOOK_EVERY && now.duration_since(entry.used) < FORGOTTEN_AFTER / 10)
            };
            let mut due = Vec::new();
            for (name, entry) in known.iter_mut().filter(|(_, entry)| is_due(entry)).take(LOOKED_AT) {
                let (epoch, counts) = std::mem::take(&mut entry.pending);
                entry.looked = now;
                due.push((name.clone(), if counts.calls > 0 { Event::Record { epoch, counts } } else { Event::Look }));
            }
            due
        };
        for (name, event) in due {
            // What can't be told is lost: the window is seconds long.
            self.tell(&name, event).await;
        }
    }

    /// Tells Redis, and learns where the breaker stands: its answer, and how long asking again is of no use. `None` while Redis is away.
    async fn tell(&self, name: &str, event: Event) -> Option<(Answer, Duration)> {
        let (Some(redis), Some(connection)) = (&self.0.redis, &self.0.connection) else { return None };
        if self.is_away() {
            return None;
        }
        let rules = self.known().get(name).map_or_else(|| Rules::from(BreakerSettings::DEFAULT), |entry| entry.rules);
        let mut connection = connection.clone();
        match shared::tell(&mut connection, redis.keys(), name, event, &rules, &RAMP, None).await {
            Ok(told) => {
                let wait = Duration::from_millis(told.answer.until.saturating_sub(told.now));
                self.learn(name, &told.answer, wait);
                Some((told.answer, wait))
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "Redis does not keep the circuit breakers; this process goes by what it sees itself"
                );
                metrics::counter!("offstage_breaker_redis_failures_total").increment(1);
                *self.0.away_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + AWAY_FOR);
                None
            }
        }
    }

    /// The same by what this process sees itself.
    fn take_here(&self, name: &str, event: Event) -> (Answer, Duration) {
        let now = self.now();
        let mut known = self.known();
        let Some(entry) = known.get_mut(name) else {
            // Nothing is known against it.
            let rules = Rules::from(BreakerSettings::DEFAULT);
            return (Circuit::default().take(event, now, &rules, &RAMP), Duration::ZERO);
        };
        let rules = entry.rules;
        let answer = entry.local.take(event, now, &rules, &RAMP);
        let wait = Duration::from_millis(answer.until.saturating_sub(now));
        let key = entry.key.clone();
        drop(known);
        if answer.changed {
            self.changed(key, &answer, wait, "this process");
        }
        (answer, wait)
    }

    fn learn(&self, name: &str, answer: &Answer, wait: Duration) {
        let mut known = self.known();
        let Some(entry) = known.get_mut(name) else { return };
        let heard = Heard { phase: answer.phase, epoch: answer.epoch, until: Instant::now() + wait };
        entry.looked = Instant::now();
        let before = entry.fleet.replace(heard);
        let key = entry.key.clone();
        drop(known);
        if answer.changed {
            self.changed(key, answer, wait, "the fleet");
        } else if before.is_some_and(|before| before.phase != answer.phase) {
            tracing::debug!(breaker = name, phase = answer.phase.word(), "the circuit breaker has changed");
        }
    }

    fn changed(&self, key: BreakerKey, answer: &Answer, wait: Duration, of: &'static str) {
        let Answer { phase, counts, .. } = *answer;
        let (name, credential) = (key.to_string(), key.credential.word());
        metrics::counter!("offstage_breaker_transitions_total", "provider" => key.provider.clone(), "credential" => credential, "to" => phase.word())
            .increment(1);
        let Counts { calls, failures, slow } = counts;
        match phase {
            Phase::Open => tracing::warn!(
                breaker = name,
                provider = key.provider,
                credential,
                of,
                calls,
                failures,
                slow,
                seconds = wait.as_secs(),
                "the circuit breaker opened: its provider is left alone"
            ),
            Phase::HalfOpen => tracing::info!(
                breaker = name,
                provider = key.provider,
                credential,
                of,
                "the circuit breaker is half open: one call is tried"
            ),
            Phase::Ramp => {
                tracing::info!(breaker = name, provider = key.provider, credential, of, "the circuit breaker lets some calls through");
            }
            Phase::Closed => tracing::info!(breaker = name, provider = key.provider, credential, of, "the circuit breaker closed"),
        }
        let open_for = (phase == Phase::Open).then_some(wait);
        // Nobody reads them in a process that runs one job.
        let _ = self.0.transitions.try_send(Transition { key, phase, open_for, counts });
    }

    fn mode(&self, key: &BreakerKey) -> Option<Mode> {
        self.mode_of(key.tenant, &key.provider)
    }

    fn mode_by_name(&self, name: &str) -> Option<Mode> {
        let mut parts = name.splitn(3, ':');
        let tenant = parts.next()?.parse().ok()?;
        self.mode_of(tenant, parts.next()?)
    }

    /// Forced open goes before metrics only.
    fn mode_of(&self, tenant: i32, provider: &str) -> Option<Mode> {
        let set = Arc::clone(&self.0.overrides.read().unwrap_or_else(PoisonError::into_inner));
        let names_it =
            |set: &&Override| set.tenant.is_none_or(|named| named == tenant) && set.provider.as_ref().is_none_or(|named| named == provider);
        let modes: Vec<Mode> = set.iter().filter(names_it).map(|set| set.mode).collect();
        if modes.contains(&Mode::ForcedOpen) { Some(Mode::ForcedOpen) } else { modes.first().copied() }
    }

    fn is_away(&self) -> bool {
        let until = *self.0.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.redis.is_none() || until.is_some_and(|until| until > Instant::now())
    }

    fn now(&self) -> Millis {
        millis(self.0.began.elapsed())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry<'a>(known: &'a mut HashMap<String, Known>, name: &str, call: &Call<'_>) -> &'a mut Known {
    let now = Instant::now();
    let entry = known.entry(name.to_owned()).or_insert_with(|| Known {
        key: call.key.clone(),
        rules: call.settings.into(),
        local: Circuit::default(),
        fleet: None,
        pending: (0, Counts::default()),
        used: now,
        looked: now,
    });
    // The manifest may have changed.
    (entry.rules, entry.used) = (call.settings.into(), now);
    entry
}

fn count(key: &BreakerKey, outcome: &'static str) {
    let (provider, credential) = (key.provider.clone(), key.credential.word());
    metrics::counter!("offstage_breaker_calls_total", "provider" => provider, "credential" => credential, "outcome" => outcome)
        .increment(1);
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A probe's proof. Of 52 bits: Redis' scripts count in floating point.
fn token() -> u64 {
    u64::from_le_bytes(random::bytes()) >> 12
}
