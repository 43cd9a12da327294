//! Streams of server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>): one job's, or all of a tenant's
//! or user's.
//!
//! What must stay true: the data of an event is the job's view, as every other door shows it; a stream ends once who opened it may no
//! longer see what it shows, once the program is asked to stop, and after [`LONGEST`] at the latest, and whoever connects again with
//! its `Last-Event-ID` has missed nothing; between two events a listener is a timer and an entry in a table.
//!
//! | event | id | data |
//! |---|---|---|
//! | `changed` | one job: its version; many: a mark to go on from | the job |
//! | `ended` | the same | the job in its final state; of one job the last event |
//! | `inbox`, `notification` | notifications: a mark | the number of unread ones; a notification |
//! | `snapshot` | many only: a mark | `{"unfinished", "complete"}`: those told before it are all that is unfinished |

mod inbox;
mod words;

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream;
use serde_json::json;
use shared::{
    job::{JobId, State},
    keys::KeyHash,
    ledger::{
        LedgerError,
        find::{self, Filter, FoundJob},
        links::LinkHash,
    },
    queue::Queue,
    random,
    status::Reader,
    tenant,
};
use tokio::time::{Instant, sleep_until};

use crate::{
    app::App,
    follow::{Following, Latest, Listening, Seen},
    problem::{Code, Problem},
};

pub use inbox::of_inbox;
pub use words::{had as words_had, of_words};

/// Between two comments that keep an idle connection from looking dead; below the 30 to 60 s of most proxies.
const BEAT_EVERY: Duration = Duration::from_secs(15);

/// The longest that a stream lasts; then its client connects again, perhaps to another replica.
pub const LONGEST: Duration = Duration::from_secs(3_600);

/// When a client whose stream ended connects again, at the soonest and with as much again by chance: those of a replica that stopped
/// should not all come at once.
const RETRY_MS: f64 = 1_000.0;

/// Unfinished jobs of each state, or jobs of an owner, that a picture looks at.
const PICTURE: i64 = 500;

/// Jobs that a listener to many remembers to have told.
const REMEMBERED: usize = 4 * 500;

/// A new picture is taken so often without a reason, in heartbeats: what nobody told of is found by it.
const PICTURE_EVERY: u32 = 2;

/// When those who found no place should come again.
const COME_AGAIN: Duration = Duration::from_secs(5);

/// How much before a mark an end is told again, since marks and ends are times of different processes.
const OVERLAP: TimeDelta = TimeDelta::seconds(5);

/// By what right somebody listens. Asked again before each event and at each heartbeat.
#[derive(Debug, Clone, Copy)]
pub enum Authority {
    /// An API key.
    Key(KeyHash),
    /// A user's token.
    Token {
        /// The key that it was made by, which must stand too.
        key: KeyHash,
        /// Until when.
        expires_at: DateTime<Utc>,
    },
    /// A job's address.
    Link {
        /// Of its token.
        hash: LinkHash,
        /// Until when.
        expires_at: DateTime<Utc>,
    },
}

impl Authority {
    pub(crate) async fn stands(self, app: &App, seen: Option<&Seen>) -> bool {
        let now = app.clock.now();
        match self {
            Self::Token { expires_at, .. } if expires_at <= now => false,
            Self::Key(hash) | Self::Token { key: hash, .. } => match app.keys.find(hash).await {
                Ok(found) => found.is_some_and(|key| key.revoked_at.is_none() && key.expires_at > now),
                // While the database is away there is nothing to show either.
                Err(_) => true,
            },
            Self::Link { hash, expires_at } => {
                expires_at > now && seen.and_then(|seen| seen.links.as_ref()).is_none_or(|links| links.contains(&hash))
            }
        }
    }
}

/// The `Last-Event-ID` of a client that connects again.
#[must_use]
pub fn last_event_id(headers: &HeaderMap) -> Option<i64> {
    headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok()
}

/// No place for another stream.
#[must_use]
pub fn no_place() -> Problem {
    let detail = "Too many streams are open here just now. Poll instead, or come again in a moment.";
    Problem::new(Code::Overloaded, detail).retry_after(COME_AGAIN)
}

/// To a client that has seen the end: 204 keeps a browser from connecting again.
#[must_use]
pub fn nothing_more() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

fn answer(events: impl stream::Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // nginx would else collect events before it passes them on.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(events)).into_response()
}

fn event(name: &str, id: i64, data: &[u8]) -> Bytes {
    metrics::counter!("offstage_stream_events_total").increment(1);
    // JSON as serde writes it has no line breaks.
    [format!("id: {id}\nevent: {name}\ndata: ").as_bytes(), data, b"\n\n"].concat().into()
}

/// The first lines: when to connect again.
fn prelude() -> Bytes {
    format!("retry: {:.0}\n\n", RETRY_MS * (1.0 + random::fraction())).into()
}

/// When things happen in a stream.
struct Times {
    beat: Instant,
    until: Instant,
}

