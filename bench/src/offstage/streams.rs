//! Thousands of listeners to single jobs, and jobs that end while they listen.
//!
//! Most listeners' jobs never change: what they cost is memory. The others' jobs fall due one after the other, and each listener
//! notes how long after the end in the ledger it heard of it. All clocks are this machine's.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sandbox::Launch;
use shared::clock::Clock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Barrier, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Offstage, WITHIN, steady::steady};
use crate::{
    error::{Doing, Error, Result},
    flood::{Wire, get},
    measure::{Latencies, Meter, Run, Watched, count, memory},
    plan::{CHANGES, CONCURRENCY, LISTENERS, Plan},
};

/// Jobs are posted so many a second beforehand.
const POSTED_RATE: usize = 1_000;
/// Listeners that connect before others get a turn.
const AT_ONCE: usize = 100;
/// For all of them to connect.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);
/// From the last connection to the first end: memory is looked at meanwhile.
const QUIET: Duration = Duration::from_secs(1);
/// Until the first end: nobody tells the worker that jobs are due sooner than they were, and it looks by itself only every 5 s. By a
/// shorter time the run would begin with hundreds of ends at once.
const UNTOLD: TimeDelta = TimeDelta::seconds(6);
/// The most that one listener is sent before its end.
const LONGEST: usize = 64 * 1024;

