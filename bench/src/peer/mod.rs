//! Other people's queues as contestants: programs of their own that speak a small language over standard input and output,
//! so that a peer may be written in whatever its users write (`bench/peers/README.md`).
//!
//! A peer connects, says `ready` and waits for a line: its start-up is in nobody's figure. What it says carries the wall
//! clock in milliseconds since 1970.

mod runs;

use std::{path::PathBuf, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::error::{Doing, Error, Result};

/// How long a peer may take for anything: a run is a matter of seconds.
const WITHIN: Duration = Duration::from_secs(600);

/// A peer that is installed.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What the report calls it.
    pub name: &'static str,
    /// What it is, with versions.
    pub version: String,
    program: &'static str,
    directory: PathBuf,
    redis: String,
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
    /// `BullMQ`, if Node.js and its packages are there; else why it is skipped.
    pub async fn bullmq(peers: PathBuf, redis: String) -> std::result::Result<Self, String> {
        let directory = peers.join("bullmq");
        if !directory.join("node_modules/bullmq").is_dir() {
            return Err(format!("BullMQ is not installed: run `npm ci` in {} (needs Node.js 20 and npm)", directory.display()));
        }
        let mut peer = Self { name: "BullMQ", version: String::new(), program: "node", directory, redis };
        let asked = async { peer.start(&["versions".to_owned()])?.event("versions").await };
        peer.version = asked.await.map_err(|error| format!("BullMQ does not run: {error}"))?.text;
        Ok(peer)
    }

    /// Starts its program with a command and numbers.
    fn start(&self, arguments: &[String]) -> Result<Running> {
        let what = format!("{} {}", self.name, arguments.join(" "));
        let mut child = Command::new(self.program)
            .arg("peer.mjs")
            .args(arguments)
            .current_dir(&self.directory)
            // In the environment and not among the arguments: it holds a password.
            .env("BENCH_REDIS_URL", &self.redis)
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

impl Running {
    fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Lets it begin.
    async fn go(&mut self) -> Result<()> {
        self.stdin.write_all(b"go\n").await.doing(format!("tell {} to begin", self.what))
    }

    /// Waits for its next line, which must be this one.
    async fn event(&mut self, expected: &str) -> Result<Event> {
        let line = timeout(WITHIN, self.lines.next_line()).await;
        let line = line.map_err(|_| Error::Unexpected(format!("{} did not say `{expected}` in time", self.what)))?;
        let line = line.doing(format!("read what {} says", self.what))?;
        let Some(line) = line else {
            return Err(Error::Unexpected(format!("{} ended before it said `{expected}`", self.what)));
        };
        match serde_json::from_str::<Event>(&line) {
            Ok(event) if event.name == expected => Ok(event),
            _ => Err(Error::Unexpected(format!("{} said {line:?} in place of `{expected}`", self.what))),
        }
    }

    /// Waits for its end, which must be a good one.
    async fn end(mut self) -> Result<()> {
        let ended = timeout(WITHIN, self.child.wait()).await;
        let status = ended.map_err(|_| Error::Unexpected(format!("{} does not end", self.what)))?;
        let status = status.doing(format!("wait for {}", self.what))?;
        if status.success() { Ok(()) } else { Err(Error::Unexpected(format!("{} ended with {status}", self.what))) }
    }
}
