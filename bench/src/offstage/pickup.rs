//! From `POST` sent to handler started, at a steady pace on an idle system.
//!
//! All clocks are this machine's. The load generator notes the time before it writes a request; `probe.run` calls back when
//! its handler starts, and says when that was: the figure is between those two. Beside it stand the claim as the ledger has it
//! (earlier) and the arrival of the callback (later), which need no trust in what the handler says.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use shared::clock::Clock;
use sqlx::Row;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use super::{Offstage, WITHIN};
use crate::{
    error::{Doing, Error, Result},
    http::Client,
    measure::{Latencies, Meter, Run, Watched, count},
    plan::{BYTES, CONCURRENCY, Plan, RATE, WARM_UP},
};

/// Connections of the load generator; an answer takes milliseconds, so a few would do.
const CONNECTIONS: usize = 16;

/// The three ways to say when a job started, from the moment its request was written.
#[derive(Debug)]
pub struct Pickup {
    /// The handler's own word: the figure.
    pub handler: Run,
    /// The claim's time in the ledger.
    pub claim: Run,
    /// The arrival of the handler's callback.
    pub callback: Run,
}

/// When a handler said it started, and when we heard.
#[derive(Debug, Clone, Copy)]
struct Start {
    at: DateTime<Utc>,
    heard: DateTime<Utc>,
}

impl Offstage {
    /// Posts jobs at a steady pace and sees when each one starts.
    pub async fn pickup(&self, plan: &Plan) -> Result<Pickup> {
        let jobs = plan.paced();
        let callbacks = Callbacks::listen(self.clock.clone(), jobs).await?;
        let api = self.api().await?;
        let worker = self.worker(CONCURRENCY).await?;
        let address = Self::address_of(&api)?;

        let mut watched =
            vec![Watched::family("api", api.pid().unwrap_or_default()), Watched::family("worker", worker.pid().unwrap_or_default())];
        watched.extend(self.watched_servers());
        watched.push(Watched::us("load generator"));
        let meter = Meter::start(&watched);
        let begin = Instant::now();
        let sent = self.pace(address, callbacks.address, jobs).await?;
        let heard = timeout(WITHIN, callbacks.all()).await;
        let usage = meter.stop();
        let starts = heard.map_err(|_| Error::Unexpected("not all jobs said that they started".to_owned()))?;
        let elapsed = begin.elapsed();
        self.settled(jobs).await?;
        worker.stop().await?;
        api.stop().await?;
        self.check(jobs, jobs).await?;
        let claims = self.claims().await?;

        let usage = &usage;
        let run = |latencies: Latencies| Run::new(jobs, elapsed, usage.clone()).latencies(latencies);
        let counted = || sent.iter().skip(WARM_UP);
        let between =
            |id: &String, sent: &DateTime<Utc>, times: &HashMap<String, DateTime<Utc>>| times.get(id).map(|time| millis(*sent, *time));
        let handler: Latencies = counted().filter_map(|(id, sent)| Some(millis(*sent, starts.get(id)?.at))).collect();
        let callback: Latencies = counted().filter_map(|(id, sent)| Some(millis(*sent, starts.get(id)?.heard))).collect();
        let claim: Latencies = counted().filter_map(|(id, sent)| between(id, sent, &claims)).collect();
        let expected = jobs - WARM_UP;
        if [&handler, &callback, &claim].iter().any(|latencies| latencies.len() != expected) {
            return Err(Error::Unexpected("the jobs that started are not those that were posted".to_owned()));
        }
        Ok(Pickup { handler: run(handler), claim: run(claim), callback: run(callback) })
    }

