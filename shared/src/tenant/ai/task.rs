//! `[ai.tasks.NAME]`: one question to a model, as data.

use std::{collections::BTreeMap, time::Duration};

use minijinja::Value as Values;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    level::Levels,
    path,
    provider::ProviderDeclaration,
    rules::{self, Rule},
    schema::Schema,
};
use crate::{
    kinds::Violation,
    notification::template::{Form, LONGEST_TEXT, Renderer, TemplateError},
};

/// The most models of a task: one, and what is called in its place.
const MOST_MODELS: usize = 5;

/// The most rounds that a gate asks for.
const MOST_ROUNDS: u8 = 5;

/// The most tokens of an answer: what they say has to go into a job's result.
const MOST_TOKENS: u32 = 32_000;

/// The longest that one call may take, in seconds.
const LONGEST_CALL: u64 = 900;

/// The longest that a task may take if every call of it takes as long as it may: within the time of one run (`ai.run`).
pub(crate) const LONGEST_RUN: Duration = Duration::from_secs(3_600);

/// The longest that answers are kept for those who ask the same, in seconds: 30 days.
const LONGEST_CACHE: u64 = 30 * 86_400;

/// The longest description, in characters.
const LONGEST_DESCRIPTION: usize = 1_000;

/// A task.
#[derive(Clone, Debug)]
pub struct Task {
    /// The model that is asked, and then those that are asked in its place.
    pub models: Vec<ModelChoice>,
    /// What the model is told to be, a template.
    pub system: Option<String>,
    /// What it is asked, a template; `input` is filled in.
    pub prompt: String,
    /// What may be put into the question.
    pub input: Schema,
    /// What text of it must be like beside that (R43).
    pub rules: Vec<Rule>,
    /// What must come back; any text when absent.
    pub output: Option<Schema>,
    /// The most tokens of an answer.
    pub max_tokens: u32,
    /// How freely it answers; as the model does by itself when absent.
    pub temperature: Option<f64>,
    /// The longest that one call may take, all of its answer included.
    pub timeout: Duration,
    /// When an answer is good enough.
    pub gate: Option<Gate>,
    /// A word that follows from a number of the answer.
    pub levels: Option<Levels>,
    /// How long an answer is kept for who asks exactly the same.
    pub cache: Option<Cache>,
    /// By which metric of the product's plans it is counted.
    pub metric: Option<String>,
    /// Whether users who brought a key of their own call by that.
    pub own_keys: bool,
}

/// A model of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelChoice {
    /// The provider's name in this manifest.
    pub provider: String,
    /// The model's name at the provider.
    pub model: String,
    /// Whether it takes a JSON Schema for its answer. One that does not is shown the schema in words.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub structured: bool,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
const fn is_yes(value: &bool) -> bool {
    *value
}

/// When an answer is good enough, and how often a better one is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// A number of the answer, by its field.
    pub field: String,
    /// It must be this at least.
    pub at_least: f64,
    /// How many answers are asked for at most, the first included; the best one is the task's.
    #[serde(default = "two")]
    pub rounds: u8,
}

const fn two() -> u8 {
    2
}

/// How long an answer is kept for who asks exactly the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// In seconds.
    pub ttl_seconds: u64,
}

/// A task as it is written and stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TaskDeclaration {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    models: Vec<ModelChoice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    prompt: String,
    input: Value,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rules: Vec<Rule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
    #[serde(default = "a_thousand")]
    max_tokens: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(default = "three")]
    timeout_seconds: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gate: Option<Gate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    levels: Option<Levels>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache: Option<Cache>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metric: Option<String>,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    own_keys: bool,
}

const fn a_thousand() -> u32 {
    1_000
}

/// R40: quick calls; generations say so themselves.
const fn three() -> u64 {
    3
}

