//! Other people's services, played: GitHub, Reddit, Discord, Hugging Face, and somebody who answers with JSON. Each counts its calls as the
//! real one does, says so in the real one's headers, and enforces it; what was asked is written down, call by call.
//!
//! | path | who |
//! |---|---|
//! | `/github/repos/{owner}/{name}`, `/github/orgs/{name}` | GitHub |
//! | `/reddit/api/v1/access_token`, `/reddit/r/{name}/about` | Reddit, both doors |
//! | `/discord/invites/{code}` | Discord |
//! | `/hugging_face/api/models/{owner}/{name}`, `/hugging_face/api/organizations/{name}/overview` | Hugging Face |
//! | `/json/…` | anybody |
//! | `GET /calls` | what was asked, by all of them |
//!
//! What is there at a path is put there ([`VendorService::put`]); what it answers for once can be scripted ([`VendorService::script`]); the
//! faults of [`Faults`] have a vendor's word as operation.

mod server;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::Result;
use crate::faults::Faults;
use crate::ports::Port;
use crate::services::door::{Door, http, verbs};

/// Calls that are remembered.
const CALLS_KEPT: usize = 10_000;

/// The credential that GitHub takes.
pub const GITHUB_TOKEN: &str = "sandbox-github-token";
/// The client that Reddit knows.
pub const REDDIT_CLIENT: &str = "sandbox-client:sandbox-reddit-secret";

/// The vendors of one sandbox.
#[derive(Debug)]
pub struct VendorService {
    door: Door,
    faults: Faults,
    state: Arc<Mutex<State>>,
}

/// A call, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct VendorCall {
    /// Whom: `github`, `reddit`, `discord`, `hugging_face`, `json`.
    pub vendor: String,
    /// How.
    pub method: String,
    /// Behind the vendor's word, with the query.
    pub path: String,
    /// The answer's status; 0 where there was none.
    pub status: u16,
    /// What was left of the window after it.
    pub remaining: Option<i64>,
    /// What a window grants.
    pub most: Option<i64>,
    /// Whether it came with a credential, by its scheme.
    pub authorization: Option<String>,
    /// What it was asked with.
    pub if_none_match: Option<String>,
    /// The same.
    pub if_modified_since: Option<String>,
    /// What was wanted.
    pub accept: Option<String>,
    /// Who it said that it is.
    pub user_agent: Option<String>,
    /// Calls of the same vendor that were under way when it came, itself included.
    pub under_way: usize,
    /// When it came.
    #[serde(skip)]
    pub at: Instant,
}

/// An answer that is given in the place of what is there.
#[derive(Debug, Clone, Default)]
pub struct Scripted {
    /// Where the path holds this text.
    pub path_contains: String,
    /// The status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// How often; for ever at 0.
    pub times: u32,
}

/// What a vendor grants.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Calls of a window.
    pub most: i64,
    /// What remains of them.
    pub remaining: i64,
    /// What the headers say of when it ends, in seconds. It ends when a test says so ([`VendorService::grant`]).
    pub resets_in: u64,
}

#[derive(Debug, Default)]
struct State {
    /// By the path without its query, the vendor's word in front.
    things: BTreeMap<String, Thing>,
    script: VecDeque<Scripted>,
    windows: BTreeMap<String, Window>,
    calls: VecDeque<VendorCall>,
    under_way: BTreeMap<String, usize>,
    tokens: u32,
}

#[derive(Debug, Clone)]
enum Thing {
    Is {
        body: Value,
        tag: String,
    },
    /// The path that it has now, the vendor's word in front, and by which status that is told.
    Moved {
        to: String,
        status: u16,
    },
}

