//! Other people's services, asked for numbers: GitHub, Reddit, Discord, Hugging Face, and whoever answers with JSON.
//!
//! What must stay true: a vendor's address is ours, and a call with its credential goes nowhere else, wherever a redirect leads; each call
//! goes through the [guarded client](super::outbound); what an answer says of limits is told with it, whatever else it says; a number that is
//! not there, or can't be one, makes the answer malformed, never zero. One call here is one call outside (but for Reddit's token): who asks
//! takes each from the vendor's budget (`shared::ledger::vendors`).

mod discord;
mod github;
mod hugging_face;
mod json;
mod limits;
mod reddit;
mod said;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use reqwest::{
    StatusCode,
    header::{ACCEPT, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, LOCATION, USER_AGENT},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use shared::{
    config,
    ledger::vendors::{Budget, Told},
    outbound::Reach,
    statistic::Figures,
    tenant::{About, StatisticSource, Vendor},
};
use url::Url;

pub use said::{Said, VendorError};

use super::outbound::{Answer, Call, Outbound, OutboundError};
use limits::Limits;
use reddit::{Door, Tokens};

/// The longest that a call may take in all.
const WITHIN: Duration = Duration::from_secs(10);

/// The most bytes of an answer that are read.
const LONGEST_ANSWER: usize = 2 * 1024 * 1024;

/// The longest tag that is kept and sent back, in bytes; a longer one is done without.
const LONGEST_TAG: usize = 500;

/// The longest address that a redirect may lead to, in bytes.
const LONGEST_PLACE: usize = 2_000;

/// The vendors.
#[derive(Debug)]
pub struct Vendors {
    outbound: Arc<Outbound>,
    credentials: BTreeMap<String, SecretString>,
    played_at: Option<Url>,
    tokens: Tokens,
}

/// What is asked of a vendor.
#[derive(Debug, Clone)]
pub struct Question {
    /// The vendor.
    pub vendor: Vendor,
    /// What it is about.
    about: About,
    /// Where it is asked first.
    pub url: Url,
    /// What each place where it is asked begins with, for vendors; a redirect to elsewhere is not followed.
    base: Option<Url>,
    /// SHA-256 of what is asked for, how, and with which credential: a tag is of that alone.
    pub asked: Vec<u8>,
    headers: HeaderMap,
    /// Reddit's credential, which is changed for a token first.
    client: Option<SecretString>,
    /// What its budgets' keys begin with: the vendor, and the credential's hash.
    key: String,
    has_credential: bool,
    figures: BTreeMap<String, String>,
}

/// What the last good answer was known by.
#[derive(Debug, Clone, Default)]
pub struct Tags {
    /// Its tag.
    pub etag: Option<String>,
    /// When it was changed.
    pub last_modified: Option<String>,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Reply {
    /// What it says.
    pub said: Said,
    /// What it says of limits, by budget.
    pub told: Vec<Told>,
    /// For how long the vendor wants not to be asked for this again (`X-Poll-Interval`).
    pub poll_after: Option<Duration>,
}

impl Vendors {
    /// With the operator's credentials.
    #[must_use]
    pub fn new(config: &config::Vendors, outbound: Arc<Outbound>) -> Self {
        Self { outbound, credentials: config.credentials.clone(), played_at: config.played_at.clone(), tokens: Tokens::default() }
    }

