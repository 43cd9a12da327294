//! One notification to all who follow somebody: until each stands in its inbox, and how large the worker gets by it.
//!
//! The followers have no browsers, so each has a row in its inbox and one in the delivery log, which says why there is no push.

use std::time::{Duration, Instant};

use hyper::StatusCode;
use sandbox::Launch;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{Offstage, WITHIN};
use crate::{
    error::{Error, Result},
    http::Client,
    measure::{Meter, Run, Watched, count, memory},
};

/// Whom all follow.
const FOLLOWED: &str = "star";
/// How often the ledger is asked how far it is: one row by its key.
const LOOK: Duration = Duration::from_millis(10);

impl Offstage {
    /// Tells so many; from the request to the moment at which all of them are told, by the ledger. The worker is as it comes: it serves all
    /// queues with their own concurrency.
    pub async fn fan_out(&self, followers: usize) -> Result<Run> {
        self.follow(followers).await?;
        let api = self.api().await?;
        let worker = self.world.start_worker(Launch::new().once().env("OFFSTAGE_LOG", "warn")).await?;
        let (api_pid, pid) = (api.pid().unwrap_or_default(), worker.pid().unwrap_or_default());
        let idle = memory::resident(pid);
        let mut client = Client::connect(Self::address_of(&api)?, &self.key).await?;
        let body = json!({
            "type": "follow", "to": {"followers_of": FOLLOWED}, "title": "A new collection", "message": "Twelve prompts for the winter.",
            "url": "/collections/1", "data": {"collection": 1},
        });
        let watched: Vec<Watched> =
            [Watched::family("api", api_pid), Watched::family("worker", pid)].into_iter().chain(self.watched_servers()).collect();
        let meter = Meter::start(&watched);
        let begin = Instant::now();
        let (status, text) = client.post("/v1/notifications", body.to_string()).await?;
        if status != StatusCode::ACCEPTED {
            return Err(Error::Unexpected(format!("the notification was refused with {status}: {}", String::from_utf8_lossy(&text))));
        }
        let told = timeout(WITHIN, self.told(followers)).await;
        let elapsed = begin.elapsed();
        let usage = meter.stop();
        told.map_err(|_| Error::Unexpected(format!("{followers} were not told in {} s", WITHIN.as_secs())))??;
        let memory = memory::peak(pid);
        worker.stop().await?;
        api.stop().await?;
        self.each_once(followers).await?;
        let seconds = elapsed.as_secs_f64();
        Ok(Run::new(followers, elapsed, usage)
            .extra("s to the last row", seconds)
            .extra("recipients", count(followers))
            .extra("worker RSS MiB", memory)
            .extra("worker RSS at its start, MiB", idle))
    }

    /// Makes users who follow one.
    async fn follow(&self, followers: usize) -> Result<()> {
        let followers = i64::try_from(followers).unwrap_or(i64::MAX);
        for statement in [
            "INSERT INTO end_user (tenant_id, id, push, mail, created_at, updated_at)
             SELECT $1, 'user-' || number, true, true, now(), now() FROM generate_series(1, $2) AS number",
            "INSERT INTO follow (tenant_id, followed, follower, created_at)
             SELECT $1, $3, 'user-' || number, now() FROM generate_series(1, $2) AS number",
        ] {
            let query = sqlx::query(statement).bind(self.tenant).bind(followers);
            let query = if statement.contains("$3") { query.bind(FOLLOWED) } else { query };
            query.execute(&self.superuser).await?;
        }
        sqlx::query("ANALYZE end_user, follow").execute(&self.superuser).await?;
        Ok(())
    }

    /// Waits until the notification says that all are told.
    async fn told(&self, followers: usize) -> Result<()> {
        let followers = i32::try_from(followers).unwrap_or(i32::MAX);
        loop {
            let all: Option<bool> = sqlx::query_scalar("SELECT is_planned AND recipients = $1 AND told = $1 FROM notification_trigger")
                .bind(followers)
                .fetch_optional(&self.superuser)
                .await?;
            if all == Some(true) {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// Each has one row, and there is no other.
    async fn each_once(&self, followers: usize) -> Result<()> {
        let (rows, owners): (i64, i64) =
            sqlx::query_as("SELECT count(*), count(DISTINCT owner) FROM notification").fetch_one(&self.superuser).await?;
        let followers = i64::try_from(followers).unwrap_or(i64::MAX);
        if (rows, owners) == (followers, followers) {
            return Ok(());
        }
        Err(Error::Unexpected(format!("{rows} rows stand in {owners} inboxes; {followers} were to be told")))
    }
}
