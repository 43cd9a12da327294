//! `ai.run`: one task of a product put to a model (R40 to R43).
//!
//! A task is answered in rounds (one, unless its gate asks for more); a round is an answer and, where that is not what the schema says, one
//! repair; each of them is one call, made by the first of the task's models that answers.
//!
//! What must stay true: each call is written down in the effect ledger before it is made and its answer after it, so that a rerun goes on
//! where the last one stopped, does not pay for an answer twice that it has, and lists those as unknown of which nobody knows; only a whole
//! answer that is what its schema says is a success; nothing waits in here for a provider to have time: the job does, in Postgres.
//!
//! | the call ([`crate::clients::ai`]) | the effect | the next model | the job, when none answers |
//! |---|---|---|---|
//! | its provider's circuit breaker is open | none | at once | waits for that, no attempt used |
//! | not made: no connection, 5xx | struck out | at once | waits, no attempt used, as often as `call` says; then tried again |
//! | too many (429, 529) | struck out | at once | waits for the time that it said, or for one of ours, no attempt used |
//! | cut, late, unreadable | unknown, for good | at once | tried again |
//! | key refused, no quota | struck out | at once | fails |
//! | question refused (other 4xx) | struck out | no | fails |

mod answer;
mod call;
mod credential;
mod kept;
mod spend;
mod words;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{
    job::{Failure, FailureClass, Interrupt, Success},
    kinds::AiRun,
    ledger::effects::Intent,
    notification::template::Renderer,
    tenant::{Ai, Task},
    usage::settle,
};

use super::{JobContext, export};
use crate::clients::{
    ai::{AiError, Finish, Listener, Question, Reply, Role, Turn, Usage},
    breaker::Refused,
};
use answer::Wrong;
pub(super) use call::tell_breaker;
use call::{Call, Called, admit, call, interrupt};
use credential::{Missing, credential};
use kept::Key;
use spend::{Books, Item};
pub use words::Followers;
use words::Speaking;

/// What the job's owner is told, who knows nothing of models.
const FOR_OWNER: &str = "No answer could be made for this.";

/// The largest result, in bytes of JSON: below what a job's may have.
const LONGEST_RESULT: usize = 60 * 1024;

/// Puts a task to a model.
pub(super) async fn run(payload: AiRun, context: JobContext) -> Result<Success, Interrupt> {
    let tenant = export::tenant(&context).await?;
    let ai = &tenant.manifest.ai;
    let task = ai.tasks.get(&payload.task).ok_or_else(|| {
        Failure::permanent("ai_task_unknown", "the product's manifest does not have this task any more").for_owner(FOR_OWNER)
    })?;
    let (system, prompt) = task.render(&Renderer::default(), &payload.input).map_err(|error| {
        Failure::permanent("ai_prompt_invalid", format!("the task's words can't be put together for this input: {error}"))
    })?;
    let key = Key::of(&payload.task, ai, task, system.as_deref(), &prompt);
    if let Some(key) = &key
        && let Some(result) = key.find(&context).await?
    {
        // Somebody else's question paid for it.
        settle::used_nothing(&context.services.pool, context.job.id).await?;
        return Ok(Success::with(result));
    }
    let books = Books { context: &context, manifest: &tenant.manifest, task_name: &payload.task, task };
    let mut asking = Asking { context: &context, ai, task, books, system, is_streamed: payload.stream, made: 0, calls: Vec::new() };
    let answered = asking.rounds(prompt).await?;
    let result = answered.result(&asking.calls);
    if result.to_string().len() > LONGEST_RESULT {
        let message = format!(
            "the answer has more than {LONGEST_RESULT} bytes as JSON, which is more than a result may have; lower the task's max_tokens"
        );
        return Err(Failure::permanent("ai_too_long", message).for_owner(FOR_OWNER).into());
    }
    if let Some(key) = &key {
        key.keep(&context, task, &result).await?;
    }
    Ok(Success::with(result))
}

/// One call that was made, by this run or an earlier one; as the ledger keeps it, and, without its text, the job's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    provider: String,
    model: String,
    #[serde(flatten)]
    usage: Usage,
    /// How long the provider took, in milliseconds, to the nearest.
    response_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    finish: String,
    /// The words, and in which of the job's streams they were told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    text: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    stream: String,
}