    /// What is asked for a statistic of a product.
    ///
    /// # Errors
    /// [`VendorError::NoCredential`], [`VendorError::CredentialForm`].
    pub fn question(&self, product: &str, source: &StatisticSource) -> Result<Question, VendorError> {
        let vendor = source.about.vendor();
        let credential = match &source.credential_env {
            None => None,
            Some(name) => Some(self.credentials.get(name).ok_or_else(|| VendorError::NoCredential(name.clone()))?),
        };
        let subject = source.subject.as_deref().unwrap_or_default();
        let (base, path) = match source.about {
            About::GithubRepository => (github::BASE, format!("repos/{subject}")),
            About::GithubOrganisation => (github::BASE, format!("orgs/{subject}")),
            About::RedditCommunity => (reddit::BASE, format!("r/{subject}/about?raw_json=1")),
            About::DiscordInvite => (discord::BASE, format!("invites/{subject}?with_counts=true")),
            About::HuggingFaceModel => (hugging_face::BASE, format!("api/models/{subject}?{}", hugging_face::EXPAND)),
            About::HuggingFaceOrganisation => (hugging_face::BASE, format!("api/organizations/{subject}/overview")),
            About::Json => ("", String::new()),
        };
        // The manifest was checked: both are addresses, and a subject is no more than a part of a path.
        let malformed =
            |_| VendorError::Outbound(OutboundError::NotAllowed { host: subject.to_owned(), why: shared::outbound::NotAllowed::Host });
        let (base, url) = if source.about == About::Json {
            (None, Url::parse(source.url.as_deref().unwrap_or_default()).map_err(malformed)?)
        } else {
            let base = self.base(vendor, base).map_err(malformed)?;
            let url = base.join(&path).map_err(malformed)?;
            (Some(base), url)
        };
        let hash = credential.map_or_else(|| "-".to_owned(), |secret| short_hash(secret.expose_secret()));
        let accept = match vendor {
            Vendor::Github => github::ACCEPT,
            _ => "application/json",
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let mut client = None;
        match (vendor, credential) {
            (Vendor::Github, credential) => {
                headers.insert("x-github-api-version", HeaderValue::from_static(github::VERSION));
                authorize(&mut headers, "Bearer", credential);
            }
            (Vendor::Discord, credential) => {
                headers.insert(USER_AGENT, HeaderValue::from_static(discord::USER_AGENT));
                authorize(&mut headers, "Bot", credential);
            }
            (Vendor::Reddit, credential) => {
                let name = source.credential_env.clone().unwrap_or_default();
                let secret = credential.ok_or_else(|| VendorError::NoCredential(name.clone()))?;
                if !secret.expose_secret().split_once(':').is_some_and(|(id, secret)| !id.is_empty() && !secret.is_empty()) {
                    return Err(VendorError::CredentialForm(name));
                }
                client = Some(secret.clone());
                let agent = reddit::user_agent(product, source.reddit_user.as_deref().unwrap_or_default());
                // Names of manifests: letters, digits, `_` and `-`.
                if let Ok(agent) = HeaderValue::try_from(agent) {
                    headers.insert(USER_AGENT, agent);
                }
            }
            (Vendor::HuggingFace | Vendor::Json, credential) => authorize(&mut headers, "Bearer", credential),
        }
        let asked = [source.about.vendor().word(), url.as_str(), accept, &hash, &format!("{:?}", source.figures)].join("\n");
        let key = match vendor {
            Vendor::Json => format!("json {} {hash}", url.host_str().unwrap_or_default()),
            vendor => format!("{} {hash}", vendor.word()),
        };
        Ok(Question {
            vendor,
            about: source.about,
            url,
            base,
            asked: digest::digest(&digest::SHA256, asked.as_bytes()).as_ref().to_vec(),
            headers,
            client,
            key,
            has_credential: credential.is_some(),
            figures: source.figures.clone(),
        })
    }

    /// Where a vendor is, or is played.
    fn base(&self, vendor: Vendor, own: &str) -> Result<Url, url::ParseError> {
        match &self.played_at {
            None => Url::parse(own),
            Some(played_at) => Url::parse(&format!("{}/{}/", played_at.as_str().trim_end_matches('/'), vendor.word())),
        }
    }

    /// Asks once, at a place: the question's own, or where a redirect led.
    ///
    /// # Errors
    /// [`VendorError`]: there was no answer.
    pub async fn ask(&self, question: &Question, place: &Url, tags: &Tags, now: DateTime<Utc>) -> Result<Reply, VendorError> {
        let mut call = Call::get(place.clone(), Reach::Public, LONGEST_ANSWER, WITHIN);
        call.headers.clone_from(&question.headers);
        if question.base.is_none() && place.origin() != question.url.origin() {
            // Whoever is there now was not given the credential by anybody.
            call.headers.remove(AUTHORIZATION);
        }
        for (name, tag) in [(IF_NONE_MATCH, &tags.etag), (IF_MODIFIED_SINCE, &tags.last_modified)] {
            if let Some(value) = tag.as_ref().and_then(|tag| HeaderValue::try_from(tag).ok()) {
                call.headers.insert(name, value);
            }
        }
        if let Some(client) = &question.client {
            let door = self.base(Vendor::Reddit, reddit::DOOR).and_then(|base| base.join(reddit::TOKEN_PATH));
            let door = door.map_err(|error| VendorError::NoToken { host: "reddit".to_owned(), why: error.to_string() })?;
            match self.tokens.token(&self.outbound, door, client, question.headers.get(USER_AGENT)).await? {
                Door::Open(token) => authorize(&mut call.headers, "Bearer", Some(&token)),
                Door::Limited(answer) => return Ok(question.reply(place, &answer, now)),
            }
        }
        let answer = self.outbound.send(call).await?;
        if let (Some(client), StatusCode::UNAUTHORIZED) = (&question.client, answer.status) {
            self.tokens.forget(client);
        }
        Ok(question.reply(place, &answer, now))
    }
}

impl Question {
    /// Whether it may be asked at a place that an earlier redirect led to.
    #[must_use]
    pub fn may_go_to(&self, place: &Url) -> bool {
        place.as_str().len() <= LONGEST_PLACE && self.base.as_ref().is_none_or(|base| place.as_str().starts_with(base.as_str()))
    }

