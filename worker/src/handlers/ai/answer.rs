//! What a model said, as an answer to the task: read, held against its schema, and what to say to the model about its faults.

use serde_json::Value;
use shared::{
    job::Failure,
    tenant::{Gate, Task},
};

use crate::clients::ai::Finish;

/// The most characters that faults are told to a model in.
const LONGEST_FAULTS: usize = 2_000;

/// What is wrong with an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wrong {
    /// It did not come to its end: no answer, and asking the same again is no use.
    Unfinished(Finish),
    /// It is not what the schema says, in words for the model.
    Invalid(String),
}

impl Wrong {
    /// For the job. What the model said is kept with the call.
    pub(super) fn into_failure(self) -> Failure {
        let (code, message) = match self {
            Self::Unfinished(Finish::Length) => {
                ("ai_cut_short", "the model had no tokens left before its answer was whole; raise the task's max_tokens, or ask for less")
            }
            Self::Unfinished(Finish::ContentFilter) => ("ai_content_filtered", "the provider's content filter cut the answer off"),
            Self::Unfinished(Finish::Refusal) => ("ai_model_refused", "the model refused to answer"),
            Self::Unfinished(Finish::Unknown | Finish::Complete) => {
                ("ai_unfinished", "the model stopped for another reason than being done")
            }
            Self::Invalid(_) => {
                ("ai_output_invalid", "the model's answer is not what the task's output schema says, and neither was its second one")
            }
        };
        let message = format!("{message}; what it said is kept with the job, GET /v1/jobs/…/stream shows it");
        Failure::permanent(code, message).for_owner("No answer could be made for this.")
    }
}

/// Reads what a model said.
pub(super) fn read(task: &Task, finish: &Finish, text: &str) -> Result<Value, Wrong> {
    if *finish != Finish::Complete {
        return Err(Wrong::Unfinished(finish.clone()));
    }
    let Some(schema) = &task.output else {
        return if text.trim().is_empty() { Err(Wrong::Unfinished(Finish::Unknown)) } else { Ok(text.into()) };
    };
    let mut answer: Value =
        serde_json::from_str(bare(text)).map_err(|error| Wrong::Invalid(format!("It is not one JSON object: {error}.")))?;
    without_nul(&mut answer);
    let faults = schema.violations(&answer, "");
    if !faults.is_empty() {
        let told =
            faults.iter().map(|fault| format!("- {}: {}", if fault.pointer.is_empty() { "/" } else { &fault.pointer }, fault.detail));
        return Err(Wrong::Invalid(told.collect::<Vec<_>>().join("\n").chars().take(LONGEST_FAULTS).collect()));
    }
    if let Some(levels) = &task.levels
        && !levels.put_into(&mut answer)
    {
        return Err(Wrong::Invalid(format!("- /{}: must be a number", levels.of)));
    }
    Ok(answer)
}

/// Postgres stores no NUL, and JSON may name one.
fn without_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Value::Array(items) => items.iter_mut().for_each(without_nul),
        Value::Object(fields) => {
            if fields.keys().any(|name| name.contains('\0')) {
                *fields = std::mem::take(fields).into_iter().map(|(name, value)| (name.replace('\0', "\u{fffd}"), value)).collect();
            }
            fields.values_mut().for_each(without_nul);
        }
        _ => {}
    }
}

/// Models that were only asked in words like to put JSON into a fence of Markdown.
fn bare(text: &str) -> &str {
    let text = text.trim();
    let Some(fenced) = text.strip_prefix("```") else { return text };
    let inside = fenced.strip_prefix("json").unwrap_or(fenced);
    inside.trim_end().strip_suffix("```").unwrap_or(inside).trim()
}

/// The number that a gate asks of an answer.
pub(super) fn score(gate: &Gate, answer: &Value) -> Option<f64> {
    answer.get(&gate.field).and_then(Value::as_f64)
}

/// What a model is told that takes no schema.
pub(super) fn schema_in_words(schema: &Value) -> String {
    format!("Answer with one JSON object and nothing else. It must conform to this JSON Schema:\n{schema}")
}

/// What a model is told of its faults.
pub(super) fn repair(faults: &str, schema: &Value) -> String {
    format!("Your answer can't be used:\n{faults}\n\n{}", schema_in_words(schema))
}

/// What a model is told whose answer was not good enough.
pub(super) fn another_round(gate: &Gate, score: f64) -> String {
    format!(
        "`{}` of your answer is {score}; at least {} is asked for. Answer again, in the same form, and better.",
        gate.field, gate.at_least
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_found_within_a_fence() {
        for text in ["{\"a\":1}", " {\"a\":1}\n", "```json\n{\"a\":1}\n```", "```\n{\"a\":1}```\n"] {
            assert_eq!(bare(text), "{\"a\":1}", "{text}");
        }
    }
}
