//! Every setting of Offstage, read from `OFFSTAGE_*` variables, checked, and handed out by section.
//!
//! What must stay true: all that is wrong is reported at once, each by its variable's name and with what to write instead;
//! a secret's value never appears in an error, a log or `Debug`; settings that contradict each other are found here, at
//! the start, and not at three in the morning. A program reads only the sections it needs: [`ApiConfig`],
//! [`WorkerConfig`], [`OwnerConfig`].
//!
//! A variable that is set to nothing counts as not set, which is how compose files and manifests leave one out.

mod ai;
mod mail;
mod process;
mod push;
mod stores;
mod variables;
mod vendors;

pub use ai::Ai;
pub use mail::Mail;
pub use process::{Listen, Log, LogFormat, Probe, ProbeCallbacks, Queues, Sources, Streams};
pub use push::Push;
pub use stores::{Database, Redis, S3};
pub use variables::{ConfigError, SettingProblem, Variables};
pub use vendors::Vendors;

use std::{collections::BTreeMap, time::Duration};

use url::Url;

use crate::{
    clock::Clock, mail::RecipientKey, outbound::Guard, signing::SigningKeys, tenant::Retention, tokens::TokenKeys, vault::VaultKeys,
};
use variables::Reader;

/// Settings of `api serve`.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Postgres, as the role `offstage_api`.
    pub database: Database,
    /// Redis.
    pub redis: Redis,
    /// Object storage.
    pub s3: S3,
    /// Where to listen (`OFFSTAGE_LISTEN`).
    pub listen: Listen,
    /// Under which address people reach this API (`OFFSTAGE_PUBLIC_URL`); addresses in answers are paths without it.
    pub public_url: Option<Url>,
    /// By which recipients of mail are known (`OFFSTAGE_RECIPIENT_KEY`).
    pub recipient_key: Option<RecipientKey>,
    /// The keys by which hooks of mail providers are signed (`OFFSTAGE_HOOK_…`).
    pub hook_keys: BTreeMap<String, SigningKeys>,
    /// Web push: the keys that browsers subscribe with.
    pub push: Push,
    /// Where addresses that users name may lead (`OFFSTAGE_OUTBOUND_ALLOW`): what could never be pushed to is refused at the door.
    pub outbound: Guard,
    /// Business time (`OFFSTAGE_CLOCK_FILE`, in tests).
    pub clock: Clock,
    /// The log.
    pub log: Log,
    /// Whether `probe.run` is a kind here.
    pub probe: Probe,
    /// Jobs that may stand in one queue's streams (`OFFSTAGE_WINDOW`).
    pub window: u32,
    /// How many streams of events are held open.
    pub streams: Streams,
    /// The keys that sign user tokens (`OFFSTAGE_TOKEN_KEYS`); none are made without.
    pub token_keys: Option<TokenKeys>,
    /// The keys that wrap what users entrusted to us (`OFFSTAGE_VAULT_KEYS`); nothing is kept sealed without.
    pub vault_keys: Option<VaultKeys>,
    /// How long an idempotency key is remembered (`OFFSTAGE_IDEMPOTENCY_HOURS`), where neither kind nor manifest says otherwise.
    pub idempotency: Duration,
    /// Jobs of one tenant that may wait, where its manifest says nothing (`OFFSTAGE_BACKLOG`).
    pub backlog: u64,
    /// How long requests under way may take to finish at shutdown (`OFFSTAGE_SHUTDOWN_GRACE_SECONDS`).
    pub shutdown_grace: Duration,
    /// What is suspicious but allowed; to be logged once the log runs.
    pub warnings: Vec<String>,
}

