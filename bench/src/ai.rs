//! `make bench-ai`: what a task for a model takes around the model's own time.
//!
//! The provider is the sandbox' server, which takes a known time. Two figures: at a steady pace of calls, from the start of a job's run to its
//! end as the ledger has them, without the provider's time as the worker measured it (in whole milliseconds, so a figure is off by half of
//! one at most); and of streamed answers, one after the other, from when the provider sent its first word to when a listener had it.

use std::{
    fmt, fs,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use hyper::StatusCode;
use sandbox::{Launch, Options, Sandbox, services::ai::Answer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    error::{Doing, Error, Result},
    http::Client,
    measure::Latencies,
};

/// The tenant that everything is done for.
const TENANT: &str = "bench";
/// Calls a second.
const RATE: u64 = 200;
/// Connections that ask, each its turn: requests are evenly spread, as those of many users are.
const CONNECTIONS: u64 = 10;
/// Flushes of the disk that are timed.
const FLUSHES: usize = 200;
/// How long the provider takes.
const PROVIDER: Duration = Duration::from_millis(200);
/// Streamed answers.
const STREAMED: usize = 100;
/// Worker processes.
const WORKERS: usize = 2;
/// Longer than any of it.
const WITHIN: Duration = Duration::from_secs(120);
/// The goals, in milliseconds.
const GOALS: [f64; 2] = [5.0, 20.0];

/// What came of it.
#[derive(Debug)]
pub struct Report {
    date: String,
    seconds: u64,
    around: Latencies,
    first_word: Latencies,
    flush: Latencies,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Tasks for models: what is added to the provider's time\n\n{}. {} s at {RATE} calls a second to a provider that takes {} ms, {WORKERS} workers; {STREAMED} streamed answers, one after the other.\n",
            self.date,
            self.seconds,
            PROVIDER.as_millis()
        )?;
        writeln!(f, "| | calls | p50 | p95 | p99 | max | goal (p99) |\n|---|---|---|---|---|---|---|")?;
        for (name, figures, goal) in [
            ("start of the run → settled, without the provider", &self.around, GOALS[0]),
            ("first word sent → heard", &self.first_word, GOALS[1]),
        ] {
            let [p50, p95, p99] = [50, 95, 99].map(|percent| figures.percentile(percent));
            writeln!(
                f,
                "| {name} | {} | {p50:.1} ms | {p95:.1} ms | {p99:.1} ms | {:.1} ms | {goal:.0} ms |",
                figures.len(),
                figures.max()
            )?;
        }
        writeln!(
            f,
            "\nA call waits for the disk once before it is made, so that nobody forgets that it may have been. A flush of this one takes p50 {:.1} ms, p99 {:.1} ms; who comes while another is under way waits for that, too.",
            self.flush.percentile(50),
            self.flush.percentile(99)
        )?;
        Ok(())
    }
}

/// Runs both in `directory`.
pub async fn run(directory: &Path, date: String, seconds: u64) -> Result<Report> {
    let world = Sandbox::start(Options::lasting(directory)).await?;
    let manifest = directory.join("tenant.toml");
    let text = format!(
        "[tenant]\nname = \"{TENANT}\"\n[ai.providers.main]\nkind = \"openai\"\nbase_url = \"{}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n\
         [ai.tasks.answer]\nmodels = [{{ provider = \"main\", model = \"m\" }}]\nprompt = \"{{{{ input.prompt }}}}\"\ninput = {{ type = \"object\" }}\ntimeout_seconds = 30\n",
        world.ai.url()
    );
    fs::write(&manifest, text).doing("write the benchmark's manifest")?;
    world.apply_tenant(&manifest).await?;
    let key = world.create_key(TENANT, "bench", "*").await?;
    let api = world.start_api(Launch::new().once().env("OFFSTAGE_LOG", "warn")).await?;
    for _ in 0..WORKERS {
        let launch = Launch::new().once().env("OFFSTAGE_LOG", "warn").env("OFFSTAGE_CONCURRENCY", "ai=200");
        world.start_worker(launch).await?;
    }
    let address = api.address().ok_or_else(|| Error::Unexpected("the API has no address".to_owned()))?;
    world.ai.usually(Answer { delay_ms: u64::try_from(PROVIDER.as_millis()).unwrap_or(u64::MAX), ..Answer::default() });
    // Connections open, caches fill.
    pace(address, &key, 2).await?;
    ended(&world).await?;
    let before: i64 = sqlx::query_scalar("SELECT count(*) FROM job_state").fetch_one(world.pool()).await?;
    pace(address, &key, seconds).await?;
    ended(&world).await?;
    let around: Vec<f64> = sqlx::query_scalar(
        "SELECT (extract(epoch FROM s.finished_at - s.started_at) * 1000)::float8 - (r.result ->> 'response_ms')::float8
         FROM job_state s JOIN job_result r USING (job_id) ORDER BY s.job_id OFFSET $1",
    )
    .bind(before)
    .fetch_all(world.pool())
    .await?;

    world.ai.usually(Answer { delay_ms: 50, word_ms: 20, text: Some("word ".repeat(10)), ..Answer::default() });
    let mut client = Client::connect(address, &key).await?;
    let mut first_word = Vec::new();
    for _ in 0..STREAMED {
        let (status, answered) = client.post("/v1/ai/answer", json!({"input": {"prompt": "x"}, "stream": true}).to_string()).await?;
        let job: Value = serde_json::from_slice(&answered).unwrap_or_default();
        let id = job.get("id").and_then(Value::as_str).filter(|_| status == StatusCode::ACCEPTED);
        let id = id.ok_or_else(|| Error::Unexpected(format!("a task was answered with {status}: {job}")))?;
        let calls = world.ai.calls().len();
        let heard = timeout(WITHIN, first(address, &key, id)).await.map_err(|_| Error::Unexpected("no word was heard".to_owned()))??;
        // The server may note the call only now, where it was not made yet when we looked.
        let sent = world.ai.calls().into_iter().skip(calls.saturating_sub(1)).filter_map(|call| call.first_word).next_back();
        let sent = sent.ok_or_else(|| Error::Unexpected("the provider sent no word".to_owned()))?;
        first_word.push(heard.saturating_duration_since(sent).as_secs_f64() * 1_000.0);
        ended(&world).await?;
    }
    world.stop().await?;
    let flush = flushes(directory)?;
    Ok(Report { date, seconds, around: around.into_iter().collect(), first_word: first_word.into_iter().collect(), flush })
}