    /// Posts each job when it is due, whatever became of the one before, and answers ids with the times of sending.
    async fn pace(&self, api: SocketAddr, callbacks: SocketAddr, jobs: usize) -> Result<Vec<(String, DateTime<Utc>)>> {
        let url = format!("http://{callbacks}/");
        let head = format!(r#"{{"callback_url":"{url}","pad":""#);
        let payload = format!(r#"{head}{}"}}"#, "x".repeat(BYTES.saturating_sub(head.len() + 2)));
        let body = format!(r#"{{"kind":"probe.run","payload":{payload}}}"#);
        let (give_back, mut free) = mpsc::channel(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let _ = give_back.send(Client::connect(api, &self.key).await?).await;
        }
        let mut posting = JoinSet::new();
        let begin = Instant::now();
        for number in 0..jobs {
            sleep_until(begin + Duration::from_secs_f64(count(number) / count(RATE))).await;
            let Some(mut client) = free.recv().await else { break };
            let (body, clock, give_back) = (body.clone(), self.clock.clone(), give_back.clone());
            posting.spawn(async move {
                let sent = clock.now();
                let posted = client.post("/v1/jobs", body).await;
                // Before its outcome is looked at: who waits for a connection would wait for ever if all were lost to errors.
                let _ = give_back.send(client).await;
                let (status, answer) = posted?;
                if status != StatusCode::ACCEPTED {
                    return Err(Error::Unexpected(format!("POST /v1/jobs answered {status}: {}", String::from_utf8_lossy(&answer))));
                }
                let job: Accepted =
                    serde_json::from_slice(&answer).map_err(|error| Error::Unexpected(format!("an answer without an id: {error}")))?;
                Ok((job.id, sent))
            });
        }
        let mut sent: Vec<(String, DateTime<Utc>)> = posting.join_all().await.into_iter().collect::<Result<_>>()?;
        sent.sort_by_key(|(_, sent)| *sent);
        Ok(sent)
    }

    /// Waits until the ledger knows of every end: a job's callback comes before its settle.
    pub(super) async fn settled(&self, jobs: usize) -> Result<()> {
        let deadline = Instant::now() + WITHIN;
        while self.counts().await?.1 < jobs && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn claims(&self) -> Result<HashMap<String, DateTime<Utc>>> {
        let rows = sqlx::query("SELECT job_id::text AS id, started_at FROM job_state WHERE job_id > $1")
            .bind(self.floor())
            .fetch_all(&self.superuser)
            .await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("started_at")?))).collect()
    }
}

fn millis(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    let micros = (to - from).num_microseconds().and_then(|micros| i32::try_from(micros).ok()).unwrap_or(i32::MAX);
    f64::from(micros) / 1e3
}

/// What `POST /v1/jobs` answers, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Accepted {
    id: String,
}

/// What a probe tells.
#[derive(Debug, Deserialize)]
struct Told {
    job_id: String,
    phase: String,
    at: DateTime<Utc>,
}

/// Where probes call back to.
struct Callbacks {
    address: SocketAddr,
    heard: Arc<Heard>,
    expected: usize,
    server: JoinHandle<()>,
}

struct Heard {
    clock: Clock,
    starts: Mutex<HashMap<String, Start>>,
    more: Notify,
}

impl Callbacks {
    async fn listen(clock: Clock, expected: usize) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.doing("listen for callbacks")?;
        let address = listener.local_addr().doing("learn where callbacks go")?;
        let heard = Arc::new(Heard { clock, starts: Mutex::default(), more: Notify::new() });
        let server = tokio::spawn(serve(listener, Arc::clone(&heard)));
        Ok(Self { address, heard, expected, server })
    }

    /// Waits until every job has told of its start.
    async fn all(&self) -> HashMap<String, Start> {
        loop {
            let more = self.heard.more.notified();
            {
                let mut starts = self.heard.starts.lock().unwrap_or_else(PoisonError::into_inner);
                if starts.len() >= self.expected {
                    return std::mem::take(&mut *starts);
                }
            }
            more.await;
        }
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, heard: Arc<Heard>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let heard = Arc::clone(&heard);
        let service = service_fn(move |request| hear(Arc::clone(&heard), request));
        connections.spawn(async move {
            // A connection that breaks loses a callback, which the end of the run notices.
            let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn hear(heard: Arc<Heard>, request: Request<Incoming>) -> std::result::Result<Response<Empty<Bytes>>, Infallible> {
    let now = heard.clock.now();
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let told = serde_json::from_slice::<Told>(&body);
    if let Ok(told) = told {
        if told.phase == "started" {
            let mut starts = heard.starts.lock().unwrap_or_else(PoisonError::into_inner);
            starts.entry(told.job_id).or_insert(Start { at: told.at, heard: now });
            drop(starts);
            heard.more.notify_one();
        }
        return Ok(Response::new(Empty::new()));
    }
    let mut refusal = Response::new(Empty::new());
    *refusal.status_mut() = StatusCode::BAD_REQUEST;
    Ok(refusal)
}
