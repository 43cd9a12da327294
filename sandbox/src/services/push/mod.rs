//! A push service of one's own, and the browsers behind it: takes messages as the vendors' do (RFC 8030), checks who sends them (VAPID,
//! RFC 8292), and unseals them with each browser's keys (RFC 8291) by other people's cryptography than the product's.

mod server;
mod unseal;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::faults::Faults;
use crate::ports::Port;
use crate::random;
use crate::services::door::{Door, http, verbs};
use unseal::Keys;

/// Messages that are remembered.
const MESSAGES_KEPT: usize = 10_000;
/// Browsers at a time.
const BROWSERS: usize = 100_000;

/// The push service of one sandbox. Its operation, for [`Faults`], is `Push`.
#[derive(Debug)]
pub struct PushService {
    door: Door,
    faults: Faults,
    state: Arc<Mutex<State>>,
}

/// A browser's subscription, as it hands it to a page.
#[derive(Debug, Clone, Serialize)]
pub struct Browser {
    /// Where it is pushed to.
    pub endpoint: String,
    /// Its public key.
    pub p256dh: String,
    /// Its secret.
    pub auth: String,
}

/// A message that a browser was shown.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    /// The browser's endpoint.
    pub endpoint: String,
    /// What was in it.
    #[serde(serialize_with = "as_text")]
    pub payload: Vec<u8>,
    /// Seconds that it might have waited.
    pub ttl: u64,
    /// `normal` where nothing was said.
    pub urgency: String,
    /// What it takes the place of.
    pub topic: Option<String>,
    /// Whom the sender says that it is (`sub`).
    pub contact: Option<String>,
    /// The sender's public key.
    pub key: String,
    /// The sender's token.
    pub token: String,
    /// The body as it came.
    #[serde(skip)]
    pub body: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    /// By the endpoint's last part.
    browsers: BTreeMap<String, Registered>,
    messages: Vec<Message>,
}

#[derive(Debug)]
struct Registered {
    keys: Keys,
    /// The key that it subscribed with; any when absent.
    application_server_key: Option<String>,
    is_gone: bool,
}

impl PushService {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn open(runtime: tokio::runtime::Handle) -> Result<Self> {
        let door = Door::new(Port::reserve()?, runtime);
        let service = Self { door, faults: Faults::new(), state: Arc::default() };
        service.start().await?;
        Ok(service)
    }

    /// Listens again at the same address; nothing when it does already.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn start(&self) -> Result<()> {
        let server =
            server::Server { origin: self.url(), faults: self.faults.clone(), state: Arc::clone(&self.state), paused: self.door.paused() };
        self.door
            .open(move |stream, token| {
                let server = server.clone();
                async move { http(stream, token, move |request| server.clone().answer(request)).await }
            })
            .await
    }

    verbs!();

    /// What goes wrong, and what was asked.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.door.address())
    }

    /// A browser subscribes, with the sender's public key (`applicationServerKey`), or with any.
    ///
    /// # Errors
    /// When there are too many.
    pub fn subscribe(&self, application_server_key: Option<&str>) -> Result<Browser> {
        subscribe(&self.state, &self.url(), application_server_key)
    }

    /// A browser unsubscribes: from now on its endpoint answers 410.
    pub fn unsubscribe(&self, browser: &Browser) {
        let mut state = locked(&self.state);
        if let Some(registered) = browser.endpoint.rsplit('/').next().and_then(|id| state.browsers.get_mut(id)) {
            registered.is_gone = true;
        }
    }

    /// What browsers were shown, oldest first.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        locked(&self.state).messages.clone()
    }

    /// A browser's keys, for somebody else's program to unseal with: its private number, in base64url.
    #[must_use]
    pub fn private_key(&self, browser: &Browser) -> Option<String> {
        let state = locked(&self.state);
        browser.endpoint.rsplit('/').next().and_then(|id| state.browsers.get(id)).map(|registered| registered.keys.private())
    }
}

/// A key to sign pushes with, as the product's settings take it.
pub(crate) fn new_key() -> Result<String> {
    Keys::new().map(|keys| keys.private())
}

/// The settings by which `worker` pushes, with a key of [`new_key`].
pub(crate) fn environment(key: &str) -> BTreeMap<String, String> {
    BTreeMap::from(
        [("OFFSTAGE_PUSH_KEYS", key), ("OFFSTAGE_PUSH_CONTACT", "mailto:operator@offstage.example")]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    )
}

fn locked(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn subscribe(state: &Mutex<State>, origin: &str, application_server_key: Option<&str>) -> Result<Browser> {
    let (keys, id) = (Keys::new()?, random::characters(40)?);
    let browser = Browser { endpoint: format!("{origin}/push/{id}"), p256dh: keys.public(), auth: keys.auth() };
    let mut state = locked(state);
    if state.browsers.len() >= BROWSERS {
        return Err(Error::Invalid(format!("{BROWSERS} browsers have subscribed; that is enough")));
    }
    let application_server_key = application_server_key.map(|key| key.trim_end_matches('=').to_owned());
    state.browsers.insert(id, Registered { keys, application_server_key, is_gone: false });
    Ok(browser)
}

fn as_text<S: serde::Serializer>(payload: &[u8], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(payload))
}