impl ApiConfig {
    /// Reads and checks the settings of `api serve`.
    ///
    /// # Errors
    /// All that is missing or wrong, at once.
    pub fn read(variables: &Variables) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(variables);
        let database = Database::read(&mut reader, "OFFSTAGE_API_DATABASE_URL", Some(("OFFSTAGE_API_POOL", 20)));
        let redis = Redis::read(&mut reader);
        let s3 = S3::read(&mut reader);
        let listen = Listen::read(&mut reader, "OFFSTAGE_LISTEN", 8080);
        let public_url = stores::endpoint(&mut reader, "OFFSTAGE_PUBLIC_URL");
        let recipient_key = mail::recipient_key(&mut reader);
        let hook_keys = process::hook_keys(&mut reader);
        let push = Push::read(&mut reader);
        let outbound = process::outbound(&mut reader);
        let clock = process::clock(&mut reader);
        let log = Log::read(&mut reader);
        let probe = Probe::read(&mut reader);
        let window = process::window(&mut reader);
        let streams = Streams::read(&mut reader);
        let token_keys = process::token_keys(&mut reader);
        let vault_keys = process::vault_keys(&mut reader);
        let idempotency = Duration::from_secs(3_600 * reader.number("OFFSTAGE_IDEMPOTENCY_HOURS", 24, 1, 24 * 30));
        let backlog = reader.number("OFFSTAGE_BACKLOG", 1_000_000, 1, 100_000_000);
        let shutdown_grace = process::shutdown_grace(&mut reader);
        stores::warn_of_shared_role(&mut reader, "OFFSTAGE_API_DATABASE_URL", "offstage_api");
        let warnings = reader.finish()?;
        let (Some(database), Some(redis), Some(s3), Some(listen)) = (database, redis, s3, listen) else {
            return Err(ConfigError::incomplete());
        };
        Ok(Self {
            database,
            redis,
            s3,
            listen,
            public_url,
            recipient_key,
            hook_keys,
            push,
            outbound,
            clock,
            log,
            probe,
            window,
            streams,
            token_keys,
            vault_keys,
            idempotency,
            backlog,
            shutdown_grace,
            warnings,
        })
    }
}

/// Settings of `worker`.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Postgres, as the role `offstage_engine`.
    pub database: Database,
    /// Redis.
    pub redis: Redis,
    /// Object storage.
    pub s3: S3,
    /// Where health and metrics are served (`OFFSTAGE_WORKER_LISTEN`).
    pub listen: Listen,
    /// Business time (`OFFSTAGE_CLOCK_FILE`, in tests).
    pub clock: Clock,
    /// The log.
    pub log: Log,
    /// Which queues to serve, how many jobs of each at once.
    pub queues: Queues,
    /// Whether `probe.run` is a kind here.
    pub probe: Probe,
    /// Whether this installation is one that drills may be held in (`OFFSTAGE_DRILL`).
    pub drill: bool,
    /// The databases that datasets are read from.
    pub sources: Sources,
    /// Where addresses that users name may lead (`OFFSTAGE_OUTBOUND_ALLOW`).
    pub outbound: Guard,
    /// Mail.
    pub mail: Mail,
    /// Calls of models.
    pub ai: Ai,
    /// Under which address people reach the API (`OFFSTAGE_PUBLIC_URL`): mails name it for unsubscribing.
    pub public_url: Option<Url>,
    /// Web push.
    pub push: Push,
    /// Other people's services that statistics come from.
    pub vendors: Vendors,
    /// The keys by which completions are signed (`OFFSTAGE_COMPLETION_…`).
    pub signing_keys: BTreeMap<String, SigningKeys>,
    /// The keys that wrap what users entrusted to us (`OFFSTAGE_VAULT_KEYS`); nothing is kept sealed without.
    pub vault_keys: Option<VaultKeys>,
    /// Jobs that may stand in one queue's streams (`OFFSTAGE_WINDOW`).
    pub window: u32,
    /// How long finished jobs are kept where a manifest says nothing (`OFFSTAGE_RETENTION_DAYS`,
    /// `OFFSTAGE_RETENTION_UNSUCCESSFUL_DAYS`).
    pub retention: Retention,
    /// How long running jobs may take to finish at shutdown (`OFFSTAGE_SHUTDOWN_GRACE_SECONDS`).
    pub shutdown_grace: Duration,
    /// What is suspicious but allowed; to be logged once the log runs.
    pub warnings: Vec<String>,
}

