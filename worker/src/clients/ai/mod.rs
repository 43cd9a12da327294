//! Models: one executor for every provider, on the [guarded client](super::outbound).
//!
//! What must stay true: one call is one request, and nothing is tried again in here; one deadline covers all of it, the last word of a
//! streamed answer included; no more of an answer is kept than [`LONGEST_ANSWER`]; a key goes into one header and nowhere else, and nothing
//! is read from the environment, so that no call is ever made with another key than it was given.
//!
//! The wire's types are our own and narrow: `async-openai`'s take more than we ask for (`finish_reason` is a closed list there, `id`,
//! `created` and `object` are required), and servers that speak its dialect leave those out or have words of their own.

mod anthropic;
mod error;
mod openai;
mod pause;
mod sse;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use reqwest::{
    Method,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use shared::{
    outbound::Reach,
    tenant::{Provider, ProviderKind},
};
use tokio::time::Instant;
use url::Url;

use super::outbound::{Answer, Call, Outbound, Piece};
pub use error::{ANSWERED, AiError, OUTCOMES};
use sse::Events;

/// The longest answer, in bytes of its body: some hundred thousand tokens.
pub const LONGEST_ANSWER: usize = 2 * 1024 * 1024;

/// The longest text that is taken out of one, in bytes; a job's result has an end, and its ledger too.
pub const LONGEST_TEXT: usize = 256 * 1024;

/// How much of a refusal is read, for its words.
const REFUSAL: usize = 16 * 1024;

/// The client. One for the process.
#[derive(Debug)]
pub struct Models {
    outbound: Arc<Outbound>,
}

/// A question to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The model, by the provider's name for it.
    pub model: String,
    /// What it is told to be.
    pub system: Option<String>,
    /// What was said so far; the last is what it answers.
    pub turns: Vec<Turn>,
    /// What its answer must be, where the model takes a JSON Schema.
    pub schema: Option<Value>,
    /// The most tokens of its answer.
    pub max_tokens: u32,
    /// How freely it answers.
    pub temperature: Option<f64>,
}

/// Something that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// By whom.
    pub role: Role,
    /// What.
    pub text: String,
}

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The word of both dialects.
    const fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// What a model said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Its words.
    pub text: String,
    /// How it ended.
    pub finish: Finish,
    /// The tokens that it is charged by.
    pub usage: Usage,
    /// The provider's name for the call.
    pub request_id: Option<String>,
    /// The model as the provider names it.
    pub model: Option<String>,
}

/// How an answer ended. Only [`Finish::Complete`] is an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Finish {
    /// It is whole.
    Complete,
    /// It had no more tokens.
    Length,
    /// The provider's filter cut it off.
    ContentFilter,
    /// The model refused.
    Refusal,
    /// Something else, in the provider's word; also when it said nothing.
    #[default]
    Unknown,
}

/// The tokens of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Of the question.
    pub input_tokens: u64,
    /// Of the answer.
    pub output_tokens: u64,
    /// Whether they were counted by us because the provider did not say.
    #[serde(default)]
    pub estimated: bool,
}

impl Usage {
    /// What a call is thought to have taken of which the provider said nothing: a token is about four bytes of English. Rounded up, since
    /// who is charged by it must not get more than is paid for.
    #[must_use]
    pub fn estimate(question: &Question, answer: &str) -> Self {
        let tokens = |bytes: usize| u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX);
        let asked: usize = question.turns.iter().map(|turn| turn.text.len() + 16).sum();
        let schema = question.schema.as_ref().map_or(0, |schema| schema.to_string().len());
        let input = asked + schema + question.system.as_ref().map_or(0, String::len);
        Self { input_tokens: tokens(input), output_tokens: tokens(answer.len()), estimated: true }
    }

    /// What a stream is thought to have taken of which so many bytes were heard, in so many pieces: each of them is a token at least.
    #[must_use]
    pub fn heard(question: &Question, bytes: usize, pieces: u64) -> Self {
        let by_length = u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX);
        Self { output_tokens: by_length.max(pieces), ..Self::estimate(question, "") }
    }

    /// The question as the provider counted it, where it did, and no smaller answer than it counted.
    fn at_least(self, counted: Self) -> Self {
        let input_tokens = if counted.input_tokens > 0 { counted.input_tokens } else { self.input_tokens };
        Self { input_tokens, output_tokens: self.output_tokens.max(counted.output_tokens), ..self }
    }
}

