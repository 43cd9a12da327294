//! The state machine of a job on a real Postgres: whatever is done to jobs in whatever order, by one or by many sessions at once, the
//! ledger's promises hold. A seeded random walk; a failure prints the seed, and `STATE_MACHINE_SEED` repeats the walk.
//!
//! Done to them: accept, dispatch, claim, settle with every outcome (also of claims that were lost long ago), cancel, take over, give back,
//! redrive, admit behind limiting keys, hold and release, and time that passes, so that jobs expire.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sandbox::{Options, Sandbox};
use secrecy::SecretString;
use serde_json::json;
use shared::{
    clock::Clock,
    job::{Failure, JobId, Limit, Outcome, Policy, Priority, Reason, State, Success},
    ledger::{
        self, Kept, LedgerError, Sessions,
        change::{self, Change},
        claim::{ClaimedJob, claim, take},
        dispatch::{Dispatched, Turn, dispatch},
        insert::{Arrival, Inserted, NewJob, insert},
        limits, recover,
        settle::{Settlement, settle},
        switches,
    },
    queue::Queue,
    tenant::{self, Manifest},
};
use sqlx::{PgPool, Row};
use uuid::Uuid;

const QUEUE: Queue = Queue::Email;
/// Few, so that they meet.
const WORKERS: usize = 3;
/// Jobs of one limiting key that may run at a time.
const RUNNING: u32 = 2;
/// Unfinished jobs at a time; few, so that most steps hit one that another step has just changed.
const JOBS: usize = 10;

/// A generator whose whole course follows from its seed (`SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>).
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.throw() % bound.max(1) as u64).unwrap()
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }
}

/// The ledger, and what the walk remembers of what it did.
struct Walk {
    _sandbox: Sandbox,
    engine: PgPool,
    api: PgPool,
    clock: Clock,
    tenant: i32,
    workers: Vec<Uuid>,
    accepted: Mutex<Vec<JobId>>,
    /// Every claim there ever was.
    claims: Mutex<Vec<ClaimedJob>>,
    /// Every token that ever settled.
    settled: Mutex<HashSet<(JobId, i64)>>,
    /// Every job whose success was written.
    succeeded: Mutex<HashSet<JobId>>,
    redriven: AtomicU64,
}

/// A job as it stands.
#[derive(Debug, Clone, PartialEq)]
struct Standing {
    state: i16,
    version: i32,
}

impl Walk {
    async fn start() -> Self {
        let sandbox = Sandbox::start(Options::test()).await.unwrap();
        let open = |url: String, sessions| ledger::pool("OFFSTAGE_TEST", &SecretString::from(url), sessions, 10).unwrap();
        let (engine, api) = (open(sandbox.postgres.engine_url(), Sessions::Engine), open(sandbox.postgres.api_url(), Sessions::Plain));
        let clock = Clock::at("2026-11-20T12:00:00Z".parse().unwrap());
        let manifest = Manifest::from_toml("[tenant]\nname = \"acme\"\n").unwrap();
        let tenant = tenant::apply(sandbox.pool(), &manifest, clock.now(), false).await.unwrap().tenant.unwrap();
        let workers = (1..=WORKERS).map(|number| Uuid::from_u128(number as u128)).collect();
        let (accepted, claims, settled, succeeded) = (Mutex::default(), Mutex::default(), Mutex::default(), Mutex::default());
        Self { _sandbox: sandbox, engine, api, clock, tenant, workers, accepted, claims, settled, succeeded, redriven: AtomicU64::new(0) }
    }

    fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    async fn step(&self, dice: &mut Dice) -> Result<String, LedgerError> {
        let known = self.accepted.lock().unwrap().clone();
        match dice.below(22) {
            0..=3 => self.accept(dice).await,
            4..=5 => {
                let moved = self.dispatch(1 + dice.below(4)).await?;
                Ok(format!("dispatch: {} queued, {} expired", moved.handovers.len(), moved.expired.len()))
            }
            6 => self.take(dice.pick(&self.workers).unwrap(), 1 + dice.below(4)).await,
            7..=8 => {
                let wanted: Vec<JobId> = (0..=dice.below(5)).filter_map(|_| dice.pick(&known)).collect();
                self.claim(dice.pick(&self.workers).unwrap(), &wanted).await
            }
            9..=12 => self.settle(dice).await,
            13 => self.change(dice.pick(&known), true).await,
            14 => self.change(dice.pick(&known), false).await,
            15 => {
                // Nobody is registered, so every worker counts as dead.
                let dead = dice.pick(&self.workers).unwrap();
                let taken = recover::take_over(&self.engine, &[dead], self.now(), 3).await?;
                Ok(format!("take over: {}", taken.len()))
            }
            16 => {
                let claims = self.claims.lock().unwrap().clone();
                let lost: Vec<_> = (0..3).filter_map(|_| dice.pick(&claims)).map(|claim| (claim.id, claim.token)).collect();
                let returned = recover::give_back(&mut *self.engine.acquire().await?, &lost, self.now()).await?;
                Ok(format!("give back: {} of {}", returned.len(), lost.len()))
            }
            18 => {
                let admitted = limits::admit(&self.engine, self.now()).await?;
                Ok(format!("admit: {} of {} keys", admitted.jobs, admitted.keys))
            }
            19 => {
                let released = switches::release(&self.engine, QUEUE, self.now()).await?;
                Ok(format!("release: {}", released.len()))
            }
            17 => {
                let claims = self.claims.lock().unwrap().clone();
                let Some(claim) = dice.pick(&claims) else { return Ok("no progress".into()) };
                let noted = ledger::effects::progress(&self.engine, &claim, 1, Some(2), self.now()).await?;
                Ok(format!("progress of {}: {noted}", claim.id))
            }
            _ => {
                self.clock.advance(TimeDelta::seconds(1 + i64::try_from(dice.below(40)).unwrap()));
                Ok("time passes".into())
            }
        }
    }

    async fn accept(&self, dice: &mut Dice) -> Result<String, LedgerError> {
        let open: i64 = sqlx::query_scalar("SELECT count(*) FROM job_state WHERE state < 3").fetch_one(&self.engine).await?;
        if open >= i64::try_from(JOBS).unwrap() {
            return Ok("enough jobs".into());
        }
        let (id, now) = (JobId(self.clock.new_id()), self.now());
        let later = now + TimeDelta::seconds(i64::try_from(dice.below(60)).unwrap());
        let (run_at, state) = match dice.below(3) {
            0 => (now, Arrival::Queued),
            1 => (now, Arrival::Waiting(Reason::Window)),
            _ => (later, Arrival::Waiting(Reason::NotDue)),
        };
        let limit = dice.one_in(2).then(|| Limit { key: format!("key {}", dice.below(2)), running: Some(RUNNING), rate: None });
        let state = if limit.is_some() && state == Arrival::Queued { Arrival::Waiting(Reason::Limited) } else { state };
        let job = NewJob {
            id,
            tenant: self.tenant,
            owner: None,
            subject: None,
            kind: "probe.run",
            queue: QUEUE,
            priority: Priority::Normal,
            payload: "{}".into(),
            attempts: 3,
            created_at: now,
            run_at,
            start_by: dice.one_in(4).then(|| run_at + TimeDelta::seconds(20)),
            state,
            idempotency: None,
            options: shared::job::Options { limit, ..Default::default() },
            meter: None,
        };
        let inserted =
            insert(&Kept::of(self.engine.clone(), 1), now, &[job]).await.remove(0).map_err(|error| Arc::try_unwrap(error).unwrap())?;
        assert_eq!(inserted, Inserted::Accepted);
        self.accepted.lock().unwrap().push(id);
        Ok(format!("accept {id} {state:?}"))
    }

    async fn dispatch(&self, jobs: usize) -> Result<Dispatched, LedgerError> {
        let turns = [Turn { tenant: self.tenant, jobs }];
        dispatch(&self.engine, QUEUE, Priority::Normal, self.now(), &turns).await
    }

    async fn claim(&self, worker: Uuid, wanted: &[JobId]) -> Result<String, LedgerError> {
        let claimed = claim(&self.engine, wanted, worker, self.now()).await?;
        let said = format!("claim for {worker}: {} of {}", claimed.len(), wanted.len());
        self.claims.lock().unwrap().extend(claimed);
        Ok(said)
    }

    async fn take(&self, worker: Uuid, jobs: usize) -> Result<String, LedgerError> {
        let turns = [Turn { tenant: self.tenant, jobs }];
        let taken = take(&self.engine, QUEUE, Priority::Normal, &turns, worker, self.now()).await?;
        let said = format!("take for {worker}: {}", taken.len());
        self.claims.lock().unwrap().extend(taken);
        Ok(said)
    }

