//! A peer's part in each figure.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::{select_all, try_join_all};

use super::{Peer, Running};
use crate::{
    contest::Part,
    error::{Error, Result},
    flood::flood,
    measure::{Latencies, Meter, Run, Watched, memory},
    plan::{BROWSERS, BULK_IN_FLIGHT, BYTES, CONCURRENCY, MAIL_CONNECTIONS, Plan, RATE, SINGLE_IN_FLIGHT, WARM_UP},
    sink::{Sink, Speech},
};

impl Peer {
    /// Jobs of its runs, of so many.
    #[must_use]
    pub fn part_of(&self, jobs: usize) -> usize {
        (jobs / self.definition.share).max(1)
    }

    /// Adds jobs, in bulk or one by one.
    pub async fn enqueue(&self, jobs: usize, bulk: bool) -> Result<Run> {
        let (command, in_flight) = if bulk { ("bulk", BULK_IN_FLIGHT) } else { ("single", SINGLE_IN_FLIGHT) };
        let mut producer = self.start(&arguments(command, &[jobs, BYTES, in_flight]))?;
        producer.event("ready").await?;
        let meter = self.meter([Watched::family("producer", producer.pid())]);
        producer.go().await?;
        let begun = producer.event("begun").await?;
        let done = producer.event("done").await?;
        let usage = meter.stop();
        producer.end().await?;
        Ok(Run::new(jobs, between(begun.at, done.at)?, usage))
    }

    /// Works off `jobs` that wait, in so many processes.
    pub async fn drain(&self, jobs: usize, processes: usize) -> Result<Run> {
        let mut workers = Vec::new();
        for _ in 0..processes {
            workers.push(self.start(&arguments("drain", &[CONCURRENCY]))?);
        }
        for worker in &mut workers {
            worker.event("ready").await?;
        }
        let meter = self.meter(workers.iter().map(|worker| Watched::family("worker", worker.pid())));
        for worker in &mut workers {
            worker.go().await?;
        }
        count_up_to(&mut workers, jobs).await?;
        let usage = meter.stop();
        let memory = workers.iter().filter_map(|worker| memory::peak(worker.pid())).reduce(f64::max);
        let ends = try_join_all(workers.into_iter().map(async |mut worker| {
            worker.go().await?;
            let times = (worker.event("begun").await?.at, worker.event("done").await?.at);
            worker.end().await?;
            Ok::<_, Error>(times)
        }))
        .await?;
        // A process that got no job says 0.
        let begun = ends.iter().map(|(begun, _)| *begun).filter(|begun| *begun > 0.0).fold(f64::INFINITY, f64::min);
        let done = ends.iter().map(|(_, done)| *done).fold(0.0, f64::max);
        Ok(Run::new(jobs, between(begun, done)?, usage).extra("worker RSS MiB", memory))
    }

    /// Starts paced jobs as they come.
    pub async fn pickup(&self, plan: &Plan) -> Result<Run> {
        let seconds = if self.definition.rival { plan.seconds } else { plan.seconds.div_ceil(4) };
        let jobs = WARM_UP + seconds * RATE;
        let mut worker = self.start(&arguments("pickup", &[jobs, CONCURRENCY]))?;
        // One after the other: two that make the same schema at once disturb each other.
        worker.event("ready").await?;
        let mut producer = self.start(&arguments("pace", &[jobs, BYTES, RATE]))?;
        producer.event("ready").await?;
        worker.go().await?;
        let meter = self.meter([Watched::family("producer", producer.pid()), Watched::family("worker", worker.pid())]);
        producer.go().await?;
        let begun = producer.event("begun").await?;
        let done = producer.event("done").await?;
        let started = worker.event("done").await?;
        let usage = meter.stop();
        producer.end().await?;
        worker.end().await?;
        let latencies: Latencies = started.latencies.into_iter().skip(WARM_UP).collect();
        Ok(Run::new(jobs, between(begun.at, done.at)?, usage).latencies(latencies))
    }

