//! `[ai]` of a manifest: the providers whose models a product calls, and its tasks: what a model is asked, what may be put into the
//! question, what must come back (R40 to R43).
//!
//! What must stay true: a task is data, and complete: model, words, schemas, bounds; keys stand in variables of the worker that the manifest
//! names, never in the manifest; schemas and templates that can't be read are refused when the manifest is applied; every bound that makes a
//! call cost money or time has a most.

mod level;
mod provider;
mod rules;
mod schema;
mod task;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use level::{Level, Levels};
pub use provider::{AI_VARIABLE, Provider, ProviderKind};
pub use rules::Rule;
pub use schema::Schema;
pub use task::{Cache, Gate, ModelChoice, Task};

use crate::notification::template::Renderer;
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
}

/// The same as it is written and stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct AiDeclaration {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    providers: BTreeMap<String, ProviderDeclaration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tasks: BTreeMap<String, TaskDeclaration>,
}

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
            if let Some(task) = declared.check(&renderer, &self.providers, &mut wrong) {
                ai.tasks.insert(name.clone(), task);
            }
            faults.extend(wrong.into_iter().map(|(field, detail)| ([path(&["tasks", name]), field].concat(), detail)));
        }
        ai
    }
}