    async fn settle(&self, dice: &mut Dice) -> Result<String, LedgerError> {
        let claims = self.claims.lock().unwrap().clone();
        // Mostly of the latest claims, which may still stand; of the others none does.
        let recent = &claims[claims.len().saturating_sub(JOBS)..];
        let chosen: Vec<ClaimedJob> =
            (0..=dice.below(3)).filter_map(|_| if dice.one_in(5) { dice.pick(&claims) } else { dice.pick(recent) }).collect();
        let mut batch: HashMap<JobId, Settlement> = HashMap::new();
        let mut tokens = HashMap::new();
        for job in chosen {
            let outcome = outcome(dice);
            tokens.insert(job.id, job.token);
            batch.insert(job.id, Settlement::decide(&job, &Policy::DEFAULT, outcome, self.now()));
        }
        let batch: Vec<Settlement> = batch.into_values().collect();
        let written = settle(&mut *self.engine.acquire().await?, &batch).await?;
        for settled in &written {
            let is_first = self.settled.lock().unwrap().insert((settled.job, tokens[&settled.job]));
            assert!(is_first, "{}: its token settled a second time", settled.job);
            let ends_well = settled.state == State::Succeeded;
            assert!(!ends_well || self.succeeded.lock().unwrap().insert(settled.job), "{} succeeded a second time", settled.job);
        }
        Ok(format!("settle: {} of {}", written.len(), batch.len()))
    }

    async fn change(&self, job: Option<JobId>, cancel: bool) -> Result<String, LedgerError> {
        let Some(job) = job else { return Ok("nothing to change".into()) };
        let mut transaction = tenant::transaction(&self.api, self.tenant).await?;
        let change = if cancel {
            change::cancel(&mut transaction, self.tenant, job, self.now()).await?
        } else {
            // Before it is visible to whoever watches.
            self.redriven.fetch_add(1, Ordering::SeqCst);
            change::retry(&mut transaction, self.tenant, job, None, self.now()).await?.change
        };
        if change == Change::Moved {
            transaction.rollback().await?;
        } else {
            transaction.commit().await?;
        }
        Ok(format!("{} {job}: {change:?}", if cancel { "cancel" } else { "redrive" }))
    }

