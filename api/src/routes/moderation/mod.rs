//! Moderation (R23): content is reported, moderators are told, act on it, and whom it is about is told.
//!
//! What must stay true: whoever acts for a user can report and do nothing else here; what is done, and the jobs that tell of it and that end
//! a suspension, are one transaction; a repeat under its idempotency key does nothing twice.

mod act;
mod report;
mod view;

use axum::{
    Router,
    extract::{FromRequestParts, Path},
    http::request::Parts,
    routing::{get, post},
};
use shared::kinds::Violation;
use utoipa::OpenApi;
use uuid::Uuid;

use crate::{
    app::App,
    problem::{Code, Problem},
};

/// The longest text of a reporter or a moderator, in characters: with a title it fits into what users are told.
const LONGEST_TEXT: usize = 2_000;

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(
    paths(report::create, report::list, report::read, act::on_report, act::on_user, act::of_user),
    tags((name = "moderation", description = "Reports on content, what moderators did, and who is suspended")),
)]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/reports", post(report::create).get(report::list))
        .route("/v1/reports/{id}", get(report::read).patch(act::on_report))
        .route("/v1/users/{id}/moderation", get(act::of_user).post(act::on_user))
}

/// The `{id}` of a report's address. What can't be an id names no report.
#[derive(Debug, Clone, Copy)]
struct ReportOfPath(Uuid);

impl FromRequestParts<App> for ReportOfPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let text = Path::<String>::from_request_parts(parts, app).await;
        // In the form that we write; others lead nowhere, or one report would have several addresses.
        let id = text.ok().filter(|Path(text)| text.len() == 36).and_then(|Path(text)| Uuid::try_parse(&text).ok());
        id.map(Self).ok_or_else(not_found)
    }
}

fn not_found() -> Problem {
    Problem::new(Code::ReportNotFound, "There is no such report of this product. GET /v1/reports lists them.")
}

/// What is wrong with a text of some lines.
fn check_text(at: &str, text: Option<&str>, wrong: &mut Vec<Violation>) {
    let Some(text) = text else { return };
    if !(1..=LONGEST_TEXT).contains(&text.trim().chars().count()) || text.contains('\0') {
        wrong.push(Violation::new(at, format!("must have 1 to {LONGEST_TEXT} characters, and no NUL; leave it out for none")));
    }
}
