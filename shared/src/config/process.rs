//! How a process runs: where it listens, what it logs, which queues it serves, what it may do.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

use super::{
    stores,
    variables::{Reader, SOURCE_PREFIX},
};
use crate::{
    clock::Clock,
    mail::HOOK_VARIABLE,
    outbound::Guard,
    queue::Queue,
    signing::SigningKeys,
    tenant::{KEY_VARIABLE, Retention},
    tokens::TokenKeys,
    vault::VaultKeys,
};

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address; port 0 lets the operating system choose, and the log tells which it chose.
    pub address: SocketAddr,
}

impl Listen {
    pub(super) fn read(reader: &mut Reader<'_>, variable: &str, default_port: u16) -> Option<Self> {
        let Some(value) = reader.optional(variable) else {
            return Some(Self { address: (Ipv4Addr::LOCALHOST, default_port).into() });
        };
        let Ok(address) = value.parse() else {
            reader.problem(
                variable,
                format!("`{value}` is not an IP address and a port; write for example 0.0.0.0:{default_port} or [::]:{default_port}"),
            );
            return None;
        };
        Some(Self { address })
    }
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people.
    Text,
}

/// The log.
#[derive(Clone, Debug)]
pub struct Log {
    /// What is logged, as `tracing-subscriber` filters are written: `info`, `warn,shared::ledger=debug`.
    pub filter: String,
    /// How it is written.
    pub format: LogFormat,
}

impl Log {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let filter = reader.optional("OFFSTAGE_LOG").unwrap_or("info").to_owned();
        if let Err(error) = EnvFilter::builder().parse(&filter) {
            reader.problem("OFFSTAGE_LOG", format!("`{filter}` is not a filter ({error}); write for example `info` or `info,sqlx=warn`"));
        }
        let words = [("json", LogFormat::Json), ("text", LogFormat::Text)];
        Self { filter, format: reader.word("OFFSTAGE_LOG_FORMAT", LogFormat::Json, &words) }
    }
}

/// Where `probe.run` may call back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeCallbacks {
    /// Nowhere.
    Off,
    /// This machine's loopback addresses only.
    Loopback,
}

/// The kind `probe.run`, for drills, canaries and benchmarks. Off by default: a probe can end the process it runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Whether the kind exists.
    pub enabled: bool,
    /// Where it may call back to.
    pub callbacks: ProbeCallbacks,
}

impl Probe {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let enabled = reader.word("OFFSTAGE_PROBE", false, &[("on", true), ("off", false)]);
        let words = [("off", ProbeCallbacks::Off), ("loopback", ProbeCallbacks::Loopback)];
        let callbacks = reader.word("OFFSTAGE_PROBE_CALLBACKS", ProbeCallbacks::Off, &words);
        if callbacks == ProbeCallbacks::Loopback && !enabled {
            reader.warn("OFFSTAGE_PROBE_CALLBACKS has no effect without OFFSTAGE_PROBE=on");
        }
        Self { enabled, callbacks }
    }
}

/// Which queues a worker serves, and how many jobs of each at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queues {
    /// The queues with their concurrency, at least one of each.
    pub concurrency: BTreeMap<Queue, usize>,
}

/// The most jobs of one queue at once. Jobs are tasks and not threads, so the bound is memory: some thousands fit (R5).
const MOST_AT_ONCE: usize = 4_096;

