//! One call of one model: the place where whatever guards calls, and whatever counts them, stands around the client.

use std::time::Duration;

use shared::tenant::Provider;
use tokio::time::Instant;

use super::credential::Credential;
use crate::{
    clients::ai::{ANSWERED, AiError, Listener, Question, Reply},
    handlers::JobContext,
};

/// A call that is about to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    /// The provider's name in the manifest.
    pub(super) name: &'a str,
    /// The provider.
    pub(super) provider: &'a Provider,
    /// By whose key.
    pub(super) credential: &'a Credential,
    /// What is asked; its `model` among it.
    pub(super) question: &'a Question,
    /// The longest that it may take.
    pub(super) within: Duration,
}

/// What came of a call, and how long it took.
#[derive(Debug)]
pub(super) struct Called {
    /// The answer.
    pub(super) answer: Result<Reply, AiError>,
    /// How long the provider took.
    pub(super) took: Duration,
}

/// Makes a call: once, whatever comes of it.
pub(super) async fn call(context: &JobContext, call: Call<'_>, listener: Option<&mut dyn Listener>) -> Called {
    let began = Instant::now();
    let Call { provider, credential, question, within, .. } = call;
    let services = &context.services;
    let answer = services.clients.models.ask(provider, credential.key(), question, within, listener, services.clock.now()).await;
    let took = began.elapsed();
    let outcome = answer.as_ref().map_or_else(AiError::code, |_| ANSWERED);
    metrics::counter!("offstage_ai_calls_total", "kind" => provider.kind.word(), "outcome" => outcome).increment(1);
    metrics::histogram!("offstage_ai_call_seconds", "kind" => provider.kind.word()).record(took.as_secs_f64());
    let (provider, model, took_ms) = (call.name, question.model.as_str(), took.as_millis());
    tracing::debug!(job = %context.job.id, provider, model, outcome, took_ms, "a model was called");
    Called { answer, took }
}
