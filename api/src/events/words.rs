//! One job's words as its model says them, and at the end what it said in all.
//!
//! | event | id | data |
//! |---|---|---|
//! | `words` | the stream and how many bytes of it are known after this | `{"text"}` |
//! | `restart` | a stream of which nothing is known yet | `{}`: what came before is void, the answer begins anew |
//! | `ended` | `end` | `{"state", "error"?}`: the job's final state, and of one that failed why |
//!
//! What must stay true: words of two streams are never put together: a `restart` stands between them; what was passed over or lost on the
//! way is told at the end, from the ledger; who comes back with the id of what it has gets the rest and nothing twice.

use std::{collections::VecDeque, time::Duration};

use axum::{
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use shared::{
    job::JobId,
    ledger::{LedgerError, ai},
    queue::words::Words,
    tenant,
};
use tokio::time::{Instant, sleep_until};

use super::{Authority, Reader, Times, answer, beat, prelude};
use crate::{
    app::App,
    follow::{Following, Hearing, Latest, Seen},
};

/// Words are looked for so often without being told of any: Redis' channels promise nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The id of the last event.
const END: &str = "end";

/// The stream of an answer that was not streamed.
const WHOLE: &str = "whole";

/// How much of which stream somebody has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    stream: String,
    offset: usize,
}

/// What a client has that connects again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Had {
    /// Nothing.
    Nothing,
    /// So much.
    Words(Place),
    /// All.
    All,
}

/// What a client has that connects again: its `Last-Event-ID`. What can't be read is nothing.
#[must_use]
pub fn had(headers: &HeaderMap) -> Had {
    let Some(id) = headers.get("last-event-id").and_then(|value| value.to_str().ok()) else { return Had::Nothing };
    if id == END {
        return Had::All;
    }
    let place = id.rsplit_once(':').and_then(|(stream, offset)| Some(Place { stream: stream.to_owned(), offset: offset.parse().ok()? }));
    place.filter(|place| place.stream.len() <= 40).map_or(Had::Nothing, Had::Words)
}

/// Streams a job's words.
#[must_use]
pub fn of_words(app: App, following: Following, authority: Authority, (tenant, reader): (i32, Reader), job: JobId, had: Had) -> Response {
    let at = match had {
        Had::Nothing => Place::default(),
        Had::Words(place) => place,
        Had::All => return super::nothing_more().into_response(),
    };
    let hearing = app.follow.words().follow(job);
    let ready = VecDeque::from([prelude()]);
    let begin = Telling {
        app,
        following,
        hearing,
        authority,
        tenant,
        reader,
        job,
        at,
        read: String::new(),
        ready,
        done: false,
        times: Times::begin(),
    };
    answer(stream::unfold(begin, |telling| async move { telling.next().await.map(|(bytes, telling)| (Ok(bytes), telling)) }))
}

fn event(name: &str, id: &str, data: &Value) -> Bytes {
    metrics::counter!("offstage_stream_events_total").increment(1);
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n").into()
}

struct Telling {
    app: App,
    following: Following,
    hearing: Hearing,
    authority: Authority,
    tenant: i32,
    reader: Reader,
    job: JobId,
    at: Place,
    /// Where to read on in Redis.
    read: String,
    ready: VecDeque<Bytes>,
    done: bool,
    times: Times,
}

