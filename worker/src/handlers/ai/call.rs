//! One call of one model: the place where whatever guards calls, and whatever counts them, stands around the client.

use std::time::Duration;

use shared::{job::Interrupt, random, tenant::Provider};
use tokio::time::Instant;

use super::credential::Credential;
use crate::{
    clients::{
        ai::{ANSWERED, AiError, Listener, Question, Reply, Usage},
        breaker::{self, BreakerKey, Permit, Refused},
    },
    handlers::JobContext,
};

/// A provider's failure that its circuit breaker has not acted upon yet uses no attempt, so often; a job under which every provider fails is
/// at fault itself at some time.
const UNCOUNTED: u16 = 5;

/// How long the job waits then, half as much more or less: until the breaker has seen what the other calls came to.
const MEANWHILE: Duration = Duration::from_secs(3);

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
    /// Where the provider failed: what its circuit breaker says to the next call, if that is no.
    pub(super) refused: Option<Refused>,
}

/// Asks the circuit breaker of a provider and a key whether a call may begin (R40).
///
/// # Errors
/// [`Refused`]: another model is asked at once, or the job waits.
pub(super) async fn admit(
    context: &JobContext,
    name: &str,
    provider: &Provider,
    credential: &Credential,
    within: Duration,
) -> Result<Permit, Refused> {
    let key = BreakerKey { tenant: context.job.tenant, provider: name.to_owned(), credential: credential.of_breaker() };
    let call = breaker::Call { key: &key, settings: provider.breaker, deadline: within };
    context.services.clients.breakers.admit(&call).await
}

/// Makes a call: once, whatever comes of it.
///
/// What its breaker counts: no answer, and one that the provider failed to give. A limit (429) is none, since a provider that paces its
/// callers is well; nor is a refusal of the key or of the question, which it answered. What never left counts nothing.
pub(super) async fn call(context: &JobContext, call: Call<'_>, permit: Permit, listener: Option<&mut dyn Listener>) -> Called {
    let began = Instant::now();
    let Call { provider, credential, question, within, .. } = call;
    let services = &context.services;
    let mut hearing = listener.map(|listener| Hearing { listener, bytes: 0, pieces: 0 });
    let answer = {
        let listener = hearing.as_mut().map(|hearing| hearing as &mut dyn Listener);
        let asked = services.clients.models.ask(provider, credential.key(), question, within, listener, services.clock.now());
        tokio::select! {
            biased;
            answer = asked => Some(answer),
            // Nobody wants it any more: the connection is cut, and no more is said. What was said is written down before the job ends.
            () = context.cancelled.cancelled() => None,
        }
    };
    let answer = answer.unwrap_or_else(|| {
        // Of which nothing was heard it may still have thought about.
        let heard = hearing.filter(|hearing| hearing.pieces > 0);
        Err(AiError::GivenUp { heard: heard.map(|hearing| Box::new(hearing.so_far(question))) })
    });
    let took = began.elapsed();
    let outcome = answer.as_ref().map_or_else(AiError::code, |_| ANSWERED);
    metrics::counter!("offstage_ai_calls_total", "kind" => provider.kind.word(), "outcome" => outcome).increment(1);
    metrics::histogram!("offstage_ai_call_seconds", "kind" => provider.kind.word()).record(took.as_secs_f64());
    let (name, model, took_ms) = (call.name, question.model.as_str(), took.as_millis());
    tracing::debug!(job = %context.job.id, provider = name, model, outcome, took_ms, "a model was called");
    let refused = tell_breaker(permit, &answer).await;
    Called { answer, took, refused }
}

/// Tells a call's breaker what came of it. Where the provider failed: what the breaker says to the next call, if that is no.
pub(in crate::handlers) async fn tell_breaker<T: Sync>(permit: Permit, answer: &Result<T, AiError>) -> Option<Refused> {
    match answer {
        Err(error) if error.is_of_the_provider() => return permit.failed().await.err(),
        Ok(_) | Err(AiError::KeyRefused { .. } | AiError::NoQuota { .. } | AiError::Refused { .. }) => permit.succeeded().await,
        Err(_) => permit.ignored().await,
    }
    None
}

/// Counts what is heard of a stream.
struct Hearing<'a> {
    listener: &'a mut dyn Listener,
    bytes: usize,
    pieces: u64,
}

impl Hearing<'_> {
    fn so_far(&self, question: &Question) -> Reply {
        Reply { usage: Usage::heard(question, self.bytes, self.pieces), ..Reply::default() }
    }
}

impl Listener for Hearing<'_> {
    fn heard(&mut self, words: &str) {
        self.bytes += words.len();
        self.pieces += 1;
        self.listener.heard(words);
    }
}

/// What a provider's failure means for the job: it uses no attempt where the provider is to blame, which its breaker finds out.
pub(super) fn interrupt(context: &JobContext, error: AiError) -> Interrupt {
    if error.is_of_the_provider() && context.job.snoozes < UNCOUNTED {
        return Interrupt::Snoozed(MEANWHILE.mul_f64(0.5 + random::fraction()));
    }
    match error {
        AiError::Limited { pause: Some(pause), .. } => Interrupt::Snoozed(pause.max(again(context.job.snoozes))),
        // Too many calls, and not a word of when to come back: ever longer, no attempt used, as long as the job may be put off.
        AiError::Limited { pause: None, .. } => Interrupt::Snoozed(untold(context.job.snoozes).mul_f64(1.0 + random::fraction() / 4.0)),
        error => Interrupt::Failed(error.into()),
    }
}

/// The least that a job waits whose provider says each time when to come back, and then takes no call all the same: as it says, four times;
/// then half a second, twice as long each time, a minute at the longest. Or one that always says "in 0.1 s" would have used up in a minute
/// what a job may be put off.
fn again(snoozes: u16) -> Duration {
    let Some(more) = snoozes.checked_sub(4) else { return Duration::ZERO };
    Duration::from_millis(500 << more.min(7)).min(Duration::from_secs(60))
}

/// How long a job waits whose provider takes no more calls and does not say for how long: 5 s at first, twice as long each time, five minutes
/// at the longest.
fn untold(snoozes: u16) -> Duration {
    Duration::from_secs(5 << snoozes.min(6)).min(Duration::from_secs(300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_never_takes_a_call_has_its_job_come_back_ever_later() {
        assert_eq!((0..5).map(again).collect::<Vec<_>>(), [0, 0, 0, 0, 500].map(Duration::from_millis));
        let all: Duration = (0..100).map(again).sum();
        assert!(all > Duration::from_secs(80 * 60), "as often as a job may be put off: {all:?}");
        assert_eq!(again(u16::MAX), Duration::from_secs(60));
    }
}
