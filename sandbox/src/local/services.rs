//! The services of an installation: those that were given, private ones for the rest.

use std::path::{Path, PathBuf};

use super::given::{self, Given};
use crate::directory::Directory;
use crate::error::Result;
use crate::fleet::Environment;
use crate::host::Host;
use crate::programs::Programs;
use crate::random;
use crate::secrets::Secrets;
use crate::services::ai::{AiServer, Answer};
use crate::services::mail::MailServer;
use crate::services::postgres::{Durability, Postgres};
use crate::services::push::{self, PushService};
use crate::services::redis::Redis;
use crate::services::s3::S3;

/// The variables with the keys of the examples' providers.
const PROVIDERS: [&str; 2] = ["OFFSTAGE_AI_OPENAI", "OFFSTAGE_AI_ANTHROPIC"];

/// What runs privately; `None` where the environment named another. The servers for mail and pushes always run.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) postgres: Option<Postgres>,
    pub(super) redis: Option<Redis>,
    pub(super) s3: Option<S3>,
    /// Shows what arrived; nothing leaves the machine.
    pub(super) mail: MailServer,
    /// Stands in for browsers and their vendors.
    pub(super) push: PushService,
    /// Stands in for the providers of models whose keys were not given.
    pub(super) ai: AiServer,
    /// Settings for them, but for those that were given.
    sending: Environment,
}

impl Services {
    /// Starts, at the same time, what was not given.
    pub(super) async fn start(given: &Given, directory: &Directory, cache: &Path, secrets: &Secrets, host: &Host) -> Result<Self> {
        let postgres = async {
            if given.has_database() {
                return Ok(None);
            }
            Postgres::open(directory, Durability::Lasting, cache, host, None).await.map(Some)
        };
        let redis = async {
            if given.has_redis() {
                return Ok(None);
            }
            Redis::open(directory, Durability::Lasting, &secrets.redis, host).await.map(Some)
        };
        let s3 = async {
            if given.has_s3() {
                return Ok(None);
            }
            let runtime = host.runtime()?.clone();
            S3::open(directory, &secrets.s3_key_id, &secrets.s3_secret, runtime).await.map(Some)
        };
        let mail = async { MailServer::open(directory, host.runtime()?.clone()).await };
        let push = async { PushService::open(host.runtime()?.clone()).await };
        let ai = async { AiServer::open(format!("sk-sandbox-{}", random::characters(32)?), host.runtime()?.clone()).await };
        let (postgres, redis, s3, mail, push, ai) = tokio::try_join!(postgres, redis, s3, mail, push, ai)?;
        // So that its words can be watched while they come.
        ai.usually(Answer { delay_ms: 400, word_ms: 40, ..Answer::default() });
        let mut sending = Environment::new();
        if !given.has_mail() {
            sending.extend(mail.environment());
        }
        if !given.has_push_keys() {
            sending.extend(push::environment(&secrets.push_key));
        }
        if !given.has_token_keys() {
            sending.insert("OFFSTAGE_TOKEN_KEYS".to_owned(), secrets.token_key.clone());
        }
        if !given.has_vault_keys() {
            sending.insert("OFFSTAGE_VAULT_KEYS".to_owned(), secrets.vault_key.clone());
        }
        if !given.has_recipient_key() {
            sending.insert("OFFSTAGE_RECIPIENT_KEY".to_owned(), secrets.recipient_key.clone());
        }
        for variable in PROVIDERS.into_iter().filter(|variable| !given.environment.contains_key(*variable)) {
            sending.insert(variable.to_owned(), ai.key().to_owned());
        }
        Ok(Self { postgres, redis, s3, mail, push, ai, sending })
    }

    /// Whether the sandbox answers in the place of the provider whose key is in this variable.
    pub(super) fn answers_for(&self, variable: &str) -> bool {
        self.sending.contains_key(variable)
    }

    /// Whether programs send their mails to the server that shows them.
    pub(super) fn mail_stays(&self) -> bool {
        self.sending.contains_key("OFFSTAGE_SMTP_URL")
    }

    /// The settings by which programs find those that run privately.
    pub(super) fn environment(&self) -> Environment {
        let parts = [
            self.postgres.as_ref().map(Postgres::environment),
            self.redis.as_ref().map(Redis::environment),
            self.s3.as_ref().map(S3::environment),
            Some(self.sending.clone()),
        ];
        parts.into_iter().flatten().flatten().collect()
    }

    /// Applies the migrations and lets the roles log in. Returns the example database's address for its owner; `None` when
    /// it is somebody else's to fill.
    pub(super) async fn migrate(
        &self,
        programs: &Programs,
        secrets: &Secrets,
        environment: &mut Environment,
        host: &Host,
        log: &Path,
    ) -> Result<Option<String>> {
        let owner_url = environment.get("OFFSTAGE_DATABASE_URL").cloned().unwrap_or_default();
        programs.migrate(host, &owner_url, log).await?;
        match &self.postgres {
            Some(postgres) => {
                postgres.open_logins().await?;
                Ok(Some(postgres.product_url()))
            }
            None => given::provision(&owner_url, secrets, environment).await,
        }
    }

    /// The database client to load the example with.
    pub(super) fn psql(&self) -> PathBuf {
        self.postgres.as_ref().map_or_else(|| PathBuf::from("psql"), Postgres::psql)
    }

    /// Ends what runs privately, in order.
    pub(super) async fn stop(&self) {
        if let Some(s3) = &self.s3 {
            s3.stop();
        }
        self.mail.stop();
        self.push.stop();
        self.ai.stop();
        // What could go wrong is that the sandbox is already being taken down, which is what is wanted.
        if let Some(redis) = &self.redis {
            let _ = redis.stop().await;
        }
        if let Some(postgres) = &self.postgres {
            let _ = postgres.stop().await;
        }
    }
}
