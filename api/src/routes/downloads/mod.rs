//! The page of a file, for whoever has its address: `/d/{token}`, and the file itself behind `/d/{token}/file`. For mails, pushes,
//! and people; it works for as long as the file is there.
//!
//! What must stay true: the token is the only way in. It has some 190 random bits, so nobody comes by one by trying, however fast
//! they ask; it is looked up by its hash, so the time of an answer tells nothing; it is never logged, cached, indexed, or handed
//! on in a `Referer`. Who was let in learns what the page shows and no id. Nothing is counted but the following of the link to
//! the file: opening the page, or asking by HEAD, as programs that preview mails do, is free.

mod find;
pub mod html;

use axum::{
    Router,
    extract::{FromRequestParts, Path, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use shared::ledger::files::PAGE_TOKEN_LENGTH;
use url::Url;
use utoipa::OpenApi;

use super::exports::{link_lifetime, redirect, unsigned};
use crate::{app::App, problem::Problem};
use find::{FoundPage, TokenHash};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(page, file), tags((name = "downloads", description = "Files for whoever was given the address; no key needed")))]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new().route("/d/{token}", get(page)).route("/d/{token}/file", get(file))
}

/// The address of a file's page: whole where the installation knows its own (`public`), else the path.
pub fn address(public: Option<&Url>, token: &str) -> String {
    let base = public.map(|url| url.as_str().trim_end_matches('/')).unwrap_or_default();
    format!("{base}/d/{token}")
}

/// The `{token}` of an address, if it can be one.
#[derive(Debug)]
pub struct Token(Option<String>);

impl FromRequestParts<App> for Token {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, app).await;
        let legal = |text: &String| text.len() == PAGE_TOKEN_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Ok(Self(text.ok().map(|Path(text)| text).filter(legal)))
    }
}

/// Shows a file's page.
#[utoipa::path(
    get, path = "/d/{token}", tag = "downloads", operation_id = "show_file_page", security(()),
    params(("token" = String, Path, description = "As in an export's `page_url`")),
    responses(
        (status = 200, content_type = "text/html", body = String, description = "Name, size and time of the file, and a link to it"),
        (status = 404, content_type = "text/html", body = String, description = "There is no such page, or it was taken back"),
        (status = 410, content_type = "text/html", body = String, description = "The file has been deleted"),
    ),
)]
pub async fn page(State(app): State<App>, Token(token): Token) -> Result<Response, Problem> {
    let now = app.clock.now();
    Ok(match look_up(&app, token.as_deref()).await? {
        Some((token, found)) if found.is_there(now) => html(StatusCode::OK, html::file(token, &found, now)),
        Some((_, found)) => html(StatusCode::GONE, html::gone(&found)),
        None => html(StatusCode::NOT_FOUND, html::unknown()),
    })
}

/// Leads to a page's file.
///
/// The answer redirects to a link that lives minutes; each one is counted.
#[utoipa::path(
    get, path = "/d/{token}/file", tag = "downloads", operation_id = "download_file", security(()),
    params(("token" = String, Path, description = "As in an export's `page_url`")),
    responses(
        (status = 302, description = "To the file", headers(("Location" = String, description = "The link"))),
        (status = 404, content_type = "text/html", body = String, description = "There is no such page, or it was taken back"),
        (status = 410, content_type = "text/html", body = String, description = "The file has been deleted"),
    ),
)]
pub async fn file(State(app): State<App>, Token(token): Token, method: Method) -> Result<Response, Problem> {
    let now = app.clock.now();
    let Some((token, found)) = look_up(&app, token.as_deref()).await? else {
        return Ok(html(StatusCode::NOT_FOUND, html::unknown()));
    };
    if !found.is_there(now) {
        return Ok(html(StatusCode::GONE, html::gone(&found)));
    }
    let lifetime = link_lifetime(found.expires_at, now);
    let link = app.storage.presign_get(&found.object_key, &found.file_name, &found.content_type, lifetime).await.map_err(unsigned)?;
    if method == Method::GET && !find::count_download(&app.pool, &TokenHash::of(token), now).await? {
        return Ok(html(StatusCode::GONE, html::gone(&found)));
    }
    let mut answer = redirect(link);
    answer.headers_mut().insert(ROBOTS, HeaderValue::from_static(NO_ROBOTS));
    Ok(answer)
}

async fn look_up<'a>(app: &App, token: Option<&'a str>) -> Result<Option<(&'a str, FoundPage)>, Problem> {
    let Some(token) = token else { return Ok(None) };
    Ok(find::page(&app.pool, &TokenHash::of(token)).await?.map(|found| (token, found)))
}

const ROBOTS: HeaderName = HeaderName::from_static("x-robots-tag");
/// <https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag>
const NO_ROBOTS: &str = "noindex, nofollow, noarchive";

fn html(status: StatusCode, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, html::POLICY.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (ROBOTS, HeaderValue::from_static(NO_ROBOTS)),
    ];
    (status, headers, body).into_response()
}
