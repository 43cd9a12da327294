//! A peer's part in each figure.

use std::time::Duration;

use super::{Event, Peer};
use crate::{
    error::Result,
    measure::{Latencies, Meter, Run, Watched},
    plan::{BYTES, CONCURRENCY, IN_FLIGHT_BULK, IN_FLIGHT_SINGLE, Plan, RATE, WARM_UP},
};

impl Peer {
    /// Adds jobs, in bulk or one by one.
    pub async fn enqueue(&self, jobs: usize, bulk: bool, redis: u32) -> Result<Run> {
        let (command, in_flight) = if bulk { ("bulk", IN_FLIGHT_BULK) } else { ("single", IN_FLIGHT_SINGLE) };
        let mut producer = self.start(&arguments(command, &[jobs, BYTES, in_flight]))?;
        producer.event("ready").await?;
        let meter = Meter::start(&[Watched::family("producer", producer.pid()), Watched::family("redis", redis)]);
        producer.go().await?;
        let begun = producer.event("begun").await?;
        let done = producer.event("done").await?;
        let usage = meter.stop();
        producer.end().await?;
        Ok(Run { jobs, elapsed: between(&begun, &done), costs: usage.costs, others: usage.others, latencies: None })
    }

    /// Works off `jobs` that wait.
    pub async fn drain(&self, jobs: usize, redis: u32) -> Result<Run> {
        let mut worker = self.start(&arguments("drain", &[jobs, CONCURRENCY]))?;
        worker.event("ready").await?;
        let meter = Meter::start(&[Watched::family("worker", worker.pid()), Watched::family("redis", redis)]);
        worker.go().await?;
        let begun = worker.event("begun").await?;
        let done = worker.event("done").await?;
        let usage = meter.stop();
        worker.end().await?;
        Ok(Run { jobs, elapsed: between(&begun, &done), costs: usage.costs, others: usage.others, latencies: None })
    }

    /// Starts paced jobs as they come.
    pub async fn pickup(&self, plan: &Plan, redis: u32) -> Result<Run> {
        let jobs = plan.paced();
        let mut worker = self.start(&arguments("pickup", &[jobs, CONCURRENCY]))?;
        let mut producer = self.start(&arguments("pace", &[jobs, BYTES, RATE]))?;
        worker.event("ready").await?;
        producer.event("ready").await?;
        worker.go().await?;
        let watched =
            [Watched::family("producer", producer.pid()), Watched::family("worker", worker.pid()), Watched::family("redis", redis)];
        let meter = Meter::start(&watched);
        producer.go().await?;
        let begun = producer.event("begun").await?;
        let done = producer.event("done").await?;
        let started = worker.event("done").await?;
        let usage = meter.stop();
        producer.end().await?;
        worker.end().await?;
        let latencies: Latencies = started.latencies.into_iter().skip(WARM_UP).collect();
        Ok(Run { jobs, elapsed: between(&begun, &done), costs: usage.costs, others: usage.others, latencies: Some(latencies) })
    }
}

fn arguments(command: &str, numbers: &[usize]) -> Vec<String> {
    std::iter::once(command.to_owned()).chain(numbers.iter().map(ToString::to_string)).collect()
}

fn between(begun: &Event, done: &Event) -> Duration {
    Duration::from_secs_f64((done.at - begun.at).max(0.0) / 1e3)
}
