//! Inquiries (R31): what visitors ask a product by its form, mailed to whom the manifest names; an answer reaches who asked (Reply-To).
//!
//! What must stay true: at most three of one address in 24 hours, however they race; what is written is text in the mail and nothing else.

use std::time::Duration;

use axum::{Router, extract::State, http::HeaderMap, response::Response, routing::post};
use minijinja::{Value as Filled, value::Serde};
use serde::Deserialize;
use serde_json::json;
use shared::{
    kinds::{EmailSend, Mailbox, Violation},
    ledger::inquiries::{self, Counted},
    notification::{
        markdown,
        template::{Form, Renderer},
    },
    tenant,
};
use utoipa::{OpenApi, ToSchema};

use super::{
    jobs::{Job, Wish, ask, hash_of, idempotency_key, tenant_of},
    suppressions::recipient_key,
};
use crate::{
    app::App,
    auth::{Caller, EmailsWrite},
    extract::Json,
    problem::{Code, Problem, ProblemBody},
};

/// The longest line, in characters, and the longest message.
const LONGEST_LINE: usize = 200;
const LONGEST_MESSAGE: usize = 10_000;

/// What is mailed.
const TEMPLATE: &str = "# {{ subject }}\n\n{{ message }}\n\n- **From:** {{ name }}, {{ email }}\n\
                        {% if budget %}- **Budget:** {{ budget }}\n{% endif %}{% if timeline %}- **Timeline:** {{ timeline }}\n{% endif %}";

/// The door's part of the contract.
#[derive(OpenApi)]
#[openapi(paths(create))]
pub struct Contract;

/// The door.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/inquiries", post(create))
}

/// An inquiry.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewInquiry {
    /// Who asks.
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    /// Where an answer reaches them: one plain address.
    #[schema(max_length = 254, example = "somebody@example.org")]
    email: String,
    /// What it is about.
    #[schema(min_length = 1, max_length = 200)]
    subject: String,
    /// What is asked.
    #[schema(min_length = 1, max_length = 10_000)]
    message: String,
    /// What it may cost, in their words.
    #[schema(max_length = 200)]
    budget: Option<String>,
    /// When it is wanted, in their words.
    #[schema(max_length = 200)]
    timeline: Option<String>,
    /// Makes a repeated request harmless, as of every job. The header `Idempotency-Key` does the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
}

impl NewInquiry {
    fn violations(&self) -> Vec<Violation> {
        let mut wrong = Vec::new();
        let lines = [
            ("/name", Some(&self.name)),
            ("/subject", Some(&self.subject)),
            ("/budget", self.budget.as_ref()),
            ("/timeline", self.timeline.as_ref()),
        ];
        for (pointer, line) in lines {
            let Some(line) = line else { continue };
            if !(1..=LONGEST_LINE).contains(&line.trim().chars().count()) || line.chars().any(char::is_control) {
                wrong.push(Violation::new(pointer, format!("must have 1 to {LONGEST_LINE} characters on one line")));
            }
        }
        if !(1..=LONGEST_MESSAGE).contains(&self.message.trim().chars().count()) || self.message.contains('\0') {
            wrong.push(Violation::new("/message", format!("must have 1 to {LONGEST_MESSAGE} characters, and no NUL")));
        }
        if shared::mail::address(&self.email).is_none() {
            wrong.push(Violation::new("/email", "is not one plain address; write for example ada@example.com"));
        }
        wrong
    }

    fn into_wish(self, to: Mailbox) -> Result<Wish, Problem> {
        let values = json!({
            "name": self.name.trim(), "email": self.email, "subject": self.subject.trim(), "message": self.message.trim(),
            "budget": self.budget, "timeline": self.timeline,
        });
        let markdown = Renderer::default().render(TEMPLATE, Form::Markdown, &Filled::from(Serde(values))).map_err(Problem::internal)?;
        let formatted = markdown::format(&markdown);
        let email = EmailSend {
            to,
            from: None,
            reply_to: Some(Mailbox { email: self.email, name: Some(self.name.trim().to_owned()) }),
            subject: format!("Inquiry: {}", self.subject.trim()),
            text: formatted.text,
            html: Some(format!("<!doctype html>\n<html><head><meta charset=\"utf-8\"></head><body>\n{}</body></html>\n", formatted.html)),
            category: "inquiry".to_owned(),
            headers: std::collections::BTreeMap::new(),
            unsubscribe: false,
            notification: None,
        };
        Ok(Wish { idempotency_key: self.idempotency_key, ..Wish::of(&email) })
    }
}

/// Mails an inquiry to the product.
///
/// To whom the manifest's `[mail]` names as `inquiries_to`; an answer to the mail reaches who asked. At most three of one address are taken
/// in 24 hours.
#[utoipa::path(
    post, path = "/v1/inquiries", tag = "emails", operation_id = "create_inquiry", request_body = NewInquiry,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "See `idempotency_key`; where both are sent they must be the same"),
        ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for"),
    ),
    responses(
        (status = 202, body = Job, description = "Accepted", headers(("Location" = String, description = "The job's address"))),
        (status = 200, body = Job, description = "Accepted before under this idempotency key; the job as it stands now", headers(("Location" = String, description = "The job's address"))),
        (status = 409, body = ProblemBody<'static>, description = "`idempotency_conflict`: the key was used for another request"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field; or the product takes no inquiries"),
        (status = 429, body = ProblemBody<'static>, description = "`inquiry_limit_exceeded`: three of this address in 24 hours; again after `Retry-After`. `backlog_full`"),
        (status = 503, body = ProblemBody<'static>, description = "`not_set_up`, `overloaded`, `database_unavailable`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<EmailsWrite>,
    headers: HeaderMap,
    Json(new): Json<NewInquiry>,
) -> Result<Response, Problem> {
    let mut wrong = new.violations();
    let declared = tenant_of(&app, caller.tenant).await?;
    let to = declared.manifest.mail.as_ref().and_then(|mail| mail.inquiries_to.clone());
    if to.is_none() {
        wrong.push(Violation::new("", "this product takes no inquiries: its manifest's [mail] has no `inquiries_to`"));
    }
    let sender = recipient_key(&app)?.hash(caller.tenant, &new.email);
    let (Some(to), Some(sender), true) = (to, sender, wrong.is_empty()) else { return Err(Problem::invalid(wrong)) };
    let key = idempotency_key(&headers, new.idempotency_key.as_deref())?.map(|key| hash_of(&json!(key)));
    let wish = new.into_wish(Mailbox { email: to.email, name: to.name })?;

    let (id, now) = (app.clock.new_id(), app.clock.now());
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let counted = inquiries::count(&mut transaction, (caller.tenant, sender), id, key, now).await?;
    transaction.commit().await?;
    if let Counted::TooMany(until) = counted {
        let detail = format!(
            "There have been {} inquiries of this address in {} hours; the next one is taken at {}.",
            inquiries::MOST,
            inquiries::WINDOW_HOURS,
            until.format("%FT%TZ")
        );
        let pause = (until - now).to_std().unwrap_or_default().max(Duration::from_secs(1));
        return Err(Problem::new(Code::InquiryLimitExceeded, detail).retry_after(pause));
    }
    let asked = ask(&app, caller.tenant, caller.acting_user.as_deref(), &headers, wish).await;
    if asked.is_err() && counted == Counted::Now {
        let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
        inquiries::strike_out(&mut transaction, caller.tenant, id).await?;
        transaction.commit().await?;
    }
    asked
}
