//! Signed deliveries to endpoints of our tenants' choice.
//!
//! What must stay true: a delivery goes through the [guarded client](super::outbound), to a public address unless its host is allowed a
//! private one; of an answer no more than an excerpt is read, and nothing of a success.

use std::{collections::BTreeMap, error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::DateTime;
use reqwest::StatusCode;
use shared::{job::Failure, outbound::Reach, signing::SigningKeys, tenant::Destination};

use super::outbound::{Call, Outbound, OutboundError};

/// The longest that a delivery may take in all; Standard Webhooks recommends 15 to 30 s.
const WITHIN: Duration = Duration::from_secs(20);

/// A client for deliveries.
#[derive(Debug)]
pub struct Webhook {
    keys: BTreeMap<String, SigningKeys>,
    outbound: Arc<Outbound>,
}

/// What is delivered.
#[derive(Debug, Clone)]
pub struct Delivery<'a> {
    /// The same at each try, by which receivers tell repeats; without a dot.
    pub id: &'a str,
    /// When this try is made, in seconds since 1970.
    pub timestamp: i64,
    /// The body, JSON.
    pub body: Bytes,
}

/// A delivery that was not taken.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// This worker has no key of that name.
    #[error("this worker has no signing key: set {0}, and start it anew")]
    NoKey(String),
    /// Nobody answered, or may be asked.
    #[error("{0}{hint}", hint = advice(.0))]
    Outbound(#[from] OutboundError),
    /// The answer says no.
    #[error("`{host}` answered {status}{}", excerpt.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        /// The host.
        host: String,
        /// The status.
        status: StatusCode,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
        /// The beginning of what it said.
        excerpt: Option<String>,
    },
}

/// What to do about a refusal of our own.
fn advice(error: &OutboundError) -> &'static str {
    match error {
        OutboundError::NotAllowed { .. } => "; a host that is meant to be inside belongs to `private_hosts` of the manifest's [completion]",
        _ => "",
    }
}

impl WebhookError {
    /// Whether the receiver may have taken the delivery all the same: it was sent, and the answer did not come.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Outbound(error) if error.may_have_arrived())
    }
}

impl From<WebhookError> for Failure {
    fn from(error: WebhookError) -> Self {
        let message = error.to_string();
        let failure = match &error {
            WebhookError::Outbound(OutboundError::NotAllowed { .. }) => Self::permanent("completion_not_allowed", message),
            // By the specification a receiver says by 410 that it wants no more.
            WebhookError::Refused { status: StatusCode::GONE, .. } => Self::permanent("completion_refused", message),
            WebhookError::Refused { retry_after: Some(pause), .. } => Self::limited("completion_refused", message, *pause),
            WebhookError::Refused { .. } => Self::transient("completion_refused", message),
            WebhookError::NoKey(_) => Self::transient("completion_key_missing", message),
            WebhookError::Outbound(_) => Self::transient("completion_unanswered", message),
        };
        match error.source() {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        }
    }
}

impl Webhook {
    /// With the signing keys that manifests name by their variables.
    #[must_use]
    pub fn new(keys: BTreeMap<String, SigningKeys>, outbound: Arc<Outbound>) -> Self {
        Self { keys, outbound }
    }

    /// Delivers; any 2xx is success.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub async fn deliver(&self, to: &Destination, key: &str, delivery: &Delivery<'_>) -> Result<StatusCode, WebhookError> {
        let keys = self.keys.get(key).ok_or_else(|| WebhookError::NoKey(key.to_owned()))?;
        let host = to.url.host_str().unwrap_or_default().to_owned();
        let reach = if to.may_be_private { Reach::Inside } else { Reach::Public };
        let call = Call::post(to.url.clone(), reach, delivery.body.clone(), WITHIN)
            .header("content-type", "application/json")
            .header("webhook-id", delivery.id)
            .header("webhook-timestamp", delivery.timestamp)
            .header("webhook-signature", keys.sign(delivery.id, delivery.timestamp, &delivery.body));
        let answer = self.outbound.send(call).await?;
        if answer.status.is_success() {
            return Ok(answer.status);
        }
        let now = DateTime::from_timestamp(delivery.timestamp, 0).unwrap_or_default();
        Err(WebhookError::Refused { host, status: answer.status, retry_after: answer.retry_after(now), excerpt: answer.excerpt() })
    }
}

#[cfg(test)]
mod tests {
    use shared::job::FailureClass;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const KEY: &str = "OFFSTAGE_COMPLETION_MAIN";

    fn webhook() -> Webhook {
        let keys = SigningKeys::read("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        Webhook::new(BTreeMap::from([(KEY.to_owned(), keys)]), Arc::default())
    }

    fn to(url: &str, may_be_private: bool) -> Destination {
        Destination { url: url.parse().unwrap(), may_be_private }
    }

    async fn failure(url: &str, may_be_private: bool) -> Failure {
        let delivery = Delivery { id: "a-1", timestamp: 1, body: Bytes::from_static(b"{}") };
        webhook().deliver(&to(url, may_be_private), KEY, &delivery).await.unwrap_err().into()
    }

    /// Answers each call alike, without end where it does not close.
    async fn receiver(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut piece = [0; 4_096];
                let _ = stream.read(&mut piece).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn private_addresses_are_called_by_nobody_who_may_not() {
        for url in
            ["https://127.0.0.1:1/", "https://10.0.0.1/", "https://169.254.169.254/latest/", "https://[::1]/", "https://localhost:1/"]
        {
            let failure = failure(url, false).await;
            assert_eq!((failure.class, failure.code), (FailureClass::Permanent, "completion_not_allowed"), "{url}: {failure:?}");
        }
    }

    #[tokio::test]
    async fn answers_are_judged_and_their_words_are_cut() {
        for (answer, class, pause) in [
            ("HTTP/1.1 500 x\r\ncontent-length: 3\r\n\r\nno!", FailureClass::Transient, None),
            ("HTTP/1.1 302 x\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", FailureClass::Transient, None),
            ("HTTP/1.1 410 x\r\ncontent-length: 0\r\n\r\n", FailureClass::Permanent, None),
            ("HTTP/1.1 429 x\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", FailureClass::Limited, Some(7)),
            ("HTTP/1.1 503 x\r\nretry-after: 99999999\r\ncontent-length: 0\r\n\r\n", FailureClass::Limited, Some(86_400)),
        ] {
            let port = receiver(answer).await;
            let failure = failure(&format!("http://127.0.0.1:{port}/?secret"), true).await;
            assert_eq!((failure.class, failure.code), (class, "completion_refused"), "{answer}");
            assert_eq!(failure.retry_after, pause.map(Duration::from_secs));
            assert!(!format!("{failure:?}").contains("secret"));
        }
        let long: &'static str =
            Box::leak(format!("HTTP/1.1 500 x\r\ncontent-length: 100000\r\n\r\n{}", "a".repeat(100_000)).into_boxed_str());
        let port = receiver(long).await;
        assert!(failure(&format!("http://127.0.0.1:{port}/"), true).await.message.len() < 400);
        let failure = failure("http://127.0.0.1:1/", true).await;
        assert_eq!((failure.class, failure.code), (FailureClass::Transient, "completion_unanswered"));
        let delivery = Delivery { id: "a-1", timestamp: 1, body: Bytes::new() };
        let error =
            Webhook::new(BTreeMap::new(), Arc::default()).deliver(&to("http://127.0.0.1:1/", true), KEY, &delivery).await.unwrap_err();
        assert!(error.to_string().contains(KEY) && Failure::from(error).class == FailureClass::Transient);
    }
}
