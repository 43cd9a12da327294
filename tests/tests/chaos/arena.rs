//! The installation under fire: replicas of both programs, the receiver of effects, and what a scenario asks of them.

use std::{
    future::IntoFuture,
    sync::Arc,
    time::{Duration, Instant},
};

use acceptance::{Client, World, until_within};
use sandbox::{Launch, Process};

use crate::{
    effects::Effects,
    seed::{Seed, full},
    traffic::{Mix, Traffic},
};

/// For a whole installation to be up, on a machine at other work.
pub const LONG: Duration = Duration::from_secs(180);

/// An installation with its outside.
#[derive(Debug)]
pub struct Arena {
    /// The first API, and the services.
    pub world: World,
    /// All APIs.
    pub apis: Vec<Process>,
    /// A client of each API.
    pub replicas: Vec<Client>,
    /// All workers.
    pub workers: Vec<Process>,
    /// Where effects arrive.
    pub effects: Arc<Effects>,
}

impl Arena {
    /// So many of each, ready.
    pub async fn start(apis: usize, workers: usize) -> Self {
        Self::start_on(World::start_with(program()).await, apis, workers, Launch::new).await
    }

    /// On a world that is there, programs started as `launch` says.
    pub async fn start_on(world: World, apis: usize, workers: usize, launch: impl Fn() -> Launch) -> Self {
        let effects = Arc::new(Effects::listen().await);
        let mut all = vec![world.api.clone()];
        for _ in 1..apis {
            all.push(world.sandbox.start_api(modest(launch())).await.expect("an API"));
        }
        let mut started = Vec::new();
        for _ in 0..workers {
            started.push(world.start_worker(modest(launch())).await);
        }
        let replicas = all.iter().map(|api| world.client.at(api.url())).collect();
        Self { world, apis: all, replicas, workers: started, effects }
    }

    /// Lets clients post.
    pub fn traffic(&self, seed: &Seed, mix: Mix) -> Traffic {
        Traffic::start(&self.replicas, &self.effects, seed, mix)
    }

    /// Every program.
    pub fn programs(&self) -> Vec<Process> {
        self.apis.iter().chain(&self.workers).cloned().collect()
    }

    /// Waits until every worker has been heard for long enough to judge others, as in an installation that has been up. Not in the
    /// small size, which measures nothing.
    pub async fn all_may_judge(&self) {
        if !full() {
            return;
        }
        let workers = i64::try_from(self.workers.len()).expect("a number of workers");
        until_within(LONG, "every worker has been up for 7 s", async || {
            match self.world.number("SELECT count(*) FROM worker WHERE started_at < clock_timestamp() - interval '7 s'").await {
                old if old >= workers => Ok(()),
                old => Err(old),
            }
        })
        .await;
    }

    /// Waits until clients have so many jobs accepted, and so many have finished.
    pub async fn under_way(&self, traffic: &Traffic, accepted: usize, finished: usize) {
        until_within(LONG, "the load is under way", async || match (traffic.accepted(), self.effects.finished()) {
            (posted, done) if posted >= accepted && done >= finished => Ok(()),
            so_far => Err(so_far),
        })
        .await;
    }

    /// Waits until jobs that were claimed after `since` (by Postgres' clock) are in each of so many queues; how long that took.
    pub async fn consuming_again(&self, since: chrono::DateTime<chrono::Utc>, queues: i64) -> Duration {
        let began = Instant::now();
        until_within(LONG, "every queue is consumed again", async || {
            let statement = "SELECT count(DISTINCT j.queue) FROM job_state s JOIN job j ON j.id = s.job_id WHERE s.started_at > $1";
            match sqlx::query_scalar::<_, i64>(statement).bind(since).fetch_one(self.world.sandbox.pool()).await {
                Ok(found) if found >= queues => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        began.elapsed()
    }

    /// Starts a program that is down, and waits until it is ready.
    pub async fn back(&self, process: &Process) {
        process.start().await.expect("a start");
        process.wait_ready(LONG).into_future().await.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Pools of a size with which a dozen programs share one small Postgres.
fn modest(launch: Launch) -> Launch {
    launch.env("OFFSTAGE_API_POOL", "8").env("OFFSTAGE_ENGINE_POOL", "8")
}

/// As every program is started.
pub fn program() -> Launch {
    modest(Launch::new())
}
