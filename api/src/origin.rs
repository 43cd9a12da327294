//! From which pages browsers may call (CORS, <https://fetch.spec.whatwg.org/#http-cors-protocol>): those that a product lists in `[web]`
//! of its manifest, exactly.
//!
//! What must stay true: an answer is opened to a page only where the product whose key or token it was lists the page's origin; who has
//! shown no credentials that count, and a preflight, which can't show any, is told what any product lists; nobody is told to send cookies,
//! for there are none; every answer that depends on the origin says so (`Vary`). The addresses for anybody (`/j/…`) have rules of their
//! own.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sqlx::PgPool;

use crate::{app::App, auth::TenantOfRequest};

/// How long what was read of an origin is used; a manifest that was applied takes effect as soon elsewhere.
const FRESH: Duration = Duration::from_secs(3);

/// The most origins remembered. Anybody can name some.
const MOST: usize = 1_000;

/// The longest origin that is looked up, in bytes: a host's name has 253 at most.
const LONGEST: usize = 300;

/// What a page may send. `X-Acting-User` is a backend's.
const HEADERS: HeaderValue =
    HeaderValue::from_static("authorization, content-type, cache-control, idempotency-key, if-none-match, last-event-id, x-request-id");

/// With which methods.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");

/// What a page may read of an answer beside its body.
const EXPOSED: HeaderValue = HeaderValue::from_static("etag, location, retry-after, www-authenticate, content-disposition, x-request-id");

/// How long a browser may remember a preflight, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// What is known of origins: whether any product lists them.
#[derive(Debug)]
pub struct Origins {
    pool: PgPool,
    known: Mutex<HashMap<String, (bool, Instant)>>,
}

impl Origins {
    /// Reads through `pool`, as the API's role.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, known: Mutex::default() }
    }

    /// Whether any product lists an origin. What can't be found out is not listed.
    async fn any_lists(&self, origin: &str) -> bool {
        if origin.len() > LONGEST {
            return false;
        }
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((listed, _)) = known.get(origin).filter(|(_, read_at)| read_at.elapsed() < FRESH) {
                return *listed;
            }
        }
        let asked: Result<bool, _> = sqlx::query_scalar("SELECT origin_is_listed($1)").bind(origin).fetch_one(&self.pool).await;
        let Ok(listed) = asked else { return false };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (_, read_at)| read_at.elapsed() < FRESH);
        }
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(origin.to_owned(), (listed, Instant::now()));
        listed
    }
}

/// The middleware.
pub async fn origins(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with("/v1/") {
        return next.run(request).await;
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    if *request.method() == Method::OPTIONS && origin.is_some() && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return preflight(&app, origin).await;
    }
    let whose = TenantOfRequest::default();
    request.extensions_mut().insert(whose.clone());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    // Also where there was none: a cache must not give that answer to a page.
    vary(headers, &[header::ORIGIN]);
    if let Some(origin) = origin
        && is_open(&app, &origin, whose.0.get().copied()).await
    {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    response
}

/// What a browser asks before it sends what is no plain form: answered without credentials, and nothing is done.
async fn preflight(app: &App, origin: Option<HeaderValue>) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    vary(headers, &[header::ORIGIN, header::ACCESS_CONTROL_REQUEST_METHOD, header::ACCESS_CONTROL_REQUEST_HEADERS]);
    if let Some(origin) = origin
        && is_open(app, &origin, None).await
    {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    }
    response
}

async fn is_open(app: &App, origin: &HeaderValue, tenant: Option<i32>) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    match tenant {
        None => app.origins.any_lists(origin).await,
        Some(tenant) => match app.tenants.get(tenant).await {
            Ok(Some(tenant)) => tenant.manifest.web.lists(origin),
            _ => false,
        },
    }
}

fn vary(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        headers.append(header::VARY, HeaderValue::from_str(name.as_str()).unwrap_or(HeaderValue::from_static("*")));
    }
}
