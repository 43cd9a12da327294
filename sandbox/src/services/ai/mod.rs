//! A server of models of one's own, which speaks both dialects (`OpenAI`'s chat completions, Anthropic's messages), plain and streamed. What
//! it answers follows from the question, unless the next answers are scripted; whoever asks with a JSON Schema gets what conforms to it.
//!
//! | request | effect |
//! |---|---|
//! | `POST /v1/chat/completions`, `POST /v1/messages`, `GET /v1/models`, `GET /v1/models/{id}` | as the vendors have them |
//! | `GET /calls` | what was asked |
//! | `POST /script` `{"text"?, "finish"?, "trouble"?, …}` | what the next call is answered with ([`Answer`]) |

mod anthropic;
mod conforming;
mod openai;
mod server;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Result;
use crate::faults::Faults;
use crate::ports::Port;
use crate::services::door::{Door, http, verbs};

/// Calls that are remembered; older ones go.
const CALLS_KEPT: usize = 10_000;
/// Scripted answers at a time.
const SCRIPTED: usize = 10_000;

/// The bytes of a token, as it counts them.
const TOKEN: usize = 4;

/// The models that it says it has. It answers for any other too, as a gateway does.
const MODELS: [&str; 3] = ["sandbox-small", "sandbox-large", "sandbox-claude"];

/// The server of models of one sandbox. Its operations, for [`Faults`], are `chat.completions`, `messages` and `models`.
#[derive(Debug)]
pub struct AiServer {
    door: Door,
    faults: Faults,
    state: Arc<Mutex<State>>,
    key: String,
}

/// What a call is answered with. All that is absent is as the server has it by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    /// Only where this model is asked.
    pub model: Option<String>,
    /// What is said.
    pub text: Option<String>,
    /// Why it ends, in the dialect's own word: `length`, `content_filter`, `max_tokens`, `refusal` … When absent, as it ended: an answer of more
    /// tokens than were asked for is cut off, unless `tokens` says how many they are.
    pub finish: Option<String>,
    /// For chat completions: it is a refusal.
    pub refusal: bool,
    /// The tokens of question and answer.
    pub tokens: Option<(u64, u64)>,
    /// How long it takes to the first word, in milliseconds.
    pub delay_ms: u64,
    /// How long each word of a stream takes, in milliseconds.
    pub word_ms: u64,
    /// What goes wrong.
    pub trouble: Option<Trouble>,
}

/// What goes wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// An error of the vendor's form.
    Error {
        /// The status.
        status: u16,
        /// The vendor's word for it; the usual one of the status when absent.
        code: Option<String>,
        /// Further headers: `retry-after`, `retry-after-ms` …
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// A 200 whose body is no JSON.
    Malformed,
    /// The connection is cut after so many words of the answer.
    Cut {
        /// Words.
        after_words: usize,
    },
    /// After so many words of the answer nothing comes any more, until faults are cleared.
    Stall {
        /// Words.
        after_words: usize,
    },
    /// A stream tells of an error after so many words; a plain answer is the error, with status 200. It quotes the key.
    ErrorInStream {
        /// Words.
        after_words: usize,
    },
}

/// A call that was made.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    /// `chat.completions` or `messages`.
    pub operation: &'static str,
    /// The key that it was made with; empty without one.
    pub key: String,
    /// The body.
    pub body: Value,
    /// Whether the answer was sent to its end.
    pub is_whole: bool,
    /// The tokens of question and answer that a vendor bills: of a plain answer all of it, whoever has gone meanwhile; of a stream what was
    /// sent; of a refusal none.
    pub billed: (u64, u64),
    /// When the first word of a streamed answer was sent.
    #[serde(skip)]
    pub first_word: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    keys: BTreeSet<String>,
    script: VecDeque<Answer>,
    calls: VecDeque<Asked>,
    /// How many calls came before the oldest one kept.
    forgotten: usize,
    usual: Answer,
}