/// To the nearest.
fn to_milliseconds(took: Duration) -> u64 {
    u64::try_from(took.saturating_add(Duration::from_micros(500)).as_millis()).unwrap_or(u64::MAX)
}

/// The words by which the ledger keeps how an answer ended.
const FINISHES: [(&str, Finish); 4] =
    [("complete", Finish::Complete), ("length", Finish::Length), ("content_filter", Finish::ContentFilter), ("refusal", Finish::Refusal)];

impl Record {
    fn finish(&self) -> Finish {
        FINISHES.iter().find(|(word, _)| *word == self.finish).map_or(Finish::Unknown, |(_, finish)| finish.clone())
    }

    fn of(provider: &str, model: &str, reply: Reply, took: Duration, stream: String) -> Self {
        let finish = FINISHES.iter().find(|(_, finish)| *finish == reply.finish).map_or("unknown", |(word, _)| word);
        Self {
            provider: provider.to_owned(),
            model: model.to_owned(),
            usage: reply.usage,
            response_ms: to_milliseconds(took),
            request_id: reply.request_id,
            finish: finish.to_owned(),
            text: reply.text,
            stream,
        }
    }
}

/// The answer to a task.
struct Answered {
    output: Value,
    /// The round that it is of, and how many there were.
    round: u8,
    rounds: u8,
    passed: Option<bool>,
    repaired: bool,
    provider: String,
    model: String,
}

impl Answered {
    /// What the client reads.
    fn result(self, calls: &[Record]) -> Value {
        let sum = |of: fn(&Record) -> u64| calls.iter().map(of).fold(0, u64::saturating_add);
        let told: Vec<Value> = calls
            .iter()
            .map(|call| serde_json::to_value(Record { text: String::new(), stream: String::new(), ..call.clone() }).unwrap_or_default())
            .collect();
        let mut result = json!({
            "output": self.output,
            "provider": self.provider,
            "model": self.model,
            "usage": {
                "input_tokens": sum(|call| call.usage.input_tokens),
                "output_tokens": sum(|call| call.usage.output_tokens),
                "estimated": calls.iter().any(|call| call.usage.estimated),
            },
            "response_ms": sum(|call| call.response_ms),
            "repaired": self.repaired,
            "cached": false,
            "calls": told,
        });
        if let (Some(passed), Some(fields)) = (self.passed, result.as_object_mut()) {
            fields.insert("gate".to_owned(), json!({ "passed": passed, "round": self.round, "rounds": self.rounds }));
        }
        result
    }
}

/// A task that is being put to models.
struct Asking<'a> {
    context: &'a JobContext,
    ai: &'a Ai,
    task: &'a Task,
    books: Books<'a>,
    system: Option<String>,
    is_streamed: bool,
    /// Calls that this run made.
    made: u32,
    /// The calls whose answers came.
    calls: Vec<Record>,
}

