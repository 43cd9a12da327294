//! Answers that are kept for who asks exactly the same, where the task says so.
//!
//! What must stay true: what is kept is of one product; all that can change the answer is in its key; what a model in the place of another
//! said is not kept, and neither is what did not pass its gate.

use aws_lc_rs::digest;
use serde_json::{Value, json};
use shared::{
    job::Failure,
    ledger::ai::cache,
    tenant::{Ai, ModelChoice, Task},
};

use crate::handlers::JobContext;

/// A question by which its answer is found again.
pub(super) struct Key([u8; 32]);

impl Key {
    /// Of a whole question; `None` where the task keeps nothing.
    pub(super) fn of(name: &str, ai: &Ai, task: &Task, system: Option<&str>, prompt: &str) -> Option<Self> {
        task.cache?;
        let of_choice = |choice: &ModelChoice| {
            // Behind the same name another server may stand by now.
            let server = ai.providers.get(&choice.provider).map(|provider| json!([provider.kind.word(), provider.base_url.as_str()]));
            json!([choice.provider, server, choice.model, choice.structured])
        };
        let models: Vec<Value> = task.models.iter().map(of_choice).collect();
        let question = json!({
            "task": name, "models": models, "system": system, "prompt": prompt, "max_tokens": task.max_tokens, "temperature": task.temperature,
            "output": task.output.as_ref().map(shared::tenant::Schema::value), "gate": task.gate, "levels": task.levels,
        });
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, question.to_string().as_bytes()).as_ref());
        Some(Self(bytes))
    }

    /// The answer that is kept, as a job's result: it took nothing.
    pub(super) async fn find(&self, context: &JobContext) -> Result<Option<Value>, Failure> {
        let services = &context.services;
        let found = cache::find(&services.pool, context.job.tenant, &self.0, services.clock.now()).await?;
        metrics::counter!("offstage_ai_cache_total", "outcome" => if found.is_some() { "hit" } else { "miss" }).increment(1);
        Ok(found.map(|mut result| {
            if let Some(fields) = result.as_object_mut() {
                let nothing = json!({ "input_tokens": 0, "output_tokens": 0, "estimated": false });
                for (field, value) in [
                    ("usage", nothing),
                    ("calls", json!([])),
                    ("response_ms", json!(0)),
                    ("repaired", json!(false)),
                    ("cached", json!(true)),
                ] {
                    fields.insert(field.to_owned(), value);
                }
            }
            result
        }))
    }

    /// Keeps an answer.
    pub(super) async fn keep(&self, context: &JobContext, task: &Task, result: &Value) -> Result<(), Failure> {
        let (Some(kept), Some(choice)) = (task.cache, task.models.first()) else { return Ok(()) };
        let is_of_the_first = result["provider"] == choice.provider.as_str() && result["model"] == choice.model.as_str();
        let passed = result.pointer("/gate/passed").is_none_or(|passed| *passed == Value::Bool(true));
        if !is_of_the_first || !passed {
            return Ok(());
        }
        let now = context.services.clock.now();
        let until = now + std::time::Duration::from_secs(kept.ttl_seconds);
        let owner = context.job.owner.as_deref();
        Ok(cache::keep(&context.services.pool, context.job.tenant, &self.0, owner, result, (now, until)).await?)
    }
}
