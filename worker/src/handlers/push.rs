//! `push.send`: one message to all browsers of a user.
//!
//! What must stay true: each browser is an effect of its own: one that has the message is not pushed to again because another has not; a
//! browser goes only when its push service says that it is gone; what is not sent says why in the delivery log, browser by browser; nothing
//! is pushed that is not worth being shown any more.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use serde_json::json;
use shared::{
    job::{Failure, FailureClass, Interrupt, Success},
    kinds::{PushSend, PushUrgency},
    ledger::{
        browsers::{self, FoundBrowser},
        deliveries::{self, Addressed, Attempted, Channel, DeliveryState, Noted},
        effects::Intent,
    },
};
use uuid::Uuid;

use super::{
    JobContext, export,
    notification::{Wanted, wanted},
};
use crate::clients::push::{Action, Message, PushError, Topic, Urgency};

/// Browsers of one user that are pushed to at a time.
const AT_ONCE: usize = 8;

/// What became of one browser at this attempt.
enum Pushed {
    /// It has it.
    Sent,
    /// There is no such browser any more.
    Gone,
    /// It will never have it.
    Never(Failure),
    /// Not yet.
    Later(Failure),
}

/// Pushes.
pub(super) async fn run(payload: PushSend, context: JobContext) -> Result<Success, Interrupt> {
    let (services, job) = (&context.services, &context.job);
    let now = services.clock.now();
    let note = Note { payload: &payload, context: &context };
    if job.attempt == 1 && job.runs > 1 {
        // Perhaps somebody asked for it again: what was given up is tried again.
        deliveries::reopen(&services.pool, job.id).await?;
    }
    if let Some(told) = &payload.notification {
        let tenant = export::tenant(&context).await?;
        match wanted(&context, &tenant, told, &payload.user, Channel::Push).await? {
            Wanted::Yes if job.snoozes > 0 => deliveries::waited(&services.pool, job.id).await?,
            Wanted::Yes => {}
            Wanted::No(why, detail) => {
                note.of(Uuid::nil(), Attempted::not_sent(why, detail).finally()).await?;
                return Ok(Success::with(json!({ "sent": 0, "why": why })));
            }
            Wanted::Later(until) => {
                let detail = format!("the user's quiet hours last until {}", until.format("%FT%TZ"));
                note.of(Uuid::nil(), Attempted::not_sent("quiet_hours", detail)).await?;
                return Err(Interrupt::Snoozed(Wanted::pause(until, now)));
            }
        }
    }
    let Some(ttl) = time_left(&payload, &context, now) else {
        let failure = Failure::permanent("push_too_late", "the message was not worth being shown any more: its `ttl` was over");
        note.of(Uuid::nil(), Attempted::not_sent(failure.code, failure.message.clone()).finally()).await?;
        return Err(failure.into());
    };
    let found = browsers::of_user(&services.pool, job.tenant, &payload.user, now).await?;
    // A first run has none behind it.
    let settled = if job.runs > 1 { deliveries::final_devices(&services.pool, job.id).await? } else { Vec::new() };
    let before = settled.iter().filter(|(_, state)| *state == DeliveryState::Sent).count();
    let open = found.into_iter().filter(|browser| !settled.iter().any(|(device, _)| *device == browser.id));
    let message = payload.message(&job.id.to_string()).to_string();
    let outgoing = Outgoing { note: &note, message: message.as_bytes(), ttl };
    let pushed: Vec<Result<Pushed, Interrupt>> =
        stream::iter(open).map(|browser| outgoing.push(browser)).buffer_unordered(AT_ONCE).collect().await;

    let (mut sent, mut gone, mut never, mut later) = (before, 0, Vec::new(), None::<Failure>);
    for pushed in pushed {
        match pushed? {
            Pushed::Sent => sent += 1,
            Pushed::Gone => gone += 1,
            Pushed::Never(failure) => never.push(failure),
            // The one that waits longest, so that nobody is asked before they want to be.
            Pushed::Later(failure) => {
                later = Some(match later {
                    Some(other) if other.retry_after >= failure.retry_after => other,
                    _ => failure,
                });
            }
        }
    }
    if let Some(failure) = later {
        return Err(failure.into());
    }
    let result = json!({ "sent": sent, "gone": gone, "refused": never.len() });
    match never.into_iter().next() {
        Some(failure) if sent == 0 => return Err(failure.into()),
        None if sent + gone == 0 => {
            note.of(Uuid::nil(), Attempted::not_sent("no_browser", "the user has no browser that can be pushed to").finally()).await?;
        }
        _ => {}
    }
    Ok(Success::with(result))
}