impl Asking<'_> {
    /// Asks until the answer is good enough, or the rounds are over: then the best one is the answer, and says that it did not pass. A round
    /// after the first that can come to nothing ends them, too: what was answered before it is paid for.
    async fn rounds(&mut self, prompt: String) -> Result<Answered, Interrupt> {
        let mut turns = vec![Turn { role: Role::User, text: prompt }];
        let mut best: Option<(f64, Answered)> = None;
        for round in 1..=self.task.rounds() {
            let mut answered = match self.round(round, &mut turns).await {
                Err(Interrupt::Failed(failure)) if best.is_some() && failure.class == FailureClass::Permanent => {
                    tracing::info!(job = %self.context.job.id, round, code = failure.code, "a later round came to nothing: the best before it counts");
                    break;
                }
                answered => answered?,
            };
            let Some(gate) = &self.task.gate else { return Ok(answered) };
            let Some(score) = answer::score(gate, &answered.output) else {
                let wrong = Wrong::Invalid(format!("- /{}: must be a number", gate.field));
                return Err(wrong.into_failure().into());
            };
            let passed = score >= gate.at_least;
            answered.passed = Some(passed);
            turns.push(Turn { role: Role::User, text: answer::another_round(gate, score) });
            if passed {
                return Ok(answered);
            }
            match &mut best {
                Some((highest, kept)) if score <= *highest => kept.rounds = round,
                best => *best = Some((score, answered)),
            }
        }
        // There is one round at least, and each has left an answer.
        best.map(|(_, answered)| answered).ok_or_else(|| Failure::permanent("ai_output_invalid", "the task asks for no round").into())
    }

    /// One answer that is what its schema says, repaired once where it was not. What was said stays in `turns`.
    async fn round(&mut self, round: u8, turns: &mut Vec<Turn>) -> Result<Answered, Interrupt> {
        let mut repaired = false;
        loop {
            let key = if repaired { format!("ai:{round}:repair") } else { format!("ai:{round}") };
            let record = self.ask(&key, turns).await?;
            let read = answer::read(self.task, &record.finish(), &record.text);
            turns.push(Turn { role: Role::Assistant, text: record.text.clone() });
            let (provider, model) = (record.provider.clone(), record.model.clone());
            self.calls.push(record);
            match (read, &self.task.output) {
                (Ok(output), _) => return Ok(Answered { output, round, rounds: round, passed: None, repaired, provider, model }),
                (Err(Wrong::Invalid(faults)), Some(schema)) if !repaired => {
                    turns.push(Turn { role: Role::User, text: answer::repair(&faults, schema.value()) });
                    repaired = true;
                }
                (Err(wrong), _) => return Err(wrong.into_failure().into()),
            }
        }
    }

    /// One answer: of an earlier run, or by the first of the task's models that gives one. Each call that may have been made keeps its key in
    /// the ledger; the next one of the step has the next.
    async fn ask(&mut self, step: &str, turns: &[Turn]) -> Result<Record, Interrupt> {
        let mut failed: Vec<Interrupt> = Vec::new();
        let mut held: Vec<Refused> = Vec::new();
        let (mut by_user, mut number) = (false, 1);
        // Whether a breaker is open by a call of this very job.
        let mut tried = false;
        for choice in &self.task.models {
            if self.context.cancelled.is_cancelled() {
                return Err(Failure::transient("cancelled", "the job was cancelled before its model was asked").into());
            }
            let Some(provider) = self.ai.providers.get(&choice.provider) else { continue };
            let credential = match credential(self.context, &choice.provider, provider, self.task.own_keys).await {
                // What a user's key could not do is not done at the product's expense.
                Ok(credential) if by_user && !credential.is_of_user() => continue,
                Ok(credential) => credential,
                // A user's own key is no affair of others: who has none that works is told so, and nobody else pays.
                Err(Missing::OfUser(failure)) => return Err(failure.into()),
                Err(Missing::OfProduct(failure)) => {
                    failed.push(failure.for_owner(FOR_OWNER).into());
                    continue;
                }
            };
            by_user = credential.is_of_user();
            let permit = match admit(self.context, &choice.provider, provider, &credential, self.task.timeout).await {
                Ok(permit) => permit,
                // The next model is asked at once.
                Err(refused) => {
                    held.push(refused);
                    continue;
                }
            };
            let question = self.question(choice, turns);
            let asked = self.system.as_ref().map_or(0, String::len) + turns.iter().map(|turn| turn.text.len()).sum::<usize>();
            let call_id = self.context.services.clock.new_id();
            let item = Item { call: call_id, step, provider: &choice.provider, question: &question, asked, credential: &credential };
            let begun = serde_json::to_value(self.books.begun(item)).unwrap_or_default();
            let key = loop {
                let key = numbered(step, number);
                match self.context.intend_outward(&key, &begun).await? {
                    Intent::Done { receipt } => {
                        if let Ok(record) = serde_json::from_value(receipt) {
                            return Ok(record);
                        }
                    }
                    Intent::Unknown => self.books.charge_lost().await?,
                    Intent::New | Intent::Fenced | Intent::SwitchedOff => break key,
                }
                number += 1;
            };
            let (key, item) = (key.as_str(), Item { step: &key, ..item });
            // The first one of all was reserved with the job.
            if (self.made > 0 || self.context.job.runs > 1)
                && let Err(refused) = self.books.reserve(item).await
            {
                self.context.forget_effect(key).await?;
                return Err(refused);
            }
            let about = Call { name: &choice.provider, provider, credential: &credential, question: &question, within: self.task.timeout };
            self.made += 1;
            let stream = if self.is_streamed { format!("{}-{}", self.context.job.runs, self.made) } else { String::new() };
            let mut speaking = self.speaking(&stream);
            let listener = speaking.as_mut().map(|speaking| speaking as &mut dyn Listener);
            let Called { answer, took, refused } = call(self.context, about, permit, listener).await;
            drop(speaking);
            match answer {
                Ok(reply) => {
                    let record = Record::of(&choice.provider, &choice.model, reply, took, stream);
                    self.books.record_answered(item, &record, took).await?;
                    return Ok(record);
                }
                Err(error) => {
                    self.books.record_failed(item, &error, took).await?;
                    let helps = self.failed(key, &choice.provider, &error).await?;
                    credential::refused(self.context, &credential, &error).await?;
                    match refused {
                        Some(refused) => {
                            tried = true;
                            held.push(refused);
                        }
                        None => failed.push(interrupt(self.context, error)),
                    }
                    if !helps {
                        break;
                    }
                }
            }
        }
        // Of several breakers the one that tries again soonest; one that an operator keeps open does so last.
        let soonest = held.into_iter().min_by_key(|refused| refused.again_in.unwrap_or(Duration::MAX));
        let waits =
            |refused: Refused| if tried { Interrupt::BreakerProbed(refused.breaker) } else { Interrupt::BreakerOpen(refused.breaker) };
        failed.extend(soonest.map(waits));
        Err(most_hopeful(failed))
    }

    /// Begins a stream of words, where they are followed.
    fn speaking(&self, stream: &str) -> Option<Speaking> {
        (!stream.is_empty()).then(|| self.context.services.followers.begin(self.context.job.id, stream.to_owned()))
    }

    /// Writes down that a call has no answer; whether another model may be asked.
    async fn failed(&self, key: &str, provider: &str, error: &AiError) -> Result<bool, Interrupt> {
        if error.may_have_arrived() {
            self.context.unknown(key).await?;
        } else {
            self.context.forget_effect(key).await?;
        }
        if error.is_of_the_key() {
            tracing::error!(tenant = self.context.job.tenant, provider, error = %error, "a provider does not take its key");
        }
        Ok(error.another_may_help())
    }

    fn question(&self, choice: &shared::tenant::ModelChoice, turns: &[Turn]) -> Question {
        let schema = self.task.output.as_ref().map(shared::tenant::Schema::value);
        let in_words = schema.filter(|_| !choice.structured).map(answer::schema_in_words);
        let system = match (&self.system, in_words) {
            (Some(system), Some(words)) => Some(format!("{system}\n\n{words}")),
            (system, words) => words.or_else(|| system.clone()),
        };
        Question {
            model: choice.model.clone(),
            system,
            turns: turns.to_vec(),
            schema: schema.filter(|_| choice.structured).cloned(),
            max_tokens: self.task.max_tokens,
            temperature: self.task.temperature,
        }
    }
}

