//! The rules of a circuit breaker, without clock and without I/O: what [`super::shared`] does in Redis for the fleet, this does in a process
//! while Redis is away.
//!
//! ```text
//!             rate reached                     its time is over, somebody asks
//!  closed ───────────────────▶ open ─────────────────────────────────────────▶ half open: one call, leased
//!    ▲                          ▲ ▲                                               │ failed or slow │ succeeded
//!    │ enough succeeded         │ └───────────────────────────────────────────────┘                ▼
//!    └──────────────────────────┼────────────────────────────────────────────────────── ramp: 10 %, 50 %
//!                               └──────────────────────────────────────── half of the stage's calls failed
//! ```
//!
//! What must stay true: at most one probe at a time, and one that nobody answers for any more makes room when its lease is over; what was
//! begun before a transition says nothing after it (its epoch is another one); the two implementations answer every trace of events alike
//! (a property test compares them).

use shared::tenant::BreakerSettings;

/// Milliseconds of whichever clock the breaker is kept by.
pub(super) type Millis = u64;

/// Parts of the window.
const PARTS: usize = 10;

/// The same, for reckoning with.
pub(super) const BUCKETS: u64 = PARTS as u64;

/// What a stage of the ramp lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stage {
    /// Of 100 calls a second that there were when it tripped.
    pub percent: u64,
    /// Calls a second at the least: of a provider that was hardly called hardly anything would be let through.
    pub least: u64,
    /// So many successes end it.
    pub successes: u64,
}

/// From the probe's success to closed.
pub(super) const RAMP: [Stage; 2] = [Stage { percent: 10, least: 1, successes: 3 }, Stage { percent: 50, least: 5, successes: 10 }];

/// When a breaker trips and for how long, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    pub bucket: Millis,
    pub minimum: u64,
    pub failure_percent: u64,
    pub slow_percent: u64,
    pub open: Millis,
}

impl From<BreakerSettings> for Rules {
    fn from(settings: BreakerSettings) -> Self {
        Self {
            bucket: u64::from(settings.window_seconds) * 1_000 / BUCKETS,
            minimum: settings.minimum_calls.into(),
            failure_percent: settings.failure_percent.into(),
            slow_percent: settings.slow_percent.into(),
            open: u64::from(settings.open_seconds) * 1_000,
        }
    }
}

/// Calls, and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls that ended.
    pub calls: u64,
    /// Of those, failed.
    pub failures: u64,
    /// Of those, too slow.
    pub slow: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.failures += other.failures;
        self.slow += other.slow;
    }
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Calls go through.
    Closed,
    /// None does.
    Open,
    /// One is tried.
    HalfOpen,
    /// Some do, by stage.
    Ramp,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Open, Self::HalfOpen, Self::Ramp];

    /// Its word in metrics, rows and the log.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Ramp => "ramp",
        }
    }

    pub(super) fn of_code(code: u64) -> Self {
        match code {
            1 => Self::Open,
            2 => Self::HalfOpen,
            3 => Self::Ramp,
            _ => Self::Closed,
        }
    }
}

/// What can be asked of a breaker, or told to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing: where does it stand?
    Look,
    /// May a call begin? Should it be the probe, then by this token and for so long.
    Ask { token: u64, lease: Millis },
    /// So many calls of an epoch ended.
    Record { epoch: u64, counts: Counts },
    /// The probe ended: one call, failed or slow or neither.
    Probed { token: u64, counts: Counts },
    /// The probe is still under way: its lease begins anew.
    Renewed { token: u64, lease: Millis },
    /// The probe was given up, and proves nothing.
    Released { token: u64 },
    /// How many jobs that wait for it may go on?
    Draw,
}

/// What a breaker answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub phase: Phase,
    /// Raised by each transition.
    pub epoch: u64,
    /// While it is open: until when. Else when asking again may help.
    pub until: Millis,
    /// To [`Event::Ask`]: 0 no, 1 yes, 2 yes, as the probe. To [`Event::Renewed`]: 1 where it is the probe still. To [`Event::Draw`]: how
    /// many; [`ALL`] for as many as there are.
    pub granted: u64,
    /// Whether this event changed the phase.
    pub changed: bool,
    /// The window's calls; when it tripped, those that made it trip: after a probe that one.
    pub counts: Counts,
}

/// An answer to [`Event::Draw`]: all of them.
pub(super) const ALL: u64 = 1_000_000_000;

/// A breaker.
#[derive(Debug, Clone)]
pub(super) struct Circuit {
    phase: Phase,
    epoch: u64,
    until: Millis,
    /// The parts of the window, each with its number since the clock's beginning.
    window: [(u64, Counts); PARTS],
    probe: Option<(u64, Millis)>,
    stage: usize,
    in_stage: Counts,
    /// Calls in a thousand seconds, when it tripped.
    pace: u64,
    /// The second in which grants and draws are counted, and how many there were.
    second: u64,
    granted: u64,
    drawn: u64,
}

impl Default for Circuit {
    fn default() -> Self {
        Self {
            phase: Phase::Closed,
            epoch: 0,
            until: 0,
            window: [(0, Counts::default()); PARTS],
            probe: None,
            stage: 0,
            in_stage: Counts::default(),
            pace: 0,
            second: 0,
            granted: 0,
            drawn: 0,
        }
    }
}

