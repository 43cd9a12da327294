//! What mail providers tell of bounces and complaints: `/v1/hooks/mail/…`. Who is told of becomes a suppression.
//!
//! What must stay true: nothing is believed that is not proved, by a signature or by a key; the same told twice changes nothing; an event
//! that means nothing here is answered with success, or its sender would repeat it for days.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde::Deserialize;
use shared::{
    ledger::suppressions::{self, NewSuppression, SuppressionReason},
    mail::is_category,
    tenant,
};
use utoipa::{OpenApi, ToSchema};

use super::suppressions::recipient_key;
use crate::{
    app::App,
    auth::{Caller, HooksWrite},
    extract::{self, Raw},
    problem::{Code, Problem, ProblemBody},
};

/// How old a signed hook may be, or how far in the future, in seconds: the tolerance that Standard Webhooks' own libraries have.
const TOLERANCE: i64 = 300;

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(signed, postmark), tags((name = "hooks", description = "What mail providers tell")))]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/hooks/mail/signed/{tenant}", post(signed)).route("/v1/hooks/mail/postmark", post(postmark))
}

/// What a signed hook tells.
#[derive(Debug, Deserialize, ToSchema)]
pub struct SignedEvent {
    /// What happened: `bounce` for a mailbox that is not there, `complaint` for mail that was called spam, `unsubscribe`.
    #[serde(rename = "type")]
    kind: SignedEventType,
    /// To whom.
    #[schema(example = "ada@example.com")]
    email: String,
    /// Of what sort the mail was; for `unsubscribe`, which is of all mail without it.
    category: Option<String>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SignedEventType {
    /// The mailbox is not there, for good.
    Bounce,
    /// The recipient called the mail spam.
    Complaint,
    /// The recipient wants no more of it.
    Unsubscribe,
}

/// Takes what a relay or a script of the product tells, signed.
///
/// Signed as Standard Webhooks has it (`webhook-id`, `webhook-timestamp`, `webhook-signature: v1,…`), by the key that the manifest's
/// `[mail] hook_key_env` names; not older than five minutes. No API key is needed.
#[utoipa::path(
    post, path = "/v1/hooks/mail/signed/{tenant}", tag = "hooks", operation_id = "take_signed_mail_hook", security(()),
    request_body = SignedEvent,
    params(
        ("tenant" = String, Path, description = "The product's name"),
        ("webhook-id" = String, Header, description = "The event's id"),
        ("webhook-timestamp" = String, Header, description = "Seconds since 1970"),
        ("webhook-signature" = String, Header, description = "`v1,` and the signature in base64; several parted by spaces"),
    ),
    responses(
        (status = 204, description = "It is heeded from now on"),
        (status = 401, body = ProblemBody<'static>, description = "`signature_invalid`: missing, wrong or old, or there is no such product or key"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`"),
    ),
)]
pub async fn signed(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap, Raw(body): Raw) -> Result<StatusCode, Problem> {
    // One answer for all that can be wrong: it tells nobody which products there are.
    let invalid = || {
        Problem::new(
            Code::SignatureInvalid,
            "The signature is missing, wrong or older than five minutes, or there is no such product or key.",
        )
    };
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (id, timestamp, signature) = (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
    let (Some(id), Some(timestamp), Some(signature)) = (id, timestamp.and_then(|time| time.parse::<i64>().ok()), signature) else {
        return Err(invalid());
    };
    if timestamp.abs_diff(app.clock.now().timestamp()) > TOLERANCE.unsigned_abs() {
        return Err(invalid());
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
        return Err(invalid());
    }
    let tenant: Option<i32> = sqlx::query_scalar("SELECT find_tenant($1)").bind(name).fetch_one(&app.pool).await?;
    let tenant = app.tenants.get(tenant.ok_or_else(invalid)?).await?.ok_or_else(invalid)?;
    let key = tenant.manifest.mail.as_ref().and_then(|mail| mail.hook_key_env.as_ref()).and_then(|name| app.config.hook_keys.get(name));
    if !key.is_some_and(|key| key.verify(id, timestamp, &body, signature)) {
        return Err(invalid());
    }
    let event: SignedEvent = extract::parse(&body)?;
    let category = event.category.as_deref().filter(|_| event.kind == SignedEventType::Unsubscribe);
    if category.is_some_and(|category| !is_category(category)) {
        return Err(Problem::invalid(vec![shared::kinds::Violation::new("/category", "is not the name of a category")]));
    }
    let reason = match event.kind {
        SignedEventType::Bounce => SuppressionReason::Bounce,
        SignedEventType::Complaint => SuppressionReason::Complaint,
        SignedEventType::Unsubscribe => SuppressionReason::Unsubscribe,
    };
    heed(&app, tenant.id, &event.email, category, reason, "told by a signed hook").await
}

/// What Postmark tells: of its many fields those that mean something here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PostmarkEvent {
    record_type: Option<String>,
    #[serde(rename = "Type")]
    kind: Option<String>,
    email: Option<String>,
    recipient: Option<String>,
    suppress_sending: Option<bool>,
    suppression_reason: Option<String>,
}

