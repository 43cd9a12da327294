//! What arrived, for people and for scripts.
//!
//! | request | effect |
//! |---|---|
//! | `GET /` | the page: the latest mails first |
//! | `GET /mails` | the same as JSON, with headers and text |
//! | `GET /mails/NUMBER` | one mail as a page |
//! | `GET /mails/NUMBER/raw` | one mail as it came |
//! | `DELETE /mails` | forgets them |
//!
//! A mail's content is a stranger's: it is escaped, and its HTML stands in a frame without scripts and without this page's origin.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mail_parser::MessageParser;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{Mail, Mailbox};
use crate::http::comes_from_here;

/// Mails on the page.
const SHOWN: usize = 200;

/// Nothing is loaded from elsewhere and nothing runs, whatever a mail says.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-src 'self'";

const STYLE: &str = "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse;width:100%}\
    td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ccc;vertical-align:top}pre{white-space:pre-wrap;background:#f4f4f4;padding:1rem}\
    iframe{width:100%;height:30rem;border:1px solid #ccc}@media(prefers-color-scheme:dark){body{background:#111;color:#eee}pre{background:#222}a{color:#8cf}}";

#[derive(Clone)]
struct Shared {
    mailbox: Arc<Mailbox>,
}

pub(super) fn router(mailbox: Arc<Mailbox>, address: SocketAddr) -> Router {
    let hosts = [address.to_string(), format!("localhost:{}", address.port())];
    Router::new()
        .route("/", get(list))
        .route("/mails", get(all).delete(forget))
        .route("/mails/{number}", get(one))
        .route("/mails/{number}/raw", get(raw))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            // No page of somebody else's may read mails or script failures, by a name that leads here either.
            let ours = comes_from_here(request.headers(), &hosts);
            async move { if ours { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() } }
        }))
        .with_state(Shared { mailbox })
}

pub(super) async fn serve(stream: TcpStream, router: Router) {
    let builder = hyper::server::conn::http1::Builder::new();
    // A connection's error is its client's affair.
    let _ = { builder }.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
}

async fn list(State(shared): State<Shared>) -> Response {
    let mut rows = String::new();
    for mail in shared.mailbox.mails().iter().rev().take(SHOWN) {
        let view = view(mail);
        let _ = write!(
            rows,
            "<tr><td><a href=\"/mails/{0}\">{0}</a></td><td>{1}</td><td>{2}</td><td><a href=\"/mails/{0}\">{3}</a></td></tr>",
            mail.number,
            escaped(&mail.from),
            escaped(&mail.to.join(", ")),
            escaped(view["subject"].as_str().unwrap_or("(no subject)")),
        );
    }
    let body = if rows.is_empty() {
        "<p>No mail has arrived yet.</p>".to_owned()
    } else {
        format!("<table><thead><tr><th>#</th><th>From</th><th>To</th><th>Subject</th></tr></thead><tbody>{rows}</tbody></table>")
    };
    page("Mail", &body)
}

async fn one(State(shared): State<Shared>, Path(number): Path<u64>) -> Response {
    let Some(mail) = find(&shared, number) else { return StatusCode::NOT_FOUND.into_response() };
    let view = view(&mail);
    let mut body = String::from("<p><a href=\"/\">All mails</a></p><table>");
    for (name, value) in [("From", escaped(&mail.from)), ("To", escaped(&mail.to.join(", ")))] {
        let _ = write!(body, "<tr><th>{name} (envelope)</th><td>{value}</td></tr>");
    }
    for header in view["headers"].as_array().into_iter().flatten() {
        let text = |index: usize| escaped(header.get(index).and_then(Value::as_str).unwrap_or_default());
        let _ = write!(body, "<tr><th>{}</th><td>{}</td></tr>", text(0), text(1));
    }
    let _ = write!(body, "</table><p><a href=\"/mails/{number}/raw\">As it came</a></p>");
    if let Some(text) = view["text"].as_str() {
        let _ = write!(body, "<h2>Text</h2><pre>{}</pre>", escaped(text));
    }
    if let Some(html) = view["html"].as_str() {
        let _ = write!(body, "<h2>HTML</h2><iframe sandbox title=\"the mail's HTML\" srcdoc=\"{}\"></iframe>", escaped(html));
    }
    page(view["subject"].as_str().unwrap_or("(no subject)"), &body)
}

async fn raw(State(shared): State<Shared>, Path(number): Path<u64>) -> Response {
    match find(&shared, number) {
        Some(mail) => {
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], mail.bytes).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn all(State(shared): State<Shared>) -> Json<Value> {
    let mails: Vec<Mail> = shared.mailbox.mails().iter().cloned().collect();
    Json(mails.iter().map(view).collect())
}

async fn forget(State(shared): State<Shared>) -> StatusCode {
    shared.mailbox.mails().clear();
    StatusCode::NO_CONTENT
}

fn find(shared: &Shared, number: u64) -> Option<Mail> {
    shared.mailbox.mails().iter().find(|mail| mail.number == number).cloned()
}

/// The envelope, and what somebody else's parser makes of the rest.
fn view(mail: &Mail) -> Value {
    let mut view = json!(mail);
    if let Some(parsed) = MessageParser::default().parse(&mail.bytes) {
        let headers: Vec<_> = parsed.headers_raw().map(|(name, value)| json!([name, value.trim()])).collect();
        view["headers"] = json!(headers);
        view["subject"] = json!(parsed.subject());
        view["text"] = json!(parsed.body_text(0));
        view["html"] = json!(parsed.html_part(0).and_then(|part| part.text_contents()));
    }
    view
}

fn page(title: &str, body: &str) -> Response {
    let title = escaped(title);
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{body}</html>"
    );
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(html)).into_response()
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut all, letter| {
        match letter {
            '&' => all.push_str("&amp;"),
            '<' => all.push_str("&lt;"),
            '>' => all.push_str("&gt;"),
            '"' => all.push_str("&quot;"),
            '\'' => all.push_str("&#39;"),
            letter => all.push(letter),
        }
        all
    })
}
