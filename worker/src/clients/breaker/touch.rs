//! A process in touch with the fleet: it hears of trips, tells of what its calls came to, looks at what it uses; and while Redis is away it goes
//! by what it sees itself.
//!
//! What must stay true: what can't be told in time is lost, and holds nobody up; a change is told of once, by the process whose event it was.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use ::shared::{
    queue::signal::{self, Channel, Signal},
    tenant::BreakerSettings,
};
use tokio_util::sync::CancellationToken;

use super::{
    AWAY_FOR, BreakerKey, Breakers, FLUSH_EVERY, FORGOTTEN_AFTER, Heard, Known, LOOK_EVERY, LOOKED_AT, MOST_KNOWN, Transition,
    circuit::{Answer, Circuit, Counts, Event, Phase, RAMP, Rules},
    shared,
};

impl Breakers {
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
    pub(super) async fn tell(&self, name: &str, event: Event) -> Option<(Answer, Duration)> {
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
    pub(super) fn take_here(&self, name: &str, event: Event) -> (Answer, Duration) {
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

    pub(super) fn changed(&self, key: BreakerKey, answer: &Answer, wait: Duration, of: &'static str) {
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
}
