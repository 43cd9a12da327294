//! The listening side: whom it plays, what that one checks, counts and says, in its order.

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{CALLS_KEPT, GITHUB_TOKEN, REDDIT_CLIENT, State, Thing, VendorCall, locked};
use crate::faults::{Body, Fault, Faults, Request};
use crate::services::door::LONGEST_WAIT;

/// The longest body that is looked at.
const BODY: usize = 64 * 1024;

#[derive(Clone)]
pub(super) struct Server {
    pub(super) faults: Faults,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) paused: watch::Receiver<bool>,
    pub(super) origin: String,
}

type Answered = std::io::Result<Response<Body>>;

/// An answer about to be given.
#[derive(Debug, Clone, Default)]
struct Given {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Given {
    fn json(status: u16, body: &Value) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string() }
    }

    fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name.to_owned(), format!("{value}")));
        self
    }
}

/// What there is to know of a request.
struct Asked<'a> {
    vendor: &'a str,
    /// The vendor's word in front, without the query.
    path: &'a str,
    method: &'a Method,
    headers: &'a HeaderMap,
    body: &'a [u8],
}

impl Asked<'_> {
    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Server {
    /// An error cuts the connection.
    pub(super) async fn answer(mut self, request: hyper::Request<Incoming>) -> Answered {
        let (parts, body) = request.into_parts();
        // An error means that the sandbox has gone.
        let _ = tokio::time::timeout(LONGEST_WAIT, self.paused.wait_for(|paused| !paused)).await?;
        let body = Limited::new(body, BODY).collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let path = parts.uri.path();
        if path == "/calls" {
            let calls: Vec<VendorCall> = locked(&self.state).calls.iter().cloned().collect();
            return given(&Given::json(200, &json!(calls)));
        }
        let vendor = path.split('/').nth(1).unwrap_or_default().to_owned();
        let asked = Asked { vendor: &vendor, path, method: &parts.method, headers: &parts.headers, body: &body };
        let whole = parts.uri.path_and_query().map_or(path, |whole| whole.as_str());
        let number = self.begin(&asked, whole);
        let fault = self.faults.decide(Request { operation: vendor.clone(), method: parts.method.to_string(), path: path.to_owned() });
        let answer = match fault.1 {
            Some(Fault::Status(status) | Fault::Reply { code: status, .. }) => Some(Given { status, ..Given::default() }),
            Some(Fault::Busy { status, retry_after }) => Some(Given { status, ..Given::default() }.with("retry-after", retry_after)),
            Some(Fault::Hang) => {
                let _ = tokio::time::timeout(LONGEST_WAIT, self.faults.hang()).await;
                None
            }
            Some(Fault::Drop { .. } | Fault::LoseAnswer) => None,
            Some(Fault::Slow { .. }) | None => Some(self.play(&asked)),
        };
        self.end(number, &vendor, answer.as_ref());
        match answer {
            Some(answer) => {
                self.faults.answered(fault.0, answer.status);
                given(&answer)
            }
            None => Err(std::io::Error::other("cut by a fault")),
        }
    }

    fn begin(&self, asked: &Asked<'_>, path: &str) -> Instant {
        let text = |name| asked.header(name).map(str::to_owned);
        let mut state = locked(&self.state);
        let under_way = state.under_way.entry(asked.vendor.to_owned()).or_default();
        *under_way += 1;
        let under_way = *under_way;
        let at = Instant::now();
        if state.calls.len() >= CALLS_KEPT {
            state.calls.pop_front();
        }
        state.calls.push_back(VendorCall {
            vendor: asked.vendor.to_owned(),
            method: asked.method.to_string(),
            path: path.strip_prefix(&format!("/{}", asked.vendor)).unwrap_or(path).to_owned(),
            status: 0,
            remaining: None,
            most: None,
            authorization: text(header::AUTHORIZATION).and_then(|value| value.split(' ').next().map(str::to_owned)),
            if_none_match: text(header::IF_NONE_MATCH),
            if_modified_since: text(header::IF_MODIFIED_SINCE),
            accept: text(header::ACCEPT),
            user_agent: text(header::USER_AGENT),
            under_way,
            at,
        });
        at
    }

    fn end(&self, at: Instant, vendor: &str, answer: Option<&Given>) {
        let mut state = locked(&self.state);
        if let Some(under_way) = state.under_way.get_mut(vendor) {
            *under_way = under_way.saturating_sub(1);
        }
        let window = state.windows.get(vendor).copied();
        if let Some(call) = state.calls.iter_mut().rev().find(|call| call.at == at && call.vendor == vendor) {
            call.status = answer.map_or(0, |answer| answer.status);
            call.remaining = window.map(|window| window.remaining);
            call.most = window.map(|window| window.most);
        }
    }

    fn play(&self, asked: &Asked<'_>) -> Given {
        if let Some(scripted) = self.scripted(asked) {
            return scripted;
        }
        if let Err(refused) = self.check(asked) {
            return refused;
        }
        if asked.path == "/reddit/api/v1/access_token" {
            return self.token();
        }
        if let Some(limited) = self.count(asked) {
            return limited;
        }
        let answer = self.thing(asked);
        if asked.vendor == "github" && answer.status == 304 && asked.header(header::AUTHORIZATION).is_some() {
            // Free for who has a credential.
            if let Some(window) = locked(&self.state).windows.get_mut("github") {
                window.remaining += 1;
            }
        }
        self.limits(asked.vendor, answer)
    }

    fn scripted(&self, asked: &Asked<'_>) -> Option<Given> {
        let mut state = locked(&self.state);
        let place = state.script.iter().position(|scripted| asked.path.contains(&scripted.path_contains))?;
        let scripted = state.script.get_mut(place)?;
        let answer = Given { status: scripted.status, headers: scripted.headers.clone(), body: scripted.body.clone() };
        if scripted.times == 1 {
            state.script.remove(place);
        } else if scripted.times > 1 {
            scripted.times -= 1;
        }
        Some(answer)
    }

    /// What each wants of whoever asks.
    fn check(&self, asked: &Asked<'_>) -> Result<(), Given> {
        let agent = asked.header(header::USER_AGENT).unwrap_or_default();
        let authorization = asked.header(header::AUTHORIZATION);
        let refuse = |status, text: &str| Err(Given::json(status, &json!({ "message": text })));
        match asked.vendor {
            "github" if agent.is_empty() => refuse(403, "Request forbidden by administrative rules: no User-Agent"),
            "github" if authorization.is_some_and(|value| value != format!("Bearer {GITHUB_TOKEN}")) => refuse(401, "Bad credentials"),
            // `<platform>:<app id>:<version string> (by /u/<reddit username>)`.
            "reddit" if agent.splitn(3, ':').count() != 3 || !agent.contains(" (by /u/") => refuse(429, "Too Many Requests: User-Agent"),
            "reddit" if asked.path == "/reddit/api/v1/access_token" => {
                let wanted = format!("Basic {}", base64_of(REDDIT_CLIENT));
                let is_right = asked.method == Method::POST && asked.body == b"grant_type=client_credentials";
                if authorization == Some(wanted.as_str()) && is_right { Ok(()) } else { refuse(401, "Unauthorized") }
            }
            "reddit" if authorization != Some(format!("Bearer {}", self.token_text()).as_str()) => refuse(401, "Unauthorized"),
            "discord" if !agent.starts_with("DiscordBot (http") => refuse(403, "error code: 1010"),
            _ => Ok(()),
        }
    }

    fn token_text(&self) -> String {
        format!("reddit-token-{}", locked(&self.state).tokens)
    }

    fn token(&self) -> Given {
        Given::json(200, &json!({"access_token": self.token_text(), "token_type": "bearer", "expires_in": 86_400, "scope": "*"}))
    }

    /// Takes a call from the window; the answer where there is none left.
    fn count(&self, asked: &Asked<'_>) -> Option<Given> {
        let resets_in = {
            let mut state = locked(&self.state);
            let window = state.windows.get_mut(asked.vendor)?;
            if window.remaining > 0 {
                window.remaining -= 1;
                return None;
            }
            window.resets_in
        };
        let answer = match asked.vendor {
            "github" => Given::json(403, &json!({"message": "API rate limit exceeded"})),
            "discord" => Given::json(429, &json!({"message": "You are being rate limited.", "retry_after": resets_in, "global": false}))
                .with("retry-after", resets_in)
                .with("x-ratelimit-scope", "user"),
            _ => Given::json(429, &json!({"message": "Too Many Requests"})),
        };
        Some(self.limits(asked.vendor, answer))
    }

    /// Says what is left, as each does.
    fn limits(&self, vendor: &str, answer: Given) -> Given {
        let Some(window) = locked(&self.state).windows.get(vendor).copied() else { return answer };
        let (most, remaining, resets_in) = (window.most, window.remaining, window.resets_in);
        #[expect(clippy::disallowed_methods, reason = "a vendor's clock is its own: the sandbox has no part in the product's")]
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        match vendor {
            "github" => answer
                .with("x-ratelimit-limit", most)
                .with("x-ratelimit-remaining", remaining)
                .with("x-ratelimit-used", most - remaining)
                .with("x-ratelimit-resource", "core")
                .with("x-ratelimit-reset", now + resets_in),
            "reddit" => answer
                .with("x-ratelimit-used", format!("{}.0", most - remaining))
                .with("x-ratelimit-remaining", format!("{remaining}.0"))
                .with("x-ratelimit-reset", resets_in),
            "discord" => answer
                .with("x-ratelimit-bucket", "b0a1d2")
                .with("x-ratelimit-limit", most)
                .with("x-ratelimit-remaining", remaining)
                .with("x-ratelimit-reset", now + resets_in)
                .with("x-ratelimit-reset-after", format!("{resets_in}.000")),
            "hugging_face" => answer
                .with("ratelimit", format!("\"api\";r={remaining};t={resets_in}"))
                .with("ratelimit-policy", format!("\"fixed window\";\"api\";q={most};w=300")),
            _ => answer,
        }
    }

    fn thing(&self, asked: &Asked<'_>) -> Given {
        // Reddit's answer is at `…/about`; the thing is the community.
        let path = asked.path.strip_suffix("/about").unwrap_or(asked.path);
        let thing = locked(&self.state).things.get(path).cloned();
        match thing {
            None if asked.vendor == "discord" => Given::json(404, &json!({"message": "Unknown Invite", "code": 10_006})),
            None => Given::json(404, &json!({"message": "Not Found"})),
            Some(Thing::Moved { to, status }) => {
                let to = if to.starts_with("http") { to } else { format!("{}{to}", self.origin) };
                Given::json(status, &json!({"message": "Moved Permanently", "url": to})).with("location", &to)
            }
            Some(Thing::Is { body, tag }) => {
                // The tag is of the representation that was asked for, by whoever may see it.
                let tag = varied(&tag, asked.header(header::ACCEPT), asked.header(header::AUTHORIZATION));
                let is_known = asked.header(header::IF_NONE_MATCH) == Some(tag.as_str());
                let answer = if is_known { Given { status: 304, ..Given::default() } } else { Given::json(200, &body) };
                answer.with("etag", tag).with("vary", "Accept, Authorization")
            }
        }
    }
}

/// The tag of a thing.
pub(super) fn tag_of(body: &Value) -> String {
    body.to_string()
}

fn varied(tag: &str, accept: Option<&str>, authorization: Option<&str>) -> String {
    let digest = Sha256::digest([tag, accept.unwrap_or_default(), authorization.unwrap_or_default()].join("\n").as_bytes());
    let short = digest.iter().take(8).fold(0_u64, |short, byte| short << 8 | u64::from(*byte));
    format!("W/\"{short:016x}\"")
}

fn base64_of(text: &str) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(text)
}

fn given(answer: &Given) -> Answered {
    let body: Body = Box::pin(Full::new(Bytes::from(answer.body.clone())).map_err(|never| match never {}));
    let mut response = Response::builder().status(answer.status).header("content-type", "application/json; charset=utf-8");
    for (name, value) in &answer.headers {
        response = response.header(name.as_str(), value.as_str());
    }
    response.body(body).map_err(std::io::Error::other)
}