impl VendorService {
    /// Listens on a port of its own; what the example `community` asks for is there.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn open(runtime: tokio::runtime::Handle) -> Result<Self> {
        let service = Self { door: Door::new(Port::reserve()?, runtime), faults: Faults::new(), state: Arc::default() };
        for (vendor, most, resets_in) in [("github", 5_000, 3_600), ("reddit", 1_000, 600), ("discord", 50, 1), ("hugging_face", 500, 300)]
        {
            service.grant(vendor, Window { most, remaining: most, resets_in });
        }
        service.put("/github/repos/community/tools", &github_repository(1_240, 88));
        service.put("/github/orgs/community", &json!({"login": "community", "followers": 310, "public_repos": 14}));
        service.put("/reddit/r/communitymakers", &reddit_community(8_450, Some(31)));
        service.put("/discord/invites/community", &discord_invite(2_310, 402));
        service.put("/hugging_face/api/models/community/small", &hugging_face_model(77, 15_400));
        service.put("/hugging_face/api/organizations/community/overview", &json!({"numFollowers": 120, "numUsers": 6, "numModels": 3}));
        service.start().await?;
        Ok(service)
    }

    /// Listens again at the same address; nothing when it does already.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn start(&self) -> Result<()> {
        let server =
            server::Server { faults: self.faults.clone(), state: Arc::clone(&self.state), paused: self.door.paused(), origin: self.url() };
        self.door
            .open(move |stream, token| {
                let server = server.clone();
                async move { http(stream, token, move |request| server.clone().answer(request)).await }
            })
            .await
    }

    verbs!();

    /// What goes wrong.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.door.address())
    }

    /// The settings by which a worker asks here.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        [
            ("OFFSTAGE_VENDORS_URL", self.url().as_str()),
            ("OFFSTAGE_STATS_GITHUB", GITHUB_TOKEN),
            ("OFFSTAGE_STATS_REDDIT", REDDIT_CLIENT),
            ("OFFSTAGE_STATS_JSON", "sandbox-json-token"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Puts something at a path, such as `/github/repos/acme/tools`; its tag is of its text.
    pub fn put(&self, path: &str, body: &Value) {
        let tag = server::tag_of(body);
        self.locked().things.insert(path.to_owned(), Thing::Is { body: body.clone(), tag });
    }

    /// What was at a path is at another one now, and says so by a status (301, 302, 307, 308).
    pub fn redirect(&self, path: &str, to: &str, status: u16) {
        self.locked().things.insert(path.to_owned(), Thing::Moved { to: to.to_owned(), status });
    }

    /// Nothing is at a path any more.
    pub fn remove(&self, path: &str) {
        self.locked().things.remove(path);
    }

    /// Answers differently, behind what was scripted before.
    pub fn script(&self, answer: Scripted) {
        self.locked().script.push_back(answer);
    }

    /// Forgets what was scripted.
    pub fn clear_script(&self) {
        self.locked().script.clear();
    }

    /// A new window of a vendor.
    pub fn grant(&self, vendor: &str, window: Window) {
        self.locked().windows.insert(vendor.to_owned(), window);
    }

    /// Tokens that were given out are not taken any more.
    pub fn expire_tokens(&self) {
        self.locked().tokens += 1;
    }

    /// What a vendor was asked, oldest first.
    #[must_use]
    pub fn calls(&self, vendor: &str) -> Vec<VendorCall> {
        self.locked().calls.iter().filter(|call| call.vendor == vendor).cloned().collect()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.locked().calls.clear();
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A repository as GitHub tells of it, as far as anybody looks.
#[must_use]
pub fn github_repository(stars: u64, forks: u64) -> Value {
    json!({
        "id": 1, "stargazers_count": stars, "watchers_count": stars, "subscribers_count": stars / 10, "forks_count": forks,
        "open_issues_count": 12, "pushed_at": "2026-11-20T08:00:00Z",
    })
}

/// A community as Reddit tells of it.
#[must_use]
pub fn reddit_community(subscribers: u64, active: Option<u64>) -> Value {
    json!({"kind": "t5", "data": {"subscribers": subscribers, "accounts_active": active, "display_name": "x"}})
}

/// An invite as Discord tells of it.
#[must_use]
pub fn discord_invite(members: u64, present: u64) -> Value {
    json!({"type": 0, "code": "x", "approximate_member_count": members, "approximate_presence_count": present})
}

/// A model as Hugging Face tells of it.
#[must_use]
pub fn hugging_face_model(likes: u64, downloads: u64) -> Value {
    json!({"id": "x/y", "likes": likes, "downloads": downloads, "lastModified": "2026-11-01T00:00:00.000Z"})
}
