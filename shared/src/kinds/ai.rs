//! `ai.run`: one task of a product put to a model (R40 to R43).

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Kind, Violation};
use crate::{
    job::{Backoff, Policy, SnoozeBounds},
    keys::Scope,
    notification::template::Renderer,
    queue::Queue,
    tenant::Manifest,
    usage::{AI_COST, Charge},
};

/// The payload of `ai.run`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AiRun {
    /// The task, as the manifest names it.
    pub task: String,
    /// What is put into the question, as the task's schema has it.
    pub input: Value,
    /// Whether its words can be followed while they come.
    #[serde(default)]
    pub stream: bool,
}

impl Kind for AiRun {
    const NAME: &'static str = "ai.run";
    const QUEUE: Queue = Queue::Ai;
    /// A call costs money.
    const OUTWARD: bool = true;
    const SCOPE: Option<Scope> = Some(Scope::AiWrite);
    /// One owner of retries: no call is tried twice within an attempt, but for the other models that the task names. A provider that says
    /// when to come back is asked then, which uses no attempt. The timeout is above the longest that a manifest lets a task take.
    const POLICY: Policy = Policy {
        attempts: 4,
        backoff: Backoff { first: Duration::from_secs(2), cap: Duration::from_secs(60), jitter_percent: 20 },
        timeout: Duration::from_secs(3_700),
        deadline: Duration::from_secs(24 * 3_600),
        snooze: SnoozeBounds::DEFAULT,
    };
    /// R3.
    const ESTIMATE: Duration = Duration::from_secs(15);

    fn violations(&self) -> Vec<Violation> {
        if self.input.is_object() {
            Vec::new()
        } else {
            vec![Violation::new("/input", "must be an object, as the task's input schema has it")]
        }
    }

    fn violations_for(&self, tenant: &Manifest, _: Option<&str>) -> Vec<Violation> {
        if let Some(task) = tenant.ai.tasks.get(&self.task) {
            return task.violations(&self.input);
        }
        let known: Vec<_> = tenant.ai.tasks.keys().map(String::as_str).collect();
        let detail = match known.as_slice() {
            [] => "names a task, and this product has none: its manifest has no [ai.tasks.…]".to_owned(),
            known => format!("is not a task of this product; there are: {}", known.join(", ")),
        };
        vec![Violation::new("/task", detail)]
    }

    /// Each is followed by what it cost.
    fn is_metered(&self) -> bool {
        true
    }

    /// What the task is counted as, for a success; and the most that its first answer can cost. Each further one reserves before it is asked for.
    fn charges(&self, tenant: &Manifest, _: Option<&str>, now: DateTime<Utc>) -> Vec<Charge> {
        let Some(task) = tenant.ai.tasks.get(&self.task) else { return Vec::new() };
        let counted = task.metric.as_ref().map(|metric| Charge::of(metric.clone(), 1));
        let rendered = task.render(&Renderer::default(), &self.input);
        // What can't be rendered was refused, or fails of that.
        let bytes = rendered.map_or(0, |(system, prompt)| system.map_or(0, |system| system.len()) + prompt.len());
        // Where the first model is asked by the user's own key, no other is asked by the product's.
        let first = task.models.first().and_then(|choice| tenant.ai.providers.get(&choice.provider));
        let unless_own_key = first.and_then(|provider| provider.byok).filter(|_| task.own_keys);
        let cost = tenant.ai.most_of_call(task, bytes, now).map(|most| Charge { unless_own_key, ..Charge::incurred(AI_COST, most) });
        counted.into_iter().chain(cost).collect()
    }

    fn sample() -> Self {
        Self { task: "enhance".into(), input: json!({"prompt": "Write a poem about the sea."}), stream: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::ai_longest_run;

    #[test]
    fn no_run_is_cut_that_the_manifest_allows() {
        assert!(AiRun::POLICY.timeout > ai_longest_run());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let manifest = Manifest::from_toml(
            "[tenant]\nname = \"a\"\n[ai.providers.main]\nkind = \"openai\"\n[ai.tasks.enhance]\nmodels = [{ provider = \"main\", model = \"m\" }]\n\
             prompt = \"{{ input.prompt }}\"\nrules = [{ field = \"/prompt\", min_chars = 10 }]\n\
             input = { type = \"object\", additionalProperties = false, required = [\"prompt\"], properties = { prompt = { type = \"string\" } } }\n",
        )
        .unwrap();
        let places = |task: &str, input: Value| {
            let run = AiRun { task: task.into(), input, stream: false };
            let violations = [run.violations(), run.violations_for(&manifest, None)].concat();
            violations.into_iter().map(|violation| violation.pointer).collect::<Vec<_>>()
        };
        assert_eq!(places("enhance", json!({"prompt": "Write a poem."})), [] as [&str; 0]);
        assert_eq!(places("other", json!({})), ["/task"]);
        assert_eq!(places("enhance", json!({"prompt": "short"})), ["/input/prompt"]);
        assert_eq!(places("enhance", json!({"prompt": 1})), ["/input/prompt"]);
        assert_eq!(places("enhance", json!([])), ["/input", "/input"]);
    }
}