    /// The budgets that each call of it is taken from. `bucket` is what its route's limits are known by, at Discord.
    #[must_use]
    pub fn budgets(&self, bucket: Option<&str>) -> Vec<Budget> {
        let budget = |key: String, granted| Budget { key, granted };
        match self.vendor {
            Vendor::Github => vec![budget(self.key.clone(), Some(github::granted(self.has_credential)))],
            Vendor::Reddit => vec![budget(self.key.clone(), Some(reddit::GRANTED))],
            Vendor::HuggingFace => vec![budget(self.key.clone(), Some(hugging_face::granted(self.has_credential)))],
            Vendor::Json => vec![budget(self.key.clone(), None)],
            // The ban is of our address, the global limit of the credential, the rest of the route's bucket.
            Vendor::Discord => vec![
                budget(discord::ADDRESS.to_owned(), None),
                budget(self.key.clone(), None),
                budget(bucket.map_or_else(|| self.route().unwrap_or_default(), |bucket| self.bucket_key(bucket)), None),
            ],
        }
    }

    /// The route whose bucket is to be looked up first.
    #[must_use]
    pub fn route(&self) -> Option<String> {
        (self.vendor == Vendor::Discord).then(|| format!("{} route invites", self.key))
    }

    fn bucket_key(&self, bucket: &str) -> String {
        format!("{} bucket {bucket}", self.key)
    }

    /// What an answer says.
    fn reply(&self, place: &Url, answer: &Answer, now: DateTime<Utc>) -> Reply {
        let limits = Limits::of(self.vendor, answer, now);
        let said = self.said(place, answer, &limits);
        let told = match self.vendor {
            Vendor::Discord => discord::told(self, &limits, answer),
            _ => vec![limits.told(&self.key, said == Said::Limited)],
        };
        Reply { said, told, poll_after: limits.poll_after }
    }

