//! `GET` and `POST /v1/ai/usage`: what models were used for, by day; and AI use that was made elsewhere.

use std::collections::HashSet;

use axum::{Json as Answer, extract::State};
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    kinds::Violation,
    tenant::{self, Manifest},
    usage::{
        AI_COST, Standing,
        calls::{self, ANSWERED, DayOfModel, MadeCall, Payer},
        read, reserve,
    },
};
use utoipa::ToSchema;

use super::MetricUsage;
use crate::{
    app::App,
    auth::{Backend, CallerOrUser, UsageRead, UsageWrite, check_user},
    extract::{Json, Query},
    problem::{Problem, ProblemBody},
    routes::{jobs::tenant_of, moment::Moment},
};

/// The most days that are shown.
const MOST_DAYS: u32 = 90;

/// Days that are shown when nothing is said (R46).
const DAYS: u32 = 30;

/// Calls of one request.
const MOST_CALLS: usize = 1_000;

/// The largest request: so many calls with all that may be said of each.
const BODY_LIMIT: usize = 2 * 1024 * 1024;

/// The longest name of a model, a provider, a task, and the longest id.
const LONGEST: usize = 200;

/// The most tokens, and milliseconds, of one call: beyond any that there are.
const LARGEST: u64 = 1_000_000_000;

/// The highest cost of one call: a million of the currency.
const DEAREST: u64 = 1_000_000_000_000;

/// How long ago a call may have been made that is told, in days: as long as single calls are kept.
const LONGEST_AGO: i64 = 90;

/// How far the teller's clock may be ahead.
const AHEAD: TimeDelta = TimeDelta::minutes(5);

/// Which days.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AiUsageQuery {
    /// How many days, today included; 30 when absent, at most 90.
    #[param(minimum = 1, maximum = 90)]
    days: Option<u32>,
}

/// What models were used for.
#[derive(Debug, Serialize, ToSchema)]
pub struct AiUsage {
    /// Whose: the user's; absent for the product as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    user: Option<String>,
    /// The currency of costs (ISO 4217).
    #[schema(example = "USD")]
    currency: String,
    /// By whose clocks days begin.
    #[schema(example = "Europe/Berlin")]
    time_zone: String,
    /// The first day.
    from: NaiveDate,
    /// The last one: today.
    to: NaiveDate,
    /// All days together.
    total: AiUsageTotal,
    /// By day and model, the newest day first.
    days: Vec<AiUsageDay>,
    /// Budgets: what may be spent on models, in millionths of the currency, and when each begins anew.
    budgets: Vec<MetricUsage>,
}

/// All days together.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct AiUsageTotal {
    /// Calls.
    calls: i64,
    /// Tokens of questions.
    input_tokens: i64,
    /// Tokens of answers.
    output_tokens: i64,
    /// Calls of which nobody knows what they cost: their models have no price.
    unpriced_calls: i64,
    /// What the others cost, in millionths of the currency; `null` where it is known of none.
    cost_micros: Option<i64>,
}

/// A model on a day.
#[derive(Debug, Serialize, ToSchema)]
pub struct AiUsageDay {
    /// The day, by the product's clocks.
    day: NaiveDate,
    /// Whose model.
    provider: String,
    /// The model.
    model: String,
    /// By whose key: the `product`'s, the `user`'s own, or `elsewhere` for calls that the product told of.
    credential: String,
    /// Calls.
    calls: i64,
    /// Those that were answered.
    answered: i64,
    /// Those whose tokens are an estimate.
    estimated_calls: i64,
    /// Tokens of questions.
    input_tokens: i64,
    /// Tokens of answers.
    output_tokens: i64,
    /// Calls of which nobody knows what they cost: the model has no price.
    unpriced_calls: i64,
    /// What the others cost, in millionths of the currency; `null` where it is known of none.
    cost_micros: Option<i64>,
}