    /// How all jobs stand, after a look at all that must be true of them at any moment: one statement, so one snapshot.
    async fn look(&self) -> HashMap<JobId, Standing> {
        let rows = sqlx::query(
            "SELECT s.job_id, s.state, s.version, s.token, s.attempt, s.attempts_allowed, s.finished_at IS NOT NULL AS finished, s.reason,
                    w.job_id IS NOT NULL AS waits, d.job_id IS NOT NULL AS dispatched, u.state AS unsuccessful, r.job_id IS NOT NULL AS result,
                    (SELECT max(run) FROM job_attempt a WHERE a.job_id = s.job_id) AS last_unsuccessful, s.runs,
                    s.worker IS NOT NULL AND s.started_at <= s.finished_at AS whole
             FROM job_state s
             LEFT JOIN job_waiting w ON w.job_id = s.job_id LEFT JOIN job_dispatched d ON d.job_id = s.job_id
             LEFT JOIN job_unsuccessful u ON u.job_id = s.job_id LEFT JOIN job_result r ON r.job_id = s.job_id",
        )
        .fetch_all(&self.engine)
        .await
        .unwrap();
        let mut standings = HashMap::with_capacity(rows.len());
        for row in rows {
            let id = JobId(row.get("job_id"));
            let state = State::from_code(row.get("state")).unwrap();
            let seen = format!("{id} is {state:?}: {row:?}");
            assert_eq!(row.get::<bool, _>("waits"), state == State::Waiting, "the backlog holds what waits; {seen}");
            assert_eq!(row.get::<bool, _>("dispatched"), matches!(state, State::Queued | State::Running), "{seen}");
            let unsuccessful = matches!(state, State::Failed | State::Cancelled | State::Expired).then(|| state.code());
            assert_eq!(row.get::<Option<i16>, _>("unsuccessful"), unsuccessful, "{seen}");
            assert_eq!(row.get::<bool, _>("finished"), state.is_terminal(), "{seen}");
            assert_eq!(row.get::<i64, _>("token") != 0, state == State::Running, "what runs has a live claim, nothing else has; {seen}");
            let (attempt, allowed): (i16, i16) = (row.get("attempt"), row.get("attempts_allowed"));
            assert!((0..=allowed).contains(&attempt), "{seen}");
            assert!(!row.get::<bool, _>("result") || state == State::Succeeded, "{seen}");
            let (last_unsuccessful, runs) = (row.get::<Option<i32>, _>("last_unsuccessful").unwrap_or(0), row.get::<i32, _>("runs"));
            if state == State::Succeeded {
                assert!(last_unsuccessful < runs, "a success is a run of its own, and the last; {seen}");
                assert!(row.get::<bool, _>("whole"), "its state says who ran it and when; {seen}");
            }
            assert!(last_unsuccessful <= runs, "{seen}");
            standings.insert(id, Standing { state: row.get("state"), version: row.get("version") });
        }
        let strays: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM job_waiting) + (SELECT count(*) FROM job_dispatched) + (SELECT count(*) FROM job_unsuccessful)
                  - (SELECT count(*) FROM job_state WHERE state <> 3)",
        )
        .fetch_one(&self.engine)
        .await
        .unwrap();
        assert_eq!(strays, 0, "every unfinished or unsuccessful job stands in one small table, and nothing else does");
        self.look_at_keys().await;
        standings
    }

    /// What must be true of limiting keys at any moment.
    async fn look_at_keys(&self) {
        let rows = sqlx::query(
            "SELECT s.job_id, s.state, s.reason, l.admitted, w.run_at = 'infinity' AS never_due
             FROM job_state s JOIN job j ON j.id = s.job_id
             LEFT JOIN job_limited l ON l.job_id = s.job_id LEFT JOIN job_waiting w ON w.job_id = s.job_id
             WHERE j.options ? 'limit'",
        )
        .fetch_all(&self.engine)
        .await
        .unwrap();
        for row in rows {
            let state = State::from_code(row.get("state")).unwrap();
            let held = matches!(Reason::from_code(row.get("reason")).unwrap(), Reason::SwitchedOff | Reason::Paused);
            let (admitted, never_due): (Option<bool>, Option<bool>) = (row.get("admitted"), row.get("never_due"));
            let right = match state {
                State::Waiting if held => admitted.is_none() && never_due == Some(true),
                State::Waiting => admitted.is_some() && admitted.map(|admitted| !admitted) == never_due,
                State::Queued | State::Running => admitted == Some(true),
                _ => admitted.is_none(),
            };
            assert!(right, "{state:?}, held: {held}, admitted: {admitted:?}, never due: {never_due:?}: {row:?}");
        }
        let most: Option<i64> =
            sqlx::query_scalar("SELECT max(n) FROM (SELECT count(*) AS n FROM job_limited WHERE admitted GROUP BY key_id) c")
                .fetch_one(&self.engine)
                .await
                .unwrap();
        assert!(most.unwrap_or(0) <= i64::from(RUNNING), "{most:?} jobs of one key are admitted");
    }

    /// Everything is worked off by workers that do nothing but succeed: whatever happened before, no job is lost.
    async fn finish(&self) {
        recover::take_over(&self.engine, &self.workers, self.now(), 10_000).await.unwrap();
        for _ in 0..1_000 {
            self.clock.advance(TimeDelta::minutes(15));
            switches::release(&self.engine, QUEUE, self.now()).await.unwrap();
            while limits::admit(&self.engine, self.now()).await.unwrap().jobs > 0 {}
            self.dispatch(1_000).await.unwrap();
            let jobs: Vec<Uuid> = sqlx::query_scalar("SELECT job_id FROM job_dispatched").fetch_all(&self.engine).await.unwrap();
            let jobs: Vec<JobId> = jobs.into_iter().map(JobId).collect();
            let claimed = claim(&self.engine, &jobs, self.workers[0], self.now()).await.unwrap();
            let succeed = |job| Settlement::decide(job, &Policy::DEFAULT, Outcome::Succeeded(Success::with(json!(1))), self.now());
            settle(&mut self.engine.acquire().await.unwrap(), &claimed.iter().map(succeed).collect::<Vec<_>>()).await.unwrap();
            let open: i64 = sqlx::query_scalar("SELECT count(*) FROM job_state WHERE state < 3").fetch_one(&self.engine).await.unwrap();
            if open == 0 {
                break;
            }
        }
        let standings = self.look().await;
        let accepted = self.accepted.lock().unwrap().clone();
        assert_eq!(standings.len(), accepted.len());
        for job in accepted {
            assert!(State::from_code(standings[&job].state).unwrap().is_terminal(), "{job} is lost: {:?}", standings[&job]);
        }
    }
}

