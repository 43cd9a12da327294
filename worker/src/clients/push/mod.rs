//! Web push: a sealed message to one browser, over the push service of its vendor (RFC 8030).
//!
//! What must stay true: the endpoint is a stranger's, so a call goes through the [guarded client](super::outbound); a message is sealed for
//! its browser alone (RFC 8291) and signed by the key that the subscription was made with (RFC 8292); a subscription is given up only when
//! its push service says that it is gone, never for a fault of ours or in passing.

mod error;
mod message;
mod seal;
mod vapid;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use shared::{
    outbound::Reach,
    push::{KeyId, Subscription, VapidKeys},
};

use super::outbound::{Call, Outbound};

pub use error::{Action, PushError};
pub use message::{Message, Topic, Urgency};
use vapid::Signer;

/// The longest that a push may take in all.
const WITHIN: Duration = Duration::from_secs(20);

/// What becomes of pushes, as metrics name it.
pub const OUTCOMES: [&str; 10] =
    ["taken", "gone", "key_gone", "later", "not_allowed", "not_set_up", "too_large", "unanswered", "unauthorised", "unexpected"];

/// The sender. One for the process; it signs once for each push service and key, not for each message.
#[derive(Debug)]
pub struct Push {
    signer: Option<Signer>,
    outbound: Arc<Outbound>,
}

/// A push that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The status, 201 as a rule.
    pub status: u16,
    /// Under which address the push service keeps the message, where it says so.
    pub location: Option<String>,
}

impl Push {
    /// `contact` is a `mailto:` or `https:` address by which a push service reaches the operator (RFC 8292, section 2.1).
    #[must_use]
    pub fn new(keys: Option<Arc<VapidKeys>>, contact: Option<String>, outbound: Arc<Outbound>) -> Self {
        Self { signer: keys.map(|keys| Signer::new(keys, contact)), outbound }
    }

    /// Sends a message to one browser. `key` is the one that the subscription was made with.
    ///
    /// # Errors
    /// [`PushError`], which says what becomes of the subscription ([`PushError::action`]) and of the job.
    pub async fn send(&self, to: &Subscription, key: &KeyId, message: &Message<'_>, now: DateTime<Utc>) -> Result<Taken, PushError> {
        let sent = self.try_send(to, key, message, now).await;
        let outcome = sent.as_ref().map_or_else(PushError::outcome, |_| "taken");
        metrics::counter!("offstage_pushes_total", "outcome" => outcome).increment(1);
        if let Err(error) = &sent
            && error.action() == Action::KeepAndAlert
        {
            tracing::error!(error = error as &dyn std::error::Error, "a push was refused for a fault of ours; the subscription is kept");
        }
        sent
    }

    async fn try_send(&self, to: &Subscription, key: &KeyId, message: &Message<'_>, now: DateTime<Utc>) -> Result<Taken, PushError> {
        let signer = self.signer.as_ref().ok_or(PushError::NoKeys)?;
        let authorization = signer.authorization(to.endpoint(), key, now)?;
        let body = seal::seal(message.payload, to)?;
        let mut call = Call::post(to.endpoint().clone(), Reach::Public, body.into(), WITHIN)
            .header("authorization", authorization)
            .header("content-encoding", "aes128gcm")
            .header("content-type", "application/octet-stream")
            .header("ttl", message.ttl.as_secs())
            .header("urgency", message.urgency.word());
        if let Some(topic) = message.topic {
            call = call.header("topic", topic.as_str());
        }
        let answer = self.outbound.send(call).await?;
        if answer.status.is_success() {
            let location = answer.headers.get("location").and_then(|location| location.to_str().ok()).map(str::to_owned);
            return Ok(Taken { status: answer.status.as_u16(), location });
        }
        if matches!(answer.status.as_u16(), 401 | 403) {
            // It may be the signature, by a clock that was wrong then.
            signer.forget(to.endpoint());
        }
        Err(PushError::refused(to.endpoint(), &answer, now))
    }
}

#[cfg(test)]
mod tests;
