//! `ai.run`: one task of a product put to a model (R40 to R43).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Kind, Violation};
use crate::{
    job::{Backoff, Policy, SnoozeBounds},
    keys::Scope,
    queue::Queue,
    tenant::Manifest,
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