impl AiServer {
    /// Listens on a port of its own; `key` is one that it takes.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn open(key: String, runtime: tokio::runtime::Handle) -> Result<Self> {
        let state = State { keys: BTreeSet::from([key.clone()]), ..State::default() };
        let server = Self { door: Door::new(Port::reserve()?, runtime), faults: Faults::new(), state: Arc::new(Mutex::new(state)), key };
        server.start().await?;
        Ok(server)
    }

    /// Listens again at the same address; nothing when it does already.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn start(&self) -> Result<()> {
        let server = server::Server { faults: self.faults.clone(), state: Arc::clone(&self.state), paused: self.door.paused() };
        self.door
            .open(move |stream, token| {
                let server = server.clone();
                async move { http(stream, token, move |request| server.clone().answer(request)).await }
            })
            .await
    }

    verbs!();

    /// What goes wrong whatever is asked, and what was asked.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What addresses begin with, for both dialects: `http://127.0.0.1:PORT/v1`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.door.address())
    }

    /// The key that the product has here.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Takes one more key: a user's own.
    pub fn take_key(&self, key: &str) {
        locked(&self.state).keys.insert(key.to_owned());
    }

    /// Takes a key no more: 401.
    pub fn revoke_key(&self, key: &str) {
        locked(&self.state).keys.remove(key);
    }

    /// What the next call is answered with that nothing was scripted for yet.
    pub fn script(&self, answer: Answer) {
        let mut state = locked(&self.state);
        if state.script.len() < SCRIPTED {
            state.script.push_back(answer);
        }
    }

    /// What calls are answered with that nothing was scripted for.
    pub fn usually(&self, answer: Answer) {
        locked(&self.state).usual = answer;
    }

    /// The calls, oldest first; at most 10,000. Those with a wrong key are not among them.
    #[must_use]
    pub fn calls(&self) -> Vec<Asked> {
        locked(&self.state).calls.iter().cloned().collect()
    }

    /// A manifest whose providers lead here, of those whose keys are in these variables: as in the products' examples, where only the key is
    /// named.
    #[must_use]
    pub fn listed_in(&self, manifest: &str, stands_in_for: impl Fn(&str) -> bool) -> String {
        let line = |line: &str| {
            let variable = line.strip_prefix("key_env = \"").and_then(|rest| rest.strip_suffix('"'));
            match variable.filter(|variable| variable.starts_with("OFFSTAGE_AI_") && stands_in_for(variable)) {
                Some(_) => format!("{line}\nbase_url = \"{}\"\n", self.url()),
                None => format!("{line}\n"),
            }
        };
        manifest.lines().map(line).collect()
    }

    /// The settings by which `worker` calls it.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("OFFSTAGE_AI_SANDBOX".to_owned(), self.key.clone())])
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A question, whatever its dialect.
#[derive(Debug, Clone, Default)]
struct Question {
    model: String,
    /// The last thing that was said.
    prompt: String,
    /// All that was said, in bytes.
    size: usize,
    schema: Option<Value>,
    streamed: bool,
    /// Whether a stream ends with its tokens.
    counted: bool,
    /// The most tokens of an answer.
    most_tokens: Option<u64>,
}

/// Why a question is refused, in its vendor's words.
#[derive(Debug, Clone, Default)]
struct Refusal {
    message: String,
    /// Which parameter it is about, where the vendor names it apart.
    parameter: Option<String>,
    code: Option<&'static str>,
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self { message, ..Self::default() }
    }
}

impl From<&str> for Refusal {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

/// What is said to it.
#[derive(Debug, Clone)]
struct Said {
    text: String,
    finish: Option<String>,
    refusal: bool,
    /// Whether it was longer than it may be.
    is_cut: bool,
    input_tokens: u64,
    output_tokens: u64,
    answer: Answer,
}

impl Said {
    fn to(question: &Question, answer: Answer) -> Self {
        let own = || match &question.schema {
            Some(schema) => conforming::to(schema).to_string(),
            None => echo(&question.prompt),
        };
        let mut text = answer.text.clone().unwrap_or_else(own);
        let tokens = |bytes: usize| u64::try_from(bytes.div_ceil(TOKEN)).unwrap_or(u64::MAX);
        // A script that says how long it is, or how it ends, is taken at its word.
        let is_cut = answer.tokens.is_none()
            && answer.finish.is_none()
            && !answer.refusal
            && question.most_tokens.is_some_and(|most| tokens(text.len()) > most);
        if is_cut {
            let most = question.most_tokens.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            text.truncate(text.floor_char_boundary(most.saturating_mul(TOKEN)));
        }
        let (input_tokens, output_tokens) = answer.tokens.unwrap_or_else(|| (tokens(question.size), tokens(text.len())));
        Self { text, finish: answer.finish.clone(), refusal: answer.refusal, is_cut, input_tokens, output_tokens, answer }
    }

    /// The text as a stream has it: word by word.
    fn words(&self) -> Vec<String> {
        self.text.split_inclusive(' ').map(str::to_owned).collect()
    }
}

/// An answer that shows what was asked.
fn echo(prompt: &str) -> String {
    let words: Vec<_> = prompt.split_whitespace().take(60).collect();
    format!("This is the sandbox' answer, made without any model. It was asked: {}", words.join(" "))
}

/// For a pause that a script asks for.
async fn pause(milliseconds: u64) {
    if milliseconds > 0 {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}