impl Telling {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some((bytes, self));
            }
            if self.done {
                return None;
            }
            let seen = match self.following.latest() {
                Latest::Gone => return None,
                Latest::Unread => None,
                Latest::Seen(seen) => Some(seen),
            };
            if !self.authority.stands(&self.app, seen.as_deref()).await {
                return None;
            }
            let ended = seen.filter(|seen| seen.job.state.is_terminal());
            if let Some(seen) = ended {
                if self.end(&seen).await.is_ok() {
                    continue;
                }
            } else {
                self.hear().await;
                if !self.ready.is_empty() {
                    continue;
                }
            }
            let (beat_at, until) = (self.times.beat, self.times.until);
            let shutdown = self.app.shutdown.asked().clone();
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = self.following.news() => {}
                () = self.hearing.news() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = sleep_until(beat_at) => {
                    if Instant::now() >= until {
                        return None;
                    }
                    self.times.next_beat();
                    self.ready.push_back(beat());
                }
            }
        }
    }

    /// Tells what was added. Without Redis that is nothing: the end tells all.
    async fn hear(&mut self) {
        let entries = match self.hearing.read(&self.read).await {
            Ok(entries) => entries,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "words can't be read; they are told at the end");
                return;
            }
        };
        for entry in entries {
            self.read = entry.place;
            self.tell(&entry.words);
        }
    }

    /// Tells all that was added, however much it is: nothing more comes.
    async fn hear_all(&mut self) {
        loop {
            let place = self.read.clone();
            self.hear().await;
            if self.read == place {
                return;
            }
        }
    }

    /// Tells words of the stream that is told, from where it is known; another stream begins at its beginning only.
    fn tell(&mut self, Words { stream, offset, text }: &Words) {
        if *stream != self.at.stream {
            if *offset > 0 || self.comes_before(stream) {
                return;
            }
            self.begin(stream);
        }
        // What is known already is cut off; what has a gap before it waits for the end.
        let Some(rest) = self.at.offset.checked_sub(*offset).and_then(|known| text.get(known..)) else { return };
        self.add(rest);
    }

    /// Whether a stream began before the one that is told: a run that was thought lost may go on speaking for a while.
    fn comes_before(&self, stream: &str) -> bool {
        let order = |stream: &str| -> Option<(u64, u64)> {
            let (run, call) = stream.split_once('-')?;
            Some((run.parse().ok()?, call.parse().ok()?))
        };
        matches!((order(stream), order(&self.at.stream)), (Some(other), Some(told)) if other < told)
    }

    fn begin(&mut self, stream: &str) {
        let anew = !self.at.stream.is_empty();
        self.at = Place { stream: stream.to_owned(), offset: 0 };
        if anew {
            self.ready.push_back(event("restart", &format!("{stream}:0"), &json!({})));
        }
    }

    fn add(&mut self, text: &str) {
        if !text.is_empty() {
            self.at.offset += text.len();
            self.ready.push_back(event("words", &format!("{}:{}", self.at.stream, self.at.offset), &json!({ "text": text })));
        }
    }

    /// Tells the rest of what was said, and that the job has ended.
    async fn end(&mut self, seen: &Seen) -> Result<(), LedgerError> {
        let said = self.said().await.inspect_err(|error| {
            tracing::debug!(error = error as &dyn std::error::Error, "what a model said can't be read; trying again");
        })?;
        let said = said.or_else(|| {
            // Of an answer that was kept from an earlier question there was no call.
            let output = seen.job.result.as_ref()?.get("output")?;
            Some((WHOLE.to_owned(), output.as_str().map_or_else(|| output.to_string(), str::to_owned)))
        });
        if let Some((stream, text)) = said {
            if stream != self.at.stream || text.get(self.at.offset..).is_none() {
                self.begin(&stream);
            }
            let rest = text.get(self.at.offset..).unwrap_or_default().to_owned();
            self.add(&rest);
        } else {
            // No answer came to its end, as in a job that was cancelled: what was heard of it is there for as long as Redis keeps it.
            self.hear_all().await;
        }
        let state = serde_json::to_value(seen.job.state).unwrap_or_default();
        let mut end = json!({ "state": state });
        // What failed, as the job tells it to this reader.
        let view: Value = serde_json::from_slice(&seen.view(&self.app.kinds, &self.app.clock, self.reader, true)).unwrap_or_default();
        if let (Some(error), Some(fields)) = (view.get("error").filter(|error| error.is_object()), end.as_object_mut()) {
            fields.insert("error".to_owned(), error.clone());
        }
        self.ready.push_back(event("ended", END, &end));
        self.done = true;
        Ok(())
    }

    async fn said(&self) -> Result<Option<(String, String)>, LedgerError> {
        let mut transaction = tenant::transaction(&self.app.pool, self.tenant).await?;
        let said = ai::said(&mut transaction, self.job).await?;
        Ok(said.map(|said| (if said.stream.is_empty() { WHOLE.to_owned() } else { said.stream }, said.text)))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn an_id_says_what_is_there_already() {
        let of = |id: &str| had(&HeaderMap::from_iter([("last-event-id".parse().unwrap(), HeaderValue::from_str(id).unwrap())]));
        assert_eq!(of("2-1:17"), Had::Words(Place { stream: "2-1".into(), offset: 17 }));
        assert_eq!((of("end"), had(&HeaderMap::new())), (Had::All, Had::Nothing));
        for nothing in ["", "17", "2-1:", "2-1:-4", &format!("{}:1", "x".repeat(41))] {
            assert_eq!(of(nothing), Had::Nothing, "{nothing}");
        }
    }
}
