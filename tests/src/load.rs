//! Many jobs posted over many connections, by a backend that does what the API asks of one: each job under an idempotency key
//! of its own, and where there was no answer or a 503, the same again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{Client, id_of};

/// The pause before the same is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long one job is offered before the test gives up.
const OFFERED_FOR: Duration = Duration::from_secs(90);

/// A load under way.
#[derive(Debug)]
pub struct Load {
    state: Arc<State>,
    posters: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    client: Client,
    jobs: Vec<Value>,
    next: AtomicUsize,
    accepted: Mutex<BTreeMap<usize, String>>,
    /// Answers by status; 0 stands for no answer.
    answers: Mutex<BTreeMap<u16, usize>>,
}

/// What became of a load.
#[derive(Debug)]
pub struct Loaded {
    /// The ids, in the order of the jobs.
    pub ids: Vec<String>,
    /// How many answers of each status there were; 0 stands for no answer.
    pub answers: BTreeMap<u16, usize>,
}

impl Load {
    /// Begins to post `jobs` over so many connections.
    #[must_use]
    pub fn start(client: &Client, jobs: Vec<Value>, connections: usize) -> Self {
        let (next, accepted, answers) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
        let state = Arc::new(State { client: client.clone(), jobs, next, accepted, answers });
        let mut posters = JoinSet::new();
        for _ in 0..connections {
            posters.spawn(Arc::clone(&state).post());
        }
        Self { state, posters }
    }

    /// How many were accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.state.accepted.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until every job was accepted.
    pub async fn finish(mut self) -> Loaded {
        while let Some(ended) = self.posters.join_next().await {
            ended.expect("every poster goes on to the end");
        }
        let ids = self.state.accepted.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let answers = self.state.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Loaded { ids, answers }
    }
}

impl State {
    async fn post(self: Arc<Self>) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = self.jobs.get(index) else { return };
            let began = Instant::now();
            loop {
                let request = self.client.request(Method::POST, "/v1/jobs").header("Idempotency-Key", format!("load-{index}")).json(job);
                let answer = self.client.try_send(request).await;
                let status = answer.as_ref().map_or(0, |answer| answer.status);
                *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
                match answer {
                    Ok(answer) if [200, 202].contains(&status) => {
                        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).insert(index, id_of(&answer.json()));
                        break;
                    }
                    Ok(answer) => assert_eq!(status, 503, "{}", answer.text()),
                    Err(_) => {}
                }
                assert!(
                    began.elapsed() < OFFERED_FOR,
                    "job {index} was not accepted in {} s, the last answer was {status}",
                    OFFERED_FOR.as_secs()
                );
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}