impl Queues {
    pub(super) fn read(reader: &mut Reader<'_>, command_line: Option<&str>) -> Self {
        let (variable, list) = match command_line.map(str::trim).filter(|list| !list.is_empty()) {
            Some(list) => ("--queues", Some(list)),
            None => ("OFFSTAGE_QUEUES", reader.optional("OFFSTAGE_QUEUES")),
        };
        let mut concurrency = BTreeMap::new();
        match list {
            None | Some("all") => concurrency.extend(Queue::ALL.map(|queue| (queue, queue.default_concurrency()))),
            Some(list) => {
                for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                    match Queue::from_name(name) {
                        Some(queue) => _ = concurrency.insert(queue, queue.default_concurrency()),
                        None => reader.problem(variable, format!("there is no queue `{name}`; there are {}", queue_names())),
                    }
                }
                if concurrency.is_empty() {
                    reader.problem(variable, "names no queue; leave it out to serve all");
                }
            }
        }
        let Some(budgets) = reader.optional("OFFSTAGE_CONCURRENCY") else { return Self { concurrency } };
        for entry in budgets.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let parsed = entry.split_once('=').and_then(|(name, number)| {
                let number = number.trim().parse().ok().filter(|number| (1..=MOST_AT_ONCE).contains(number))?;
                Some((name.trim(), number))
            });
            let Some((name, number)) = parsed else {
                reader.problem(
                    "OFFSTAGE_CONCURRENCY",
                    format!("`{entry}` is not a queue and a number from 1 to {MOST_AT_ONCE}; write for example exports=2,email=32"),
                );
                continue;
            };
            match Queue::from_name(name) {
                None => reader.problem("OFFSTAGE_CONCURRENCY", format!("there is no queue `{name}`; there are {}", queue_names())),
                Some(queue) => match concurrency.get_mut(&queue) {
                    Some(budget) => *budget = number,
                    None => reader.warn(format!("OFFSTAGE_CONCURRENCY has no effect on `{name}`: this worker doesn't serve it")),
                },
            }
        }
        Self { concurrency }
    }
}

fn queue_names() -> String {
    Queue::ALL.map(Queue::name).join(", ")
}

/// The databases that datasets are read from: every `OFFSTAGE_SOURCE_*` variable, by its name, which manifests refer to.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    urls: BTreeMap<String, SecretString>,
    own: Option<SecretString>,
}

impl Sources {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let mut urls = BTreeMap::new();
        for (name, value) in reader.beginning_with(SOURCE_PREFIX).collect::<Vec<_>>() {
            if stores::is_postgres_url(value) {
                urls.insert(name.to_owned(), SecretString::from(value));
            } else {
                reader
                    .problem(name, "is not a Postgres URL; write postgres://reader:password@host:5432/product, of a role that can't write");
            }
        }
        Self { urls, own: None }
    }

    /// With Offstage's own database, for datasets that every product has.
    #[must_use]
    pub fn with_own(self, url: SecretString) -> Self {
        Self { own: Some(url), ..self }
    }

    /// The URL of Offstage's own database.
    #[must_use]
    pub const fn own(&self) -> Option<&SecretString> {
        self.own.as_ref()
    }

    /// The URL that a variable holds.
    #[must_use]
    pub fn url(&self, variable: &str) -> Option<&SecretString> {
        self.urls.get(variable)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Sources {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self { urls: pairs.into_iter().map(|(name, url)| (name.into(), SecretString::from(url.into()))).collect(), own: None }
    }
}

/// Business time: the operating system's, or for tests a file's. A build for production has no such setting: a clock that stands still
/// would stop every schedule, retry and expiry.
pub(super) fn clock(reader: &mut Reader<'_>) -> Clock {
    let Some(path) = reader.optional("OFFSTAGE_CLOCK_FILE") else { return Clock::system() };
    if !cfg!(debug_assertions) {
        reader.problem("OFFSTAGE_CLOCK_FILE", "is for tests, and this is a release build, which can't be told another time; remove it");
        return Clock::system();
    }
    match Clock::of_file(path.into()) {
        Ok(clock) => {
            reader.warn(format!("OFFSTAGE_CLOCK_FILE: the business time is what {path} says; this is for tests only"));
            clock
        }
        Err(detail) => {
            reader.problem("OFFSTAGE_CLOCK_FILE", detail);
            Clock::system()
        }
    }
}

/// How many streams of events one API process holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    /// In all (`OFFSTAGE_STREAMS`).
    pub most: usize,
    /// Of one tenant (`OFFSTAGE_STREAMS_OF_TENANT`).
    pub most_of_tenant: usize,
}

