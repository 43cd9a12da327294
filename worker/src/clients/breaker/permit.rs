//! The right to one call, and what came of it.
//!
//! What must stay true: who lets go of a probe without a word gives it back; who dies with one loses it within the lease, and who is slow
//! keeps it; what was begun before a transition says nothing after it.

use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;

use super::{
    Breakers, LEASE, Mode, RENEWED_EVERY, Refused,
    circuit::{Counts, Event, Phase, RAMP},
    count, millis,
};

/// The right to call once. Dropped without a word it counts nothing.
#[derive(Debug)]
pub struct Permit {
    pub(super) breakers: Breakers,
    pub(super) name: String,
    /// The epochs in which it was given, the fleet's and the local one.
    pub(super) epochs: (Option<u64>, u64),
    /// The probe's token, and whether it is Redis'.
    pub(super) probe: Option<(u64, bool)>,
    pub(super) slow_after: Duration,
    pub(super) began: Instant,
    pub(super) reported: bool,
    /// Keeps the probe's lease, until this is dropped.
    pub(super) _renewing: Option<AbortOnDropHandle<()>>,
}

impl Permit {
    /// The call succeeded, or failed by no fault of the provider that it answered (a refusal of what was asked).
    pub async fn succeeded(mut self) {
        let is_slow = self.began.elapsed() > self.slow_after;
        let word = if is_slow { "slow" } else { "succeeded" };
        self.report(word, Counts { calls: 1, failures: 0, slow: u64::from(is_slow) }).await;
    }

    /// The call failed by the provider's fault: no answer, or one that says so. Answers whether its breaker lets calls through after that;
    /// where not, what the job waits for.
    ///
    /// # Errors
    /// [`Refused`], as the next call would be.
    pub async fn failed(mut self) -> Result<(), Refused> {
        self.report("failed", Counts { calls: 1, failures: 1, slow: 0 }).await;
        let breakers = self.breakers.clone();
        let (key, heard) = {
            let known = breakers.known();
            let Some(entry) = known.get(&self.name) else { return Ok(()) };
            (entry.key.clone(), entry.fleet)
        };
        match breakers.mode(&key) {
            Some(Mode::ForcedOpen) => return Err(Refused { breaker: self.name.clone(), again_in: None }),
            Some(Mode::MetricsOnly) => return Ok(()),
            None => {}
        }
        let (phase, wait) = if let Some(heard) = heard.filter(|_| !breakers.is_away()) {
            (heard.phase, heard.until.saturating_duration_since(Instant::now()))
        } else {
            let (answer, wait) = breakers.take_here(&self.name, Event::Look);
            (answer.phase, wait)
        };
        if phase == Phase::Closed { Ok(()) } else { Err(Refused { breaker: self.name.clone(), again_in: Some(wait) }) }
    }

    /// What became of the call says nothing of the provider: it was never sent, or we gave it up.
    pub async fn ignored(mut self) {
        self.reported = true;
        let (breakers, name) = (self.breakers.clone(), self.name.clone());
        if let Some(key) = breakers.known().get(&name).map(|entry| entry.key.clone()) {
            count(&key, "ignored");
        }
        if let Some((token, is_redis)) = self.probe {
            breakers.release(&name, token, is_redis).await;
        }
    }

    async fn report(&mut self, word: &'static str, counts: Counts) {
        self.reported = true;
        let breakers = self.breakers.clone();
        let good = counts.failures + counts.slow == 0;
        let now = breakers.now();
        let (mut tell, mut here) = (None, None);
        {
            let mut known = breakers.known();
            let Some(entry) = known.get_mut(&self.name) else { return };
            count(&entry.key, word);
            let rules = entry.rules;
            let local = match self.probe {
                Some((token, false)) => Event::Probed { token, counts },
                _ => Event::Record { epoch: self.epochs.1, counts },
            };
            let answer = entry.local.take(local, now, &rules, &RAMP);
            if answer.changed {
                here = Some((entry.key.clone(), answer, Duration::from_millis(answer.until.saturating_sub(now))));
            }
            if let Some((token, true)) = self.probe {
                tell = Some(Event::Probed { token, counts });
            } else if let Some(epoch) = self.epochs.0 {
                let (pending_epoch, pending) = &mut entry.pending;
                if *pending_epoch != epoch {
                    // What was begun before a transition says nothing after it.
                    (*pending_epoch, *pending) = (epoch, Counts::default());
                }
                pending.add(counts);
                // A stage of the ramp goes by its few successes.
                if !good || entry.fleet.is_some_and(|heard| heard.phase != Phase::Closed) {
                    tell = Some(Event::Record { epoch, counts: std::mem::take(pending) });
                }
            }
        }
        let is_told = match tell {
            Some(event) => breakers.tell(&self.name, event).await.is_some(),
            None => !breakers.is_away(),
        };
        // What this process finds out by itself matters while nobody knows better.
        if let (Some((key, answer, wait)), false) = (here, is_told) {
            breakers.changed(key, &answer, wait, "this process");
        }
    }
}

impl Breakers {
    /// Keeps a probe's lease alive for as long as what is returned, and `most` at the longest.
    pub(super) fn renew(&self, name: &str, token: u64, is_redis: bool, most: Duration) -> AbortOnDropHandle<()> {
        let (breakers, name) = (self.clone(), name.to_owned());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let until = Instant::now() + most;
            while Instant::now() < until {
                tokio::time::sleep(RENEWED_EVERY).await;
                let event = Event::Renewed { token, lease: millis(LEASE) };
                // Redis may be away for a moment: then the next one renews it, unless somebody took the place.
                let renewed = if is_redis { breakers.tell(&name, event).await } else { Some(breakers.take_here(&name, event)) };
                if renewed.is_some_and(|(answer, _)| answer.granted == 0) {
                    return;
                }
            }
        }))
    }

    async fn release(&self, name: &str, token: u64, is_redis: bool) {
        if is_redis {
            self.tell(name, Event::Released { token }).await;
        } else {
            self.take_here(name, Event::Released { token });
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (Some((token, is_redis)), false) = (self.probe, self.reported) else { return };
        let (breakers, name) = (self.breakers.clone(), std::mem::take(&mut self.name));
        // Without a runtime the lease ends by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { breakers.release(&name, token, is_redis).await });
        }
    }
}
