//! Other people's queues as contestants: programs of their own that speak a small language over standard input and output,
//! so that a peer may be written in whatever its users write (`bench/peers/README.md`).
//!
//! A peer connects, says `ready` and waits for a line: its start-up is in nobody's figure. What it says carries the wall
//! clock in milliseconds since 1970.

mod catalogue;
mod runs;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use catalogue::Launch;
pub use catalogue::{ALONE, DOOR, Definition, PEERS, SENDERS};

use crate::{
    error::{Doing, Error, Result},
    offstage::Servers,
};

/// How long a peer may take for anything: a run is a matter of seconds.
const WITHIN: Duration = Duration::from_secs(150);

/// A peer that is installed.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What it is.
    pub definition: &'static Definition,
    /// What it is, with versions.
    pub version: String,
    launch: Launch,
    directory: PathBuf,
    servers: Servers,
}

/// A line that a peer wrote.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "event")]
    name: String,
    /// The wall clock, in milliseconds since 1970.
    #[serde(default)]
    at: f64,
    /// In milliseconds.
    #[serde(default)]
    latencies: Vec<f64>,
    #[serde(default)]
    text: String,
    /// How many a worker has completed.
    #[serde(default)]
    jobs: usize,
}

/// A peer's process.
#[derive(Debug)]
struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    what: String,
}

impl Peer {
    /// A peer, if it is installed and runs; else why it is skipped.
    pub async fn find(
        definition: &'static Definition,
        peers: &Path,
        binaries: &Path,
        servers: &Servers,
    ) -> std::result::Result<Self, String> {
        let launch = definition.launch(peers, binaries)?;
        let directory = peers.join(definition.folder);
        let mut peer = Self { definition, version: String::new(), launch, directory, servers: servers.clone() };
        let asked = async {
            let mut running = peer.start(&["versions".to_owned()])?;
            let event = running.event("versions").await?;
            running.end().await?;
            Ok::<_, Error>(event.text)
        };
        peer.version = asked.await.map_err(|error| format!("{} does not run: {}", definition.name, with_causes(&error)))?;
        Ok(peer)
    }

    /// What the report calls it.
    pub const fn name(&self) -> &'static str {
        self.definition.name
    }

    /// Starts its program with a command and numbers.
    fn start(&self, arguments: &[String]) -> Result<Running> {
        self.start_with(arguments, &[])
    }

    /// The same, with settings of its own in the environment.
    fn start_with(&self, arguments: &[String], environment: &[(&str, String)]) -> Result<Running> {
        let what = format!("{} {}", self.name(), arguments.join(" "));
        let mut child = Command::new(&self.launch.program)
            .args(self.launch.script)
            .args(arguments)
            .current_dir(&self.directory)
            // In the environment and not among the arguments: they hold passwords.
            .env("BENCH_REDIS_URL", &self.servers.redis)
            .env("BENCH_POSTGRES_URL", &self.servers.postgres)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .doing(format!("start {what}"))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::Unexpected(format!("{what} has no standard input or output")));
        };
        Ok(Running { child, stdin, lines: BufReader::new(stdout).lines(), what })
    }
}

fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Running {
    fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Lets it begin, or tells it to stop: it waits for a line.
    async fn go(&mut self) -> Result<()> {
        self.stdin.write_all(b"go\n").await.doing(format!("tell {} to go on", self.what))
    }

    /// Waits for this event; counts that come before it are passed over.
    async fn event(&mut self, expected: &str) -> Result<Event> {
        loop {
            let event = self.next(expected).await?;
            if event.name == expected {
                return Ok(event);
            }
            if event.name != "count" {
                return Err(Error::Unexpected(format!("{} said `{}` in place of `{expected}`", self.what, event.name)));
            }
        }
    }

    /// Waits for whatever it says next; `expected` is for the message when that does not come. May be dropped and called again.
    async fn next(&mut self, expected: &str) -> Result<Event> {
        let line = timeout(WITHIN, self.lines.next_line()).await;
        let line = line.map_err(|_| Error::Unexpected(format!("{} did not say `{expected}` in time", self.what)))?;
        let line = line.doing(format!("read what {} says", self.what))?;
        let Some(line) = line else {
            return Err(Error::Unexpected(format!("{} ended before it said `{expected}`", self.what)));
        };
        serde_json::from_str::<Event>(&line).map_err(|_| Error::Unexpected(format!("{} said {line:?} in place of `{expected}`", self.what)))
    }

    /// Waits for its end, which must be a good one.
    async fn end(mut self) -> Result<()> {
        let ended = timeout(WITHIN, self.child.wait()).await;
        let status = ended.map_err(|_| Error::Unexpected(format!("{} does not end", self.what)))?;
        let status = status.doing(format!("wait for {}", self.what))?;
        if status.success() { Ok(()) } else { Err(Error::Unexpected(format!("{} ended with {status}", self.what))) }
    }
}
