//! Breakers beside npm's `opossum`, the process' beside the fleet's, and fleets on a real Redis.

use std::{io::Write, process::Stdio};

use sandbox::{Options, Sandbox};
use secrecy::SecretString;
use serde_json::{Value, json};

use ::shared::tenant::BreakerSettings;
use tokio_util::sync::CancellationToken;

use super::*;

/// Pseudo-random numbers of a printed seed (Steele, Lea and Flood, "`SplitMix`", 2014).
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = u64::from_le_bytes(random::bytes());
        eprintln!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % most.max(1)
    }

    /// Mostly short times, now and then one that is longer than a window or than the time open.
    fn pause(&mut self) -> Millis {
        match self.below(20) {
            0 => self.below(45_000),
            1..5 => self.below(4_000),
            _ => self.below(300),
        }
    }
}

fn rules(minimum: u64, percent: u64, open: Millis) -> Rules {
    Rules { bucket: 1_000, minimum, failure_percent: percent, slow_percent: 100, open }
}

/// What our circuit says of a trace of calls, each over as soon as it began: whether it may, and where it stands then.
fn judged(rules: &Rules, calls: &[(Millis, bool)]) -> Value {
    let mut circuit = Circuit::default();
    let said: Vec<Value> = calls
        .iter()
        .map(|(at, ok)| {
            let asked = circuit.take(Event::Ask { token: 7, lease: 60_000 }, *at, rules, &[]);
            let ended = match asked.granted {
                0 => asked,
                2 => {
                    let counts = Counts { calls: 1, failures: u64::from(!ok), slow: 0 };
                    circuit.take(Event::Probed { token: 7, counts }, *at, rules, &[])
                }
                _ => {
                    let counts = Counts { calls: 1, failures: u64::from(!ok), slow: 0 };
                    circuit.take(Event::Record { epoch: asked.epoch, counts }, *at, rules, &[])
                }
            };
            json!([asked.granted > 0, if ended.phase == Phase::Closed { "closed" } else { "open" }])
        })
        .collect();
    json!(said)
}