impl TaskDeclaration {
    pub(super) fn check(
        &self,
        renderer: &Renderer,
        providers: &BTreeMap<String, ProviderDeclaration>,
        faults: &mut super::Faults,
    ) -> Option<Task> {
        let before = faults.len();
        let mut wrong = |field: &[&str], detail: String| faults.push((path(field), detail));
        if self.description.as_ref().is_some_and(|text| text.chars().count() > LONGEST_DESCRIPTION) {
            wrong(&["description"], format!("must have at most {LONGEST_DESCRIPTION} characters"));
        }
        if self.models.is_empty() || self.models.len() > MOST_MODELS {
            wrong(&["models"], format!("must be 1 to {MOST_MODELS}: the first is asked, the others in its place"));
        }
        for ModelChoice { provider, model, .. } in &self.models {
            if !providers.contains_key(provider) {
                wrong(&["models"], format!("there is no provider `{provider}`; declare it as [ai.providers.{provider}]"));
            }
            if model.is_empty() || model.len() > 200 || !model.bytes().all(|byte| byte.is_ascii_graphic()) {
                wrong(&["models"], "a model's name must have 1 to 200 visible ASCII characters".to_owned());
            }
        }
        for (field, text) in [("system", self.system.as_ref()), ("prompt", Some(&self.prompt))] {
            let Some(text) = text else { continue };
            if text.is_empty() || text.len() > LONGEST_TEXT {
                wrong(&[field], format!("must have 1 to {LONGEST_TEXT} bytes"));
            } else if let Err(error) = renderer.check(text) {
                wrong(&[field], format!("is not a template: {error}"));
            }
        }
        let input = Schema::of_object(&self.input).map_err(|detail| wrong(&["input"], detail)).ok();
        let output = self.output.as_ref().map(|schema| Schema::of_object(schema).map_err(|detail| wrong(&["output"], detail)));
        for (place, rule) in self.rules.iter().enumerate() {
            for detail in rule.faults() {
                wrong(&["rules"], format!("number {}: {detail}", place + 1));
            }
        }
        if !(1..=MOST_TOKENS).contains(&self.max_tokens) {
            wrong(&["max_tokens"], format!("is {}; 1 to {MOST_TOKENS} are allowed", self.max_tokens));
        }
        if self.temperature.is_some_and(|value| !(0.0..=2.0).contains(&value)) {
            wrong(&["temperature"], "must be 0 to 2".to_owned());
        }
        if !(1..=LONGEST_CALL).contains(&self.timeout_seconds) {
            wrong(&["timeout_seconds"], format!("is {}; 1 to {LONGEST_CALL} are allowed", self.timeout_seconds));
        }
        self.check_answer(&mut wrong);
        if self.cache.is_some_and(|cache| !(1..=LONGEST_CACHE).contains(&cache.ttl_seconds)) {
            wrong(&["cache", "ttl_seconds"], format!("must be 1 to {LONGEST_CACHE}"));
        }
        if self.metric.as_ref().is_some_and(|metric| !crate::people::is_role(metric)) {
            wrong(&["metric"], "is not the name of a metric: lower-case letters, digits and `_`, at most 63".to_owned());
        }
        let task = Task {
            models: self.models.clone(),
            system: self.system.clone(),
            prompt: self.prompt.clone(),
            input: input?,
            rules: self.rules.clone(),
            output: output.transpose().ok()?,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            timeout: Duration::from_secs(self.timeout_seconds),
            gate: self.gate.clone(),
            levels: self.levels.clone(),
            cache: self.cache,
            metric: self.metric.clone(),
            own_keys: self.own_keys,
        };
        if task.longest() > LONGEST_RUN {
            let detail = format!(
                "the task may take {} s, with each of its rounds, repairs and models; {} are the most: lower timeout_seconds, or the number of models or rounds",
                task.longest().as_secs(),
                LONGEST_RUN.as_secs()
            );
            faults.push((path(&["timeout_seconds"]), detail));
        }
        (faults.len() == before).then_some(task)
    }

    fn check_answer(&self, wrong: &mut impl FnMut(&[&str], String)) {
        if let Some(Gate { field, at_least, rounds }) = &self.gate {
            if self.output.is_none() || field.is_empty() {
                wrong(&["gate", "field"], "must be a number of the answer, so the task needs an `output` too".to_owned());
            }
            if !at_least.is_finite() {
                wrong(&["gate", "at_least"], "must be a number".to_owned());
            }
            if !(1..=MOST_ROUNDS).contains(rounds) {
                wrong(&["gate", "rounds"], format!("is {rounds}; 1 to {MOST_ROUNDS} are allowed"));
            }
        }
        if let Some(levels) = &self.levels {
            if self.output.is_none() {
                wrong(&["levels"], "follow from a number of the answer, so the task needs an `output` too".to_owned());
            }
            if let Some((field, detail)) = levels.faults() {
                wrong(&["levels", field], detail);
            }
        }
    }
}

