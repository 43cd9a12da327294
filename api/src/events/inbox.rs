//! One inbox as a stream.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use shared::{
    ledger::{
        LedgerError,
        inbox::{self, Notification},
    },
    tenant,
};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{Authority, Times, answer, beat, event, prelude};
use crate::{app::App, follow::Listener};

/// Told ones that a listener remembers while an older transaction is under way.
const REMEMBERED: usize = 2 * 200;

/// When what could not be read is read again.
const AGAIN: Duration = Duration::from_secs(1);

/// Streams an inbox from a mark on, or from now.
#[must_use]
pub fn of_inbox(app: App, listener: Listener, authority: Authority, mark: Option<i64>) -> Response {
    let begin = OneInbox {
        app,
        listener,
        authority,
        look: mark.map_or(Look::Now, Look::From),
        marked: 0,
        told: HashMap::new(),
        ready: VecDeque::from([prelude()]),
        times: Times::begin(),
    };
    answer(stream::unfold(begin, |listener| async move { listener.next().await.map(|(bytes, listener)| (Ok(bytes), listener)) }))
}

/// What a listener has to read for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Nothing: what is new is brought.
    No,
    /// How many are unread, for who begins now.
    Now,
    /// What came since a mark.
    From(i64),
}

struct OneInbox {
    app: App,
    listener: Listener,
    authority: Authority,
    /// Whether it has to look for itself.
    look: Look,
    /// The mark that the client has: all that earlier transactions wrote was told.
    marked: i64,
    /// What was told of transactions above the mark.
    told: HashMap<Uuid, i64>,
    ready: VecDeque<Bytes>,
    times: Times,
}

impl OneInbox {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some((bytes, self));
            }
            if self.look == Look::No {
                let arrived = self.listener.take();
                if arrived.missed {
                    self.look = Look::Now;
                    continue;
                }
                if !arrived.news.is_empty() {
                    if !self.authority.stands(&self.app, None).await {
                        return None;
                    }
                    for news in arrived.news {
                        self.tell(news.position, &news.notification);
                    }
                    continue;
                }
                if self.settle(arrived.settled) {
                    self.ready.push_back(only_id(self.marked));
                    continue;
                }
            } else {
                match self.look().await {
                    Ok(()) => {
                        self.look = Look::No;
                        continue;
                    }
                    Err(error) => {
                        tracing::debug!(
                            error = &error as &dyn std::error::Error,
                            "an inbox could not be read for its listener; trying again"
                        );
                    }
                }
            }
            let again = if self.look == Look::No { self.times.until } else { Instant::now() + AGAIN };
            let (beat_at, until) = (self.times.beat, self.times.until);
            let shutdown = self.app.shutdown.asked().clone();
            let wants_news = self.look == Look::No;
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = self.listener.news(), if wants_news => {}
                () = sleep_until(beat_at) => {
                    if Instant::now() >= until || !self.authority.stands(&self.app, None).await {
                        return None;
                    }
                    self.times.next_beat();
                    // So that who connects again after a long silence names a mark that is not old.
                    let quiet = if self.look == Look::No && self.marked > 0 { only_id(self.marked) } else { beat() };
                    return Some((quiet, self));
                }
                () = sleep_until(again) => {}
            }
        }
    }

    /// Tells of one, unless it was told before.
    fn tell(&mut self, position: i64, notification: &Notification) {
        if position <= self.marked || self.told.contains_key(&notification.id) {
            return;
        }
        if self.told.len() >= REMEMBERED {
            self.told.clear();
        }
        self.told.insert(notification.id, position);
        // A notification is strings, numbers and times: nothing in it that JSON can't hold.
        let data = serde_json::to_vec(notification).unwrap_or_default();
        self.ready.push_back(event("notification", self.marked, &data));
    }

    /// All transactions up to this one have ended, and what they wrote was told; whether something told before is below the mark now, so
    /// that the client should hear of it.
    fn settle(&mut self, settled: i64) -> bool {
        if settled <= self.marked {
            return false;
        }
        self.marked = settled;
        let before = self.told.len();
        self.told.retain(|_, position| *position > settled);
        self.told.len() < before
    }

    /// Reads the inbox: what is newer than a mark, or how many are unread.
    async fn look(&mut self) -> Result<(), LedgerError> {
        let (tenant, owner) = (self.listener.tenant(), self.listener.owner().to_owned());
        // Many may connect at once; the others' requests must find a connection too.
        let app = self.app.clone();
        let _turn = app.pictures.acquire().await;
        // Before the reading: what these transactions wrote is visible then.
        let settled = inbox::settled_up_to(&app.pool).await?;
        let mut transaction = tenant::transaction(&app.pool, tenant).await?;
        // A mark beyond the present is of another database: this one was restored since.
        if let Look::From(mark) = self.look
            && (0..=settled).contains(&mark)
        {
            let (newer, more) = inbox::recent(&mut transaction, tenant, &owner, mark).await?;
            if !more {
                drop(transaction);
                self.marked = mark;
                for (position, notification) in &newer {
                    self.tell(*position, notification);
                }
                self.settle(settled);
                self.ready.push_back(only_id(self.marked));
                return Ok(());
            }
        }
        let unread = inbox::unread(&mut transaction, tenant, &owner).await?;
        drop(transaction);
        self.told.clear();
        self.marked = settled;
        self.ready.push_back(event("inbox", settled, json!({ "unread_count": unread }).to_string().as_bytes()));
        Ok(())
    }
}

/// An event without data sets the reader's last id and is none to it (the standard's "dispatch the event").
fn only_id(id: i64) -> Bytes {
    format!("id: {id}\n\n").into()
}
