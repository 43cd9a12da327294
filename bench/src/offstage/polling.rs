//! Many clients ask once a second how their job is, while jobs run: what a product's users do whose page polls.
//!
//! A client asks when it is due, whatever the answer before took, so that a stall counts for all whom it holds up: latencies go from
//! the due time to the answer. An answer other than 200, none at all, or one later than a second counts as dropped.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinSet, time::sleep_until};

use super::{Offstage, enqueue::job, steady::steady};
use crate::{
    error::{Error, Result},
    flood::{Wire, get},
    measure::{Latencies, Meter, Run, Watched, count, memory},
    plan::{CONCURRENCY, POLLED_RATE, POLLERS, Plan, payload},
};

/// How often a client asks.
const EVERY: Duration = Duration::from_secs(1);
/// Jobs that are asked for: the newest so many.
const ASKED: usize = 5_000;

impl Offstage {
    /// Clients poll while jobs run; latencies are those of the polls.
    pub async fn polling(&self, plan: &Plan) -> Result<Run> {
        let api = self.api().await?;
        let worker = self.worker(CONCURRENCY).await?;
        let address = Self::address_of(&api)?;
        let rate = plan.crowd(POLLED_RATE);
        // A second before the polls, so that there is something to ask for.
        let jobs = rate * (plan.short() + 1);
        let ids: Arc<Mutex<Vec<String>>> = Arc::default();
        let (tell, mut told) = mpsc::unbounded_channel();
        let hearing = tokio::spawn({
            let ids = Arc::clone(&ids);
            async move {
                while let Some((number, id)) = told.recv().await {
                    let mut ids = ids.lock().unwrap_or_else(PoisonError::into_inner);
                    if ids.len() < ASKED { ids.push(id) } else { ids[number % ASKED] = id }
                }
            }
        });
        let (key, body) = (self.key.clone(), job(&payload()));
        let running = tokio::spawn(async move { steady(address, &key, jobs, rate, |_| body.clone(), tell).await });

        let clients = plan.crowd(POLLERS);
        let mut polling = JoinSet::new();
        let mut watched =
            vec![Watched::family("api", api.pid().unwrap_or_default()), Watched::family("worker", worker.pid().unwrap_or_default())];
        watched.extend(self.watched_servers());
        watched.push(Watched::us("load generator"));
        let meter = Meter::start(&watched);
        let begin = Instant::now() + EVERY;
        for client in 0..clients {
            let wire = Wire::connect(address).await?;
            let first = begin + EVERY.mul_f64(count(client) / count(clients));
            let (ids, key) = (Arc::clone(&ids), self.key.clone());
            polling.spawn(poll(wire, ids, key, client, first, plan.short()));
        }
        let polled = polling.join_all().await;
        let usage = meter.stop();
        running.await.map_err(|error| Error::Unexpected(format!("jobs were not posted: {error}")))??;
        hearing.abort();
        let memory = memory::peak(api.pid().unwrap_or_default());
        self.settled(jobs).await?;
        worker.stop().await?;
        api.stop().await?;
        self.check(jobs, jobs).await?;
        let dropped: usize = polled.iter().map(|one| one.dropped).sum();
        let latencies: Latencies = polled.into_iter().flat_map(|one| one.latencies).collect();
        let polls = latencies.len() + dropped;
        let run = Run::new(polls, EVERY * u32::try_from(plan.short()).unwrap_or(1), usage).latencies(latencies);
        Ok(run.extra("dropped", count(dropped)).extra("API RSS MiB", memory))
    }
}

/// What one client saw.
struct Polled {
    latencies: Vec<f64>,
    dropped: usize,
}

async fn poll(mut wire: Wire, ids: Arc<Mutex<Vec<String>>>, key: String, client: usize, first: Instant, times: usize) -> Polled {
    let mut polled = Polled { latencies: Vec::with_capacity(times), dropped: 0 };
    for time in 0..times {
        let due = first + EVERY * u32::try_from(time).unwrap_or(u32::MAX);
        sleep_until(due.into()).await;
        // Some other job each time: that a page shows one does not make it cheaper.
        let id = {
            let ids = ids.lock().unwrap_or_else(PoisonError::into_inner);
            ids.get((client * 7 + time * 131) % ids.len().max(1)).cloned().unwrap_or_default()
        };
        let request = get(wire.address(), &format!("/v1/jobs/{id}"), &key);
        match wire.exchange(&request).await {
            Ok(200) if due.elapsed() <= EVERY => polled.latencies.push(due.elapsed().as_secs_f64() * 1e3),
            Ok(_) => polled.dropped += 1,
            Err(_) => {
                polled.dropped += 1;
                // One that can't connect any more has dropped the rest too.
                let Ok(again) = Wire::connect(wire.address()).await else {
                    polled.dropped += times - time - 1;
                    break;
                };
                wire = again;
            }
        }
    }
    polled
}