impl Times {
    fn begin() -> Self {
        let now = Instant::now();
        // Spread, so that those who came together don't beat together.
        Self {
            beat: now + BEAT_EVERY.mul_f64(0.5 + random::fraction() / 2.0),
            until: now + LONGEST.mul_f64(0.9 + random::fraction() / 10.0),
        }
    }

    fn next_beat(&mut self) {
        self.beat = Instant::now() + BEAT_EVERY;
    }
}

fn beat() -> Bytes {
    Bytes::from_static(b":\n\n")
}

/// Streams one job, from the state after version `told` on.
#[must_use]
pub fn of_job(app: App, following: Following, authority: Authority, reader: Reader, told: Option<i32>) -> Response {
    let begin = OneJob { app, following, authority, reader, told, times: Times::begin(), step: Step::Begin };
    answer(stream::unfold(begin, |listener| async move { listener.next().await.map(|(bytes, listener)| (Ok(bytes), listener)) }))
}

#[derive(PartialEq, Eq)]
enum Step {
    Begin,
    Going,
    Done,
}

struct OneJob {
    app: App,
    following: Following,
    authority: Authority,
    reader: Reader,
    told: Option<i32>,
    times: Times,
    step: Step,
}

impl OneJob {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        match self.step {
            Step::Begin => {
                self.step = Step::Going;
                return Some((prelude(), self));
            }
            Step::Going => {}
            Step::Done => return None,
        }
        loop {
            match self.following.latest() {
                Latest::Unread => {}
                Latest::Gone => return None,
                Latest::Seen(seen) => {
                    if !self.authority.stands(&self.app, Some(&seen)).await {
                        return None;
                    }
                    if self.told.is_none_or(|told| told < seen.job.version) {
                        self.told = Some(seen.job.version);
                        let name = if seen.job.state.is_terminal() { "ended" } else { "changed" };
                        if seen.job.state.is_terminal() {
                            self.step = Step::Done;
                        }
                        let view = seen.view(&self.app.kinds, &self.app.clock, self.reader, false);
                        return Some((event(name, seen.job.version.into(), &view), self));
                    }
                }
            }
            let (beat_at, until) = (self.times.beat, self.times.until);
            let shutdown = self.app.shutdown.asked().clone();
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = self.following.news() => {}
                () = sleep_until(beat_at) => {
                    if Instant::now() >= until || !self.authority.stands(&self.app, None).await {
                        return None;
                    }
                    self.times.next_beat();
                    return Some((beat(), self));
                }
            }
        }
    }
}

/// Streams a tenant's jobs, beginning with those that are unfinished and those that ended since a mark.
#[must_use]
pub fn of_jobs(app: App, listening: Listening, tenant: i32, authority: Authority, reader: Reader, mark: Option<i64>) -> Response {
    let since = mark.and_then(DateTime::from_timestamp_millis).map(|since| since - OVERLAP);
    let begin = ManyJobs {
        app,
        listening,
        tenant,
        authority,
        reader,
        told: HashMap::new(),
        ready: VecDeque::from([prelude()]),
        picture: Some(Why::Asked { since }),
        beats: 0,
        times: Times::begin(),
    };
    answer(stream::unfold(begin, |listener| async move { listener.next().await.map(|(bytes, listener)| (Ok(bytes), listener)) }))
}

/// Why a picture is taken.
#[derive(Debug, Clone, Copy)]
enum Why {
    /// The client connected, or something was missed: it is told when the picture is whole.
    Asked { since: Option<DateTime<Utc>> },
    /// It is time: only what nobody told of is told.
    Time,
}

struct ManyJobs {
    app: App,
    listening: Listening,
    tenant: i32,
    authority: Authority,
    reader: Reader,
    /// What was told of jobs that were unfinished then, and of those that a picture found ended.
    told: HashMap<JobId, (i32, bool)>,
    ready: VecDeque<Bytes>,
    picture: Option<Why>,
    beats: u32,
    times: Times,
}

