//! Who gets no mail any more: `/v1/suppressions`. For the product's backend.
//!
//! What must stay true: an address is hashed before anything is asked or written, and stands in no answer and no log.

use axum::{
    Json as Answer, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{delete, get},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    kinds::Violation,
    ledger::suppressions::{self, FoundSuppression, NewSuppression, SuppressionReason},
    mail::{RecipientHash, RecipientKey, is_category},
    tenant,
};
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::jobs::NoBody;
use crate::{
    app::App,
    auth::{Caller, EmailsRead, EmailsWrite},
    extract::{Json, Query},
    problem::{Code, Problem, ProblemBody},
};

/// The longest detail, in characters.
const LONGEST_DETAIL: usize = 500;

/// The doors' part of the contract.
#[derive(OpenApi)]
#[openapi(paths(list, create, lift))]
pub struct Contract;

/// The doors.
pub fn routes() -> Router<App> {
    Router::new().route("/v1/suppressions", get(list).post(create)).route("/v1/suppressions/{id}", delete(lift))
}

/// Whose suppressions to show.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// The address.
    email: String,
}

/// A suppression to be.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NewSuppressionBody {
    /// Who gets no mail any more.
    #[schema(example = "ada@example.com")]
    email: String,
    /// Of what sort; none at all when absent.
    #[schema(pattern = "^[a-z][a-z0-9_.-]{0,62}$")]
    category: Option<String>,
    /// Why; `manual` when absent.
    reason: Option<SuppressionReason>,
    /// The same in words, without addresses; at most 500 characters.
    #[schema(max_length = 500)]
    detail: Option<String>,
}

/// A suppression: mail that somebody does not get.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Suppression)]
pub struct SuppressionView {
    /// By which it is lifted.
    id: Uuid,
    /// Of what sort; none at all is sent when `null`.
    #[schema(required)]
    category: Option<String>,
    reason: SuppressionReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    detail: Option<String>,
    created_at: DateTime<Utc>,
}

impl From<FoundSuppression> for SuppressionView {
    fn from(FoundSuppression { id, category, reason, detail, created_at }: FoundSuppression) -> Self {
        Self { id, category, reason, detail, created_at }
    }
}

/// All suppressions of an address.
#[derive(Debug, Serialize, ToSchema)]
pub struct SuppressionList {
    items: Vec<SuppressionView>,
}

/// The key by which recipients are known.
///
/// # Errors
/// [`Code::NotSetUp`].
pub fn recipient_key(app: &App) -> Result<&RecipientKey, Problem> {
    let missing =
        || Problem::new(Code::NotSetUp, "Recipients are not known here: the operator has set no OFFSTAGE_RECIPIENT_KEY for the API.");
    app.config.recipient_key.as_ref().ok_or_else(missing)
}

fn hash(app: &App, tenant: i32, email: &str) -> Result<Option<RecipientHash>, Problem> {
    Ok(recipient_key(app)?.hash(tenant, email))
}

/// Shows what mail an address does not get, and why.
#[utoipa::path(
    get, path = "/v1/suppressions", tag = "emails", operation_id = "list_suppressions", params(ListQuery),
    responses(
        (status = 200, body = SuppressionList, description = "Empty where it gets all mail"),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`: not for end users"),
        (status = 503, body = ProblemBody<'static>, description = "`not_set_up`"),
    ),
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller<EmailsRead>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<SuppressionList>, Problem> {
    caller.for_the_backend("Suppressions")?;
    let no_address = || Problem::new(Code::QueryInvalid, "email: is not one plain address.");
    let recipient = hash(&app, caller.tenant, &query.email)?.ok_or_else(no_address)?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = suppressions::of_recipient(&mut transaction, caller.tenant, recipient).await?;
    Ok(Answer(SuppressionList { items: found.into_iter().map(Into::into).collect() }))
}

/// Says that an address gets no mail any more, of a sort or at all.
///
/// For lists from elsewhere, and for what a product learns by itself. Asked when a mail is about to be sent, so mails that wait heed it.
#[utoipa::path(
    post, path = "/v1/suppressions", tag = "emails", operation_id = "create_suppression", request_body = NewSuppressionBody,
    responses(
        (status = 201, body = SuppressionView),
        (status = 200, body = SuppressionView, description = "It was so before; as it stands"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`: not for end users"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`"),
        (status = 503, body = ProblemBody<'static>, description = "`not_set_up`"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller<EmailsWrite>,
    Json(new): Json<NewSuppressionBody>,
) -> Result<(StatusCode, Answer<SuppressionView>), Problem> {
    caller.for_the_backend("Suppressions")?;
    let recipient = hash(&app, caller.tenant, &new.email)?;
    let mut violations = Vec::new();
    if recipient.is_none() {
        violations.push(Violation::new("/email", "is not one plain address; write for example ada@example.com"));
    }
    if new.category.as_deref().is_some_and(|category| !is_category(category)) {
        violations
            .push(Violation::new("/category", "must be lower-case letters, digits, `_`, `-` and `.`, at most 63, beginning with a letter"));
    }
    let wrong = |detail: &String| detail.chars().count() > LONGEST_DETAIL || detail.contains('@') || detail.chars().any(char::is_control);
    if new.detail.as_ref().is_some_and(wrong) {
        violations.push(Violation::new("/detail", format!("must have at most {LONGEST_DETAIL} characters on one line, and no address")));
    }
    let Some(recipient) = recipient.filter(|_| violations.is_empty()) else { return Err(Problem::invalid(violations)) };
    let suppression = NewSuppression {
        tenant: caller.tenant,
        recipient,
        category: new.category.as_deref(),
        reason: new.reason.unwrap_or(SuppressionReason::Manual),
        detail: new.detail.as_deref(),
    };
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let is_new = suppressions::add(&mut *transaction, app.clock.new_id(), &suppression, app.clock.now()).await?;
    let found = suppressions::of_recipient(&mut transaction, caller.tenant, recipient).await?;
    transaction.commit().await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    // Lifted by somebody in between, which only another transaction's commit could do.
    let gone = || Problem::new(Code::SuppressionNotFound, "The suppression was lifted in this very moment; say it again.");
    let found = found.into_iter().find(|found| found.category == new.category).ok_or_else(gone)?;
    Ok((status, Answer(found.into())))
}

/// Lifts a suppression: such mail is sent again.
///
/// Do so only when the person asks for it, or the mailbox is back: a provider holds each complaint against the whole domain.
#[utoipa::path(
    delete, path = "/v1/suppressions/{id}", tag = "emails", operation_id = "lift_suppression",
    params(("id" = String, Path, description = "The suppression's id")),
    responses(
        (status = 204, description = "It is lifted"),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`: not for end users"),
        (status = 404, body = ProblemBody<'static>, description = "`suppression_not_found`"),
    ),
)]
pub async fn lift(State(app): State<App>, caller: Caller<EmailsWrite>, Path(id): Path<String>, _: NoBody) -> Result<StatusCode, Problem> {
    caller.for_the_backend("Suppressions")?;
    let not_found =
        || Problem::new(Code::SuppressionNotFound, "There is no such suppression; GET /v1/suppressions?email= shows those of an address.");
    let id = Uuid::try_parse(&id).map_err(|_| not_found())?;
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let lifted = suppressions::lift(&mut transaction, caller.tenant, id).await?;
    transaction.commit().await?;
    if lifted { Ok(StatusCode::NO_CONTENT) } else { Err(not_found()) }
}