impl Offstage {
    /// Listeners, most of them idle; latencies go from a job's end to its event.
    pub async fn streams(&self, plan: &Plan) -> Result<Run> {
        let launch =
            Launch::new().once().env("OFFSTAGE_LOG", "warn").env("OFFSTAGE_STREAMS", "6000").env("OFFSTAGE_STREAMS_OF_TENANT", "6000");
        let api = self.world.start_api(launch).await?;
        let worker = self.worker(CONCURRENCY).await?;
        let address = Self::address_of(&api)?;
        let pid = api.pid().unwrap_or_default();
        let listeners = plan.crowd(LISTENERS);
        let ending = (plan.short() * plan.crowd(CHANGES)).min(listeners);

        // All are due far off; those that are to end are let go once everybody listens.
        let far = self.clock.now() + TimeDelta::days(1);
        let body = format!(r#"{{"kind":"probe.run","payload":{{}},"run_at":"{}"}}"#, far.to_rfc3339());
        let (tell, mut told) = mpsc::unbounded_channel();
        steady(address, &self.key, listeners, POSTED_RATE, |_| body.clone(), tell).await?;
        let mut ids = Vec::with_capacity(listeners);
        while let Some((_, id)) = told.recv().await {
            ids.push(id);
        }

        let before = memory::resident(pid);
        let connected = Arc::new(Barrier::new(listeners + 1));
        let mut all = JoinSet::new();
        for (index, id) in ids.iter().enumerate() {
            let (connected, clock) = (Arc::clone(&connected), self.clock.clone());
            all.spawn(listen(address, id.clone(), self.key.clone(), connected, clock));
            if index % AT_ONCE == AT_ONCE - 1 {
                sleep(Duration::from_millis(20)).await;
            }
        }
        timeout(CONNECTED_WITHIN, connected.wait()).await.map_err(|_| Error::Unexpected("not everybody could listen".to_owned()))?;
        sleep(if plan.small() { QUIET / 10 } else { QUIET }).await;
        let idle = memory::resident(pid);

        let mut watched = vec![Watched::family("api", pid), Watched::family("worker", worker.pid().unwrap_or_default())];
        watched.extend(self.watched_servers());
        watched.push(Watched::us("load generator"));
        let meter = Meter::start(&watched);
        let begin = tokio::time::Instant::now();
        self.let_go(ids.get(..ending).unwrap_or_default(), plan.crowd(CHANGES)).await?;
        let mut heard = Vec::new();
        let hearing = async {
            while let Some(ended) = all.join_next().await {
                let ended = ended.map_err(|error| Error::Unexpected(format!("a listener is gone: {error}")))??;
                heard.push(ended);
                if heard.len() == ending {
                    return Ok(());
                }
            }
            Err(Error::Unexpected("not every end was heard of".to_owned()))
        };
        timeout(WITHIN, hearing).await.map_err(|_| Error::Unexpected("not every end was heard of in time".to_owned()))??;
        let elapsed = begin.elapsed();
        let usage = meter.stop();
        let memory = memory::peak(pid);
        // Nobody else is done by now, unless by an error.
        if let Some(early) = all.try_join_next() {
            let late = early.map_err(|error| Error::Unexpected(format!("a listener is gone: {error}")))??;
            return Err(Error::Unexpected(format!("a listener heard of an end that was not due, {late} ms after it")));
        }
        all.shutdown().await;
        worker.stop().await?;
        api.stop().await?;
        self.check(listeners, ending).await?;
        let each = before.zip(idle).map(|(before, idle)| (idle - before) * 1024.0 / count(listeners));
        let run = Run::new(ending, elapsed, usage).latencies(heard.into_iter().collect::<Latencies>());
        Ok(run.extra("KiB RSS a listener", each).extra("listeners", count(listeners)).extra("API RSS MiB", memory))
    }

    /// Makes jobs due one after the other, so many a second, from now on.
    async fn let_go(&self, ids: &[String], rate: usize) -> Result<()> {
        let first = self.clock.now() + UNTOLD;
        for table in ["job_waiting", "job_state"] {
            let statement = format!(
                "UPDATE {table} SET run_at = $2 + (e.number - 1) * interval '1 second' / $3
                 FROM unnest($1::uuid[]) WITH ORDINALITY AS e (id, number) WHERE {table}.job_id = e.id"
            );
            sqlx::query(sqlx::AssertSqlSafe(statement)).bind(ids).bind(first).bind(count(rate)).execute(&self.superuser).await?;
        }
        Ok(())
    }
}

/// Listens to a job until it ends; answers how long after its end it heard of it, in milliseconds.
async fn listen(address: SocketAddr, job: String, key: String, connected: Arc<Barrier>, clock: Clock) -> Result<f64> {
    let mut stream = Wire::connect(address).await?.into_stream();
    let request = get(address, &format!("/v1/jobs/{job}/events"), &key);
    stream.write_all(&request).await.doing("ask for events")?;
    let mut text = Vec::new();
    let mut is_connected = false;
    loop {
        let read = stream.read_buf(&mut text).await.doing("read events")?;
        let said = String::from_utf8_lossy(&text).into_owned();
        if !is_connected && said.contains("\r\n\r\n") {
            if !said.starts_with("HTTP/1.1 200") {
                return Err(Error::Unexpected(format!("a listener was answered {said}")));
            }
            is_connected = true;
            connected.wait().await;
        }
        if let Some(ended) = ended_at(&said) {
            let late = (clock.now() - ended).num_microseconds().and_then(|micros| i32::try_from(micros).ok()).unwrap_or(i32::MAX);
            return Ok(f64::from(late) / 1e3);
        }
        if read == 0 || text.len() > LONGEST {
            // Of a job that does not end too: who is cut off costs no memory any more.
            return Err(Error::Unexpected(format!("a listener's stream broke off: {said}")));
        }
    }
}

/// When a job ended, once its last event is there.
fn ended_at(said: &str) -> Option<DateTime<Utc>> {
    let (_, event) = said.split_once("event: ended").or_else(|| said.split_once("event:ended"))?;
    let (_, rest) = event.split_once(r#""finished_at":""#)?;
    rest.split_once('"')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_end_is_read() {
        let said = "id: 4\nevent: ended\ndata: {\"state\":\"succeeded\",\"finished_at\":\"2026-01-02T03:04:05.5Z\"}\n\n";
        assert_eq!(super::ended_at(said).unwrap().to_rfc3339(), "2026-01-02T03:04:05.500+00:00");
        assert!(super::ended_at("event: changed\ndata: {\"finished_at\":null}\n\n").is_none());
    }
}
