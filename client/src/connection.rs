//! HTTP: the one client, its deadlines, and when a request is sent again.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header::RETRY_AFTER, redirect::Policy};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use crate::{arguments::Arguments, error::Error};

/// The longest that one answer may take; longer than the longest long-poll.
const ANSWER_WITHIN: Duration = Duration::from_secs(45);

/// The longest between two pieces of a stream; the API sends a comment every 15 s.
const PIECE_WITHIN: Duration = Duration::from_secs(60);

/// How often a request is sent at most.
const TRIES: u32 = 6;

/// The first pause before the same is sent again; then it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest pause that an answer may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The way to the API.
#[derive(Debug)]
pub struct Connection {
    http: Client,
    base: Url,
    key: SecretString,
    acting_user: Option<String>,
}

impl Connection {
    /// Takes the address from the arguments and the key from the environment; connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn new(arguments: &Arguments) -> Result<Self, Error> {
        let base = Url::parse(&arguments.url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let base = base.ok_or_else(|| {
            Error::Usage("OFFSTAGE_URL is no http or https address; write for example https://offstage.example.com".into())
        })?;
        // Not on the command line: every user of a machine can read those.
        let key = std::env::var("OFFSTAGE_KEY").ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        let key =
            key.ok_or_else(|| Error::Usage("OFFSTAGE_KEY is not set; put an API key into it, as `api key create` makes them".into()))?;
        if key.chars().any(|character| !character.is_ascii_graphic()) {
            return Err(Error::Usage("OFFSTAGE_KEY is no API key: it has characters that none has".into()));
        }
        #[expect(clippy::disallowed_methods, reason = "the program's one client")]
        let builder = Client::builder();
        let builder = builder
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(PIECE_WITHIN)
            .redirect(Policy::none())
            .user_agent(concat!("offstage/", env!("CARGO_PKG_VERSION")));
        let http = builder.build().map_err(|error| Error::Unreachable(format!("this machine can't make HTTP calls: {error}")))?;
        Ok(Self { http, base, key: key.into(), acting_user: arguments.acting_user.clone() })
    }

    /// A request to a path of the API's, by its parts.
    pub fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, Error> {
        self.request_with(method, path, &[])
    }

    /// A `GET` with a query.
    pub fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<RequestBuilder, Error> {
        self.request_with(Method::GET, path, query)
    }

    fn request_with(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> Result<RequestBuilder, Error> {
        let mut url = self.base.clone();
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url.path_segments_mut().map_err(|()| Error::Usage("OFFSTAGE_URL is no address of an API".into()))?.pop_if_empty().extend(path);
        let request = self.http.request(method, url).bearer_auth(self.key.expose_secret());
        Ok(match &self.acting_user {
            Some(user) => request.header("X-Acting-User", user),
            None => request,
        })
    }

    /// Sends a request that may be sent twice without harm, and reads its answer, which must be a success.
    pub async fn send(&self, request: RequestBuilder) -> Result<Value, Error> {
        self.send_within(request, TRIES).await
    }

    /// Sends a request once, and reads its answer, which must be a success.
    pub async fn send_once(&self, request: RequestBuilder) -> Result<Value, Error> {
        self.send_within(request, 1).await
    }

    async fn send_within(&self, request: RequestBuilder, most: u32) -> Result<Value, Error> {
        let request = request.timeout(ANSWER_WITHIN);
        let mut tries = 0;
        loop {
            tries += 1;
            let last = tries >= most;
            // Bodies are texts, which can be sent again.
            let Some(this_time) = request.try_clone() else { return Err(Error::Usage("the request can't be sent".into())) };
            let (why, pause) = match this_time.send().await {
                Ok(answer) if is_passing(answer.status()) => {
                    let pause = asked_pause(&answer);
                    if last {
                        return Err(refused(answer).await);
                    }
                    (format!("the API answered {}", answer.status()), pause)
                }
                Ok(answer) if answer.status().is_success() => match answer.json().await {
                    Ok(value) => return Ok(value),
                    Err(error) => (unanswered(&error), None),
                },
                Ok(answer) => return Err(refused(answer).await),
                Err(error) => (unanswered(&error), None),
            };
            if last {
                return Err(Error::Unreachable(why));
            }
            tokio::time::sleep(pause.unwrap_or(PAUSE * 2_u32.pow(tries - 1))).await;
        }
    }

    /// Opens a stream; the answer whatever its status.
    pub async fn open(&self, request: RequestBuilder) -> Result<Response, Error> {
        request.header("Accept", "text/event-stream").send().await.map_err(|error| Error::Unreachable(unanswered(&error)))
    }
}

/// Whether the same request may be answered otherwise in a moment.
fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

fn asked_pause(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// What the API said against a request. That it can't serve now is no refusal.
pub async fn refused(answer: Response) -> Error {
    let status = answer.status();
    let problem = answer.json().await.unwrap_or_default();
    let error = Error::Refused { status: status.as_u16(), problem };
    if status.is_server_error() { Error::Unreachable(error.to_string()) } else { error }
}

fn unanswered(error: &reqwest::Error) -> String {
    let mut words = format!("the API did not answer: {error}");
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        words = format!("{words}: {cause}");
        next = cause.source();
    }
    words
}
