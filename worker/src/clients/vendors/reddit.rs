//! Reddit: <https://www.reddit.com/dev/api>, rules <https://support.reddithelp.com/hc/en-us/articles/16160319875092-Reddit-Data-API-Wiki>.
//! Registered clients alone are answered: the credential is changed for a token (OAuth 2, RFC 6749 §4.4), which is kept in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderValue, USER_AGENT};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use shared::{
    outbound::Reach,
    statistic::{ACTIVE, MEMBERS},
};
use url::Url;

use super::{Read, VendorError, WITHIN, figure, figures, short_hash};
use crate::clients::outbound::{Answer, Call, Outbound};

/// Where clients with a token ask.
pub(super) const BASE: &str = "https://oauth.reddit.com/";

/// Where clients get one.
pub(super) const DOOR: &str = "https://www.reddit.com/";

/// The path of it.
pub(super) const TOKEN_PATH: &str = "api/v1/access_token";

/// Calls in a minute; counted by them over ten.
pub(super) const GRANTED: (i32, Duration) = (100, Duration::from_secs(60));

/// A token is not used in its last minute.
const MARGIN: Duration = Duration::from_secs(60);

/// The longest that a token is kept, whatever is said of it.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// The most bytes of the answer with the token.
const LONGEST_ANSWER: usize = 16 * 1024;

/// `<platform>:<app id>:<version> (by /u/<user>)`, as its rules want it; others are limited far sooner.
pub(super) fn user_agent(product: &str, user: &str) -> String {
    format!("server:offstage.{product}:{} (by /u/{user})", env!("CARGO_PKG_VERSION"))
}

/// `GET /r/{name}/about`. Who looks at it is not told of every community.
pub(super) fn community(document: &Value) -> Read {
    if document.pointer("/kind").and_then(Value::as_str) != Some("t5") {
        return Err("its answer is about no community".to_owned());
    }
    let mut found = figures(document, [(MEMBERS, "/data/subscribers")])?;
    for pointer in ["/data/accounts_active", "/data/active_user_count"] {
        if document.pointer(pointer).is_some_and(|value| !value.is_null()) {
            found.insert(ACTIVE.to_owned(), figure(document, pointer)?);
            break;
        }
    }
    Ok((found, None))
}

/// Tokens by their credentials' hashes.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    known: Mutex<HashMap<String, Arc<Known>>>,
}

#[derive(Debug)]
struct Known {
    token: SecretString,
    until: Instant,
}

/// What the door for tokens came to.
#[derive(Debug)]
pub(super) enum Door {
    /// A token.
    Open(SecretString),
    /// It wants to be left alone for a while: it is the same vendor that says so.
    Limited(Answer),
}

#[derive(Deserialize)]
struct Granted {
    access_token: SecretString,
    expires_in: f64,
}

impl Tokens {
    /// The token of a credential: the one that is known, or a new one.
    pub(super) async fn token(
        &self,
        outbound: &Outbound,
        door: Url,
        client: &SecretString,
        agent: Option<&HeaderValue>,
    ) -> Result<Door, VendorError> {
        let key = short_hash(client.expose_secret());
        let known = self.lock().get(&key).filter(|known| known.until > Instant::now()).map(Arc::clone);
        if let Some(known) = known {
            return Ok(Door::Open(known.token.clone()));
        }
        let host = door.host_str().unwrap_or_default().to_owned();
        let mut call = Call::post(door, Reach::Public, Bytes::from_static(b"grant_type=client_credentials"), WITHIN)
            .header("content-type", "application/x-www-form-urlencoded");
        call.keep = LONGEST_ANSWER;
        let basic = format!("Basic {}", BASE64_STANDARD.encode(client.expose_secret()));
        if let Ok(mut basic) = HeaderValue::try_from(basic) {
            basic.set_sensitive(true);
            call.headers.insert(AUTHORIZATION, basic);
        }
        if let Some(agent) = agent {
            call.headers.insert(USER_AGENT, agent.clone());
        }
        let answer = outbound.send(call).await?;
        match answer.status.as_u16() {
            200 => {}
            429 | 503 => return Ok(Door::Limited(answer)),
            status @ (400 | 401 | 403) => return Err(VendorError::ClientRefused { host, status }),
            status => return Err(VendorError::NoToken { host, why: format!("it answered {status}") }),
        }
        // Its words would be the token's.
        let granted: Granted = serde_json::from_slice(&answer.body)
            .map_err(|_| VendorError::NoToken { host, why: "its answer can't be understood".to_owned() })?;
        let lasts = Duration::from_secs_f64(granted.expires_in.clamp(0.0, LONGEST.as_secs_f64())).saturating_sub(MARGIN);
        let known = Known { token: granted.access_token.clone(), until: Instant::now() + lasts };
        self.lock().insert(key, Arc::new(known));
        Ok(Door::Open(granted.access_token))
    }

    /// It is not taken any more.
    pub(super) fn forget(&self, client: &SecretString) {
        self.lock().remove(&short_hash(client.expose_secret()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