impl Task {
    /// The longest that it may take: each answer, its one repair, each by every model.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let repairs = if self.output.is_some() { 2 } else { 1 };
        let models = u32::try_from(self.models.len()).unwrap_or(u32::MAX);
        self.timeout.saturating_mul(models.saturating_mul(repairs).saturating_mul(self.rounds().into()))
    }

    /// How many answers are asked for at most.
    #[must_use]
    pub fn rounds(&self) -> u8 {
        self.gate.as_ref().map_or(1, |gate| gate.rounds)
    }

    /// What is wrong with an input, by its place below `/input`.
    #[must_use]
    pub fn violations(&self, input: &Value) -> Vec<Violation> {
        let mut violations = self.input.violations(input, "/input");
        violations.extend(rules::violations(&self.rules, input, "/input"));
        if violations.is_empty()
            && let Err(error) = self.render(&Renderer::default(), input)
        {
            violations.push(Violation::new("/input", format!("can't be put into the task's words: {error}")));
        }
        violations
    }

    /// The task's words for an input: what the model is told to be, and what it is asked.
    ///
    /// # Errors
    /// [`TemplateError`]: it takes too long or makes too much.
    pub fn render(&self, renderer: &Renderer, input: &Value) -> Result<(Option<String>, String), TemplateError> {
        let values = Values::from(minijinja::value::Serde(json!({ "input": input })));
        let system = self.system.as_ref().map(|system| renderer.render(system, Form::Plain, &values)).transpose()?;
        Ok((system, renderer.render(&self.prompt, Form::Plain, &values)?))
    }
}

#[cfg(test)]
mod tests {
    use crate::tenant::Manifest;

    use super::*;

    const PROVIDER: &str = "[tenant]\nname = \"a\"\n[ai.providers.main]\nkind = \"openai\"\nkey_env = \"OFFSTAGE_AI_MAIN\"\n";

    fn places(task: &str) -> Vec<String> {
        match Manifest::from_toml(&format!("{PROVIDER}[ai.tasks.t]\n{task}")) {
            Ok(_) => Vec::new(),
            Err(error) => error.problems.into_iter().map(|problem| problem.path.replace("ai.tasks.t.", "")).collect(),
        }
    }

    #[test]
    fn a_task_is_whole_or_refused() {
        let least = "models = [{ provider = \"main\", model = \"m\" }]\nprompt = \"{{ input.a }}\"\ninput = { type = \"object\" }\n";
        assert_eq!(places(least), [] as [&str; 0]);
        for (more, place) in [
            ("timeout_seconds = 901", "timeout_seconds"),
            ("timeout_seconds = 0", "timeout_seconds"),
            ("max_tokens = 0", "max_tokens"),
            ("temperature = 3", "temperature"),
            ("gate = { field = \"score\", at_least = 80 }", "gate.field"),
            ("output = { type = \"object\" }\ngate = { field = \"score\", at_least = 80, rounds = 6 }", "gate.rounds"),
            (
                "output = { type = \"object\" }\ntimeout_seconds = 900\ngate = { field = \"score\", at_least = 80, rounds = 3 }",
                "timeout_seconds",
            ),
            ("output = { type = \"string\" }", "output"),
            ("levels = { of = \"a\", into = \"b\", steps = [], else = \"c\" }", "levels"),
            ("cache = { ttl_seconds = 0 }", "cache.ttl_seconds"),
            ("metric = \"AI\"", "metric"),
            ("system = \"{{ a\"", "system"),
            ("rules = [{ field = \"/a\" }]", "rules"),
            ("colour = 1", "colour"),
        ] {
            assert_eq!(places(&format!("{least}{more}"))[0], place, "{more}");
        }
        let other = "models = [{ provider = \"other\", model = \"m\" }]\nprompt = \"x\"\ninput = { type = \"array\" }\n";
        assert_eq!(places(other), ["models", "input"]);
        let secret = PROVIDER.replace("OFFSTAGE_AI_MAIN", "sk-secret");
        let error = Manifest::from_toml(&secret).unwrap_err();
        assert!(!error.to_string().contains("sk-secret") && error.problems[0].path == "ai.providers.main.key_env", "{error}");
    }

    #[test]
    fn what_was_stored_is_read_again() {
        let task = "models = [{ provider = \"main\", model = \"m\", structured = false }]\nprompt = \"{{ input.a }}\"\ninput = { type = \"object\" }\n\
                    gate = { field = \"score\", at_least = 80 }\noutput = { type = \"object\" }\n";
        let manifest = Manifest::from_toml(&format!("{PROVIDER}[ai.tasks.t]\n{task}")).unwrap();
        let again = Manifest::from_stored(manifest.to_stored()).unwrap();
        assert_eq!(again.digest(), manifest.digest());
        let task = &again.ai.tasks["t"];
        assert_eq!((task.rounds(), task.timeout.as_secs(), task.models[0].structured), (2, 3, false));
        let (system, prompt) = task.render(&Renderer::default(), &json!({"a": "{{ b }}"})).unwrap();
        assert_eq!((system, prompt.as_str()), (None, "{{ b }}"));
    }
}