/// Asks at the pace for so long.
async fn pace(address: SocketAddr, key: &str, seconds: u64) -> Result<()> {
    let begin = Instant::now();
    try_join_all((0..CONNECTIONS).map(|connection| async move {
        let mut client = Client::connect(address, key).await?;
        for number in 0..seconds * RATE / CONNECTIONS {
            let turn = Duration::from_secs(number * CONNECTIONS + connection) / u32::try_from(RATE).unwrap_or(1);
            sleep(turn.saturating_sub(begin.elapsed())).await;
            let body = json!({"input": {"prompt": format!("question {number}")}}).to_string();
            let (status, answered) = client.post("/v1/ai/answer", body).await?;
            if status != StatusCode::ACCEPTED {
                return Err(Error::Unexpected(format!("a task was answered with {status}: {}", String::from_utf8_lossy(&answered))));
            }
        }
        Ok(())
    }))
    .await?;
    Ok(())
}

/// What it takes to have a page of a file on the disk, in milliseconds.
fn flushes(directory: &Path) -> Result<Latencies> {
    let mut file = fs::File::create(directory.join("flushed")).doing("make a file")?;
    (0..FLUSHES)
        .map(|_| {
            let begin = Instant::now();
            file.write_all(&[7; 8_192]).and_then(|()| file.sync_data()).doing("flush a file")?;
            Ok(begin.elapsed().as_secs_f64() * 1_000.0)
        })
        .collect()
}

/// Waits until all jobs have succeeded.
async fn ended(world: &Sandbox) -> Result<()> {
    let began = Instant::now();
    loop {
        let (open, other): (i64, i64) =
            sqlx::query_as("SELECT count(*) FILTER (WHERE state < 3), count(*) FILTER (WHERE state > 3) FROM job_state")
                .fetch_one(world.pool())
                .await?;
        if other > 0 || began.elapsed() > WITHIN {
            return Err(Error::Unexpected(format!("{open} jobs have not ended, and {other} not succeeded")));
        }
        if open == 0 {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// When a job's first word is heard.
async fn first(address: SocketAddr, key: &str, id: &str) -> Result<Instant> {
    let mut stream = TcpStream::connect(address).await.doing("connect to the API")?;
    stream.set_nodelay(true).doing("set up a connection to the API")?;
    let request =
        format!("GET /v1/jobs/{id}/stream HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\naccept: text/event-stream\r\n\r\n");
    stream.write_all(request.as_bytes()).await.doing("ask for a stream")?;
    let mut heard = Vec::new();
    let mut piece = [0; 4_096];
    loop {
        let read = stream.read(&mut piece).await.doing("read a stream")?;
        heard.extend_from_slice(piece.get(..read).unwrap_or_default());
        if heard.windows(12).any(|window| window == b"event: words") {
            return Ok(Instant::now());
        }
        if read == 0 {
            return Err(Error::Unexpected(format!("the stream ended without a word: {}", String::from_utf8_lossy(&heard))));
        }
    }
}
