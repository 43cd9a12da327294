//! rusty-sidekiq as a contestant. Its fastest settings here: 50 workers, each with a connection of its own. It takes a job off its list
//! before the work begins (`BRPOP`): what a killed process had is lost, and nothing is kept of what is finished. There is no bulk add.

#[path = "../../protocol.rs"]
mod protocol;

use async_trait::async_trait;
use protocol::{Command, Tally, Waits, gate, pace, pad, redis_url, repeat, say_versions};
use serde::{Deserialize, Serialize};
use sidekiq::{Processor, ProcessorConfig, RedisConnectionManager, RedisPool, Worker};

const WORKERS: usize = 50;
const QUEUE: &str = "bench";

static TALLY: Tally = Tally::new();
static WAITS: Waits = Waits::new();

#[derive(Clone)]
struct Probe {
    /// Of a pick-up.
    jobs: Option<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Args {
    pad: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent: Option<f64>,
}

#[async_trait]
impl Worker<Args> for Probe {
    async fn perform(&self, args: Args) -> sidekiq::Result<()> {
        match (self.jobs, args.sent) {
            (Some(jobs), Some(sent)) => WAITS.started(sent, jobs),
            _ => {
                TALLY.begin();
                TALLY.complete();
            }
        }
        Ok(())
    }
}

async fn pool(size: usize) -> RedisPool {
    let manager = RedisConnectionManager::new(redis_url()).expect("an address");
    let pool = bb8::Pool::builder().max_size(size as u32).min_idle(size as u32).test_on_check_out(false);
    pool.build(manager).await.expect("connections")
}

async fn add(pool: &RedisPool, args: Args) {
    sidekiq::perform_async(pool, "Probe".into(), QUEUE.into(), args).await.expect("added");
}

async fn work(workers: usize, jobs: Option<usize>) {
    let mut processor =
        Processor::new(pool(workers + 4).await, vec![QUEUE.into()]).with_config(ProcessorConfig::default().num_workers(workers));
    processor.register(Probe { jobs });
    processor.run().await;
}

#[tokio::main]
async fn main() {
    let command = Command::of_process();
    match command.name.as_str() {
        "versions" => say_versions("rusty-sidekiq 0.15.2"),
        "single" => {
            let in_flight = command.number(2);
            let (pool, pad) = (pool(in_flight).await, pad(command.number(1)));
            gate();
            repeat(command.number(0), 1, in_flight, move |_| {
                let (pool, pad) = (pool.clone(), pad.clone());
                async move { add(&pool, Args { pad, sent: None }).await }
            })
            .await;
        }
        "drain" => {
            gate();
            TALLY.report();
            work(WORKERS, None).await;
        }
        "pickup" => {
            let jobs = command.number(0);
            let working = tokio::spawn(work(WORKERS, Some(jobs)));
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            gate();
            working.await.expect("no panic");
        }
        "pace" => {
            let (pool, pad) = (pool(16).await, pad(command.number(1)));
            gate();
            pace(command.number(0), command.number(2), move |sent| {
                let (pool, pad) = (pool.clone(), pad.clone());
                async move { add(&pool, Args { pad, sent: Some(sent) }).await }
            })
            .await;
        }
        other => panic!("unknown command {other}"),
    }
}