    /// What it sends, of those who send.
    #[must_use]
    pub fn sends(&self) -> Option<Part> {
        match self.definition.folder {
            "web-push" => Some(Part::Push),
            "nodemailer" => Some(Part::Mail),
            _ => None,
        }
    }

    /// Sends messages to a sink, [`CONCURRENCY`] at a time.
    pub async fn send(&self, speech: Speech, messages: usize) -> Result<Run> {
        let sink = Sink::open(speech).await?;
        let (command, url, few) = match speech {
            Speech::Http => ("push", format!("http://{}", sink.address()), BROWSERS),
            Speech::Smtp => ("mail", format!("smtp://{}", sink.address()), MAIL_CONNECTIONS),
        };
        let mut sender = self.start_with(&arguments(command, &[messages, few, CONCURRENCY]), &[("BENCH_SINK_URL", url)])?;
        sender.event("ready").await?;
        let meter = self.meter([Watched::family("sender", sender.pid())]);
        sender.go().await?;
        let begun = sender.event("begun").await?;
        let done = sender.event("done").await?;
        let usage = meter.stop();
        sender.end().await?;
        let taken = sink.taken();
        if taken != messages {
            return Err(Error::Unexpected(format!("{taken} messages arrived of {messages}")));
        }
        Ok(Run::new(messages, between(begun.at, done.at)?, usage))
    }

    /// Takes jobs over HTTP.
    pub async fn serve(&self, jobs: usize, body: &str) -> Result<Run> {
        let mut server = self.start(&arguments("serve", &[]))?;
        let ready = server.event("ready").await?;
        let address: SocketAddr =
            ready.text.parse().map_err(|_| Error::Unexpected(format!("{} listens at {:?}", self.name(), ready.text)))?;
        let idle = memory::resident(server.pid());
        let meter = self.meter([Watched::family("api", server.pid()), Watched::us("load generator")]);
        let flooded = flood(address, "/v1/jobs", "", body, SINGLE_IN_FLIGHT, jobs, 1).await?;
        let usage = meter.stop();
        let memory = memory::peak(server.pid());
        server.go().await?;
        server.event("done").await?;
        server.end().await?;
        let run = Run::new(jobs, flooded.elapsed, usage).latencies(flooded.latencies);
        Ok(run.extra("API RSS MiB", memory).extra("API RSS at its start, MiB", idle))
    }

    /// Measures its processes and the servers.
    fn meter(&self, of: impl IntoIterator<Item = Watched>) -> Meter {
        Meter::start(&of.into_iter().chain(self.servers.watched()).collect::<Vec<_>>())
    }
}

/// Listens to workers until they have completed so many together.
async fn count_up_to(workers: &mut [Running], jobs: usize) -> Result<()> {
    let mut completed = vec![0; workers.len()];
    while completed.iter().sum::<usize>() < jobs {
        let listening = workers.iter_mut().map(|worker| Box::pin(worker.next("count")));
        let (event, index, _) = select_all(listening).await;
        if let Some(count) = completed.get_mut(index) {
            *count = event?.jobs;
        }
    }
    Ok(())
}

fn arguments(command: &str, numbers: &[usize]) -> Vec<String> {
    std::iter::once(command.to_owned()).chain(numbers.iter().map(ToString::to_string)).collect()
}

/// Both in milliseconds, as a peer says: what no clock says, or no time at all, would make a rate of nonsense.
fn between(begun: f64, done: f64) -> Result<Duration> {
    let elapsed = Duration::try_from_secs_f64((done - begun) / 1e3).ok().filter(|elapsed| !elapsed.is_zero());
    elapsed.ok_or_else(|| Error::Unexpected(format!("a peer began at {begun} and was done at {done}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::between;

    #[test]
    fn a_run_takes_time() {
        assert_eq!(between(1_000.0, 1_500.0).unwrap(), Duration::from_millis(500));
        for (begun, done) in [(0.0, 1e300), (f64::INFINITY, 0.0), (0.0, f64::NAN), (2.0, 1.0), (1.0, 1.0)] {
            assert!(between(begun, done).is_err(), "{begun} {done}");
        }
    }
}