impl Circuit {
    /// Takes an event in. `ramp` is [`RAMP`], or none: then the probe's success closes it.
    pub fn take(&mut self, event: Event, now: Millis, rules: &Rules, ramp: &[Stage]) -> Answer {
        let before = self.epoch;
        if self.second != now / 1_000 {
            (self.second, self.granted, self.drawn) = (now / 1_000, 0, 0);
        }
        let mut counts = self.counted(now, rules);
        let mut granted = 0;
        match event {
            Event::Ask { token, lease } => granted = self.ask(token, lease, now, ramp),
            Event::Record { epoch, counts: ended } if epoch == self.epoch => {
                counts = self.record(ended, now, rules, ramp);
            }
            Event::Probed { token, counts: ended }
                if self.phase == Phase::HalfOpen && self.probe.is_some_and(|(held, _)| held == token) =>
            {
                self.probe = None;
                if ended.failures + ended.slow > 0 {
                    // What it opens by: the window was emptied when it tripped.
                    counts = ended;
                    self.open(now, rules);
                } else if ramp.is_empty() {
                    self.close();
                    self.count(Counts { calls: 1, ..Counts::default() }, now, rules);
                } else {
                    self.enter(Phase::Ramp, 0);
                    (self.stage, self.in_stage) = (0, Counts::default());
                }
            }
            Event::Renewed { token, lease } if self.phase == Phase::HalfOpen && self.probe.is_some_and(|(held, _)| held == token) => {
                self.probe = Some((token, now + lease));
                granted = 1;
            }
            Event::Released { token } => self.probe = self.probe.filter(|(held, _)| *held != token),
            Event::Draw => granted = self.draw(now, ramp),
            // Of another epoch, or of a probe that is none any more.
            Event::Look | Event::Record { .. } | Event::Probed { .. } | Event::Renewed { .. } => {}
        }
        let until = match self.phase {
            Phase::Closed => 0,
            Phase::Open => self.until,
            Phase::HalfOpen => self.probe.map_or(now, |(_, until)| until),
            Phase::Ramp => (self.second + 1) * 1_000,
        };
        Answer { phase: self.phase, epoch: self.epoch, until, granted, changed: self.epoch != before, counts }
    }

    fn ask(&mut self, token: u64, lease: Millis, now: Millis, ramp: &[Stage]) -> u64 {
        if self.phase == Phase::Open && now >= self.until {
            self.enter(Phase::HalfOpen, 0);
            self.probe = None;
        }
        match self.phase {
            Phase::Closed => 1,
            Phase::HalfOpen if self.probe.is_some_and(|(_, until)| now < until) => 0,
            Phase::HalfOpen => {
                self.probe = Some((token, now + lease));
                2
            }
            Phase::Ramp if self.granted < self.allowed(ramp) => {
                self.granted += 1;
                1
            }
            Phase::Open | Phase::Ramp => 0,
        }
    }

    fn draw(&mut self, now: Millis, ramp: &[Stage]) -> u64 {
        let most = match self.phase {
            Phase::Closed => return ALL,
            // One a second: who is released first becomes the probe, and the next one finds it taken.
            Phase::Open => u64::from(now >= self.until),
            Phase::HalfOpen => u64::from(self.probe.is_none_or(|(_, until)| now >= until)),
            Phase::Ramp => self.allowed(ramp),
        };
        let granted = most.saturating_sub(self.drawn);
        self.drawn += granted;
        granted
    }

    /// Calls a second in this stage.
    fn allowed(&self, ramp: &[Stage]) -> u64 {
        ramp.get(self.stage).map_or(u64::MAX, |stage| (self.pace * stage.percent).div_ceil(100 * 1_000).max(stage.least))
    }

    fn record(&mut self, ended: Counts, now: Millis, rules: &Rules, ramp: &[Stage]) -> Counts {
        if !matches!(self.phase, Phase::Closed | Phase::Ramp) {
            return self.counted(now, rules);
        }
        self.count(ended, now, rules);
        let counts = self.counted(now, rules);
        if self.phase == Phase::Closed {
            // A success alone opens nothing, however the others fared.
            let failed = ended.failures > 0 && counts.failures * 100 >= counts.calls * rules.failure_percent;
            let slow = ended.slow > 0 && counts.slow * 100 >= counts.calls * rules.slow_percent;
            if counts.calls >= rules.minimum && (failed || slow) {
                self.pace = counts.calls * 1_000_000 / (rules.bucket * BUCKETS);
                self.open(now, rules);
            }
            return counts;
        }
        self.in_stage.add(ended);
        let bad = self.in_stage.failures + self.in_stage.slow;
        if ended.failures + ended.slow > 0 && bad * 100 >= self.in_stage.calls * rules.failure_percent {
            self.open(now, rules);
        } else if ramp.get(self.stage).is_none_or(|stage| self.in_stage.calls.saturating_sub(bad) >= stage.successes) {
            (self.stage, self.in_stage) = (self.stage + 1, Counts::default());
            if self.stage >= ramp.len() {
                self.close();
            }
        }
        counts
    }

    fn open(&mut self, now: Millis, rules: &Rules) {
        self.enter(Phase::Open, now + rules.open);
        self.probe = None;
        self.window = [(0, Counts::default()); PARTS];
    }

    fn close(&mut self) {
        self.enter(Phase::Closed, 0);
    }

    fn enter(&mut self, phase: Phase, until: Millis) {
        (self.phase, self.until) = (phase, until);
        self.epoch += 1;
    }

    fn count(&mut self, ended: Counts, now: Millis, rules: &Rules) {
        let number = now / rules.bucket;
        let place = usize::try_from(number % BUCKETS).unwrap_or_default();
        if let Some(bucket) = self.window.get_mut(place) {
            if bucket.0 != number {
                *bucket = (number, Counts::default());
            }
            bucket.1.add(ended);
        }
    }

    fn counted(&self, now: Millis, rules: &Rules) -> Counts {
        let number = now / rules.bucket;
        let mut sum = Counts::default();
        self.window.iter().filter(|(at, _)| at + BUCKETS > number).for_each(|(_, counts)| sum.add(*counts));
        sum
    }
}
