//! The example product's page (`examples/web`) and the small backend behind it, as a product has one: it knows who is signed in, has the
//! product's key, and makes tokens with it. The page asks Offstage's API by itself, with such a token, from another origin.
//!
//! | request | effect |
//! |---|---|
//! | `GET /`, `/app.js` … | the page's files, as they are now: who changes one reloads the page |
//! | `POST /session` `{"user"}` | signs in; nobody is asked for a password, which is what makes it an example |
//! | `GET /session` | who is signed in, the API's address, and a new token; 401 when nobody is |
//! | `DELETE /session` | signs out |
//! | `POST /exports` `{"dataset", "format"}` | starts an export for who is signed in |
//! | `POST /pushes` `{"title"?, "body"?, "url"?}` | pushes something to who is signed in |
//!
//! What must stay true here: the key stays in this process; what changes something is taken from this page only, by its `Origin`; a
//! session is known by a random name in a cookie that scripts can't read.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::error::{Doing, Result};
use crate::http;
use crate::ports::Port;
use crate::random;

/// Sessions that are remembered; the oldest gives way.
const SESSIONS: usize = 1_000;
/// The longest that the API may take for what it is asked here.
const ASK_WITHIN: Duration = Duration::from_secs(15);
const COOKIE: &str = "session";

/// What there is to fetch.
const FILES: [(&str, &str, &str); 8] = [
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/app.js", "app.js", "text/javascript; charset=utf-8"),
    ("/session.js", "session.js", "text/javascript; charset=utf-8"),
    ("/stream.js", "stream.js", "text/javascript; charset=utf-8"),
    ("/push.js", "push.js", "text/javascript; charset=utf-8"),
    ("/service-worker.js", "service-worker.js", "text/javascript; charset=utf-8"),
    ("/style.css", "style.css", "text/css; charset=utf-8"),
    ("/icon.svg", "icon.svg", "image/svg+xml"),
];

/// The page's place, reserved before the API knows its origins.
#[derive(Debug)]
pub struct Place(Port);

/// The page, served until this is dropped.
#[derive(Debug)]
pub struct Web {
    place: Place,
    serving: JoinHandle<()>,
}

#[derive(Debug)]
struct Backend {
    /// The API as a browser names it.
    url: String,
    api: SocketAddr,
    key: String,
    hosts: [String; 2],
    /// Name and user, the oldest first.
    sessions: Mutex<VecDeque<(String, String)>>,
}

type Shared = State<Arc<Backend>>;

impl Place {
    /// This port if it is free, else another.
    ///
    /// # Errors
    /// When no port is free.
    pub fn prefer(port: u16) -> Result<Self> {
        Port::prefer(port).map(Self)
    }

    /// Some port.
    ///
    /// # Errors
    /// When none is free.
    pub fn any() -> Result<Self> {
        Port::reserve().map(Self)
    }

    /// `http://127.0.0.1:PORT`. Browsers trust this machine's own pages with service workers although they come in the clear.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address())
    }

    /// A manifest that lists the page's origins too, by both of this machine's names.
    #[must_use]
    pub fn listed_in(&self, manifest: &str) -> String {
        let port = self.0.number();
        format!("{manifest}\n[web]\norigins = [\"http://127.0.0.1:{port}\", \"http://localhost:{port}\"]\n")
    }

    /// Serves the page, for the API at this address and the product whose key this is.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn serve(self, api: SocketAddr, key: String) -> Result<Web> {
        let address = self.0.address();
        let listener = tokio::net::TcpListener::bind(address).await.doing(|| format!("listen on {address}"))?;
        let hosts = [address.to_string(), format!("localhost:{}", address.port())];
        let backend = Backend { url: format!("http://{api}"), api, key, hosts, sessions: Mutex::default() };
        let router = router(Arc::new(backend));
        let serving = tokio::spawn(async move {
            // It ends with the process; an error of accept is retried inside.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Web { place: self, serving })
    }
}

