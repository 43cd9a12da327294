//! Follows a job to its end: by a stream of events, connected again when it breaks, by long-polls where there is no place for one.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    connection::{Connection, refused},
    error::Error,
    show,
};

/// The longest that one long-poll waits, in seconds.
const POLL: u64 = 20;

/// Before a stream is opened again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Streams that broke off before their first event, one after the other, before it is given up.
const MOST_BREAKS: u32 = 30;

/// The longest event; a result has 64 KiB at most, escaped.
const LONGEST_EVENT: usize = 1024 * 1024;

/// How changes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A bar, rewritten in its place.
    Bar,
    /// A line of JSON at each change.
    Lines,
    /// Nothing: the end is for the caller to write.
    Nothing,
}

impl Output {
    /// A bar on a terminal; else lines.
    pub fn of_follow(json: bool) -> Self {
        if !json && std::io::stdout().is_terminal() { Self::Bar } else { Self::Lines }
    }

    /// A bar on a terminal; else nothing.
    pub fn of_wait(json: bool) -> Self {
        if !json && std::io::stdout().is_terminal() { Self::Bar } else { Self::Nothing }
    }

    fn write(self, job: &Value) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        match self {
            Self::Bar => write!(out, "\r\x1b[2K{}", show::bar(job))?,
            Self::Lines => writeln!(out, "{job}")?,
            Self::Nothing => {}
        }
        Ok(out.flush()?)
    }
}

/// Follows a job for `longest`; answers it as it ended.
pub async fn to_the_end(connection: &Connection, id: &str, longest: Duration, output: Output) -> Result<Value, Error> {
    let until = Instant::now() + longest;
    let followed = timeout_at(until, follow(connection, id, output)).await;
    if output == Output::Bar {
        writeln!(std::io::stdout())?;
    }
    followed.unwrap_or_else(|_| Err(Error::Late(format!("the job {id} has not ended after {} s; it goes on", longest.as_secs()))))
}

async fn follow(connection: &Connection, id: &str, output: Output) -> Result<Value, Error> {
    let mut known: Option<i64> = None;
    let mut breaks = 0;
    loop {
        let mut request = connection.request(Method::GET, &["v1", "jobs", id, "events"])?;
        if let Some(version) = known {
            request = request.header("Last-Event-ID", version);
        }
        let (before, why) = (
            known,
            match connection.open(request).await {
                Ok(answer) if answer.status() == StatusCode::OK => match stream(answer, &mut known, output).await? {
                    Some(ended) => return Ok(ended),
                    None => "the stream broke off".to_owned(),
                },
                // It has ended as we know it: what it is like is asked for.
                Ok(answer) if answer.status() == StatusCode::NO_CONTENT => {
                    return connection.send(connection.request(Method::GET, &["v1", "jobs", id])?).await;
                }
                Ok(answer) if answer.status().is_server_error() || answer.status() == StatusCode::TOO_MANY_REQUESTS => {
                    if let Some(ended) = poll(connection, id, &mut known, output).await? {
                        return Ok(ended);
                    }
                    format!("the API answered {}", answer.status())
                }
                Ok(answer) => return Err(refused(answer).await),
                Err(error) => error.to_string(),
            },
        );
        breaks = if known == before { breaks + 1 } else { 0 };
        if breaks > MOST_BREAKS {
            return Err(Error::Unreachable(why));
        }
        sleep(AGAIN_AFTER).await;
    }
}

/// Reads a stream; answers the job where it told its end.
async fn stream(mut answer: reqwest::Response, known: &mut Option<i64>, output: Output) -> Result<Option<Value>, Error> {
    let mut text: Vec<u8> = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        text.extend_from_slice(&chunk);
        while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = text.drain(..end + 2).collect();
            let block = String::from_utf8_lossy(&block);
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let Some(job) = field("data").and_then(|data| serde_json::from_str::<Value>(data).ok()) else { continue };
            *known = field("id").and_then(|id| id.parse().ok()).or(*known);
            output.write(&job)?;
            if field("event") == Some("ended") {
                return Ok(Some(job));
            }
        }
        if text.len() > LONGEST_EVENT {
            break;
        }
    }
    Ok(None)
}

/// One long-poll; answers the job where it has ended.
async fn poll(connection: &Connection, id: &str, known: &mut Option<i64>, output: Output) -> Result<Option<Value>, Error> {
    let query = known.map(|version| vec![("wait", POLL.to_string()), ("since", version.to_string())]).unwrap_or_default();
    let job = connection.send(connection.get(&["v1", "jobs", id], &query)?).await?;
    let version = job.get("version").and_then(Value::as_i64);
    if version != *known {
        *known = version;
        output.write(&job)?;
    }
    Ok(show::has_ended(&job).then_some(job))
}
