//! What operators and products look up, asked of a ledger with a history.

use std::time::Instant;

use chrono::TimeDelta;
use serde_json::Value;

use super::super::Offstage;
use crate::{
    error::{Error, Result},
    http::Client,
    measure::Latencies,
};

/// How often each is asked.
const TIMES: usize = 20;

/// One question and how long its answers took, in milliseconds. The first is among them: nobody warms a list up.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// The request's path, without ids.
    pub what: &'static str,
    /// How long.
    pub latencies: Latencies,
    /// Jobs that the first page has.
    pub found: usize,
}

impl Offstage {
    /// Asks for lists by every filter, and for single jobs.
    pub async fn lookups(&self) -> Result<Vec<Lookup>> {
        let api = self.api().await?;
        let mut client = Client::connect(Self::address_of(&api)?, &self.key).await?;
        let middle = self.clock.now() - TimeDelta::hours(60);
        let window = format!("created_from={}&created_before={}", stamp(middle), stamp(middle + TimeDelta::minutes(10)));
        let ids: Vec<String> = sqlx::query_scalar("SELECT id::text FROM job WHERE created_at < $1 ORDER BY id DESC LIMIT $2")
            .bind(middle)
            .bind(i64::try_from(TIMES).unwrap_or(i64::MAX))
            .fetch_all(&self.superuser)
            .await?;
        let lists = [
            ("list: all", String::new()),
            ("list: kind", "kind=probe.run".to_owned()),
            ("list: a kind without jobs", "kind=mail.send".to_owned()),
            ("list: state=succeeded", "state=succeeded".to_owned()),
            ("list: state=failed", "state=failed".to_owned()),
            ("list: state=failed, error_code", "state=failed&error_code=probe_failed".to_owned()),
            ("list: state=failed, an error_code that none has", "state=failed&error_code=nothing_such".to_owned()),
            ("list: state=failed, ended between", format!("state=failed&{}", window.replace("created", "ended"))),
            ("list: state=waiting", "state=waiting".to_owned()),
            ("list: state=running", "state=running".to_owned()),
            ("list: state=cancelled", "state=cancelled".to_owned()),
            ("list: queue with jobs", "queue=analytics".to_owned()),
            ("list: queue without jobs", "queue=email".to_owned()),
            ("list: owner", "owner=owner-42".to_owned()),
            ("list: owner, state=failed", "owner=owner-42&state=failed".to_owned()),
            ("list: an owner without jobs", "owner=nobody".to_owned()),
            ("list: created between", window.clone()),
            ("list: created between, state=failed", format!("{window}&state=failed")),
            ("list: created between, queue without jobs", format!("{window}&queue=email")),
            ("list: kind, state=failed, owner", "kind=probe.run&state=failed&owner=owner-42".to_owned()),
        ];
        let mut lookups = Vec::new();
        for (what, query) in lists {
            let path = format!("/v1/jobs?limit=50&{query}");
            lookups.push(ask(&mut client, what, (0..TIMES).map(|_| path.clone())).await?);
        }
        lookups.push(ask(&mut client, "one job of 60 hours ago", ids.iter().map(|id| format!("/v1/jobs/{id}"))).await?);
        lookups.push(ask(&mut client, "one job, explained", ids.iter().map(|id| format!("/v1/jobs/{id}/explain"))).await?);
        drop(client);
        api.stop().await?;
        Ok(lookups)
    }
}

fn stamp(time: chrono::DateTime<chrono::Utc>) -> String {
    time.format("%FT%TZ").to_string()
}

async fn ask(client: &mut Client, what: &'static str, paths: impl Iterator<Item = String>) -> Result<Lookup> {
    let mut latencies = Vec::new();
    let mut found = None;
    for path in paths {
        let begin = Instant::now();
        let (status, body) = client.get(&path).await?;
        latencies.push(begin.elapsed().as_secs_f64() * 1e3);
        if !status.is_success() {
            return Err(Error::Unexpected(format!("GET {path} answered {status}: {}", String::from_utf8_lossy(&body))));
        }
        let page: Value = serde_json::from_slice(&body).unwrap_or_default();
        found.get_or_insert(page.get("items").and_then(Value::as_array).map_or(1, Vec::len));
    }
    Ok(Lookup { what, latencies: latencies.into_iter().collect(), found: found.unwrap_or_default() })
}
