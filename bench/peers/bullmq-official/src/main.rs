//! bullmq-official as a contestant: BullMQ's own scripts, driven from Rust. Concurrency as the harness says; finished jobs are kept, as
//! by default, and ours are.

#[path = "../../protocol.rs"]
mod protocol;

use std::sync::Arc;

use bullmq::{
    BulkJob, Job, Queue, QueueOptions, Worker, WorkerOptions,
    options::RedisConnectionOptions,
    worker::{CancellationToken, WorkerEvent},
};
use protocol::{BULK, Command, Tally, Waits, gate, pace, pad, redis_url, repeat, say_versions};
use serde_json::{Value, json};

const QUEUE: &str = "bench";

static TALLY: Tally = Tally::new();
static WAITS: Waits = Waits::new();

fn connection() -> RedisConnectionOptions {
    RedisConnectionOptions::new().url(redis_url())
}

async fn queue() -> Arc<Queue> {
    Arc::new(Queue::with_options(QUEUE, QueueOptions::new().connection(connection())).await.expect("a queue"))
}

fn options(concurrency: usize) -> WorkerOptions {
    WorkerOptions::new().connection(connection()).concurrency(concurrency).autorun(false)
}

#[tokio::main]
async fn main() {
    let command = Command::of_process();
    match command.name.as_str() {
        "versions" => say_versions("bullmq-official 1.4.4 (Rust)"),
        "bulk" => {
            let (queue, data) = (queue().await, json!({"pad": pad(command.number(1))}));
            gate();
            repeat(command.number(0), BULK, command.number(2), move |count| {
                let (queue, data) = (queue.clone(), data.clone());
                async move {
                    let jobs = (0..count).map(|_| BulkJob::new("probe", &data)).collect();
                    queue.add_bulk(jobs).await.expect("added");
                }
            })
            .await;
        }
        "single" => {
            let (queue, data) = (queue().await, json!({"pad": pad(command.number(1))}));
            gate();
            repeat(command.number(0), 1, command.number(2), move |_| {
                let (queue, data) = (queue.clone(), data.clone());
                async move { drop(queue.add("probe", data).await.expect("added")) }
            })
            .await;
        }
        "drain" => {
            let process = async |_: Job, _: CancellationToken| -> Result<Value, bullmq::Error> {
                TALLY.begin();
                Ok(Value::Null)
            };
            let worker =
                Worker::with_options(QUEUE, move |job, token| process(job, token), options(command.number(0))).await.expect("a worker");
            gate();
            TALLY.report();
            worker.run().await.expect("it runs");
            while let Some(event) = worker.next_event().await {
                if matches!(event, WorkerEvent::Completed { .. }) {
                    TALLY.complete();
                }
            }
        }
        "pickup" => {
            let jobs = command.number(0);
            let process = move |job: Job, _: CancellationToken| {
                let sent = job.data()["sent"].as_f64().unwrap_or_default();
                WAITS.started(sent, jobs);
                async { Ok(Value::Null) }
            };
            let worker = Worker::with_options(QUEUE, process, options(command.number(1))).await.expect("a worker");
            worker.run().await.expect("it runs");
            gate();
            while worker.next_event().await.is_some() {}
        }
        "pace" => {
            let (queue, pad) = (queue().await, pad(command.number(1)));
            gate();
            pace(command.number(0), command.number(2), move |sent| {
                let (queue, data) = (queue.clone(), json!({"pad": pad, "sent": sent}));
                async move { drop(queue.add("probe", data).await.expect("added")) }
            })
            .await;
        }
        other => panic!("unknown command {other}"),
    }
}