impl PostmarkEvent {
    /// Whom it is about, and what it says of them; `None` for what means nothing here: deliveries, opens, soft bounces, reactivations.
    /// <https://postmarkapp.com/developer/webhooks/webhooks-overview>
    fn read(self) -> Option<(String, SuppressionReason)> {
        let kind = self.kind.as_deref();
        match (self.record_type.as_deref()?, kind) {
            ("Bounce", Some("HardBounce" | "BadEmailAddress")) => Some((self.email?, SuppressionReason::Bounce)),
            ("Bounce" | "SpamComplaint", Some("SpamComplaint")) => Some((self.email?, SuppressionReason::Complaint)),
            ("SubscriptionChange", _) if self.suppress_sending == Some(true) => {
                let reason = match self.suppression_reason.as_deref()? {
                    "HardBounce" => SuppressionReason::Bounce,
                    "SpamComplaint" => SuppressionReason::Complaint,
                    "ManualSuppression" => SuppressionReason::Unsubscribe,
                    _ => return None,
                };
                Some((self.recipient?, reason))
            }
            _ => None,
        }
    }
}

/// Takes Postmark's webhooks: `Bounce`, `SpamComplaint`, `SubscriptionChange`.
///
/// Postmark signs nothing; give its webhook the custom header `Authorization: Bearer pk_…` with a key whose only scope is `hooks:write`. Hard
/// bounces, complaints and suppressions become suppressions here; everything else is answered with 204 and forgotten.
#[utoipa::path(
    post, path = "/v1/hooks/mail/postmark", tag = "hooks", operation_id = "take_postmark_hook",
    request_body(content = Object, description = "As Postmark sends it"),
    responses(
        (status = 204, description = "It is heeded, or means nothing here"),
        (status = 400, body = ProblemBody<'static>, description = "`json_malformed`"),
    ),
)]
pub async fn postmark(State(app): State<App>, caller: Caller<HooksWrite>, Raw(body): Raw) -> Result<StatusCode, Problem> {
    // Read leniently: fields are added at any time.
    let malformed = |error: serde_json::Error| Problem::new(Code::JsonMalformed, format!("{error}."));
    let event: PostmarkEvent = serde_json::from_slice(&body).map_err(malformed)?;
    match event.read() {
        Some((email, reason)) => heed(&app, caller.tenant, &email, None, reason, "told by Postmark").await,
        None => Ok(StatusCode::NO_CONTENT),
    }
}

async fn heed(
    app: &App,
    tenant: i32,
    email: &str,
    category: Option<&str>,
    reason: SuppressionReason,
    detail: &str,
) -> Result<StatusCode, Problem> {
    let Some(recipient) = recipient_key(app)?.hash(tenant, email) else {
        // Nothing can be sent there anyhow.
        return Ok(StatusCode::NO_CONTENT);
    };
    let suppression = NewSuppression { tenant, recipient, category, reason, detail: Some(detail) };
    let mut transaction = tenant::transaction(&app.pool, tenant).await?;
    suppressions::add(&mut *transaction, app.clock.new_id(), &suppression, app.clock.now()).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_what_postmark_tells_only_what_is_final_suppresses() {
        let read = |event: serde_json::Value| serde_json::from_value::<PostmarkEvent>(event).unwrap().read();
        let ada = |reason| Some(("ada@example.com".to_owned(), reason));
        for (event, expected) in [
            (json!({"RecordType": "Bounce", "Type": "HardBounce", "Email": "ada@example.com", "ID": 1}), ada(SuppressionReason::Bounce)),
            (
                json!({"RecordType": "SpamComplaint", "Type": "SpamComplaint", "Email": "ada@example.com"}),
                ada(SuppressionReason::Complaint),
            ),
            (
                json!({"RecordType": "SubscriptionChange", "Recipient": "ada@example.com", "SuppressSending": true, "SuppressionReason": "HardBounce"}),
                ada(SuppressionReason::Bounce),
            ),
            (
                json!({"RecordType": "SubscriptionChange", "Recipient": "ada@example.com", "SuppressSending": true, "SuppressionReason": "ManualSuppression"}),
                ada(SuppressionReason::Unsubscribe),
            ),
            (
                json!({"RecordType": "SubscriptionChange", "Recipient": "ada@example.com", "SuppressSending": false, "SuppressionReason": null}),
                None,
            ),
            (json!({"RecordType": "Bounce", "Type": "SoftBounce", "Email": "ada@example.com"}), None),
            (json!({"RecordType": "Bounce", "Type": "Transient", "Email": "ada@example.com"}), None),
            (json!({"RecordType": "Delivery", "Recipient": "ada@example.com"}), None),
            (json!({"Email": "ada@example.com"}), None),
            (json!({}), None),
        ] {
            assert_eq!(read(event.clone()), expected, "{event}");
        }
    }
}
