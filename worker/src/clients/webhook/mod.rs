//! Signed deliveries to endpoints of our tenants' choice.
//!
//! What must stay true: a delivery goes to a public address, unless its host is allowed a private one, whatever a name server says: names
//! are resolved here, and the connection goes to what is left; no proxy, no redirect; all of it, the answer's body included, has one
//! deadline; of that body no more than [`EXCERPT`] bytes are read, and none are kept of a success.

pub mod address;

use std::{collections::BTreeMap, error::Error, net::SocketAddr, sync::OnceLock, time::Duration};

use bytes::Bytes;
use reqwest::{
    Client, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::RETRY_AFTER,
    redirect::Policy,
};
use shared::{job::Failure, signing::SigningKeys, tenant::Destination};
use url::{Host, Url};

use address::is_public;

/// The longest that a delivery may take in all; Standard Webhooks recommends 15 to 30 s.
const WITHIN: Duration = Duration::from_secs(20);

/// The most bytes of an answer that are read, for the error's words.
const EXCERPT: usize = 512;

/// The longest pause that a receiver may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3_600);

/// A client for deliveries. Its two pools are made at the first one.
#[derive(Debug, Default)]
pub struct Webhook {
    keys: BTreeMap<String, SigningKeys>,
    public: OnceLock<Client>,
    private: OnceLock<Client>,
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
    /// The host's address is none that may be called.
    #[error("`{0}` has a private address; a host that is meant to be inside belongs to `private_hosts` of the manifest's [completion]")]
    Private(String),
    /// This machine can't make a client.
    #[error("this worker can't make HTTP calls")]
    Client(#[source] reqwest::Error),
    /// Nobody answered.
    #[error("`{host}` did not answer within {} s, or not at all", WITHIN.as_secs())]
    Unanswered {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
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

impl WebhookError {
    /// Whether the receiver may have taken the delivery all the same: it was sent, and the answer did not come.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Unanswered { source, .. } if !source.is_connect() && !source.is_builder())
    }
}

impl From<WebhookError> for Failure {
    fn from(error: WebhookError) -> Self {
        let message = error.to_string();
        let failure = match &error {
            WebhookError::Private(_) => Self::permanent("completion_not_allowed", message),
            // By the specification a receiver says by 410 that it wants no more.
            WebhookError::Refused { status: StatusCode::GONE, .. } => Self::permanent("completion_refused", message),
            WebhookError::Refused { retry_after: Some(pause), .. } => Self::limited("completion_refused", message, *pause),
            WebhookError::Refused { .. } => Self::transient("completion_refused", message),
            WebhookError::NoKey(_) => Self::transient("completion_key_missing", message),
            WebhookError::Client(_) | WebhookError::Unanswered { .. } => Self::transient("completion_unanswered", message),
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
    pub fn new(keys: BTreeMap<String, SigningKeys>) -> Self {
        Self { keys, ..Self::default() }
    }

    /// Delivers; any 2xx is success.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub async fn deliver(&self, to: &Destination, key: &str, delivery: &Delivery<'_>) -> Result<StatusCode, WebhookError> {
        let keys = self.keys.get(key).ok_or_else(|| WebhookError::NoKey(key.to_owned()))?;
        let host = host_of(&to.url);
        // A literal address asks no resolver.
        let literal = match to.url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            _ => None,
        };
        if literal.is_some_and(|address| !to.may_be_private && !is_public(address)) {
            return Err(WebhookError::Private(host));
        }
        let request = self
            .client(to.may_be_private)?
            .post(to.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", delivery.id)
            .header("webhook-timestamp", delivery.timestamp)
            .header("webhook-signature", keys.sign(delivery.id, delivery.timestamp, &delivery.body))
            .body(delivery.body.clone());
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if was_private(&error) => return Err(WebhookError::Private(host)),
            // The address may hold a secret of its own.
            Err(error) => return Err(WebhookError::Unanswered { host, source: error.without_url() }),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(status);
        }
        let retry_after =
            answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok()).map(Duration::from_secs);
        let mut excerpt = Vec::new();
        while excerpt.len() < EXCERPT {
            // The same deadline holds for it.
            let Ok(Some(chunk)) = answer.chunk().await else { break };
            excerpt.extend_from_slice(chunk.get(..chunk.len().min(EXCERPT - excerpt.len())).unwrap_or_default());
        }
        let excerpt: String = String::from_utf8_lossy(&excerpt).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let excerpt = Some(excerpt.trim().to_owned()).filter(|text| !text.is_empty());
        Err(WebhookError::Refused { host, status, retry_after: retry_after.map(|pause| pause.min(LONGEST_PAUSE)), excerpt })
    }

    fn client(&self, may_be_private: bool) -> Result<&Client, WebhookError> {
        let slot = if may_be_private { &self.private } else { &self.public };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        #[expect(clippy::disallowed_methods, reason = "the program's clients for this: they reach what they may, within a deadline")]
        let builder = Client::builder();
        let builder = builder
            .timeout(WITHIN)
            .connect_timeout(Duration::from_secs(10))
            .no_proxy()
            .redirect(Policy::none())
            .user_agent(concat!("Offstage/", env!("CARGO_PKG_VERSION")))
            .pool_max_idle_per_host(4);
        let builder = if may_be_private { builder } else { builder.dns_resolver(PublicOnly) };
        let client = builder.build().map_err(WebhookError::Client)?;
        Ok(slot.get_or_init(|| client))
    }
}

fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// A name whose addresses are all private.
#[derive(Debug, thiserror::Error)]
#[error("the name has no public address")]
struct PrivateName;

fn was_private(error: &reqwest::Error) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if error.is::<PrivateName>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Resolves names to public addresses, or not at all.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> = found.iter().copied().filter(|address| is_public(address.ip())).collect();
            if public.is_empty() && !found.is_empty() {
                return Err(PrivateName.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
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
        Webhook::new(BTreeMap::from([(KEY.to_owned(), keys)]))
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
        assert!(failure(&format!("http://127.0.0.1:{port}/"), true).await.message.len() < EXCERPT + 100);
        let failure = failure("http://127.0.0.1:1/", true).await;
        assert_eq!((failure.class, failure.code), (FailureClass::Transient, "completion_unanswered"));
        let delivery = Delivery { id: "a-1", timestamp: 1, body: Bytes::new() };
        let error = Webhook::default().deliver(&to("http://127.0.0.1:1/", true), KEY, &delivery).await.unwrap_err();
        assert!(error.to_string().contains(KEY) && Failure::from(error).class == FailureClass::Transient);
    }
}
