//! Mail: the door of the kind `email.send`. Nothing is sent in here: what is accepted is a job (R32).
//!
//! What must stay true: whether somebody wants the mail is not said at this door, and not asked either: it is asked when the mail is sent.

use std::collections::BTreeMap;

use axum::{Router, extract::State, http::HeaderMap, response::Response, routing::post};
use serde::Deserialize;
use shared::{
    job::Priority,
    kinds::{EmailSend, Mailbox},
};
use utoipa::{OpenApi, ToSchema};

use super::{
    jobs::{Job, Wish, ask},
    moment::Moment,
};
use crate::{
    app::App,
    auth::{Caller, EmailsWrite},
    extract::Json,
    problem::{Problem, ProblemBody},
};

/// The door's part of the contract.
#[derive(OpenApi)]
#[openapi(paths(create), tags((name = "emails", description = "Mail, one recipient each, and who wants none")))]
pub struct Contract;

/// The door.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/emails", post(create))
}

/// A mail to be sent.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewEmail {
    /// Whom it is for: one person.
    to: Mailbox,
    /// Whom it is from, of the domain of the product's `[mail]`; as that says when absent.
    from: Option<Mailbox>,
    /// Whom an answer reaches.
    reply_to: Option<Mailbox>,
    /// What it is about, on one line.
    #[schema(min_length = 1, max_length = 255)]
    subject: String,
    /// What it says, where HTML is not read; at most 200 KiB. `{{unsubscribe_url}}` is filled in where `unsubscribe` is set.
    text: String,
    /// The same as HTML; at most 200 KiB.
    html: Option<String>,
    /// What sort of mail it is, such as `digest`: people unsubscribe from one sort.
    #[schema(pattern = "^[a-z][a-z0-9_.-]{0,62}$", example = "digest")]
    category: String,
    /// Headers of one's own: `X-…`, `In-Reply-To`, `References`, `List-Id`, `Feedback-ID`; at most 20.
    #[serde(default)]
    #[schema(required = false)]
    headers: BTreeMap<String, String>,
    /// Whether its recipient can unsubscribe from the category by one click (RFC 8058); needed for what was not asked for.
    #[serde(default)]
    #[schema(required = false)]
    unsubscribe: bool,
    /// Makes a repeated request harmless: the same key and request lead to the same job for a day. 1 to 255 visible ASCII characters. The
    /// header `Idempotency-Key` does the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
    /// When to send it, at most a year ahead; at once when absent or past.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    run_at: Option<Moment>,
    /// When it is no use any more, as a code is after some minutes: it is not sent then, and its job expires.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    send_by: Option<Moment>,
    /// Which mails it goes before; `normal` when absent.
    priority: Option<Priority>,
    /// The end user whom it is for; the user of `X-Acting-User` when that is sent, and then no other.
    #[schema(min_length = 1, max_length = 255)]
    owner: Option<String>,
    /// Where to POST the view of the mail's job when it has ended, signed by Standard Webhooks. At most 2,000 bytes.
    #[schema(max_length = 2_000)]
    completion_url: Option<String>,
}

impl NewEmail {
    fn into_wish(self) -> Wish {
        let email = EmailSend {
            to: self.to,
            from: self.from,
            reply_to: self.reply_to,
            subject: self.subject,
            text: self.text,
            html: self.html,
            category: self.category,
            headers: self.headers,
            unsubscribe: self.unsubscribe,
            notification: None,
        };
        Wish {
            idempotency_key: self.idempotency_key,
            run_at: self.run_at.map(|moment| moment.0),
            start_by: self.send_by.map(|moment| moment.0),
            priority: self.priority,
            owner: self.owner,
            completion_url: self.completion_url,
            ..Wish::of(&email)
        }
    }
}

/// Asks for a mail to be sent.
///
/// It is sent in the background; the job says when it was, `GET /v1/deliveries?job=` what became of it. A second copy, should a connection
/// break at the wrong moment, has the same Message-ID.
#[utoipa::path(
    post, path = "/v1/emails", tag = "emails", operation_id = "create_email", request_body = NewEmail,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 202, body = Job, description = "Accepted", headers(("Location" = String, description = "The job's address"))),
        (status = 200, body = Job, description = "Accepted before under this idempotency key; the job as it stands now", headers(("Location" = String, description = "The job's address"))),
        (status = 403, body = ProblemBody<'static>, description = "`kind_not_enabled`: mail is switched off, or not on for this user yet"),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request"),
        (status = 413, body = ProblemBody<'static>, description = "`payload_too_large`, `body_too_large`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field"),
        (status = 429, body = ProblemBody<'static>, description = "`backlog_full`: as many jobs of this product wait as may; again after `Retry-After`"),
        (status = 503, body = ProblemBody<'static>, description = "`overloaded`, `database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<EmailsWrite>,
    headers: HeaderMap,
    Json(new): Json<NewEmail>,
) -> Result<Response, Problem> {
    ask(&app, caller.tenant, caller.acting_user.as_deref(), &headers, new.into_wish()).await
}
