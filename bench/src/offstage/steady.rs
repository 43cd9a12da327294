//! Jobs posted at a steady pace, whatever became of the one before.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    error::{Error, Result},
    flood::{Wire, post},
    measure::count,
};

/// Connections; an answer takes milliseconds.
const CONNECTIONS: usize = 32;

/// Posts one job each when it is due, `rate` a second, and hands each id on as it is answered. A receiver who is gone is no error.
pub async fn steady(
    api: SocketAddr,
    key: &str,
    jobs: usize,
    rate: usize,
    body: impl Fn(usize) -> String,
    tell: mpsc::UnboundedSender<(usize, String)>,
) -> Result<()> {
    let (give_back, mut free) = mpsc::channel(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let _ = give_back.send(Wire::connect(api).await?).await;
    }
    let mut posting = JoinSet::new();
    let begin = Instant::now();
    for number in 0..jobs {
        sleep_until(begin + Duration::from_secs_f64(count(number) / count(rate))).await;
        let Some(mut wire) = free.recv().await else { break };
        let (request, give_back, tell) = (post(api, "/v1/jobs", key, &body(number)), give_back.clone(), tell.clone());
        posting.spawn(async move {
            let exchanged = wire.exchange(&request).await;
            let text = wire.text();
            // Before its outcome is looked at: who waits for a connection would wait for ever if all were lost to errors.
            let _ = give_back.send(wire).await;
            let status = exchanged?;
            let id = id_of(&text).filter(|_| status == 202);
            let id = id.ok_or_else(|| Error::Unexpected(format!("POST /v1/jobs answered {status}: {text}")))?;
            let _ = tell.send((number, id.to_owned()));
            Ok(())
        });
        while let Some(posted) = posting.try_join_next() {
            posted.map_err(|error| Error::Unexpected(format!("a request was dropped: {error}")))??;
        }
    }
    posting.join_all().await.into_iter().collect()
}

/// The id that an answer names first.
fn id_of(answer: &str) -> Option<&str> {
    let (_, rest) = answer.split_once(r#""id":""#)?;
    rest.split_once('"').map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_id_is_found() {
        assert_eq!(super::id_of(r#"{"id":"0192","links":{"id":"x"}}"#), Some("0192"));
        assert_eq!(super::id_of("{}"), None);
    }
}
