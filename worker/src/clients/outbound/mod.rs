//! The one way out for every address that somebody else named: push endpoints, completions, webhooks, a model's server.
//!
//! What must stay true: where a call goes the [`Guard`] decides, for the URL and for each address that its name leads to; names are resolved
//! here and the connection goes to what is left, so no second lookup can move it, and a connection is shared only by calls of the same
//! reach. No proxy of the environment, no redirect. One deadline covers all of a call, lookup and the answer's body included, and of that
//! body no more is read than the call wants.

mod error;
mod resolve;

use std::{sync::OnceLock, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use reqwest::{
    Client, Method, StatusCode,
    header::{HeaderMap, RETRY_AFTER},
    redirect::Policy,
};
use shared::outbound::{Guard, Reach};
use tokio::time::{Instant, timeout_at};
use url::Url;

pub use error::OutboundError;
use resolve::Resolver;

/// The longest that a connection may take to come about, lookup and TLS included; a call's own deadline may be nearer.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Idle connections that are kept for a host: push services take many messages on one.
const IDLE_OF_HOST: usize = 16;

/// The longest pause that an answer may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3_600);

/// The most characters of an answer that are quoted.
const EXCERPT: usize = 300;

/// The client. One for the process; its pools are made at the first call.
#[derive(Debug, Default)]
pub struct Outbound {
    guard: Guard,
    public: OnceLock<Client>,
    inside: OnceLock<Client>,
    loopback: OnceLock<Client>,
}

/// A call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Where to.
    pub url: Url,
    /// Who named the address.
    pub reach: Reach,
    /// How.
    pub method: Method,
    /// With these headers.
    pub headers: HeaderMap,
    /// And this body.
    pub body: Bytes,
    /// The longest that all of it may take.
    pub within: Duration,
    /// The most bytes of a 2xx answer's body that are read; none at 0, and then it is not waited for either.
    pub keep: usize,
    /// The same for any other answer.
    pub keep_of_refusal: usize,
}

impl Call {
    /// A POST whose success has no body that matters.
    #[must_use]
    pub fn post(url: Url, reach: Reach, body: Bytes, within: Duration) -> Self {
        Self { url, reach, method: Method::POST, headers: HeaderMap::new(), body, within, keep: 0, keep_of_refusal: 2 * EXCERPT }
    }

    /// With one header more. One whose value can't be sent is left out: the values of this house can.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl TryInto<reqwest::header::HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.headers.insert(name, value);
        }
        self
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, or its beginning.
    pub body: Bytes,
    /// Whether the body went on, was cut off or did not come in time.
    pub is_cut: bool,
}

/// An answer whose body is still to come, under the deadline of its call.
#[derive(Debug)]
pub struct Opened {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    answer: reqwest::Response,
    deadline: Instant,
}

/// A piece of a body, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// More of it.
    More(Bytes),
    /// It ended as it should.
    End,
    /// The connection was cut.
    Cut,
    /// The call's deadline has passed.
    Late,
}

impl Opened {
    /// The next piece of the body.
    pub async fn next(&mut self) -> Piece {
        match timeout_at(self.deadline, self.answer.chunk()).await {
            Ok(Ok(Some(chunk))) => Piece::More(chunk),
            Ok(Ok(None)) => Piece::End,
            Ok(Err(_)) => Piece::Cut,
            Err(_) => Piece::Late,
        }
    }

    /// The whole of it, as far as `keep` bytes. The status is known, so a body that fails is no failure of the call.
    pub async fn read(mut self, keep: usize) -> Answer {
        let (mut body, mut is_cut) = (Vec::new(), keep == 0);
        while !is_cut {
            match self.next().await {
                Piece::More(chunk) => {
                    let room = keep - body.len();
                    is_cut = chunk.len() > room;
                    body.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
                }
                Piece::End => break,
                Piece::Cut | Piece::Late => is_cut = true,
            }
        }
        Answer { status: self.status, headers: self.headers, body: body.into(), is_cut }
    }
}

impl Answer {
    /// When the other side wants to be asked again: seconds or a date (RFC 9110, section 10.2.3), at most a day.
    #[must_use]
    pub fn retry_after(&self, now: DateTime<Utc>) -> Option<Duration> {
        let value = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let pause = match value.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            // A date that has passed means now.
            Err(_) => (DateTime::parse_from_rfc2822(value).ok()?.to_utc() - now).to_std().unwrap_or_default(),
        };
        Some(pause.min(LONGEST_PAUSE))
    }

    /// The body's beginning as one line of text, for an error's words; `None` when it says nothing.
    #[must_use]
    pub fn excerpt(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.body);
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(EXCERPT).collect();
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

impl Outbound {
    /// With the operator's list.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self { guard, ..Self::default() }
    }

    /// Makes a call. Any status is an answer.
    ///
    /// # Errors
    /// [`OutboundError`], where there was none.
    pub async fn send(&self, call: Call) -> Result<Answer, OutboundError> {
        let (keep, keep_of_refusal) = (call.keep, call.keep_of_refusal);
        let opened = self.open(call).await?;
        let keep = if opened.status.is_success() { keep } else { keep_of_refusal };
        Ok(opened.read(keep).await)
    }

    /// Makes a call whose answer's body is read piece by piece.
    ///
    /// # Errors
    /// [`OutboundError`], where there was no answer.
    pub async fn open(&self, call: Call) -> Result<Opened, OutboundError> {
        let deadline = Instant::now() + call.within;
        let host = call.url.host_str().unwrap_or_default().to_owned();
        self.guard.url(&call.url, call.reach).map_err(|why| OutboundError::NotAllowed { host: host.clone(), why })?;
        let request = self.client(call.reach)?.request(call.method, call.url).headers(call.headers).body(call.body);
        let mut answer = match timeout_at(deadline, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(OutboundError::of(host, error)),
            Err(_) => return Err(OutboundError::Late { host, within: call.within }),
        };
        Ok(Opened { status: answer.status(), headers: std::mem::take(answer.headers_mut()), answer, deadline })
    }

    fn client(&self, reach: Reach) -> Result<&Client, OutboundError> {
        let slot = match reach {
            Reach::Public => &self.public,
            Reach::Inside => &self.inside,
            Reach::Loopback => &self.loopback,
        };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        #[expect(clippy::disallowed_methods, reason = "the program's clients for this: they reach what they may, within a deadline")]
        let builder = Client::builder();
        let client = builder
            .connect_timeout(CONNECT_WITHIN)
            .no_proxy()
            .redirect(Policy::none())
            .dns_resolver(Resolver::new(self.guard.clone(), reach))
            .user_agent(concat!("Offstage/", env!("CARGO_PKG_VERSION")))
            .pool_max_idle_per_host(IDLE_OF_HOST)
            .build()
            .map_err(OutboundError::Client)?;
        Ok(slot.get_or_init(|| client))
    }
}

#[cfg(test)]
mod tests;