impl Streams {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let most = reader.number_in("OFFSTAGE_STREAMS", 10_000, 0..=1_000_000);
        let most_of_tenant = reader.number_in("OFFSTAGE_STREAMS_OF_TENANT", most.div_ceil(2), 0..=1_000_000);
        Self { most: number(most), most_of_tenant: number(most_of_tenant) }
    }
}

/// The keys by which completions are signed: every `OFFSTAGE_COMPLETION_*` variable, by its name, which manifests refer to.
pub(super) fn signing_keys(reader: &mut Reader<'_>) -> BTreeMap<String, SigningKeys> {
    signing_keys_of(reader, KEY_VARIABLE)
}

/// The keys by which hooks of mail providers are signed: every `OFFSTAGE_HOOK_*` variable, by its name, which manifests refer to.
pub(super) fn hook_keys(reader: &mut Reader<'_>) -> BTreeMap<String, SigningKeys> {
    signing_keys_of(reader, HOOK_VARIABLE)
}

fn signing_keys_of(reader: &mut Reader<'_>, prefix: &'static str) -> BTreeMap<String, SigningKeys> {
    let mut keys = BTreeMap::new();
    for (name, value) in reader.beginning_with(prefix).collect::<Vec<_>>() {
        match SigningKeys::read(value) {
            Some(read) => _ = keys.insert(name.to_owned(), read),
            None => {
                reader.problem(name, "is not a signing key; write `whsec_` and 24 to 64 random bytes in base64, several parted by spaces");
            }
        }
    }
    keys
}

/// The keys that sign user tokens (`OFFSTAGE_TOKEN_KEYS`); none are made without.
pub(super) fn token_keys(reader: &mut Reader<'_>) -> Option<TokenKeys> {
    let keys = TokenKeys::read(reader.optional("OFFSTAGE_TOKEN_KEYS")?);
    if keys.is_none() {
        // Not repeated: most of it may be right.
        let detail = "is not a list of keys: a name, a colon, 32 to 64 random bytes in base64url, parted by spaces, the current one first, 8 at most";
        reader.problem("OFFSTAGE_TOKEN_KEYS", detail);
    }
    keys
}

/// The keys that wrap what users entrusted to us.
pub(super) fn vault_keys(reader: &mut Reader<'_>) -> Option<VaultKeys> {
    let keys = VaultKeys::read(reader.optional("OFFSTAGE_VAULT_KEYS")?);
    if keys.is_none() {
        // Not repeated: most of it may be right.
        let detail = "is not a list of keys: a version from 1 to 255, a colon, 32 random bytes in base64, parted by spaces, the newest first, 8 at most";
        reader.problem("OFFSTAGE_VAULT_KEYS", detail);
    }
    keys
}

/// The guard before addresses that users name.
pub(super) fn outbound(reader: &mut Reader<'_>) -> Guard {
    let Some(list) = reader.optional("OFFSTAGE_OUTBOUND_ALLOW") else { return Guard::default() };
    Guard::read(list).unwrap_or_else(|detail| {
        reader.problem("OFFSTAGE_OUTBOUND_ALLOW", detail);
        Guard::default()
    })
}

pub(super) fn window(reader: &mut Reader<'_>) -> u32 {
    reader.number_in("OFFSTAGE_WINDOW", 10_000, 100..=1_000_000)
}

/// How long finished jobs are kept where a manifest says nothing: a quarter of a year, and what went wrong twice that.
pub(super) fn retention(reader: &mut Reader<'_>) -> Retention {
    let days = 1..=3_650;
    Retention::days(
        reader.number_in("OFFSTAGE_RETENTION_DAYS", 90, days.clone()),
        reader.number_in("OFFSTAGE_RETENTION_UNSUCCESSFUL_DAYS", 180, days),
    )
}

pub(super) fn shutdown_grace(reader: &mut Reader<'_>) -> Duration {
    Duration::from_secs(reader.number("OFFSTAGE_SHUTDOWN_GRACE_SECONDS", 25, 0, 3_600))
}