/// The most tokens of a call that are believed, as at the door for calls that were made elsewhere (R47): no model has room for a hundredth
/// of them.
const MOST_TOKENS: u64 = 1_000_000_000;

/// A count of tokens as a provider says it. What is no count, `null`, below zero, not whole or more than [`MOST_TOKENS`], says nothing: it
/// is charged as an estimate then, and neither fails an answer that is paid for nor empties a budget.
fn tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let said = Value::deserialize(deserializer)?;
    Ok(said.as_u64().filter(|tokens| *tokens <= MOST_TOKENS))
}

/// Hears the words of an answer while they come.
pub trait Listener: Send {
    /// More of it. Must not wait.
    fn heard(&mut self, words: &str);
}

/// Nobody listens.
impl Listener for () {
    fn heard(&mut self, _: &str) {}
}

impl Models {
    /// Connects to nothing yet.
    #[must_use]
    pub const fn new(outbound: Arc<Outbound>) -> Self {
        Self { outbound }
    }

    /// Asks a model once. `listener` has it streamed. `now` is what a date in an answer is compared with.
    ///
    /// # Errors
    /// [`AiError`]: there is no answer, or none that can be used.
    pub async fn ask(
        &self,
        provider: &Provider,
        key: Option<&SecretString>,
        question: &Question,
        within: Duration,
        listener: Option<&mut dyn Listener>,
        now: DateTime<Utc>,
    ) -> Result<Reply, AiError> {
        let began = Instant::now();
        let streamed = listener.is_some();
        let (path, body) = match provider.kind {
            ProviderKind::OpenAi => ("chat/completions", openai::request(provider, question, streamed)),
            ProviderKind::Anthropic => ("messages", anthropic::request(question, streamed)),
        };
        let mut url = provider.base_url.clone();
        // A base address has a path, or it would not have been taken.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        let call = Call {
            headers: headers(provider.kind, key, streamed)?,
            keep: LONGEST_ANSWER,
            keep_of_refusal: REFUSAL,
            ..Call::post(url, if provider.private { Reach::Inside } else { Reach::Public }, Bytes::from(body.to_string()), within)
        };
        let opened = self.outbound.open(call).await?;
        let request_id = request_id(&opened.headers);
        if !opened.status.is_success() {
            return Err(AiError::refused(&opened.read(REFUSAL).await, key, now));
        }
        let is_stream = opened
            .headers
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .is_some_and(|kind| kind.starts_with("text/event-stream"));
        let mut reply = match listener {
            // A server that does not stream although it was asked to is read as it answers.
            Some(listener) if is_stream => {
                read_stream(provider.kind, opened, question, listener, within).await.map_err(|error| error.told_without(key))?
            }
            listener => {
                let answer = opened.read(LONGEST_ANSWER).await;
                let reply = whole(provider.kind, &answer, began, within).map_err(|error| error.told_without(key))?;
                if let Some(listener) = listener {
                    listener.heard(&storable(&reply.text));
                }
                reply
            }
        };
        reply.text = storable(&reply.text);
        if reply.text.len() > LONGEST_TEXT {
            return Err(AiError::TooLong);
        }
        if reply.usage == Usage::default() {
            reply.usage = Usage::estimate(question, &reply.text);
        }
        // Both are kept with the job: neither may be a place for a key.
        let kept = |text: String| storable(&error::hidden(&text, key));
        reply.request_id = request_id.or(reply.request_id).map(kept);
        reply.model = reply.model.map(kept);
        Ok(reply)
    }
}

impl Models {
    /// Asks a provider whether it takes a key, by a GET that costs nothing.
    ///
    /// # Errors
    /// [`AiError`]: it does not, or did not say.
    pub async fn check(
        &self,
        kind: ProviderKind,
        url: Url,
        private: bool,
        key: &SecretString,
        within: Duration,
        now: DateTime<Utc>,
    ) -> Result<(), AiError> {
        let reach = if private { Reach::Inside } else { Reach::Public };
        let call = Call {
            method: Method::GET,
            headers: headers(kind, Some(key), false)?,
            keep_of_refusal: REFUSAL,
            ..Call::post(url, reach, Bytes::new(), within)
        };
        let answer = self.outbound.send(call).await?;
        if answer.status.is_success() { Ok(()) } else { Err(AiError::refused(&answer, Some(key), now)) }
    }
}

