//! The listening side: who asks, what is asked, what it is answered with, and how.

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Answer, Asked, CALLS_KEPT, MODELS, Question, SCRIPTED, Said, State, Trouble, anthropic, locked, openai, pause};
use crate::faults::{Body, Fault, Faults, Request};
use crate::services::door::LONGEST_WAIT;

/// The longest question.
const BODY: usize = 4 * 1024 * 1024;

#[derive(Clone)]
pub(super) struct Server {
    pub(super) faults: Faults,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) paused: watch::Receiver<bool>,
}

/// What a model's address begins with.
const ONE_MODEL: &str = "/v1/models/";

type Answered = std::io::Result<Response<Body>>;

/// Whose protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    OpenAi,
    Anthropic,
}

impl Dialect {
    fn error(self, status: u16, code: Option<&str>, message: &str) -> Value {
        match self {
            Self::OpenAi => openai::error(status, code, message),
            Self::Anthropic => anthropic::error(status, code, message),
        }
    }

    fn refusal(self, status: u16, code: Option<&str>, message: &str, headers: &[(String, String)]) -> Answered {
        let mut response = json_answer(status, &self.error(status, code, message))?;
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(std::io::Error::other)?;
            response.headers_mut().insert(name, HeaderValue::from_str(value).map_err(std::io::Error::other)?);
        }
        Ok(response)
    }
}

impl Server {
    /// An error cuts the connection.
    pub(super) async fn answer(mut self, request: hyper::Request<Incoming>) -> Answered {
        let (parts, body) = request.into_parts();
        // An error means that the sandbox has gone.
        let _ = tokio::time::timeout(LONGEST_WAIT, self.paused.wait_for(|paused| !paused)).await?;
        let body = Limited::new(body, BODY).collect().await.map(http_body_util::Collected::to_bytes);
        let path = parts.uri.path().to_owned();
        // The one thing that tells a client of the one from a client of the other where both ask for models.
        let by_header = if parts.headers.contains_key("anthropic-version") { Dialect::Anthropic } else { Dialect::OpenAi };
        let (operation, dialect) = match (&parts.method, path.as_str()) {
            (&Method::POST, "/v1/chat/completions") => ("chat.completions", Dialect::OpenAi),
            (&Method::POST, "/v1/messages") => ("messages", Dialect::Anthropic),
            (&Method::GET, path) if path == "/v1/models" || path.starts_with(ONE_MODEL) => ("models", by_header),
            (&Method::GET, "/calls") => return json_answer(200, &json!(locked(&self.state).calls)),
            (&Method::POST, "/script") => return self.script(&body.unwrap_or_default()),
            _ => return by_header.refusal(404, None, &format!("Invalid URL ({} {path})", parts.method), &[]),
        };
        let model = path.strip_prefix(ONE_MODEL).map(str::to_owned);
        let asked = Request { operation: operation.to_owned(), method: parts.method.to_string(), path };
        let (number, fault) = self.faults.decide(asked);
        let answered = self.clone().decided((operation, model), dialect, &parts.headers, body.ok(), fault).await;
        if let Ok(response) = &answered {
            self.faults.answered(number, response.status().as_u16());
        }
        let mut response = answered?;
        let id = format!("req_{number}");
        let name = HeaderName::from_static(if dialect == Dialect::OpenAi { "x-request-id" } else { "request-id" });
        response.headers_mut().insert(name, HeaderValue::from_str(&id).map_err(std::io::Error::other)?);
        Ok(response)
    }

    fn script(&self, body: &[u8]) -> Answered {
        match serde_json::from_slice::<Answer>(body) {
            Ok(answer) => {
                let mut state = locked(&self.state);
                if state.script.len() < SCRIPTED {
                    state.script.push_back(answer);
                }
                json_answer(200, &json!({"scripted": state.script.len()}))
            }
            Err(error) => json_answer(400, &json!({"error": error.to_string()})),
        }
    }

