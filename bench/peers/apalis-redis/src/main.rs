//! apalis-redis as a contestant, tuned: batches of 500, no locks, no events, a poll every 10 ms, jobs on tasks of their own.
//!
//! Every push goes through a sorted set of what is due, whose promotion fails when 8,000 and more are due at once; so a drain begins with
//! the backlog promoted by hand, before anything is measured.

#[path = "../../protocol.rs"]
mod protocol;

use std::time::Duration;

use apalis::prelude::*;
use apalis_redis::{Config, RedisStorage};
use protocol::{BULK, Command, Tally, Waits, gate, pace, pad, redis_url, repeat, say_versions};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use serde::{Deserialize, Serialize};

const QUEUE: &str = "bench";
const BATCH: usize = 500;
const POLL: Duration = Duration::from_millis(10);

static TALLY: Tally = Tally::new();
static WAITS: Waits = Waits::new();

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Probe {
    pad: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent: Option<f64>,
}

async fn connect() -> ConnectionManager {
    let client = redis::Client::open(redis_url()).expect("an address");
    let patient = ConnectionManagerConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
    ConnectionManager::new_with_config(client, patient).await.expect("a connection")
}

async fn storage() -> RedisStorage<Probe, ConnectionManager> {
    let config = Config::default().queue(QUEUE).batch_size(BATCH).lock_tasks(false).emit_events(false);
    RedisStorage::new(connect().await).with_config(config)
}

/// Moves what is due to the list of what is active, in portions that Redis can bear.
async fn promote() {
    let mut connection = connect().await;
    loop {
        let due: Vec<(String, f64)> =
            redis::cmd("ZPOPMIN").arg("bench:scheduled").arg(BULK).query_async(&mut connection).await.expect("what is due");
        if due.is_empty() {
            return;
        }
        let ids: Vec<&String> = due.iter().map(|(id, _)| id).collect();
        redis::cmd("RPUSH").arg("bench:active").arg(ids).query_async::<()>(&mut connection).await.expect("promoted");
    }
}

async fn run(_: Probe) -> Result<(), BoxDynError> {
    TALLY.begin();
    TALLY.complete();
    Ok(())
}

async fn time(probe: Probe, jobs: Data<usize>) -> Result<(), BoxDynError> {
    WAITS.started(probe.sent.unwrap_or_default(), *jobs);
    Ok(())
}

#[tokio::main]
async fn main() {
    let command = Command::of_process();
    let name = format!("bench-{}", std::process::id());
    match command.name.as_str() {
        "versions" => say_versions("apalis-redis 1.0.0 (tuned: batch 500, no locks, no events, poll 10 ms; backlog promoted by hand)"),
        "bulk" => {
            let (storage, pad) = (storage().await, pad(command.number(1)));
            gate();
            repeat(command.number(0), BULK, command.number(2), move |count| {
                let (mut storage, pad) = (storage.clone(), pad.clone());
                async move {
                    let jobs = (0..count).map(|_| Probe { pad: pad.clone(), sent: None }).collect();
                    storage.push_bulk(jobs).await.expect("pushed");
                }
            })
            .await;
        }
        "single" => {
            let (storage, pad) = (storage().await, pad(command.number(1)));
            gate();
            repeat(command.number(0), 1, command.number(2), move |_| {
                let (mut storage, pad) = (storage.clone(), pad.clone());
                async move { storage.push(Probe { pad, sent: None }).await.expect("pushed") }
            })
            .await;
        }
        "drain" => {
            let storage = storage().await;
            promote().await;
            gate();
            TALLY.report();
            let worker = WorkerBuilder::new(name).backend(storage.poll_with_interval(POLL)).parallelize(tokio::spawn).build(run);
            worker.run().await.expect("it works");
        }
        "pickup" => {
            let storage = storage().await;
            let jobs = command.number(0);
            let worker =
                WorkerBuilder::new(name).backend(storage.poll_with_interval(POLL)).parallelize(tokio::spawn).data(jobs).build(time);
            let ready = async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                tokio::task::spawn_blocking(gate).await.expect("no panic");
            };
            let (worked, ()) = tokio::join!(worker.run(), ready);
            worked.expect("it works");
        }
        "pace" => {
            let (storage, pad) = (storage().await, pad(command.number(1)));
            gate();
            pace(command.number(0), command.number(2), move |sent| {
                let (mut storage, pad) = (storage.clone(), pad.clone());
                async move { storage.push(Probe { pad, sent: Some(sent) }).await.expect("pushed") }
            })
            .await;
        }
        other => panic!("unknown command {other}"),
    }
}
