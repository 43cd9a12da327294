//! What an installation costs that has nothing to do: a worker on all queues and an API.

use std::time::Duration;

use sandbox::Launch;
use tokio::time::{Instant, sleep};

use super::Offstage;
use crate::{
    error::{Error, Result},
    measure::{Meter, Run, Watched, count, memory},
    plan::Plan,
};

/// From being ready to being idle.
const SETTLED: Duration = Duration::from_secs(3);
/// The same where only that it works is looked at.
const HARDLY_SETTLED: Duration = Duration::from_millis(100);

impl Offstage {
    /// Watches an installation that idles.
    pub async fn idle(&self, plan: &Plan) -> Result<Run> {
        let api = self.api().await?;
        let worker = self.world.start_worker(Launch::new().once().env("OFFSTAGE_LOG", "warn")).await?;
        let (api_pid, worker_pid) = (api.pid().unwrap_or_default(), worker.pid().unwrap_or_default());
        sleep(if plan.small() { HARDLY_SETTLED } else { SETTLED }).await;
        let mut watched = vec![Watched::family("api", api_pid), Watched::family("worker", worker_pid)];
        watched.extend(self.watched_servers());
        let before = self.commands_so_far().await?;
        let begin = Instant::now();
        let meter = Meter::start(&watched);
        sleep(Duration::from_secs(u64::try_from(plan.short()).unwrap_or(u64::MAX))).await;
        let usage = meter.stop();
        let elapsed = begin.elapsed();
        // Our own question of before is among them.
        let commands = self.commands_so_far().await?.saturating_sub(before + 1);
        let (api_memory, worker_memory) = (memory::resident(api_pid), memory::resident(worker_pid));
        worker.stop().await?;
        api.stop().await?;
        let seconds = elapsed.as_secs_f64();
        let run = Run::new(1, elapsed, usage);
        let percent = |name: &str| run.cpu(name).map(|cpu| cpu.as_secs_f64() / seconds * 100.0);
        let (api_cpu, worker_cpu) = (percent("api"), percent("worker"));
        let (postgres_cpu, redis_cpu) = (percent("postgres"), percent("redis"));
        Ok(run
            .extra("API RSS MiB", api_memory)
            .extra("worker RSS MiB", worker_memory)
            .extra("API CPU %", api_cpu)
            .extra("worker CPU %", worker_cpu)
            .extra("Postgres CPU %", postgres_cpu)
            .extra("Redis CPU %", redis_cpu)
            .extra("Redis commands/s", count(commands) / seconds))
    }

    async fn commands_so_far(&self) -> Result<usize> {
        let info: String = self.world.redis.command(redis::cmd("INFO").arg("stats")).await?;
        let total = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:")?.trim().parse().ok());
        total.ok_or_else(|| Error::Unexpected("Redis does not say how many commands it processed".to_owned()))
    }
}
