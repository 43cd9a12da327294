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
mod terms;
#[cfg(test)]
mod tests;
mod touch;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use ::shared::{
    queue::{Commands, Redis},
    random,
};
use tokio::sync::mpsc;

use circuit::{ALL, Circuit, Event, Millis, RAMP, Rules};
pub use circuit::{Counts, Phase};
pub use permit::Permit;
pub use terms::{BreakerKey, Call, Credential, Mode, Override, Refused, Transition};

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
/// How long a probe is leased: it renews that while its call is under way, so the place of one whose worker died is free soon, however long
/// its call may take.
const LEASE: Duration = Duration::from_secs(5);
/// How often it renews: a lost exchange or two cost it nothing.
const RENEWED_EVERY: Duration = Duration::from_millis(1_500);
/// For how much longer than its call's deadline a probe is renewed: what it takes to report.
const RENEWED_BEYOND: Duration = Duration::from_secs(5);
/// Transitions that wait to be written down; what is beyond is in the log alone.
const TRANSITIONS: usize = 1_000;

/// What becomes of a call, in metrics.
pub const OUTCOMES: [&str; 5] = ["succeeded", "failed", "slow", "ignored", "refused"];

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
        let permit = |epochs, probe: Option<(u64, bool)>| Permit {
            breakers: self.clone(),
            name: name.clone(),
            epochs,
            probe,
            slow_after,
            began: Instant::now(),
            reported: false,
            _renewing: probe.map(|(token, is_redis)| self.renew(&name, token, is_redis, call.deadline + RENEWED_BEYOND)),
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
        let event = Event::Ask { token, lease: millis(LEASE) };
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
