//! `[ai]` of a manifest: the providers whose models a product calls, and its tasks: what a model is asked, what may be put into the
//! question, what must come back (R40 to R43).
//!
//! What must stay true: a task is data, and complete: model, words, schemas, bounds; keys stand in variables of the worker that the manifest
//! names, never in the manifest; schemas and templates that can't be read are refused when the manifest is applied; every bound that makes a
//! call cost money or time has a most.

mod level;
mod price;
mod provider;
mod rules;
mod schema;
mod task;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use level::{Level, Levels};
pub use price::Price;
pub use provider::{AI_VARIABLE, Provider, ProviderKind};
pub use rules::Rule;
pub use schema::Schema;
pub use task::{Cache, Gate, ModelChoice, Task};

use crate::notification::template::Renderer;
use price::PriceDeclaration;
use provider::ProviderDeclaration;
use task::TaskDeclaration;

/// The most providers of a product.
const MOST_PROVIDERS: usize = 50;

/// The most tasks of a product.
const MOST_TASKS: usize = 200;

/// What a product asks of models, checked.
#[derive(Clone, Debug, Default)]
pub struct Ai {
    /// Whose models it calls.
    pub providers: BTreeMap<String, Provider>,
    /// What it asks them.
    pub tasks: BTreeMap<String, Task>,
    /// What they cost.
    pub prices: Vec<Price>,
    /// In which currency.
    pub currency: String,
}

/// The same as it is written and stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct AiDeclaration {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    providers: BTreeMap<String, ProviderDeclaration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tasks: BTreeMap<String, TaskDeclaration>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    prices: Vec<PriceDeclaration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
}

/// What a provider may put around a question, in tokens.
const FRAME: usize = 512;

/// What is wrong, by the path of its field.
pub(super) type Faults = Vec<(Vec<String>, String)>;

/// The longest that a task may take.
#[cfg(test)]
pub(crate) const fn longest_run() -> std::time::Duration {
    task::LONGEST_RUN
}

/// The path of a field.
fn path(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

impl AiDeclaration {
    /// The names that it gives, with their paths.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, [&str; 3])> {
        let providers = self.providers.keys().map(|name| (name.as_str(), ["ai", "providers", name.as_str()]));
        providers.chain(self.tasks.keys().map(|name| (name.as_str(), ["ai", "tasks", name.as_str()])))
    }

    /// What it declares; what is wrong goes to `faults`, and is left out.
    pub(super) fn check(&self, faults: &mut Faults) -> Ai {
        for (field, found, most) in [("providers", self.providers.len(), MOST_PROVIDERS), ("tasks", self.tasks.len(), MOST_TASKS)] {
            if found > most {
                faults.push((path(&[field]), format!("has {found}; {most} are the most")));
            }
        }
        let renderer = Renderer::default();
        let mut ai = Ai::default();
        for (name, declared) in self.providers.iter().take(MOST_PROVIDERS) {
            let mut wrong = Vec::new();
            if let Some(provider) = declared.check(&mut wrong) {
                ai.providers.insert(name.clone(), provider);
            }
            faults.extend(wrong.into_iter().map(|(field, detail)| (path(&["providers", name, field]), detail)));
        }
        for (name, declared) in self.tasks.iter().take(MOST_TASKS) {
            let mut wrong = Vec::new();
            if name == "usage" {
                // `POST /v1/ai/usage` is another door.
                faults.push((path(&["tasks", name]), "is the name of a door, /v1/ai/usage; name the task otherwise".to_owned()));
            }
            if let Some(task) = declared.check(&renderer, &self.providers, &mut wrong) {
                ai.tasks.insert(name.clone(), task);
            }
            faults.extend(wrong.into_iter().map(|(field, detail)| ([path(&["tasks", name]), field].concat(), detail)));
        }
        self.check_prices(&mut ai, faults);
        ai
    }

    fn check_prices(&self, ai: &mut Ai, faults: &mut Faults) {
        if self.prices.len() > price::MOST {
            faults.push((path(&["prices"]), format!("has {}; {} are the most", self.prices.len(), price::MOST)));
        }
        for (place, declared) in self.prices.iter().take(price::MOST).enumerate() {
            match declared.check(|name| self.providers.contains_key(name)) {
                Ok(price) => ai.prices.push(price),
                Err(detail) => faults.push((path(&["prices"]), format!("number {}: {detail}", place + 1))),
            }
        }
        // ISO 4217.
        ai.currency = self.currency.clone().unwrap_or_else(|| "USD".to_owned());
        if ai.currency.len() != 3 || !ai.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            faults.push((path(&["currency"]), format!("`{}` must be a currency's three letters, as in \"USD\"", ai.currency)));
        }
    }
}

impl Task {
    /// The most tokens that a question of so many bytes can have.
    #[must_use]
    pub fn most_input(&self, question_bytes: usize) -> u64 {
        let schema = self.output.as_ref().map_or(0, |schema| schema.value().to_string().len());
        // A token is a byte at least, in every vocabulary there is; what a provider puts around a question is small beside that.
        // Twice the schema: some models are shown it in words.
        u64::try_from(question_bytes.saturating_add(2 * schema).saturating_add(FRAME)).unwrap_or(u64::MAX)
    }
}

impl Ai {
    /// What a model costs at a time; `None`: nobody said.
    #[must_use]
    pub fn price(&self, provider: &str, model: &str, at: DateTime<Utc>) -> Option<&Price> {
        price::find(&self.prices, provider, model, at)
    }

    /// Whether anybody said what a model costs.
    #[must_use]
    pub fn has_price(&self, provider: &str, model: &str) -> bool {
        self.price(provider, model, DateTime::<Utc>::MAX_UTC).is_some()
    }

    /// The most that one call of a task can cost at a time, for a question of so many bytes: by the dearest of its models. `None` where no price
    /// is known of any.
    #[must_use]
    pub fn most_of_call(&self, task: &Task, question_bytes: usize, at: DateTime<Utc>) -> Option<u64> {
        let input = task.most_input(question_bytes);
        let prices = task.models.iter().filter_map(|choice| self.price(&choice.provider, &choice.model, at));
        prices.map(|price| price.of(input, task.max_tokens.into())).max()
    }
}