/// Where both mean the same: ten buckets of a second, a rate that opens, a minimum, a time open, one call then. Without a ramp, which
/// opossum has none of, and without slow calls.
#[test]
fn opossum_does_the_same_with_the_same_calls() {
    let mut dice = Dice::new();
    let mut traces = Vec::new();
    for _ in 0..200 {
        let (minimum, percent, open) = (1 + dice.below(12), 1 + dice.below(100), 11_000 + dice.below(30_000));
        let (mut at, mut bad) = (0, 50);
        let calls: Vec<(Millis, bool)> = (0..150)
            .map(|_| {
                at += dice.pause();
                if dice.below(15) == 0 {
                    bad = dice.below(101);
                }
                (at, dice.below(100) >= bad)
            })
            .collect();
        traces.push((rules(minimum, percent, open), calls));
    }
    let asked: Vec<Value> = traces
        .iter()
        .map(|(rules, calls)| json!({ "minimum": rules.minimum, "percent": rules.failure_percent, "open": rules.open, "calls": calls }))
        .collect();
    let judge = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clients/breaker/tests/opossum.mjs");
    let mut node = sandbox::judges::node(&["opossum@10.0.0"]).unwrap_or_else(|error| panic!("{error}"));
    let mut node = node.arg(judge).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    node.stdin.take().unwrap().write_all(json!(asked).to_string().as_bytes()).unwrap();
    let said: Vec<Value> = serde_json::from_slice(&node.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(said.len(), traces.len());
    let mut trips = 0;
    for ((rules, calls), theirs) in traces.iter().zip(&said) {
        let ours = judged(rules, calls);
        trips += ours.as_array().unwrap().iter().filter(|answer| answer[1] == "open").count();
        assert_eq!(&ours, theirs, "{rules:?} {calls:?}");
    }
    assert!(trips > 500, "the traces open hardly any: {trips}");
}

/// 10 % and then 50 % of what there was, and no less than a little; the fleet's does the same, as the traces above show.
#[test]
fn a_provider_that_is_well_again_is_called_ever_more() {
    // Calls a second before it tripped; what the two stages let through a second.
    for (pace, stages) in [(20, [2, 10]), (1, [1, 5]), (400, [40, 200])] {
        let rules = rules(10, 50, 30_000);
        let mut circuit = Circuit::default();
        let mut take = |event, now| circuit.take(event, now, &rules, &RAMP);
        let failed = 10 * pace;
        let tripped = take(Event::Record { epoch: 0, counts: Counts { calls: failed, failures: failed, slow: 0 } }, 0);
        assert_eq!(tripped.phase, Phase::Open);
        let ask = Event::Ask { token: 7, lease: 5_000 };
        assert_eq!((take(ask, 29_999).granted, take(ask, 30_000).granted, take(ask, 30_000).granted), (0, 2, 0));
        let good = |calls| Counts { calls, failures: 0, slow: 0 };
        assert_eq!(take(Event::Probed { token: 7, counts: good(1) }, 30_000).phase, Phase::Ramp);
        for (second, (stage, enough)) in stages.into_iter().zip(RAMP.map(|stage| stage.successes)).enumerate() {
            let now = 31_000 + second as Millis * 1_000;
            // Calls that come, and jobs that wait, are counted apart: a job that is let go asks too.
            let granted = (0..1_000).filter(|_| take(ask, now).granted > 0).count();
            assert_eq!((granted as u64, take(Event::Draw, now).granted, take(Event::Draw, now + 999).granted), (stage, stage, 0), "{pace}");
            assert_eq!(take(ask, now + 999).granted, 0, "a second has no more");
            let told = take(Event::Record { epoch: 3, counts: good(enough - 1) }, now + 999);
            assert_eq!(told.phase, Phase::Ramp, "so few successes end no stage");
            take(Event::Record { epoch: told.epoch, counts: good(1) }, now + 999);
        }
        assert_eq!((take(Event::Look, 33_000).phase, take(Event::Draw, 33_000).granted), (Phase::Closed, ALL));
    }
}

struct Server {
    _sandbox: Sandbox,
    redis: Redis,
}

impl Server {
    async fn start() -> Self {
        let sandbox = Sandbox::start(Options::test().without_migrations()).await.unwrap();
        let redis = Redis::new(&SecretString::from(sandbox.redis.url()), "test").unwrap();
        Self { _sandbox: sandbox, redis }
    }
}

/// The fleet's breaker is the process' one in another language: every trace of events has the same answers.
#[tokio::test]
async fn the_script_in_redis_and_the_circuit_here_answer_alike() {
    let server = Server::start().await;
    let mut connection = server.redis.commands();
    let mut dice = Dice::new();
    let mut seen = std::collections::HashSet::new();
    for trace in 0..40 {
        let rules = Rules {
            bucket: 100 + dice.below(2_000),
            minimum: 1 + dice.below(12),
            failure_percent: 1 + dice.below(100),
            slow_percent: 1 + dice.below(100),
            open: 1_000 + dice.below(30_000),
        };
        let ramp = if dice.below(4) == 0 { &[][..] } else { &RAMP[..] };
        let (name, mut circuit, mut now) = (format!("trace{trace}"), Circuit::default(), 1_700_000_000_000 + dice.below(100_000));
        let (mut epoch, mut probe, mut bad) = (0, 1, 50);
        for _ in 0..150 {
            now += dice.pause();
            if dice.below(15) == 0 {
                bad = dice.below(101);
            }
            let event = match dice.below(20) {
                0..6 => {
                    probe = 1 + dice.below(1_000);
                    Event::Ask { token: probe, lease: 1 + dice.below(20_000) }
                }
                6..14 => {
                    let calls = 1 + dice.below(4);
                    let failures = (0..calls).filter(|_| dice.below(100) < bad).count() as u64;
                    let slow = (0..calls - failures).filter(|_| dice.below(8) == 0).count() as u64;
                    let epoch = if dice.below(6) == 0 { dice.below(epoch + 2) } else { epoch };
                    Event::Record { epoch, counts: Counts { calls, failures, slow } }
                }
                14..17 => {
                    let failures = u64::from(dice.below(100) < bad);
                    let slow = if failures == 0 { u64::from(dice.below(8) == 0) } else { 0 };
                    Event::Probed { token: probe, counts: Counts { calls: 1, failures, slow } }
                }
                17 if dice.below(2) == 0 => Event::Renewed { token: probe, lease: 1 + dice.below(20_000) },
                17 => Event::Released { token: probe },
                18 => Event::Draw,
                _ => Event::Look,
            };
            let here = circuit.take(event, now, &rules, ramp);
            let there = shared::tell(&mut connection, server.redis.keys(), &name, event, &rules, ramp, Some(now)).await.unwrap();
            assert_eq!(here, there.answer, "{event:?} at {now} with {rules:?}");
            epoch = here.epoch;
            seen.insert(here.phase);
        }
    }
    assert_eq!(seen.len(), 4, "the traces come by every phase: {seen:?}");
}

fn key() -> BreakerKey {
    BreakerKey { tenant: 1, provider: "main".to_owned(), credential: Credential::Platform }
}

/// Opens at the second failed call of two, for a second.
const QUICK: BreakerSettings = BreakerSettings { minimum_calls: 2, open_seconds: 1, ..BreakerSettings::DEFAULT };

fn call(key: &BreakerKey) -> Call<'_> {
    Call { key, settings: QUICK, deadline: Duration::from_secs(5) }
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

/// Replicas of one fleet; each hears of what the others do.
fn fleet(redis: &Redis, replicas: usize) -> (Vec<Breakers>, tokio_util::sync::DropGuard) {
    let stop = CancellationToken::new();
    let fleet: Vec<Breakers> = (0..replicas).map(|_| Breakers::new(Some(redis.clone()))).collect();
    for breakers in &fleet {
        tokio::spawn(breakers.clone().run(stop.clone()));
    }
    (fleet, stop.drop_guard())
}

#[tokio::test]
async fn one_trip_stops_every_replica_and_one_probe_is_tried() {
    let server = Server::start().await;
    let (fleet, _stop) = fleet(&server.redis, 8);
    let key = key();
    // Every replica has found it closed, and asks nobody from then on.
    for breakers in &fleet {
        breakers.admit(&call(&key)).await.unwrap().succeeded().await;
    }
    let fails = async |breakers: &Breakers| match breakers.admit(&call(&key)).await {
        Ok(permit) => permit.failed().await.err(),
        Err(refused) => Some(refused),
    };
    until("half of the calls failed", async || fails(&fleet[0]).await.is_some()).await;
    for (replica, breakers) in fleet.iter().enumerate() {
        until(&format!("replica {replica} hears of it"), async || breakers.admit(&call(&key)).await.is_err()).await;
    }
    // While nobody's call succeeds, each time that it is half open one call of them all is tried, however often all of them ask.
    for round in 0..2 {
        let mut probe = None;
        until("somebody is let through", async || {
            for breakers in &fleet {
                if let Ok(permit) = breakers.admit(&call(&key)).await {
                    assert!(probe.replace(permit).is_none(), "two probes in round {round}");
                }
            }
            probe.is_some()
        })
        .await;
        for breakers in &fleet {
            assert!(breakers.admit(&call(&key)).await.is_err(), "another call beside the probe in round {round}");
        }
        assert!(probe.unwrap().failed().await.is_err(), "it is open again");
    }
    // One that is dropped gives its place to another.
    let mut probe = None;
    until("half open again", async || {
        probe = fleet[1].admit(&call(&key)).await.ok();
        probe.is_some()
    })
    .await;
    drop(probe);
    let mut next = None;
    until("the place is free again", async || {
        next = fleet[2].admit(&call(&key)).await.ok();
        next.is_some()
    })
    .await;
    next.unwrap().succeeded().await;
    // Up the ramp, and closed.
    until("closed", async || {
        let breakers = &fleet[3];
        if let Ok(permit) = breakers.admit(&call(&key)).await {
            permit.succeeded().await;
        }
        breakers.draw(&key.to_string()).await.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_long_probe_keeps_its_place_and_a_dead_one_loses_it_soon() {
    let server = Server::start().await;
    let (fleet, _stop) = fleet(&server.redis, 2);
    let (key, settings) = (key(), QUICK);
    // A generation may take long.
    let long = Call { key: &key, settings, deadline: Duration::from_secs(900) };
    let probe_of = async |breakers: &Breakers| {
        let mut probe = None;
        until("half open", async || {
            probe = breakers.admit(&long).await.ok();
            probe.is_some()
        })
        .await;
        probe.unwrap()
    };
    for _ in 0..2 {
        let _ = fleet[0].admit(&long).await.unwrap().failed().await;
    }
    let probe = probe_of(&fleet[0]).await;
    let mut connection = server.redis.commands();
    let name = server.redis.keys().breaker(&key.to_string());
    let mut leased_until = async || redis::cmd("HGET").arg(&name).arg("probe_until").query_async::<u64>(&mut connection).await.unwrap();
    let first = leased_until().await;
    until("it is renewed for longer than one lease", async || leased_until().await > first + millis(LEASE)).await;
    assert!(fleet[1].admit(&long).await.is_err(), "nobody else is let in meanwhile");
    // As when its worker dies: no word, and no renewal any more.
    let mut dead = probe;
    dead.reported = true;
    drop(dead);
    probe_of(&fleet[1]).await.succeeded().await;
}

#[tokio::test]
async fn while_redis_is_away_each_process_goes_by_what_it_sees() {
    let nowhere = Redis::new(&SecretString::from("redis://127.0.0.1:9/"), "test").unwrap();
    let breakers = Breakers::new(Some(nowhere));
    let key = key();
    for _ in 0..2 {
        let permit = breakers.admit(&call(&key)).await.expect("closed while nothing is known against it");
        let _ = permit.failed().await;
    }
    let refused = breakers.admit(&call(&key)).await.expect_err("it fails to local, not to closed");
    assert!(refused.again_in.is_some_and(|wait| wait <= Duration::from_secs(1)), "{refused:?}");
    until("one is tried", async || {
        let Ok(permit) = breakers.admit(&call(&key)).await else { return false };
        assert!(breakers.admit(&call(&key)).await.is_err(), "one probe at a time here too");
        permit.succeeded().await;
        true
    })
    .await;
}

#[tokio::test]
async fn an_operator_s_word_goes_before_what_was_measured() {
    let breakers = Breakers::new(None);
    let key = key();
    let set = |mode| breakers.set(vec![Override { tenant: Some(1), provider: Some("main".to_owned()), mode }]);
    set(Mode::ForcedOpen);
    assert_eq!(breakers.admit(&call(&key)).await.unwrap_err().again_in, None);
    assert_eq!(breakers.draw(&key.to_string()).await, Some(0), "and its jobs stay");
    set(Mode::MetricsOnly);
    for _ in 0..5 {
        assert!(breakers.admit(&call(&key)).await.unwrap().failed().await.is_ok(), "nothing stops it");
    }
    breakers.set(Vec::new());
    assert!(breakers.admit(&call(&key)).await.is_err(), "it was counted all the while");
}