/// A text as it can be kept: Postgres stores no NUL, and an answer that can't be written down would be asked and paid for again.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn whole(kind: ProviderKind, answer: &Answer, began: Instant, within: Duration) -> Result<Reply, AiError> {
    if answer.is_cut {
        return Err(match answer.body.len() {
            LONGEST_ANSWER.. => AiError::TooLong,
            _ if began.elapsed() >= within => AiError::Late { within, heard: None },
            _ => AiError::Cut { heard: None },
        });
    }
    match kind {
        ProviderKind::OpenAi => openai::reply(&answer.body),
        ProviderKind::Anthropic => anthropic::reply(&answer.body),
    }
}

/// What a stream made of an answer so far.
trait Gathering {
    /// One event: what it adds to the text.
    fn add(&mut self, event: &str) -> Result<String, AiError>;
    /// Whether it is whole.
    fn is_whole(&self) -> bool;
    /// What it is.
    fn reply(self: Box<Self>) -> Reply;
}

async fn read_stream(
    kind: ProviderKind,
    mut opened: super::outbound::Opened,
    question: &Question,
    listener: &mut dyn Listener,
    within: Duration,
) -> Result<Reply, AiError> {
    let mut gathering: Box<dyn Gathering + Send> = match kind {
        ProviderKind::OpenAi => Box::new(openai::Gathered::default()),
        ProviderKind::Anthropic => Box::new(anthropic::Gathered::default()),
    };
    let (mut events, mut read, mut text, mut pieces) = (Events::default(), 0_usize, 0_usize, 0_u64);
    loop {
        let piece = opened.next().await;
        let Piece::More(bytes) = piece else {
            // Some servers end with the connection instead of a word for it.
            if gathering.is_whole() {
                return Ok(gathering.reply());
            }
            let reply = gathering.reply();
            // What was said is charged all the same. What it counted itself until then may be of its beginning.
            let usage = Usage::heard(question, reply.text.len(), pieces).at_least(reply.usage);
            let heard = (pieces > 0).then(|| Box::new(Reply { usage, ..reply }));
            return Err(if piece == Piece::Late { AiError::Late { within, heard } } else { AiError::Cut { heard } });
        };
        read += bytes.len();
        // Each few words come in an envelope of some hundred bytes.
        if read > 64 * LONGEST_ANSWER {
            return Err(AiError::TooLong);
        }
        for event in events.take(&bytes)? {
            // As what is kept in the end: who follows has its place in that, in bytes.
            let words = storable(&gathering.add(&event)?);
            text += words.len();
            if text > LONGEST_TEXT {
                return Err(AiError::TooLong);
            }
            if !words.is_empty() {
                pieces += 1;
                listener.heard(&words);
            }
        }
    }
}

fn headers(kind: ProviderKind, key: Option<&SecretString>, streamed: bool) -> Result<HeaderMap, AiError> {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert("accept", HeaderValue::from_static(if streamed { "text/event-stream" } else { "application/json" }));
    let secret = |text: &str| {
        let mut value = HeaderValue::from_str(text).map_err(|_| AiError::KeyUnusable)?;
        value.set_sensitive(true);
        Ok::<_, AiError>(value)
    };
    if kind == ProviderKind::Anthropic {
        // https://platform.claude.com/docs/en/api/versioning
        headers.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
    }
    if let Some(key) = key {
        match kind {
            ProviderKind::OpenAi => headers.insert(AUTHORIZATION, secret(&format!("Bearer {}", key.expose_secret()))?),
            ProviderKind::Anthropic => headers.insert("x-api-key", secret(key.expose_secret())?),
        };
    }
    Ok(headers)
}

/// The provider's name for a call: `OpenAI` and most others have `x-request-id`, Anthropic `request-id`.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let found = ["x-request-id", "request-id"].iter().find_map(|name| headers.get(*name));
    found.and_then(|value| value.to_str().ok()).map(|id| id.chars().take(200).collect())
}
