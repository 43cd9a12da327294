//! The address in a mail by which its recipient unsubscribes: `/u/{token}` (RFC 8058).
//!
//! What must stay true: GET changes nothing, since programs that look through mails follow every link; one POST, without a key, a page or a
//! question before it, is enough; the token says who and what, is signed, and is never logged; what it shows is no address.

use axum::{
    Router,
    extract::{FromRequestParts, Path, State},
    http::{HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use shared::{
    ledger::suppressions::{self, NewSuppression, SuppressionReason},
    mail::Unsubscription,
    tenant,
};
use utoipa::OpenApi;

use super::downloads::html::{self, escape};
use crate::{app::App, problem::Problem};

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(page, unsubscribe), tags((name = "unsubscribe", description = "For whoever got a mail; no key needed")))]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new().route("/u/{token}", get(page).post(unsubscribe))
}

/// What the `{token}` of an address says, if this installation made it.
#[derive(Debug)]
pub struct Said(Option<Unsubscription>);

impl FromRequestParts<App> for Said {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let token = Path::<String>::from_request_parts(parts, app).await;
        let key = app.config.recipient_key.as_ref();
        Ok(Self(token.ok().zip(key).and_then(|(Path(token), key)| key.read_token(&token))))
    }
}

/// Shows a page with a button. It changes nothing.
#[utoipa::path(
    get, path = "/u/{token}", tag = "unsubscribe", operation_id = "show_unsubscribe_page", security(()),
    params(("token" = String, Path, description = "As in a mail's `List-Unsubscribe`")),
    responses(
        (status = 200, content_type = "text/html", body = String, description = "A page that asks"),
        (status = 404, content_type = "text/html", body = String, description = "There is no such address"),
    ),
)]
pub async fn page(State(app): State<App>, Said(said): Said) -> Result<Response, Problem> {
    let Some(said) = said else { return Ok(answer(StatusCode::NOT_FOUND, html::unknown())) };
    let product = product(&app, said.tenant).await?;
    let main = format!(
        "<p class=\"product\">{product}</p>\n<h1>Unsubscribe?</h1>\n\
         <p>You will get no more mail of the sort <strong>{category}</strong> at the address that this mail was sent to.</p>\n\
         <form method=\"post\"><button class=\"button\" type=\"submit\" name=\"List-Unsubscribe\" value=\"One-Click\">Unsubscribe</button></form>",
        product = escape(&product),
        category = escape(&said.category),
    );
    Ok(answer(StatusCode::OK, html::document("Unsubscribe?", &main)))
}

/// Unsubscribes: no more mail of the category goes to the address.
///
/// By a mail program (`List-Unsubscribe=One-Click`, RFC 8058) or by the page's button. Once more changes nothing.
#[utoipa::path(
    post, path = "/u/{token}", tag = "unsubscribe", operation_id = "unsubscribe", security(()),
    params(("token" = String, Path, description = "As in a mail's `List-Unsubscribe`")),
    responses(
        (status = 200, content_type = "text/html", body = String, description = "It is done"),
        (status = 404, content_type = "text/html", body = String, description = "There is no such address"),
    ),
)]
pub async fn unsubscribe(State(app): State<App>, Said(said): Said) -> Result<Response, Problem> {
    // Whatever the body is, and in whatever encoding, it is not read: the address alone says what is meant.
    let Some(said) = said else { return Ok(answer(StatusCode::NOT_FOUND, html::unknown())) };
    let suppression = NewSuppression {
        tenant: said.tenant,
        recipient: said.recipient,
        category: Some(&said.category),
        reason: SuppressionReason::Unsubscribe,
        detail: None,
    };
    let mut transaction = tenant::transaction(&app.pool, said.tenant).await?;
    suppressions::add(&mut *transaction, app.clock.new_id(), &suppression, app.clock.now()).await?;
    transaction.commit().await?;
    let product = product(&app, said.tenant).await?;
    let main = format!(
        "<p class=\"product\">{product}</p>\n<h1>You are unsubscribed</h1>\n\
         <p>You will get no more mail of the sort <strong>{category}</strong>. What is on its way already may still arrive.</p>",
        product = escape(&product),
        category = escape(&said.category),
    );
    Ok(answer(StatusCode::OK, html::document("You are unsubscribed", &main)))
}

async fn product(app: &App, tenant: i32) -> Result<String, Problem> {
    Ok(app.tenants.get(tenant).await?.map(|tenant| tenant.name.clone()).unwrap_or_default())
}

fn answer(status: StatusCode, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, html::FORM_POLICY.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("x-robots-tag"), HeaderValue::from_static("noindex, nofollow, noarchive")),
    ];
    (status, headers, body).into_response()
}