    fn said(&self, place: &Url, answer: &Answer, limits: &Limits) -> Said {
        let status = answer.status;
        match status {
            StatusCode::NOT_MODIFIED => Said::Unchanged,
            status if status.is_success() => self.figures(answer),
            StatusCode::MOVED_PERMANENTLY | StatusCode::PERMANENT_REDIRECT => self.moved(place, answer, true),
            StatusCode::FOUND | StatusCode::SEE_OTHER | StatusCode::TEMPORARY_REDIRECT => self.moved(place, answer, false),
            StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS => Said::Gone,
            StatusCode::TOO_MANY_REQUESTS => Said::Limited,
            StatusCode::FORBIDDEN if self.vendor == Vendor::Github && github::is_limit(answer, limits) => Said::Limited,
            StatusCode::SERVICE_UNAVAILABLE if limits.retry_after.is_some() => Said::Limited,
            StatusCode::UNAUTHORIZED if self.client.is_some() => Said::Again,
            status if status.is_server_error() => Said::Down(status.as_u16()),
            status => Said::Refused { status: status.as_u16(), excerpt: answer.excerpt() },
        }
    }

    fn moved(&self, place: &Url, answer: &Answer, is_permanent: bool) -> Said {
        let location = answer.headers.get(LOCATION).and_then(|location| location.to_str().ok());
        match location.and_then(|location| place.join(location).ok()) {
            // A community that is not there is answered with a search for its name.
            Some(to) if self.vendor == Vendor::Reddit && to.path().contains("/subreddits/search") => Said::Gone,
            Some(to) if self.may_go_to(&to) => Said::Moved { to, is_permanent },
            Some(to) => Said::Malformed(format!("it redirects to `{}`, which is not the vendor's", to.host_str().unwrap_or_default())),
            None => Said::Malformed("it redirects to nowhere".to_owned()),
        }
    }

    fn figures(&self, answer: &Answer) -> Said {
        if answer.is_cut {
            return Said::Malformed(format!("its answer broke off, or has more than {LONGEST_ANSWER} bytes"));
        }
        let Ok(document) = serde_json::from_slice::<Value>(&answer.body) else {
            return Said::Malformed("its answer is not JSON".to_owned());
        };
        let read = match self.about {
            About::GithubRepository => github::repository(&document),
            About::GithubOrganisation => github::organisation(&document),
            About::RedditCommunity => reddit::community(&document),
            About::DiscordInvite => discord::invite(&document),
            About::HuggingFaceModel => hugging_face::model(&document),
            About::HuggingFaceOrganisation => hugging_face::organisation(&document),
            About::Json => json::document(&document, &self.figures),
        };
        let tag = |name| {
            let value = answer.headers.get(name)?.to_str().ok()?;
            (value.len() <= LONGEST_TAG).then(|| value.to_owned())
        };
        match read {
            Ok((figures, worked_at)) => Said::Figures { figures, worked_at, etag: tag(ETAG), last_modified: tag(LAST_MODIFIED) },
            Err(what) => Said::Malformed(what),
        }
    }
}

/// Figures, and when something was last done; or what can't be understood.
type Read = Result<(Figures, Option<DateTime<Utc>>), String>;

/// A figure at a place of a document. It counts something, so it is finite and not below zero.
fn figure(document: &Value, pointer: &str) -> Result<f64, String> {
    let value = document.pointer(pointer).ok_or_else(|| format!("its answer has nothing at {pointer}"))?;
    let number = value.as_f64().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("what its answer has at {pointer} is no number, or one below zero"))
}

/// Figures by the places where they are.
fn figures<'a>(document: &Value, places: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Figures, String> {
    places.into_iter().map(|(name, pointer)| Ok((name.to_owned(), figure(document, pointer)?))).collect()
}

/// A time at a place of a document; `None` where there is none.
fn time(document: &Value, pointer: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(document.pointer(pointer)?.as_str()?).ok().map(|time| time.to_utc())
}

fn authorize(headers: &mut HeaderMap, scheme: &str, credential: Option<&SecretString>) {
    let value = credential.and_then(|secret| HeaderValue::try_from(format!("{scheme} {}", secret.expose_secret())).ok());
    if let Some(mut value) = value {
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
}

/// By what a credential is told from others in keys of budgets, and nothing else can be learned of it: it is long and random.
fn short_hash(secret: &str) -> String {
    let hash = digest::digest(&digest::SHA256, secret.as_bytes());
    hex::encode(hash.as_ref().get(..8).unwrap_or_default())
}
