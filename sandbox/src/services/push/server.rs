//! The listening side: what a vendor's push service checks, in its order.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, HeaderMap, LOCATION, RETRY_AFTER};
use hyper::{Method, Response, StatusCode};
use serde_json::json;
use tokio::sync::watch;

use super::unseal::{self, Sender};
use super::{MESSAGES_KEPT, Message, State, locked, subscribe};
use crate::faults::{Body, Fault, Faults, Request};
use crate::services::door::LONGEST_WAIT;

/// The longest body (RFC 8030, section 7.2).
const BODY: usize = 4_096;
/// The longest that a token may be valid, in seconds (RFC 8292, section 2).
const LONGEST_TOKEN: i64 = 24 * 3_600;

#[derive(Clone)]
pub(super) struct Server {
    pub(super) origin: String,
    pub(super) faults: Faults,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) paused: watch::Receiver<bool>,
}

type Answered = std::io::Result<Response<Body>>;

impl Server {
    /// An error cuts the connection.
    pub(super) async fn answer(mut self, request: hyper::Request<Incoming>) -> Answered {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        // An error means that the sandbox has gone.
        let _ = tokio::time::timeout(LONGEST_WAIT, self.paused.wait_for(|paused| !paused)).await?;
        let too_long = Limited::new(body, BODY + 1).collect().await.map(http_body_util::Collected::to_bytes);
        match (&parts.method, path.strip_prefix("/push/")) {
            (&Method::POST, Some(id)) => self.push(&path, id, &parts.headers, too_long.unwrap_or(Bytes::from_static(&[0; BODY + 1]))).await,
            (&Method::POST, None) if path == "/subscriptions" => self.subscribe(&too_long.unwrap_or_default()),
            (&Method::GET, None) if path == "/messages" => json(StatusCode::OK, &json!(locked(&self.state).messages)),
            _ => refusal(404, "there is no such thing here: POST /subscriptions, POST /push/…, GET /messages"),
        }
    }

    /// As a browser does: `{"applicationServerKey": "B…"}`, answered as `PushSubscription.toJSON()` is.
    fn subscribe(&self, body: &[u8]) -> Answered {
        let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let key = asked.get("applicationServerKey").and_then(serde_json::Value::as_str);
        match subscribe(&self.state, &self.origin, key) {
            Ok(browser) => {
                let keys = json!({ "p256dh": browser.p256dh, "auth": browser.auth });
                json(StatusCode::CREATED, &json!({ "endpoint": browser.endpoint, "expirationTime": null, "keys": keys }))
            }
            Err(error) => refusal(503, &error.to_string()),
        }
    }

    async fn push(self, path: &str, id: &str, headers: &HeaderMap, body: Bytes) -> Answered {
        let request = Request { operation: "Push".to_owned(), method: "POST".to_owned(), path: path.to_owned() };
        let (number, fault) = self.faults.decide(request);
        match fault {
            Some(Fault::Status(status) | Fault::Reply { code: status, .. }) => {
                self.faults.answered(number, status);
                return refusal(status, &format!("told so at {path}"));
            }
            Some(Fault::Busy { status, retry_after }) => {
                self.faults.answered(number, status);
                let mut response = refusal(status, &format!("told so at {path}"))?;
                response.headers_mut().insert(RETRY_AFTER, retry_after.into());
                return Ok(response);
            }
            Some(Fault::Hang) => {
                let _ = tokio::time::timeout(LONGEST_WAIT, self.faults.hang()).await;
                return Err(std::io::Error::other("let go after a hang"));
            }
            Some(Fault::Drop { .. }) => return Err(std::io::Error::other("cut by a fault")),
            Some(Fault::LoseAnswer | Fault::Slow { .. }) | None => {}
        }
        let (status, text) = match self.take(id, headers, &body) {
            Ok(()) => (201, ""),
            Err(refused) => refused,
        };
        if fault == Some(Fault::LoseAnswer) {
            return Err(std::io::Error::other("the answer is lost by a fault"));
        }
        self.faults.answered(number, status);
        if status != 201 {
            return refusal(status, text);
        }
        let mut response = refusal(201, "")?;
        let location = format!("{}/message/{number}", self.origin).parse().map_err(std::io::Error::other)?;
        response.headers_mut().insert(LOCATION, location);
        Ok(response)
    }

    /// Checks, unseals and keeps a message.
    fn take(&self, id: &str, headers: &HeaderMap, body: &[u8]) -> Result<(), (u16, &'static str)> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let sender = header(AUTHORIZATION.as_str()).and_then(unseal::sender).ok_or((401, "no VAPID, or its signature is wrong"))?;
        self.check(&sender)?;
        let mut state = locked(&self.state);
        let registered = state.browsers.get(id).ok_or((404, "nobody subscribed under this address"))?;
        if registered.is_gone {
            return Err((410, "the browser has unsubscribed"));
        }
        if registered.application_server_key.as_ref().is_some_and(|key| *key != sender.key) {
            return Err((403, "the browser subscribed with another key"));
        }
        let ttl = header("ttl").and_then(|ttl| ttl.parse().ok()).ok_or((400, "TTL is missing, or no number of seconds"))?;
        let urgency = header("urgency").unwrap_or("normal");
        if !["very-low", "low", "normal", "high"].contains(&urgency) {
            return Err((400, "there is no such urgency"));
        }
        let topic = header("topic");
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if topic.is_some_and(|topic| topic.is_empty() || topic.len() > 32 || !topic.bytes().all(legal)) {
            return Err((400, "a topic is at most 32 characters of base64url"));
        }
        if body.len() > BODY {
            return Err((413, "the body is too long"));
        }
        if header(CONTENT_ENCODING.as_str()) != Some("aes128gcm") {
            return Err((400, "the body must be encoded by aes128gcm"));
        }
        let payload = registered.keys.unseal(body).ok_or((400, "the browser can't unseal it"))?;
        let message = Message {
            endpoint: format!("{}/push/{id}", self.origin),
            payload,
            ttl,
            urgency: urgency.to_owned(),
            topic: topic.map(str::to_owned),
            contact: sender.claims.get("sub").and_then(serde_json::Value::as_str).map(str::to_owned),
            key: sender.key,
            token: sender.token,
            body: body.to_vec(),
        };
        if state.messages.len() < MESSAGES_KEPT {
            state.messages.push(message);
        }
        Ok(())
    }

    /// The token is for us, and for now.
    fn check(&self, sender: &Sender) -> Result<(), (u16, &'static str)> {
        if sender.claims.get("aud").and_then(serde_json::Value::as_str) != Some(&self.origin) {
            return Err((403, "the token is for another push service: `aud` must be our origin, its port included"));
        }
        #[expect(clippy::disallowed_methods, reason = "a vendor's clock is its own: the sandbox has no part in the product's")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = sender.claims.get("exp").and_then(serde_json::Value::as_i64).unwrap_or_default() - now.as_secs().cast_signed();
        if left <= 0 || left > LONGEST_TOKEN {
            return Err((403, "the token has ended, or is valid for more than 24 hours"));
        }
        Ok(())
    }
}

fn json(status: StatusCode, value: &serde_json::Value) -> Answered {
    let body: Body = Box::pin(Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}));
    Response::builder().status(status).header("content-type", "application/json").body(body).map_err(std::io::Error::other)
}

fn refusal(status: u16, text: &str) -> Answered {
    let body: Body = Box::pin(Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {}));
    let status = StatusCode::from_u16(status).map_err(std::io::Error::other)?;
    Response::builder().status(status).header("content-type", "text/plain").body(body).map_err(std::io::Error::other)
}