impl ManyJobs {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some((bytes, self));
            }
            if let Some(why) = self.picture {
                match self.take_picture(why).await {
                    Ok(()) => self.picture = None,
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "no picture could be taken for a listener; trying again");
                    }
                }
                if self.picture.is_none() {
                    continue;
                }
            } else {
                match self.listening.take() {
                    Some(seen) if seen.is_empty() => {}
                    Some(seen) => {
                        if !self.authority.stands(&self.app, None).await {
                            return None;
                        }
                        for seen in &seen {
                            self.tell(seen);
                        }
                        continue;
                    }
                    None => {
                        self.picture = Some(Why::Asked { since: None });
                        continue;
                    }
                }
            }
            let again = if self.picture.is_some() { Instant::now() + Duration::from_secs(1) } else { self.times.until };
            let (beat_at, until) = (self.times.beat, self.times.until);
            let shutdown = self.app.shutdown.asked().clone();
            let wants_news = self.picture.is_none();
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = self.listening.news(), if wants_news => {}
                () = sleep_until(beat_at) => {
                    if Instant::now() >= until || !self.authority.stands(&self.app, None).await {
                        return None;
                    }
                    self.times.next_beat();
                    self.beats = self.beats.wrapping_add(1);
                    if self.picture.is_none() && self.beats.is_multiple_of(PICTURE_EVERY) {
                        self.picture = Some(Why::Time);
                    }
                    return Some((beat(), self));
                }
                () = sleep_until(again) => {}
            }
        }
    }

    fn tell(&mut self, seen: &Seen) {
        let (id, version, ended) = (seen.job.id, seen.job.version, seen.job.state.is_terminal());
        if self.told.get(&id).is_some_and(|(told, _)| *told >= version) {
            return;
        }
        if ended {
            self.told.remove(&id);
        } else if self.told.len() < REMEMBERED {
            self.told.insert(id, (version, false));
        }
        let view = seen.view(&self.app.kinds, &self.app.clock, self.reader, true);
        self.ready.push_back(event(if ended { "ended" } else { "changed" }, self.app.clock.now().timestamp_millis(), &view));
    }

    async fn take_picture(&mut self, why: Why) -> Result<(), LedgerError> {
        // An end that was told of by a picture is old news by now.
        self.told.retain(|_, (_, ended)| !*ended);
        let now = self.app.clock.now();
        let since = match why {
            Why::Asked { since } => since,
            Why::Time => None,
        };
        let (found, complete) = self.look(since).await?;
        let mut unfinished = 0;
        for job in found {
            unfinished += usize::from(!job.state.is_terminal());
            let (id, version, ended) = (job.id, job.version, job.state.is_terminal());
            self.tell(&Seen::new(job, None));
            if ended && self.told.len() < REMEMBERED {
                self.told.insert(id, (version, true));
            }
        }
        if let Why::Asked { .. } = why {
            let told = json!({"unfinished": unfinished, "complete": complete}).to_string();
            self.ready.push_back(event("snapshot", now.timestamp_millis(), told.as_bytes()));
        }
        Ok(())
    }

    /// The unfinished jobs of interest, those that ended since, and those that were told of as unfinished and are no more; and whether
    /// that is all.
    async fn look(&self, since: Option<DateTime<Utc>>) -> Result<(Vec<FoundJob>, bool), LedgerError> {
        let interest = self.listening.interest();
        let filter = Filter {
            kind: interest.kind.clone(),
            owner: interest.owner.clone(),
            queue: interest.queue.as_deref().and_then(Queue::from_name),
            ..Filter::default()
        };
        // Many may connect at once; the others' requests must find a connection too.
        let _turn = self.app.pictures.acquire().await;
        let mut transaction = tenant::transaction(&self.app.pool, self.tenant).await?;
        let mut complete = true;
        let mut found: HashMap<JobId, FoundJob> = HashMap::new();
        let mut add = |jobs: Vec<FoundJob>, counts: bool| {
            complete &= !counts || jobs.len() < usize::try_from(PICTURE).unwrap_or(usize::MAX);
            let wanted = |job: &FoundJob| match job.finished_at.filter(|_| job.state.is_terminal()) {
                None => true,
                Some(ended) => since.is_some_and(|since| ended >= since),
            };
            found.extend(jobs.into_iter().filter(wanted).map(|job| (job.id, job)));
        };
        if interest.owner.is_some() {
            add(find::list(&mut transaction, self.tenant, &filter, PICTURE).await?, true);
        } else {
            for state in [State::Waiting, State::Queued, State::Running] {
                let filter = Filter { state: Some(state), ..filter.clone() };
                add(find::list(&mut transaction, self.tenant, &filter, PICTURE).await?, true);
            }
            if since.is_some() {
                add(find::list(&mut transaction, self.tenant, &filter, PICTURE).await?, false);
            }
        }
        let lost: Vec<_> = self.told.keys().filter(|id| !found.contains_key(id)).map(|id| id.0).collect();
        if !lost.is_empty() {
            let lost = find::followed(&mut transaction, self.tenant, &lost, &[]).await?;
            found.extend(lost.into_iter().map(|job| (job.id, job)));
        }
        drop(transaction);
        let mut found: Vec<_> = found.into_values().collect();
        found.sort_unstable_by_key(|job| job.id);
        Ok((found, complete))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_as_the_standard_has_them() {
        assert_eq!(event("changed", 7, b"{\"a\":1}"), "id: 7\nevent: changed\ndata: {\"a\":1}\n\n");
        let prelude = prelude();
        let retry = std::str::from_utf8(&prelude).unwrap().strip_prefix("retry: ").unwrap().trim_end();
        assert!((1_000..=2_000).contains(&retry.parse::<u32>().unwrap()));
    }

    #[test]
    fn marks_of_others_are_no_marks() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", value.parse().unwrap());
            last_event_id(&headers)
        };
        assert_eq!((of("7"), of(" 8 "), of("x"), of("")), (Some(7), Some(8), None, None));
        assert_eq!(last_event_id(&HeaderMap::new()), None);
    }
}