    async fn decided(
        self,
        (operation, model): (&'static str, Option<String>),
        dialect: Dialect,
        headers: &HeaderMap,
        body: Option<Bytes>,
        fault: Option<Fault>,
    ) -> Answered {
        match fault {
            Some(Fault::Status(status) | Fault::Reply { code: status, .. }) => return dialect.refusal(status, None, "told so", &[]),
            Some(Fault::Busy { status, retry_after }) => {
                return dialect.refusal(status, None, "told so", &[("retry-after".to_owned(), retry_after.to_string())]);
            }
            Some(Fault::Hang) => {
                let _ = tokio::time::timeout(LONGEST_WAIT, self.faults.hang()).await;
                return Err(std::io::Error::other("let go after a hang"));
            }
            Some(Fault::Drop { .. }) => return Err(std::io::Error::other("cut by a fault")),
            Some(Fault::LoseAnswer | Fault::Slow { .. }) | None => {}
        }
        let key = key_of(headers);
        if !locked(&self.state).keys.contains(&key) {
            let last: String = key.chars().rev().take(4).collect::<Vec<_>>().into_iter().rev().collect();
            let message = match dialect {
                // As the vendor does, which is a reason not to pass its words on unread.
                Dialect::OpenAi => format!("Incorrect API key provided: sk-****{last}. You can find your API key in your account."),
                Dialect::Anthropic => "invalid x-api-key".to_owned(),
            };
            return dialect.refusal(401, None, &message, &[]);
        }
        if let Some(model) = model {
            let found = match dialect {
                Dialect::OpenAi => openai::one_model(&MODELS, &model),
                Dialect::Anthropic => anthropic::one_model(&MODELS, &model),
            };
            return match found {
                Ok(model) => json_answer(200, &model),
                Err(error) => json_answer(404, &error),
            };
        }
        if operation == "models" {
            return json_answer(200, &if dialect == Dialect::OpenAi { openai::models(&MODELS) } else { anthropic::models(&MODELS) });
        }
        if dialect == Dialect::Anthropic && !headers.contains_key("anthropic-version") {
            return dialect.refusal(400, None, "anthropic-version: header is required", &[]);
        }
        let Some(body) = body else { return dialect.refusal(413, None, "the request is too large", &[]) };
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let read = if dialect == Dialect::OpenAi { openai::question(&body) } else { anthropic::question(&body) };
        let question = match read {
            Ok(question) => question,
            Err(refusal) => {
                let error = match dialect {
                    Dialect::OpenAi => openai::refused(&refusal),
                    Dialect::Anthropic => anthropic::error(400, None, &refusal.message),
                };
                return json_answer(400, &error);
            }
        };
        let (number, answer) =
            self.take(Asked { operation, key, body, is_whole: false, billed: (0, 0), first_word: None }, &question.model);
        let said = Said::to(&question, answer);
        if !matches!(said.answer.trouble, Some(Trouble::Error { .. })) {
            let output = if question.streamed { 0 } else { said.output_tokens };
            self.note(number, |call| call.billed = (said.input_tokens, output));
        }
        pause(said.answer.delay_ms).await;
        match &said.answer.trouble {
            Some(Trouble::Error { status, code, headers }) => {
                return dialect.refusal(*status, code.as_deref(), "scripted so", headers);
            }
            Some(Trouble::Malformed) => return body_answer("application/json", b"{\"choices\": [{\"message\": ".to_vec()),
            _ => {}
        }
        if fault == Some(Fault::LoseAnswer) {
            return Err(std::io::Error::other("the answer is lost by a fault"));
        }
        if question.streamed { self.stream(dialect, number, &question, &said) } else { self.whole(dialect, number, &question, &said) }
    }

    /// Records a call; its number, and what it is answered with.
    fn take(&self, asked: Asked, model: &str) -> (usize, Answer) {
        let mut state = locked(&self.state);
        if state.calls.len() == CALLS_KEPT {
            state.calls.pop_front();
            state.forgotten += 1;
        }
        state.calls.push_back(asked);
        let number = state.forgotten + state.calls.len();
        let next = state.script.iter().position(|answer| answer.model.as_deref().is_none_or(|wanted| wanted == model));
        let scripted = next.and_then(|next| state.script.remove(next));
        let answer = scripted.unwrap_or_else(|| state.usual.clone());
        (number, answer)
    }

    /// Notes something of a call.
    fn note(&self, number: usize, note: impl FnOnce(&mut Asked)) {
        let mut state = locked(&self.state);
        let place = number.checked_sub(state.forgotten + 1);
        if let Some(call) = place.and_then(|place| state.calls.get_mut(place)) {
            note(call);
        }
    }

    /// Notes that a call's answer was sent to its end.
    fn ended(&self, number: usize) {
        self.note(number, |call| call.is_whole = true);
    }

    fn whole(&self, dialect: Dialect, number: usize, question: &Question, said: &Said) -> Answered {
        let body = match dialect {
            Dialect::OpenAi => openai::completion(number, now(), question, said),
            Dialect::Anthropic => anthropic::message(number, question, said),
        };
        let text = body.to_string();
        match said.answer.trouble {
            Some(Trouble::ErrorInStream { .. }) => json_answer(200, &dialect.error(529, None, &self.overloaded(number))),
            Some(Trouble::Cut { .. }) => {
                // Half of it, and then no more.
                let half = text.get(..text.len() / 2).unwrap_or_default().to_owned();
                let pieces = stream::iter([Ok(Frame::data(Bytes::from(half))), Err(std::io::Error::other("cut by a script"))]);
                Response::builder()
                    .header("content-type", "application/json")
                    .body(Box::pin(StreamBody::new(pieces)) as Body)
                    .map_err(std::io::Error::other)
            }
            Some(Trouble::Stall { .. }) => {
                let faults = self.faults.clone();
                let pieces = stream::once(async move {
                    let _ = tokio::time::timeout(LONGEST_WAIT, faults.hang()).await;
                    Err::<Frame<Bytes>, _>(std::io::Error::other("let go after a stall"))
                });
                Response::builder()
                    .header("content-type", "application/json")
                    .body(Box::pin(StreamBody::new(pieces)) as Body)
                    .map_err(std::io::Error::other)
            }
            _ => {
                self.ended(number);
                json_answer(200, &body)
            }
        }
    }

    /// What is said where an answer has begun with 200. With the key in it, as a gateway may do that shows what it was sent.
    fn overloaded(&self, number: usize) -> String {
        let mut key = String::new();
        self.note(number, |call| key.clone_from(&call.key));
        format!("overloaded within the answer to a request with the key {key}")
    }

    fn stream(&self, dialect: Dialect, number: usize, question: &Question, said: &Said) -> Answered {
        let (begin, mut words, end) = match dialect {
            Dialect::OpenAi => openai::events(number, now(), question, said),
            Dialect::Anthropic => anthropic::events(number, question, said),
        };
        let (cut, last) = match &said.answer.trouble {
            Some(Trouble::Cut { after_words }) => (Some(*after_words), Last::Cut),
            Some(Trouble::Stall { after_words }) => (Some(*after_words), Last::Stall),
            Some(Trouble::ErrorInStream { after_words }) => (Some(*after_words), Last::Error),
            _ => (None, Last::End),
        };
        if let Some(cut) = cut {
            words.truncate(cut);
        }
        let all = u64::try_from(said.words().len().max(1)).unwrap_or(u64::MAX);
        let (input, output) = (said.input_tokens, said.output_tokens);
        // Each word with what is billed once it is sent.
        let words = (1_u64..).zip(words).map(|(sent, piece)| (piece, Some((input, (output * sent).div_ceil(all)))));
        let pieces: Vec<(String, Option<(u64, u64)>)> = begin.into_iter().map(|piece| (piece, None)).chain(words).collect();
        let state = (pieces.into_iter(), Some((end, last)), self.clone(), said.answer.word_ms);
        let body = stream::unfold(state, move |(mut pieces, mut rest, server, word_ms)| async move {
            if let Some((piece, billed)) = pieces.next() {
                if let Some(billed) = billed {
                    pause(word_ms).await;
                    server.note(number, |call| {
                        call.first_word.get_or_insert_with(Instant::now);
                        call.billed = billed;
                    });
                }
                return Some((Ok(Frame::data(Bytes::from(piece))), (pieces, rest, server, word_ms)));
            }
            let (end, last) = rest.take()?;
            let item = match last {
                Last::End => {
                    server.ended(number);
                    Ok(end.concat())
                }
                Last::Cut => Err(std::io::Error::other("cut by a script")),
                Last::Stall => {
                    let _ = tokio::time::timeout(LONGEST_WAIT, server.faults.hang()).await;
                    Err(std::io::Error::other("let go after a stall"))
                }
                Last::Error => {
                    let error = dialect.error(529, None, &server.overloaded(number));
                    Ok(if dialect == Dialect::Anthropic {
                        format!("event: error\ndata: {error}\n\n")
                    } else {
                        format!("data: {error}\n\n")
                    })
                }
            };
            Some((item.map(|text| Frame::data(Bytes::from(text))), (pieces, rest, server, word_ms)))
        });
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(Box::pin(StreamBody::new(body)) as Body)
            .map_err(std::io::Error::other)
    }
}

/// How a stream ends.
#[derive(Debug, Clone, Copy)]
enum Last {
    End,
    Cut,
    Stall,
    Error,
}

/// By either dialect's header.
fn key_of(headers: &HeaderMap) -> String {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = header(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
    bearer.or_else(|| header("x-api-key")).unwrap_or_default().to_owned()
}

fn now() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a vendor's clock is its own: the sandbox has no part in the product's")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs()
}

fn json_answer(status: u16, value: &Value) -> Answered {
    let mut response = body_answer("application/json", value.to_string().into_bytes())?;
    *response.status_mut() = hyper::StatusCode::from_u16(status).map_err(std::io::Error::other)?;
    Ok(response)
}

fn body_answer(kind: &'static str, bytes: Vec<u8>) -> Answered {
    let body: Body = Box::pin(Full::new(Bytes::from(bytes)).map_err(|never| match never {}));
    Response::builder().header("content-type", kind).body(body).map_err(std::io::Error::other)
}
