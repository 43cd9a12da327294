//! Clients as they should be: each job under an idempotency key of its own, and where the API did not say yes, the same again,
//! at another replica first, after the time that it told otherwise. They keep so many jobs open and post on until they are stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use acceptance::{Answer, Client, id_of, probe};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    effects::Effects,
    seed::{Chance, Seed},
};

/// The queues that jobs go to: four of the larger ones, so that several readers are at work.
pub const QUEUES: [&str; 4] = ["analytics", "email", "push", "webhooks"];
/// The pause before a replica that refused the connection is asked again.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// Broken requests that are described.
const BREAKS_KEPT: usize = 5;
/// How long one job is offered before the test gives up.
const OFFERED_FOR: Duration = Duration::from_secs(180);

/// What is posted.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Jobs that are open at most: accepted, and not heard of as finished.
    pub open: usize,
    /// Clients at once.
    pub clients: usize,
    /// One job in so many runs for seconds, the others for some milliseconds; 0 for none.
    pub long_one_in: u64,
    /// How long those run.
    pub long_ms: u64,
}

/// What became of what was posted.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// Every job that was accepted.
    pub accepted: BTreeSet<String>,
    /// Answers by status.
    pub answers: BTreeMap<u16, u64>,
    /// Connections that nobody took: nothing was sent.
    pub refused: u64,
    /// Requests whose connection broke, or timed out, before there was an answer.
    pub broken: u64,
    /// What the first of those said.
    pub breaks: Vec<String>,
    /// The longest that one job was offered until it was accepted.
    pub longest_offer: Duration,
    /// Jobs that were posted beside these, and are judged by who posted them.
    pub apart: BTreeSet<String>,
    /// Answers that a client can do nothing with: an unexpected status, a 503 that does not say when to come back.
    pub wrong: Vec<String>,
}

/// Clients at work.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    replicas: Vec<Client>,
    effects: Arc<Effects>,
    mix: Mix,
    posted: AtomicU64,
    sent: Mutex<Sent>,
}

impl Traffic {
    /// Begins. Each client prefers one of the replicas.
    pub fn start(replicas: &[Client], effects: &Arc<Effects>, seed: &Seed, mix: Mix) -> Self {
        let shared = Arc::new(Shared {
            replicas: replicas.to_vec(),
            effects: Arc::clone(effects),
            mix,
            posted: AtomicU64::new(0),
            sent: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let mut clients = JoinSet::new();
        for number in 0..mix.clients {
            clients.spawn(Arc::clone(&shared).post(number, seed.chance(1_000 + number as u64), stop.clone()));
        }
        Self { shared, clients, stop }
    }

    /// Posts one job more, which is judged by who asks for it and not by the count; its id.
    pub async fn post_apart(&self, job: &Value) -> String {
        let key = format!("apart-{}", self.shared.posted.fetch_add(1, Ordering::Relaxed));
        let id = self.shared.offer(0, "/v1/jobs", &key, job).await;
        let mut sent = self.shared.sent();
        sent.accepted.remove(&id);
        sent.apart.insert(id.clone());
        id
    }

    /// How many were accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.sent().accepted.len()
    }

    /// What became of them so far.
    pub fn sent(&self) -> Sent {
        self.shared.sent().clone()
    }

    /// Lets each client bring its last job to its acceptance.
    pub async fn stop(mut self) -> Sent {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("every client goes on to its end");
        }
        let sent = self.shared.sent().clone();
        assert!(sent.wrong.is_empty(), "answers that no client can do anything with: {:#?}", sent.wrong);
        sent
    }
}

impl Shared {
    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn post(self: Arc<Self>, number: usize, mut chance: Chance, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let open = self.sent().accepted.len().saturating_sub(self.effects.finished());
            if open >= self.mix.open {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            let job = self.job(&mut chance);
            let key = format!("chaos-{}", self.posted.fetch_add(1, Ordering::Relaxed));
            self.offer(number, "/v1/jobs", &key, &job).await;
        }
    }

    fn job(&self, chance: &mut Chance) -> Value {
        let long = self.mix.long_one_in > 0 && chance.number(1..=self.mix.long_one_in) == 1;
        let sleep = if long { self.mix.long_ms } else { chance.number(0..=300) };
        probe(&json!({"queue": chance.choose(&QUEUES), "sleep_ms": sleep, "callback_url": self.effects.url()}))
    }

    /// Offers one job until it is accepted; its id.
    async fn offer(&self, number: usize, path: &str, key: &str, job: &Value) -> String {
        let began = Instant::now();
        for turn in 0.. {
            let replica = &self.replicas[(number + turn) % self.replicas.len()];
            let request = replica.request(Method::POST, path).header("Idempotency-Key", key).json(job);
            let pause = match replica.try_send(request).await {
                Ok(answer) => match self.hear(&answer) {
                    Ok(id) => {
                        let mut sent = self.sent();
                        sent.longest_offer = sent.longest_offer.max(began.elapsed());
                        return id;
                    }
                    Err(pause) => pause,
                },
                Err(error) => {
                    let mut sent = self.sent();
                    if error.is_connect() {
                        sent.refused += 1;
                    } else {
                        sent.broken += 1;
                        if sent.breaks.len() < BREAKS_KEPT {
                            sent.breaks.push(format!("{error:?}"));
                        }
                    }
                    REFUSED_PAUSE
                }
            };
            assert!(began.elapsed() < OFFERED_FOR, "a job was not accepted in {} s", OFFERED_FOR.as_secs());
            // Another replica is asked at once.
            if (turn + 1) % self.replicas.len() == 0 {
                tokio::time::sleep(pause).await;
            }
        }
        unreachable!("turns don't end")
    }

    /// The job's id when it was accepted, else how long to wait.
    fn hear(&self, answer: &Answer) -> Result<String, Duration> {
        let mut sent = self.sent();
        *sent.answers.entry(answer.status).or_default() += 1;
        match answer.status {
            200 | 202 => {
                let id = id_of(&answer.json());
                sent.accepted.insert(id.clone());
                Ok(id)
            }
            503 => Err(answer.header("retry-after").parse().map_or_else(
                |_| {
                    sent.wrong.push(format!("503 without Retry-After: {}", answer.text()));
                    Duration::from_secs(1)
                },
                Duration::from_secs,
            )),
            status => {
                sent.wrong.push(format!("{status} {}", answer.text()));
                Err(Duration::from_secs(1))
            }
        }
    }
}
