//! One worker process works off what waits. Begin: the first claim, by the ledger. End: seen from outside, when the ledger has
//! nothing left to run; every job is then a finished row that can be queried.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sandbox::Process;
use shared::queue::{Commands, Queue, push};
use tokio::time::{sleep, timeout};

use super::{Offstage, WITHIN};
use crate::{
    error::{Error, Result},
    measure::{Meter, Run, Watched, processor::Usage},
};

/// How often the streams are measured. Cheap for Redis, and short beside a run.
const LOOK: Duration = Duration::from_millis(2);

impl Offstage {
    /// Works off `jobs` that wait in the ledger and the streams.
    pub async fn drain(&self, jobs: usize) -> Result<Run> {
        let mut connection = self.commands();
        let before = self.depth(&mut connection).await?;
        let watching = timeout(WITHIN, self.watch(connection, before));
        let (worker, watched) = tokio::join!(self.worker(), watching);
        let worker: Process = worker?;
        let (end, usage) = watched.map_err(|_| Error::Unexpected(format!("{jobs} jobs were not finished in {} s", WITHIN.as_secs())))??;
        worker.stop().await?;
        self.check(jobs, jobs).await?;
        let begin: DateTime<Utc> = sqlx::query_scalar("SELECT min(started_at) FROM job_state").fetch_one(&self.superuser).await?;
        let elapsed = (end - begin).to_std().unwrap_or_default();
        Ok(Run { jobs, elapsed, costs: usage.costs, others: usage.others, latencies: None })
    }

    async fn depth(&self, connection: &mut Commands) -> Result<u64> {
        Ok(push::depth(connection, self.redis.keys(), Queue::Analytics).await?.total())
    }

    /// Waits for the first movement, takes the processes' times from there (so that the worker's start is in nobody's
    /// figure), and waits for the end.
    async fn watch(&self, mut connection: Commands, before: u64) -> Result<(DateTime<Utc>, Usage)> {
        while self.depth(&mut connection).await? == before {
            sleep(LOOK).await;
        }
        let worker = self.world.processes().iter().rev().filter(|one| one.name().starts_with("worker")).find_map(Process::pid);
        let mut watched = vec![Watched::family("worker", worker.unwrap_or_default())];
        watched.extend(self.watched_servers());
        let meter = Meter::start(&watched);
        loop {
            sleep(LOOK).await;
            // The ledger is asked only when the streams are empty: it has better to do.
            if self.depth(&mut connection).await? > 0 {
                continue;
            }
            let left: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM job_waiting) OR EXISTS (SELECT FROM job_dispatched)")
                .fetch_one(&self.superuser)
                .await?;
            if !left {
                return Ok((self.clock.now(), meter.stop()));
            }
            // Most of a drain passes no stream.
            sleep(LOOK * 10).await;
        }
    }

    /// What tidying up afterwards costs Postgres: the run left dead rows behind, which a vacuum removes later.
    pub async fn tidy(&self, jobs: usize) -> Result<Run> {
        let meter = Meter::start(&self.watched_servers());
        let begin = std::time::Instant::now();
        sqlx::query("VACUUM (ANALYZE)").execute(&self.superuser).await?;
        let usage = meter.stop();
        Ok(Run { jobs, elapsed: begin.elapsed(), costs: usage.costs, others: usage.others, latencies: None })
    }
}