/// For how long the message is still worth being shown, from when it was due, its user's quiet hours not counted; a message of no time at
/// all is tried once.
fn time_left(payload: &PushSend, context: &JobContext, now: DateTime<Utc>) -> Option<Duration> {
    let ttl = Duration::from_secs(payload.ttl.into());
    let passed = (now - context.job.counted_from).to_std().unwrap_or_default().saturating_sub(context.job.snoozed);
    match ttl.checked_sub(passed) {
        None if payload.ttl == 0 && context.job.attempt == 1 => Some(ttl),
        left => left,
    }
}

const fn urgency(asked: PushUrgency) -> Urgency {
    match asked {
        PushUrgency::VeryLow => Urgency::VeryLow,
        PushUrgency::Low => Urgency::Low,
        PushUrgency::Normal => Urgency::Normal,
        PushUrgency::High => Urgency::High,
    }
}

/// Writes the delivery log of one job.
struct Note<'a> {
    payload: &'a PushSend,
    context: &'a JobContext,
}

impl Note<'_> {
    /// What is written down of a browser, or of the user.
    fn noted(&self, device: Uuid, attempted: Attempted) -> Noted {
        let (services, job) = (&self.context.services, &self.context.job);
        let to = Addressed { channel: Channel::Push, device, owner: Some(self.payload.user.clone()), recipient: None, category: None };
        Noted { id: services.clock.new_id(), job: job.id, tenant: job.tenant, to, attempted, receipt: None }
    }

    async fn of(&self, device: Uuid, attempted: Attempted) -> Result<(), Failure> {
        self.context.note(self.noted(device, attempted)).await
    }
}

/// A message to several browsers.
struct Outgoing<'a> {
    note: &'a Note<'a>,
    message: &'a [u8],
    ttl: Duration,
}

impl Outgoing<'_> {
    async fn push(&self, browser: FoundBrowser) -> Result<Pushed, Interrupt> {
        let Note { payload, context } = *self.note;
        let services = &context.services;
        let effect = format!("push:{}", browser.id);
        let host = browser.subscription.endpoint().host_str().unwrap_or_default();
        let is_listed = match context.intend_outward(&effect, &json!({ "host": host, "browser": browser.id })).await? {
            Intent::Done { .. } => {
                self.note.of(browser.id, Attempted::sent(false)).await?;
                return Ok(Pushed::Sent);
            }
            Intent::Unknown => true,
            _ => false,
        };
        // Without a tag by the job: a second copy takes the place of one that the browser has not fetched yet.
        let id = context.job.id.to_string();
        let topic = Topic::of(payload.tag.as_deref().unwrap_or(&id), &browser.subscription);
        let message = Message { payload: self.message, ttl: self.ttl, urgency: urgency(payload.urgency), topic: Some(&topic) };
        let sent = services.clients.push.send(&browser.subscription, &browser.key, &message, services.clock.now()).await;
        match sent {
            Ok(taken) => {
                let noted = self.note.noted(browser.id, Attempted::sent(is_listed));
                context.taken(&effect, &json!({ "status": taken.status }), noted).await?;
                Ok(Pushed::Sent)
            }
            Err(error) => Ok(self.not_taken(&browser, &effect, error, is_listed).await?),
        }
    }

    async fn not_taken(&self, browser: &FoundBrowser, effect: &str, error: PushError, is_listed: bool) -> Result<Pushed, Failure> {
        let Note { context, .. } = *self.note;
        let (action, may_have_arrived) = (error.action(), error.may_have_arrived());
        let failure = Failure::from(error).for_owner("The message could not be pushed to one of your browsers.");
        let is_last = context.job.attempt >= context.job.attempts_allowed;
        let (code, words) = (failure.code, failure.message.clone());
        if may_have_arrived {
            context.unknown(effect).await?;
            let attempted = Attempted::unknown(code, words).finally_if(is_last);
            self.note.of(browser.id, attempted).await?;
            return Ok(Pushed::Later(failure));
        }
        if !is_listed {
            context.forget_effect(effect).await?;
        }
        let not_sent = Attempted::not_sent(code, words);
        if action == Action::Remove {
            browsers::remove(&context.services.pool, browser).await?;
            self.note.of(browser.id, not_sent.finally()).await?;
            return Ok(Pushed::Gone);
        }
        let is_permanent = failure.class == FailureClass::Permanent;
        let attempted = not_sent.finally_if(is_permanent || is_last);
        self.note.of(browser.id, attempted).await?;
        Ok(if is_permanent { Pushed::Never(failure) } else { Pushed::Later(failure) })
    }
}
