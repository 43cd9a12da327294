//! What every request passes on its way in and every answer on its way out.
//!
//! Nothing leaves here without a request id, security headers and a figure; no panic and no endless wait gets through.
//! Bodies are never logged, and of a request only its method and the route's pattern: paths hold ids, queries may hold
//! anything.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tracing::Instrument;

use crate::{
    app::App,
    arrival::Arrival,
    problem::{Code, Problem},
};

/// The longest that an answer may take to begin. Longer than a statement in the database may run (30 s) and than a client
/// may ask to wait for news.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// The header that carries the request's id, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id: the caller's own if it sent a decent one, so that its log and ours can be laid side by side.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

impl RequestId {
    fn of(headers: &HeaderMap, app: &App) -> Self {
        let sent = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let legal = |text: &&str| {
            (1..=128).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'/'))
        };
        Self(sent.filter(legal).map_or_else(|| app.clock.new_id().to_string(), str::to_owned))
    }
}

/// Counts a request that is under way, also when its client goes away and its future is dropped.
struct UnderWay;

impl UnderWay {
    fn begin() -> Self {
        metrics::gauge!("offstage_http_requests_under_way").increment(1.0);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        metrics::gauge!("offstage_http_requests_under_way").decrement(1.0);
    }
}

/// The middleware.
pub async fn edge(State((app, deadline)): State<(App, Duration)>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let _under_way = UnderWay::begin();
    let id = RequestId::of(request.headers(), &app);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let method = method_label(request.method());
    let span = tracing::info_span!("request", id = id.0, method, route);
    request.extensions_mut().insert(id.clone());
    let (request, arrival) = Arrival::watch(request);
    let guarded = AssertUnwindSafe(tokio::time::timeout(deadline, next.run(request))).catch_unwind();
    let mut response = match guarded.instrument(span.clone()).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            let detail = "The answer took too long. What you sent may have been done: ask for it before you send it again.";
            Problem::new(Code::DeadlineExceeded, detail).retry_after(Duration::from_secs(5)).into_response()
        }
        // The panic's own message was written by the panic hook.
        Err(_) => {
            metrics::counter!("offstage_http_panics_total", "route" => route.to_owned()).increment(1);
            Problem::unexplained().into_response()
        }
    };
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        span.in_scope(|| log(&problem));
        let mut answer = problem.answer(Some(&id.0));
        // What the framework added to the first answer, such as `Allow` to a 405, stays.
        for (name, value) in response.headers() {
            if name != header::CONTENT_LENGTH && !answer.headers().contains_key(name) {
                answer.headers_mut().insert(name, value.clone());
            }
        }
        response = answer;
    }
    finish(response.headers_mut(), &id);
    arrival.read_rest().await;
    // Who asks again while we take our leave is to do so on a new connection, at another replica where there is one.
    if !arrival.is_whole() || app.shutdown.is_asked() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let elapsed = started.elapsed();
    let status = response.status();
    metrics::histogram!("offstage_http_request_duration_seconds", "route" => route.to_owned(), "method" => method, "status" => status_label(status))
        .record(elapsed.as_secs_f64());
    span.in_scope(|| {
        tracing::debug!(status = status.as_u16(), elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), "answered");
    });
    response
}

/// One line for what is our side's fault; what is the caller's is theirs to log.
fn log(problem: &Problem) {
    let code = problem.code();
    if code.status().is_server_error() {
        let cause = problem.cause().unwrap_or_default();
        if code == Code::Internal {
            tracing::error!(code = code.word(), cause, "a request failed");
        } else {
            tracing::warn!(code = code.word(), cause, "a request could not be served");
        }
    }
}

/// Headers that every answer carries, unless the route set its own.
fn finish(headers: &mut HeaderMap, id: &RequestId) {
    // OWASP's REST security cheat sheet: <https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html>.
    const ALWAYS: [(HeaderName, HeaderValue); 6] = [
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000")),
        // Answers are one caller's, and a job's state is old the moment it is sent.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    for (name, value) in ALWAYS {
        headers.entry(name).or_insert(value);
    }
    if let Ok(id) = HeaderValue::from_str(&id.0) {
        headers.insert(REQUEST_ID, id);
    }
}

/// Methods are the caller's words; those beyond the usual share a label, or anybody could make figures without end.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn status_label(status: StatusCode) -> String {
    status.as_str().to_owned()
}