impl AiUsageTotal {
    fn add(&mut self, day: &DayOfModel) {
        self.calls = self.calls.saturating_add(day.calls);
        // Of one day it may be as much as is counted at all.
        self.input_tokens = self.input_tokens.saturating_add(day.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(day.output_tokens);
        self.unpriced_calls = self.unpriced_calls.saturating_add(day.unpriced);
        if let Some(cost) = known_cost(day) {
            self.cost_micros = Some(self.cost_micros.unwrap_or_default().saturating_add(cost));
        }
    }
}

/// Nobody knows is not nothing.
fn known_cost(day: &DayOfModel) -> Option<i64> {
    (day.unpriced < day.calls).then_some(day.cost)
}

impl From<DayOfModel> for AiUsageDay {
    fn from(day: DayOfModel) -> Self {
        let cost_micros = known_cost(&day);
        let DayOfModel { day, provider, model, credential, calls, answered, estimated, unpriced, input_tokens, output_tokens, .. } = day;
        Self {
            day,
            provider,
            model,
            credential,
            calls,
            answered,
            estimated_calls: estimated,
            input_tokens,
            output_tokens,
            unpriced_calls: unpriced,
            cost_micros,
        }
    }
}

/// Shows what models were used for, by day and model, with what it cost.
///
/// Of the user that is acted for, or of the product as a whole. Reading it uses nothing. As a file: the datasets `ai_usage` and `all_ai_usage`
/// of exports.
#[utoipa::path(
    get, path = "/v1/ai/usage", tag = "usage", operation_id = "read_ai_usage",
    params(AiUsageQuery, ("X-Acting-User" = Option<String>, Header, description = "The end user the backend acts for; then only their own")),
    responses(
        (status = 200, body = AiUsage),
        (status = 400, body = ProblemBody<'static>, description = "`query_invalid`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: `days` is none of 1 to 90"),
        (status = 503, body = ProblemBody<'static>, description = "`database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn read(
    State(app): State<App>,
    CallerOrUser(caller): CallerOrUser<UsageRead>,
    Query(wanted): Query<AiUsageQuery>,
) -> Result<Answer<AiUsage>, Problem> {
    let days = wanted.days.unwrap_or(DAYS);
    if !(1..=MOST_DAYS).contains(&days) {
        return Err(Problem::invalid(vec![Violation::new("/days", format!("is {days}; 1 to {MOST_DAYS} are allowed"))]));
    }
    let product = tenant_of(&app, caller.tenant).await?;
    let manifest = &product.manifest;
    let (zone, now) = (manifest.usage.zone(), app.clock.now());
    let today = calls::day_of(&zone, now);
    let owner = caller.acting_user.as_deref();
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let found = calls::by_day(&mut transaction, caller.tenant, owner, today, days).await?;
    let (plan, add_ons) = reserve::plan_of(&mut transaction, caller.tenant, owner).await?.unwrap_or_default();
    let standing = Standing { owner, plan: plan.as_deref(), add_ons: &add_ons };
    let metered = read::standing(&mut transaction, caller.tenant, manifest, &standing, now).await?;
    drop(transaction);
    let mut total = AiUsageTotal::default();
    for day in &found {
        total.add(day);
    }
    Ok(Answer(AiUsage {
        user: owner.map(str::to_owned),
        currency: manifest.ai.currency.clone(),
        time_zone: zone.name().to_owned(),
        from: today - TimeDelta::days(i64::from(days) - 1),
        to: today,
        total,
        days: found.into_iter().map(AiUsageDay::from).collect(),
        budgets: metered.into_iter().filter(|metered| metered.metric == AI_COST).map(MetricUsage::from).collect(),
    }))
}

/// Calls that were made elsewhere.
#[derive(Debug, Deserialize, ToSchema)]
pub struct MadeElsewhere {
    /// 1 to 1,000 of them.
    #[schema(min_items = 1, max_items = 1_000)]
    calls: Vec<CallMadeElsewhere>,
}

/// A call that was made elsewhere.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CallMadeElsewhere {
    /// The product's own id for it: one that was told before counts once. 1 to 200 characters.
    #[schema(min_length = 1, max_length = 200)]
    id: String,
    /// When it was made; within the last 90 days, now when absent.
    #[schema(value_type = Option<DateTime<Utc>>)]
    at: Option<Moment>,
    /// For whom; for nobody in particular when absent.
    #[schema(min_length = 1, max_length = 255)]
    user: Option<String>,
    /// What it was for.
    #[schema(max_length = 200)]
    task: Option<String>,
    /// Whose model.
    #[schema(min_length = 1, max_length = 200, example = "openai")]
    provider: String,
    /// The model.
    #[schema(min_length = 1, max_length = 200, example = "gpt-5-mini")]
    model: String,
    /// Tokens of the question.
    #[serde(default)]
    #[schema(required = false)]
    input_tokens: u64,
    /// Tokens of the answer.
    #[serde(default)]
    #[schema(required = false)]
    output_tokens: u64,
    /// How long it took, in milliseconds.
    response_ms: Option<u64>,
    /// What it cost, in millionths of the currency; by the manifest's prices when absent.
    cost_micros: Option<u64>,
}

impl CallMadeElsewhere {
    fn check(&self, at: &str, now: DateTime<Utc>, wrong: &mut Vec<Violation>) {
        let mut add = |field: &str, detail: String| wrong.push(Violation::new(format!("{at}/{field}"), detail));
        let texts =
            [("id", Some(&self.id)), ("provider", Some(&self.provider)), ("model", Some(&self.model)), ("task", self.task.as_ref())];
        for (field, text) in texts {
            let Some(text) = text else { continue };
            if !(1..=LONGEST).contains(&text.chars().count()) || text.chars().any(char::is_control) {
                add(field, format!("must have 1 to {LONGEST} characters on one line"));
            }
        }
        if let Some(Err(detail)) = self.user.as_deref().map(check_user) {
            add("user", detail);
        }
        for (field, number) in [
            ("input_tokens", self.input_tokens),
            ("output_tokens", self.output_tokens),
            ("response_ms", self.response_ms.unwrap_or_default()),
        ] {
            if number > LARGEST {
                add(field, format!("is more than {LARGEST}"));
            }
        }
        if self.cost_micros.is_some_and(|cost| cost > DEAREST) {
            add("cost_micros", format!("is more than {DEAREST}"));
        }
        if let Some(Moment(at)) = self.at
            && (at > now + AHEAD || at < now - TimeDelta::days(LONGEST_AGO))
        {
            add("at", format!("must be within the last {LONGEST_AGO} days"));
        }
    }

    fn made(self, app: &App, tenant: i32, manifest: &Manifest, now: DateTime<Utc>) -> MadeCall {
        let at = self.at.map_or(now, |moment| moment.0);
        let priced = || manifest.ai.price(&self.provider, &self.model, at).map(|price| price.of(self.input_tokens, self.output_tokens));
        MadeCall {
            id: app.clock.new_id(),
            tenant,
            job: None,
            cost: self.cost_micros.or_else(priced),
            owner: self.user,
            step: None,
            task: self.task,
            provider: self.provider,
            model: self.model,
            payer: Payer::Elsewhere,
            outcome: ANSWERED.to_owned(),
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            estimated: false,
            took_ms: self.response_ms,
            at,
            day: calls::day_of(&manifest.usage.zone(), at),
            reported: Some(self.id),
        }
    }
}

/// What came of what was told.
#[derive(Debug, Serialize, ToSchema)]
pub struct ToldOfCalls {
    /// How many calls are new.
    accepted: usize,
    /// How many were told before, or twice in this request.
    known: usize,
}

/// Tells of AI use that was made elsewhere, so that it is shown with the rest.
///
/// It counts in no limit, since it has been made. A request may be sent again: each call counts once, by its `id`.
#[utoipa::path(
    post, path = "/v1/ai/usage", tag = "usage", operation_id = "tell_ai_usage", request_body = MadeElsewhere,
    responses(
        (status = 200, body = ToldOfCalls),
        (status = 403, body = ProblemBody<'static>, description = "`backend_only`, `scope_missing`"),
        (status = 422, body = ProblemBody<'static>, description = "`validation_failed`: what is wrong, by field (`/calls/3/model`)"),
        (status = 503, body = ProblemBody<'static>, description = "`database_unavailable`: try again after `Retry-After`"),
    ),
)]
pub async fn tell(
    State(app): State<App>,
    Backend(caller): Backend<UsageWrite>,
    Json(told): Json<MadeElsewhere, BODY_LIMIT>,
) -> Result<Answer<ToldOfCalls>, Problem> {
    let now = app.clock.now();
    let mut wrong = Vec::new();
    if !(1..=MOST_CALLS).contains(&told.calls.len()) {
        wrong.push(Violation::new("/calls", format!("names {} calls; 1 to {MOST_CALLS} are allowed", told.calls.len())));
    }
    for (place, call) in told.calls.iter().enumerate().take(MOST_CALLS) {
        call.check(&format!("/calls/{place}"), now, &mut wrong);
    }
    if !wrong.is_empty() {
        wrong.truncate(100);
        return Err(Problem::invalid(wrong));
    }
    let product = tenant_of(&app, caller.tenant).await?;
    let asked = told.calls.len();
    let mut ids = HashSet::new();
    // The first of one id stands for all.
    let made = told.calls.into_iter().filter(|call| ids.insert(call.id.clone()));
    let made: Vec<MadeCall> = made.map(|call| call.made(&app, caller.tenant, &product.manifest, now)).collect();
    let mut transaction = tenant::transaction(&app.pool, caller.tenant).await?;
    let accepted = calls::record(&mut *transaction, &made).await?.len();
    transaction.commit().await?;
    Ok(Answer(ToldOfCalls { accepted, known: asked - accepted }))
}
