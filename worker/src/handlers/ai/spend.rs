//! What calls cost: written down behind each, whatever came of it; and reserved before each that was not foreseen when the job was accepted.
//!
//! What must stay true: no call is made by the product's key for which a budget has no room; a call of which the provider did not say what
//! it took is charged an estimate, marked so: of a stream that ended too soon what was heard, else all that it can have taken; each call is
//! written down once, under the id of its intention, by its run or by whoever misses it (the next run, or what ends the job).

use std::time::Duration;

use shared::{
    job::{Failure, Interrupt},
    tenant::{Manifest, Task},
    usage::{
        AI_COST, Charge,
        calls::{ANSWERED, Begun, MadeCall, Payer, charge_lost, day_of},
        reserve::{Ensured, extend},
    },
};
use uuid::Uuid;

use super::{FOR_OWNER, Record, credential::Credential, to_milliseconds};
use crate::{
    clients::ai::{AiError, Question, Usage},
    handlers::JobContext,
};

/// Who pays, and by which prices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Books<'a> {
    pub(super) context: &'a JobContext,
    pub(super) manifest: &'a Manifest,
    pub(super) task_name: &'a str,
    pub(super) task: &'a Task,
}

/// A call, as the books see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    /// The id that it is written down under.
    pub(super) call: Uuid,
    /// The key of its effect.
    pub(super) step: &'a str,
    /// The provider's name in the manifest.
    pub(super) provider: &'a str,
    pub(super) question: &'a Question,
    /// How many bytes are asked, as they were counted when the job was accepted.
    pub(super) asked: usize,
    pub(super) credential: &'a Credential,
}

impl Books<'_> {
    /// Reserves what a call can cost, where the job has not reserved so much yet. The first call of a first run was reserved when the job
    /// was accepted.
    pub(super) async fn reserve(&self, item: Item<'_>) -> Result<(), Interrupt> {
        if item.credential.is_of_user() {
            return Ok(());
        }
        let services = &self.context.services;
        let now = services.clock.now();
        let Some(most) = self.manifest.ai.most_of_call(self.task, item.asked, now) else { return Ok(()) };
        let job = &self.context.job;
        let whose = (job.id, job.tenant, job.owner.as_deref());
        match extend(&services.pool, self.manifest, whose, &Charge::incurred(AI_COST, most), now).await? {
            Ensured::Yes => Ok(()),
            Ensured::No(refused) => {
                let words = format!("another call was needed and may not be made: {refused}");
                Err(Failure::permanent("USAGE_LIMIT_EXCEEDED", words).for_owner(FOR_OWNER).into())
            }
        }
    }

    /// Writes down what a call took, and its answer: both or neither, so that whoever has the answer has paid for it.
    pub(super) async fn record_answered(&self, item: Item<'_>, record: &Record, took: Duration) -> Result<(), Failure> {
        let answer = serde_json::to_value(record).unwrap_or_default();
        self.context.spent(self.made(item, ANSWERED, record.usage, Some(took)), Some(answer)).await
    }

    /// Writes a call down that has no answer. Where the provider said nothing of what it took, an estimate; where it was not made, nothing
    /// was taken.
    pub(super) async fn record_failed(&self, item: Item<'_>, error: &AiError, took: Duration) -> Result<(), Failure> {
        self.context.spent(self.made(item, error.code(), self.used_by(error, item), Some(took)), None).await
    }

    /// What is written down before a call is made: as it is charged should nobody hear what became of it.
    pub(super) fn begun(&self, item: Item<'_>) -> Begun {
        let at = self.context.services.clock.now();
        let Usage { input_tokens, output_tokens, .. } = self.worst(item);
        let price = self.manifest.ai.price(item.provider, &item.question.model, at);
        Begun {
            call: item.call,
            task: self.task_name.to_owned(),
            provider: item.provider.to_owned(),
            model: item.question.model.clone(),
            payer: item.payer().word(),
            input_tokens,
            output_tokens,
            cost: price.map(|price| price.of(input_tokens, output_tokens)),
            day: day_of(&self.manifest.usage.zone(), at),
        }
    }

    /// Writes down the calls that earlier runs began and nobody knows the end of, as if they had taken all that they could.
    pub(super) async fn charge_lost(&self) -> Result<(), Failure> {
        let services = &self.context.services;
        charge_lost(&services.pool, self.context.job.id, services.clock.now()).await?;
        Ok(())
    }

    /// What a call without an answer took.
    fn used_by(&self, error: &AiError, item: Item<'_>) -> Usage {
        match error.heard() {
            Some(heard) => heard.usage,
            None if error.may_have_arrived() => self.worst(item),
            // It was refused, or never arrived.
            None => Usage::default(),
        }
    }

    /// All that a call can have taken of which nobody said anything: what was reserved for it.
    fn worst(&self, item: Item<'_>) -> Usage {
        Usage { input_tokens: self.task.most_input(item.asked), output_tokens: self.task.max_tokens.into(), estimated: true }
    }

    fn made(&self, item: Item<'_>, outcome: &str, usage: Usage, took: Option<Duration>) -> MadeCall {
        let services = &self.context.services;
        let at = services.clock.now();
        let price = self.manifest.ai.price(item.provider, &item.question.model, at);
        MadeCall {
            id: item.call,
            tenant: self.context.job.tenant,
            job: Some(self.context.job.id),
            owner: self.context.job.owner.clone(),
            step: Some(item.step.to_owned()),
            task: Some(self.task_name.to_owned()),
            provider: item.provider.to_owned(),
            model: item.question.model.clone(),
            payer: item.payer(),
            outcome: outcome.to_owned(),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            estimated: usage.estimated,
            took_ms: took.map(to_milliseconds),
            cost: price.map(|price| price.of(usage.input_tokens, usage.output_tokens)),
            at,
            day: day_of(&self.manifest.usage.zone(), at),
            reported: None,
        }
    }
}

impl Item<'_> {
    const fn payer(&self) -> Payer {
        if self.credential.is_of_user() { Payer::User } else { Payer::Product }
    }
}
