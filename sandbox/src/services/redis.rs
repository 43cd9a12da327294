//! A private Redis on 127.0.0.1.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::directory::{Directory, make, write_secret};
use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::ports::Port;
use crate::process::{Exit, Process, Spec};
use crate::services::postgres::Durability;

/// Reading an append-only file is part of a start.
const START_WITHIN: Duration = Duration::from_secs(30);
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// A line `#TS:1732142424` stands before the first command of each second in an append-only file.
const SECOND_MARK: &[u8] = b"#TS:";
/// The oldest major version the product supports.
const OLDEST: u32 = 7;

/// The Redis of one sandbox.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    password: String,
    url: String,
    data: PathBuf,
}

impl Redis {
    pub(crate) async fn open(directory: &Directory, durability: Durability, password: &str, host: &Host) -> Result<Self> {
        let program = find()?;
        let port = Port::reserve()?;
        let data = directory.path().join("redis");
        make(&data)?;
        let configuration = data.join("redis.conf");
        let append = if durability == Durability::Lasting { "yes" } else { "no" };
        // In a file and not in arguments, which everybody on the machine can read.
        write_secret(
            &configuration,
            &format!(
                "bind 127.0.0.1\nport {}\nrequirepass {password}\ndir \"{}\"\nsave \"\"\nappendonly {append}\nappendfsync everysec\n\
                 daemonize no\nmaxmemory-policy noeviction\n",
                port.number(),
                data.display(),
            ),
        )?;
        let mut spec = Spec::new("redis", program, directory.log("redis"));
        spec.arguments = vec![configuration.into()];
        spec.restart = durability == Durability::Lasting;
        let url = url_at(password, port.address());
        spec.port = Some(Arc::new(port));
        let redis = Self { process: host.supervise(spec)?, password: password.to_owned(), url, data };
        redis.start().await?;
        Ok(redis)
    }

    /// Starts the server and returns when it answers.
    ///
    /// # Errors
    /// When it ends, or is not ready within half a minute; with its log's end.
    pub async fn start(&self) -> Result<()> {
        self.process.start().await?;
        self.process.wait_until(START_WITHIN, async || self.ask::<String>(&::redis::cmd("PING")).await.map(drop)).await
    }

    /// Ends the server in order.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn stop(&self) -> Result<Option<Exit>> {
        self.process.stop().await
    }

    /// SIGKILL. In a fast sandbox it comes back empty.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn kill9(&self) -> Result<Option<Exit>> {
        self.process.kill9().await
    }

    /// The server stands still; connections stay open and new ones hang.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn pause(&self) -> Result<bool> {
        self.process.pause().await
    }

    /// Goes on after [`Redis::pause`].
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn resume(&self) -> Result<bool> {
        self.process.resume().await
    }

    /// Empties it, as an operator's `FLUSHALL` would.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn flushall(&self) -> Result<()> {
        self.command::<()>(&::redis::cmd("FLUSHALL")).await
    }

    /// From now on it writes what it does to its append-only file, with the time of each second, and reads it at its next start.
    ///
    /// # Errors
    /// When it does not answer, or can't write.
    pub async fn append_only(&self) -> Result<()> {
        for (name, value) in [("aof-timestamp-enabled", "yes"), ("appendonly", "yes")] {
            self.command::<()>(::redis::cmd("CONFIG").arg("SET").arg(name).arg(value)).await?;
        }
        self.command::<()>(::redis::cmd("CONFIG").arg("REWRITE")).await
    }

    /// Cuts the newest second off the append-only file of a killed server, as a crash of the machine would that had not synced it:
    /// [`Redis::start`] then knows what was before. Answers how many bytes were lost.
    ///
    /// # Errors
    /// When the server runs, or there is no append-only file ([`Redis::append_only`]).
    pub fn cut_newest_second(&self) -> Result<u64> {
        if self.process.pid().is_some() {
            return Err(Error::Invalid("the sandbox's Redis runs: kill it before its file is cut".to_owned()));
        }
        let directory = self.data.join("appendonlydir");
        let files = std::fs::read_dir(&directory).doing(|| format!("look for the append-only file in {}", directory.display()))?;
        let newest = files.flatten().map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max();
        let path = newest.ok_or_else(|| Error::Invalid(format!("there is no append-only file in {}", directory.display())))?;
        let bytes = std::fs::read(&path).doing(|| format!("read {}", path.display()))?;
        let kept = bytes.windows(SECOND_MARK.len()).rposition(|window| window == SECOND_MARK).unwrap_or(0);
        let file = std::fs::File::options().write(true).open(&path).doing(|| format!("open {}", path.display()))?;
        file.set_len(kept as u64).doing(|| format!("cut {}", path.display()))?;
        Ok((bytes.len() - kept) as u64)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Never as things are.
    pub fn address(&self) -> Result<SocketAddr> {
        self.process.address().ok_or_else(|| Error::Invalid("the sandbox's Redis has no address".to_owned()))
    }

    /// The settings by which `api` and `worker` find it at another address, as a proxy's.
    #[must_use]
    pub fn environment_at(&self, address: SocketAddr) -> BTreeMap<String, String> {
        BTreeMap::from([("OFFSTAGE_REDIS_URL".to_owned(), url_at(&self.password, address))])
    }

    /// Sends one command on a connection of its own.
    ///
    /// # Errors
    /// When Redis does not answer within five seconds or refuses.
    pub async fn command<T: ::redis::FromRedisValue>(&self, command: &::redis::Cmd) -> Result<T> {
        self.ask(command).await.map_err(|reason| Error::Invalid(format!("the sandbox's Redis: {reason}")))
    }

    async fn ask<T: ::redis::FromRedisValue>(&self, command: &::redis::Cmd) -> std::result::Result<T, String> {
        let asking = async {
            let client = ::redis::Client::open(self.url.as_str())?;
            let mut connection = client.get_multiplexed_async_connection().await?;
            command.query_async(&mut connection).await
        };
        match tokio::time::timeout(ASK_WITHIN, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ASK_WITHIN.as_secs())),
        }
    }

    /// The server's process, for its log and its exits.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Where it is, with its password (`OFFSTAGE_REDIS_URL`).
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The settings by which `api` and `worker` find it.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("OFFSTAGE_REDIS_URL".to_owned(), self.url.clone())])
    }
}

fn url_at(password: &str, address: SocketAddr) -> String {
    format!("redis://:{password}@{address}/0")
}

/// The one on the PATH, else in Homebrew's places.
fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "/opt/homebrew/opt/redis/bin", "/usr/local/opt/redis/bin"];
    let places = std::env::split_paths(&path).chain(usual.map(PathBuf::from));
    let suits = |program: &PathBuf| program.is_file() && major(program).is_some_and(|major| major >= OLDEST);
    places.map(|directory| directory.join("redis-server")).find(suits).ok_or_else(|| Error::Missing {
        program: format!("Redis {OLDEST} or newer"),
        advice: "`make run` installs it; by hand: `apt-get install redis-server` or `brew install redis`".to_owned(),
    })
}

fn major(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    // `Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=…`
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    version.split('.').next()?.parse().ok()
}