/// The key of a step's call: the step's own, and behind one that may have been made with a number.
fn numbered(step: &str, number: u32) -> String {
    if number <= 1 { step.to_owned() } else { format!("{step}:{number}") }
}

/// Of several models' troubles the one that may pass soonest: a pause that is known, then a circuit breaker, which uses no attempt, then what
/// may pass by itself, then the rest.
fn most_hopeful(failed: Vec<Interrupt>) -> Interrupt {
    let rank = |interrupt: &Interrupt| match interrupt {
        Interrupt::Snoozed(pause) => (0, *pause),
        Interrupt::BreakerOpen(_) | Interrupt::BreakerProbed(_) => (1, Duration::ZERO),
        Interrupt::Failed(Failure { class: FailureClass::Transient | FailureClass::Limited, retry_after, .. }) => {
            (2, retry_after.unwrap_or_default())
        }
        Interrupt::Failed(_) | Interrupt::SwitchedOff | Interrupt::Paused => (3, Duration::ZERO),
    };
    let best = failed.into_iter().min_by_key(rank);
    match best {
        Some(Interrupt::Failed(failure)) => Interrupt::Failed(failure.for_owner(FOR_OWNER)),
        Some(interrupt) => interrupt,
        None => {
            Failure::permanent("ai_no_model", "none of the task's providers stands in the manifest any more").for_owner(FOR_OWNER).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_provider_took_is_told_to_the_nearest_millisecond() {
        let told = [0, 499, 500, 1_499, 200_501].map(|micros| to_milliseconds(Duration::from_micros(micros)));
        assert_eq!(told, [0, 0, 1, 1, 201]);
        assert_eq!(to_milliseconds(Duration::MAX), u64::MAX);
    }
}