impl Web {
    /// As [`Place::url`].
    #[must_use]
    pub fn url(&self) -> String {
        self.place.url()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn router(backend: Arc<Backend>) -> Router {
    FILES
        .iter()
        .fold(Router::new(), |router, (path, name, kind)| {
            router.route(path, get(move |backend: Shared| file(directory().join(name), kind, backend.0.url.clone())))
        })
        .route("/session", get(session).post(sign_in).delete(sign_out))
        .route("/exports", post(export))
        .route("/pushes", post(push))
        .layer(middleware::from_fn_with_state(Arc::clone(&backend), only_ours))
        .with_state(backend)
}

/// `examples/web` of the source tree that this was built from.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/web")
}

/// Refuses who came by another name, and other sites' pages.
async fn only_ours(State(backend): Shared, request: Request, next: Next) -> Response {
    if is_ours(request.headers(), &backend.hosts) { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() }
}

/// Browsers say where a request that changes something comes from; programs of this machine need not.
fn is_ours(headers: &HeaderMap, hosts: &[String; 2]) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = text(header::HOST).filter(|host| hosts.iter().any(|ours| ours == host));
    host.is_some_and(|host| {
        !headers.contains_key(header::ORIGIN) || text(header::ORIGIN).and_then(|origin| origin.strip_prefix("http://")) == Some(host)
    })
}

async fn file(path: PathBuf, kind: &'static str, api: String) -> Response {
    // Its own files and the API, nothing else: what an inbox says is a stranger's.
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' {api}; worker-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::from_str(&policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"));
    match tokio::fs::read(&path).await {
        Ok(bytes) => {
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
                (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
                (header::CONTENT_SECURITY_POLICY, policy),
            ];
            (headers, bytes).into_response()
        }
        Err(error) => refusal(StatusCode::NOT_FOUND, &format!("{} can't be read: {error}", path.display())),
    }
}

async fn sign_in(State(backend): Shared, Json(asked): Json<Value>) -> Response {
    let user = asked["user"].as_str().unwrap_or_default();
    if !is_name(user) {
        return refusal(StatusCode::BAD_REQUEST, "A name has 1 to 32 of a to z, 0 to 9 and -, a letter first.");
    }
    let Ok(name) = random::characters(40) else {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, "There is no randomness for a session; try again.");
    };
    let mut answer = backend.token_of(user).await;
    if answer.status().is_success() {
        let mut sessions = backend.sessions();
        if sessions.len() >= SESSIONS {
            sessions.pop_front();
        }
        sessions.push_back((name.clone(), user.to_owned()));
        set_cookie(&mut answer, &format!("{COOKIE}={name}; HttpOnly; SameSite=Strict; Path=/"));
    }
    answer
}

async fn session(State(backend): Shared, headers: HeaderMap) -> Response {
    match backend.user(&headers) {
        Some(user) => backend.token_of(&user).await,
        None => nobody(),
    }
}

async fn sign_out(State(backend): Shared, headers: HeaderMap) -> Response {
    if let Some(name) = cookie(&headers) {
        backend.sessions().retain(|(known, _)| known != name);
    }
    let mut answer = StatusCode::NO_CONTENT.into_response();
    set_cookie(&mut answer, &format!("{COOKIE}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0"));
    answer
}

async fn export(State(backend): Shared, headers: HeaderMap, Json(asked): Json<Value>) -> Response {
    let Some(user) = backend.user(&headers) else { return nobody() };
    let wanted = json!({"dataset": asked["dataset"], "format": asked["format"]});
    backend.ask("/v1/exports", Some(&user), &wanted).await.map_or_else(|refused| refused, |(status, body)| answer(status, body))
}

async fn push(State(backend): Shared, headers: HeaderMap, Json(asked): Json<Value>) -> Response {
    let Some(user) = backend.user(&headers) else { return nobody() };
    let text = |name: &str, otherwise: &str| asked[name].as_str().unwrap_or(otherwise).to_owned();
    let wanted = json!({
        "user": user,
        "title": text("title", "Hello from promptlockr"),
        "body": text("body", "This is what a message looks like. A click opens the page."),
        "url": text("url", "/"),
        "ttl": 600,
    });
    // The user's browsers are the backend's to push to, so it acts for nobody.
    backend.ask("/v1/pushes", None, &wanted).await.map_or_else(|refused| refused, |(status, body)| answer(status, body))
}

