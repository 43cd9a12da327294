//! One or more worker processes work off what waits. Begin: the first claim, by the ledger. End: seen from outside, when the ledger has
//! nothing left to run; every job is then a finished row that can be queried.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::try_join_all;
use sandbox::{Launch, Process};
use shared::queue::{Commands, Queue, push};
use tokio::time::{sleep, timeout};

use super::{Offstage, WITHIN};
use crate::{
    error::{Error, Result},
    measure::{Meter, Run, Usage, Watched, memory},
};

/// How often the streams are measured. Cheap for Redis, and short beside a run.
const LOOK: Duration = Duration::from_millis(2);

impl Offstage {
    /// Works off `jobs` that wait in the ledger and the streams, in so many processes.
    pub async fn drain(&self, jobs: usize, processes: usize, concurrency: usize) -> Result<Run> {
        self.drain_queue(Queue::Analytics, jobs, processes, concurrency, Launch::new()).await
    }

    /// The same of another queue, by workers with settings of their own.
    pub(super) async fn drain_queue(&self, queue: Queue, jobs: usize, processes: usize, concurrency: usize, launch: Launch) -> Result<Run> {
        let mut connection = self.commands();
        let before = self.depth(&mut connection, queue).await?;
        let known = self.workers().len();
        let watching = timeout(WITHIN, self.watch(connection, queue, before, known));
        // All at once, so that the second begins as the first does, give or take some milliseconds.
        let starting = try_join_all((0..processes).map(|_| self.worker_of(queue, concurrency, launch.clone())));
        let (workers, watched) = tokio::join!(starting, watching);
        let workers = workers?;
        let (end, usage) = watched.map_err(|_| Error::Unexpected(format!("{jobs} jobs were not finished in {} s", WITHIN.as_secs())))??;
        let memory = workers.iter().filter_map(|worker| memory::peak(worker.pid()?)).reduce(f64::max);
        try_join_all(workers.iter().map(Process::stop)).await?;
        self.check(jobs, jobs).await?;
        let begin: DateTime<Utc> = sqlx::query_scalar("SELECT min(started_at) FROM job_state WHERE job_id > $1")
            .bind(self.floor())
            .fetch_one(&self.superuser)
            .await?;
        let elapsed = (end - begin).to_std().unwrap_or_default();
        Ok(Run::new(jobs, elapsed, usage).extra("worker RSS MiB", memory))
    }

    fn workers(&self) -> Vec<Process> {
        self.world.processes().into_iter().filter(|one| one.name().starts_with("worker")).collect()
    }

    async fn depth(&self, connection: &mut Commands, queue: Queue) -> Result<u64> {
        Ok(push::depth(connection, self.redis.keys(), queue).await?.total())
    }

    /// Waits for the first movement, takes the processes' times from there (so that the workers' start is in nobody's
    /// figure), and waits for the end. Workers are those after the first `known`.
    async fn watch(&self, mut connection: Commands, queue: Queue, before: u64, known: usize) -> Result<(DateTime<Utc>, Usage)> {
        while self.depth(&mut connection, queue).await? == before {
            sleep(LOOK).await;
        }
        let workers = self.workers().into_iter().skip(known).filter_map(|worker| worker.pid());
        let watched: Vec<Watched> = workers.map(|pid| Watched::family("worker", pid)).chain(self.watched_servers()).collect();
        let meter = Meter::start(&watched);
        loop {
            sleep(LOOK).await;
            // The ledger is asked only when the streams are empty: it has better to do.
            if self.depth(&mut connection, queue).await? > 0 {
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
        Ok(Run::new(jobs, begin.elapsed(), usage))
    }
}