impl WorkerConfig {
    /// Reads and checks the settings of `worker`. `queues` is the command line's `--queues`, which goes before the variable.
    ///
    /// # Errors
    /// All that is missing or wrong, at once.
    pub fn read(variables: &Variables, queues: Option<&str>) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(variables);
        let database = Database::read(&mut reader, "OFFSTAGE_ENGINE_DATABASE_URL", Some(("OFFSTAGE_ENGINE_POOL", 16)));
        let redis = Redis::read(&mut reader);
        let s3 = S3::read(&mut reader);
        let listen = Listen::read(&mut reader, "OFFSTAGE_WORKER_LISTEN", 9090);
        let clock = process::clock(&mut reader);
        let log = Log::read(&mut reader);
        let queues = Queues::read(&mut reader, queues);
        let probe = Probe::read(&mut reader);
        let drill = reader.word("OFFSTAGE_DRILL", false, &[("on", true), ("off", false)]);
        let sources = Sources::read(&mut reader);
        let outbound = process::outbound(&mut reader);
        let mail = Mail::read(&mut reader);
        let ai = Ai::read(&mut reader);
        let public_url = stores::endpoint(&mut reader, "OFFSTAGE_PUBLIC_URL");
        let push = Push::read(&mut reader);
        let vendors = Vendors::read(&mut reader);
        let signing_keys = process::signing_keys(&mut reader);
        let vault_keys = process::vault_keys(&mut reader);
        let window = process::window(&mut reader);
        let shutdown_grace = process::shutdown_grace(&mut reader);
        let retention = process::retention(&mut reader);
        stores::warn_of_shared_role(&mut reader, "OFFSTAGE_ENGINE_DATABASE_URL", "offstage_engine");
        let warnings = reader.finish()?;
        let (Some(database), Some(redis), Some(s3), Some(listen)) = (database, redis, s3, listen) else {
            return Err(ConfigError::incomplete());
        };
        Ok(Self {
            database,
            redis,
            s3,
            listen,
            clock,
            log,
            queues,
            probe,
            drill,
            sources,
            outbound,
            mail,
            ai,
            public_url,
            push,
            vendors,
            signing_keys,
            vault_keys,
            window,
            retention,
            shutdown_grace,
            warnings,
        })
    }
}

/// Settings of the commands that act as the database's owner: `api migrate`, `api tenant apply`, `api key …`.
#[derive(Clone, Debug)]
pub struct OwnerConfig {
    /// Postgres, as its owner (`OFFSTAGE_DATABASE_URL`).
    pub database: Database,
    /// Business time (`OFFSTAGE_CLOCK_FILE`, in tests).
    pub clock: Clock,
    /// The log.
    pub log: Log,
    /// The keys that wrap what users entrusted to us (`OFFSTAGE_VAULT_KEYS`); nothing is kept sealed without.
    pub vault_keys: Option<VaultKeys>,
    /// What is suspicious but allowed; to be logged once the log runs.
    pub warnings: Vec<String>,
}

impl OwnerConfig {
    /// Reads and checks the owner's settings.
    ///
    /// # Errors
    /// All that is missing or wrong, at once.
    pub fn read(variables: &Variables) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(variables);
        let database = Database::read(&mut reader, "OFFSTAGE_DATABASE_URL", None);
        let clock = process::clock(&mut reader);
        let log = Log::read(&mut reader);
        let vault_keys = process::vault_keys(&mut reader);
        let warnings = reader.finish()?;
        let Some(database) = database else { return Err(ConfigError::incomplete()) };
        Ok(Self { database, clock, log, vault_keys, warnings })
    }
}

#[cfg(test)]
mod tests;