impl Backend {
    fn sessions(&self) -> std::sync::MutexGuard<'_, VecDeque<(String, String)>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user(&self, headers: &HeaderMap) -> Option<String> {
        let name = cookie(headers)?;
        self.sessions().iter().find(|(known, _)| known == name).map(|(_, user)| user.clone())
    }

    /// A token for the page, no wider than what the page does.
    async fn token_of(&self, user: &str) -> Response {
        let scopes = ["jobs:read", "exports:read", "notifications:read", "notifications:write", "pushes:read", "pushes:write"];
        match self.ask("/v1/tokens", None, &json!({"user": user, "scopes": scopes})).await {
            Ok((201, token)) => {
                let session = json!({"user": user, "api": self.url, "token": token["token"], "expires_at": token["expires_at"]});
                let mut answer = answer(200, session);
                answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                answer
            }
            Ok((status, problem)) => answer(status, problem),
            Err(refused) => refused,
        }
    }

    /// Asks the API with the product's key.
    async fn ask(&self, path: &str, acting: Option<&str>, body: &Value) -> std::result::Result<(u16, Value), Response> {
        let caller = http::Caller { key: Some(&self.key), acting };
        let asked = http::ask(self.api, Method::POST, path, caller, body.to_string(), ASK_WITHIN).await;
        let answered = asked.map_err(|error| refusal(StatusCode::BAD_GATEWAY, &format!("The API can't be reached: {error}")))?;
        let body = serde_json::from_str(&answered.body);
        let body = body.map_err(|_| refusal(StatusCode::BAD_GATEWAY, &format!("The API answered {} without JSON.", answered.status)))?;
        Ok((answered.status, body))
    }
}

fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=32).contains(&text.len()) && text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(legal)
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    let mut pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, value)| (name == COOKIE && !value.is_empty()).then_some(value))
}

fn set_cookie(response: &mut Response, cookie: &str) {
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
}

fn answer(status: u16, body: Value) -> Response {
    (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), Json(body)).into_response()
}

fn nobody() -> Response {
    refusal(StatusCode::UNAUTHORIZED, "Nobody is signed in.")
}

fn refusal(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({"error": text}))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_may_ask() {
        let hosts = ["127.0.0.1:8081".to_owned(), "localhost:8081".to_owned()];
        let asks = |host: &'static str, origin: Option<&'static str>| {
            let pairs = [Some((header::HOST, host)), origin.map(|origin| (header::ORIGIN, origin))];
            let headers = pairs.into_iter().flatten().map(|(name, value)| (name, HeaderValue::from_static(value)));
            is_ours(&headers.collect(), &hosts)
        };
        assert!(asks("localhost:8081", None) && asks("127.0.0.1:8081", Some("http://127.0.0.1:8081")));
        for (host, origin) in [
            ("evil.example", None),
            ("localhost:8081", Some("https://evil.example")),
            ("localhost:8081", Some("http://127.0.0.1:8081")),
            ("localhost:8081", Some("null")),
        ] {
            assert!(!asks(host, origin), "{host} {origin:?}");
        }
    }

    #[test]
    fn names_are_names() {
        for good in ["demo", "a", "user-7"] {
            assert!(is_name(good), "{good}");
        }
        for wrong in ["", "7up", "-a", "Ada", "a b", "a\nb", "ä", &"a".repeat(33)] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let with = |text: &str| HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(text).unwrap())]);
        assert_eq!(cookie(&with("other=1; session=abc; more=2")), Some("abc"));
        assert_eq!(cookie(&with("session=")), None);
        assert_eq!(cookie(&with("sessions=abc")), None);
        assert_eq!(cookie(&HeaderMap::new()), None);
    }
}