fn outcome(dice: &mut Dice) -> Outcome {
    let second = Duration::from_secs(1);
    match dice.below(14) {
        0..=2 => Outcome::Succeeded(Success::with(json!({"done": true}))),
        3 => Outcome::Failed(Failure::transient("passing", "it may pass")),
        4 => Outcome::Failed(Failure::permanent("final", "it will not pass")),
        5 => Outcome::Failed(Failure::limited("slow", "come back", second * 3)),
        6 => Outcome::Snoozed(second * 5),
        7 => Outcome::Deferred(second),
        8 => Outcome::HandedBack,
        9 => Outcome::Cancelled,
        10 => Outcome::Died("of the test".into()),
        11 => Outcome::Paused,
        12 => Outcome::Paced(second * 2),
        _ => {
            if dice.one_in(3) {
                Outcome::Expired
            } else {
                Outcome::Stuck(second * 30)
            }
        }
    }
}

/// What may follow on what, seen at two looks of which the second is the later one.
fn compare(before: &HashMap<JobId, Standing>, after: &HashMap<JobId, Standing>, redriven: bool) {
    for (job, was) in before {
        let is = after.get(job).unwrap_or_else(|| panic!("{job} is gone"));
        assert!(is.version >= was.version, "{job}: its version fell from {was:?} to {is:?}");
        assert!(is.state == was.state || is.version > was.version, "{job}: changed without a new version, {was:?} to {is:?}");
        let state = State::from_code(was.state).unwrap();
        if state == State::Succeeded {
            assert_eq!(is, was, "{job}: a success is for good");
        } else if state.is_terminal() && is != was {
            assert!(redriven, "{job}: left its end without a redrive, {was:?} to {is:?}");
        }
    }
}

fn seed() -> u64 {
    std::env::var("STATE_MACHINE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from_le_bytes(shared::random::bytes()))
}

/// Says how to walk again, should the walk fail.
struct Seeded(u64);

impl Drop for Seeded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to walk the same way again: STATE_MACHINE_SEED={}", self.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_walk_of_one_session_keeps_the_promises() {
    let seeded = Seeded(seed());
    let walk = Walk::start().await;
    let mut dice = Dice(seeded.0);
    let mut before = walk.look().await;
    let mut path: Vec<String> = Vec::new();
    for _ in 0..600 {
        let redriven = walk.redriven.load(Ordering::SeqCst);
        let did = walk.step(&mut dice).await.unwrap_or_else(|error| panic!("refused: {error:?} after {path:#?}"));
        path.push(did);
        path.drain(..path.len().saturating_sub(20));
        let after = walk.look().await;
        compare(&before, &after, walk.redriven.load(Ordering::SeqCst) > redriven);
        before = after;
    }
    walk.finish().await;
    let (jobs, claims) = (walk.accepted.lock().unwrap().len(), walk.claims.lock().unwrap().len());
    assert!(jobs > 20 && claims > 30, "a walk worth the name: {jobs} jobs, {claims} claims");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_walk_of_many_sessions_keeps_the_promises() {
    const SESSIONS: u64 = 6;
    let seeded = Seeded(seed());
    let walk = Arc::new(Walk::start().await);
    let mut sessions = tokio::task::JoinSet::new();
    for number in 0..SESSIONS {
        let (walk, mut dice) = (Arc::clone(&walk), Dice(seeded.0.wrapping_add(number)));
        sessions.spawn(async move {
            let mut aborted = 0;
            for _ in 0..200 {
                match walk.step(&mut dice).await {
                    Ok(_) => {}
                    // Of two that wait for each other one is told to come again; nothing of it was done.
                    Err(error) if error.is_transient() => aborted += 1,
                    Err(error) => panic!("refused: {error:?}"),
                }
            }
            aborted
        });
    }
    let mut before = walk.look().await;
    let mut aborted = 0;
    loop {
        tokio::select! {
            ended = sessions.join_next() => match ended {
                Some(ended) => aborted += ended.unwrap(),
                None => break,
            },
            after = walk.look() => {
                compare(&before, &after, walk.redriven.load(Ordering::SeqCst) > 0);
                before = after;
            }
        }
    }
    walk.finish().await;
    compare(&before, &walk.look().await, true);
    println!(
        "{} jobs, {} claims, {} settled, {aborted} of {} steps told to come again",
        walk.accepted.lock().unwrap().len(),
        walk.claims.lock().unwrap().len(),
        walk.settled.lock().unwrap().len(),
        SESSIONS * 200
    );
}
