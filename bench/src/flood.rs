//! A flood of one and the same request over many connections, each after the answer to the one before: the load generator of what is
//! asked of an HTTP server as fast as it goes.
//!
//! It shares the machine with whom it measures, so it writes bytes that were made once and reads of an answer what it must: the status
//! and the length of the body.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    error::{Doing, Error, Result},
    measure::Latencies,
};

/// The longest answer that is expected; an answer to a batch of 1,000 names each job.
const LONGEST: usize = 4 * 1024 * 1024;
/// An answer takes milliseconds; a server that hangs must not hang the benchmark.
const WITHIN: Duration = Duration::from_secs(150);

/// What came of it.
#[derive(Debug)]
pub struct Flooded {
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// From a request to its answer.
    pub latencies: Latencies,
}

/// Posts `body` until `jobs` are done, `each` by one request; everything must be answered with 202 (or 201).
pub async fn flood(
    address: SocketAddr,
    path: &str,
    key: &str,
    body: &str,
    connections: usize,
    jobs: usize,
    each: usize,
) -> Result<Flooded> {
    let mut all = Vec::with_capacity(connections);
    for _ in 0..connections {
        all.push(Wire::connect(address).await?);
    }
    let request = post(address, path, key, body);
    let left = AtomicUsize::new(jobs.div_ceil(each));
    let begin = Instant::now();
    let posting = all.iter_mut().map(async |wire| {
        let mut latencies = Vec::new();
        while take(&left) {
            let sent = Instant::now();
            let status = wire.exchange(&request).await?;
            if !matches!(status, 201 | 202) {
                return Err(Error::Unexpected(format!("POST {path} answered {status}: {}", wire.text())));
            }
            latencies.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        Ok(latencies)
    });
    let latencies = try_join_all(posting).await?;
    Ok(Flooded { elapsed: begin.elapsed(), latencies: latencies.into_iter().flatten().collect() })
}

fn take(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// The bytes of a `POST`; an empty key is not sent.
#[must_use]
pub fn post(address: SocketAddr, path: &str, key: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let key = if key.is_empty() { String::new() } else { format!("authorization: Bearer {key}\r\n") };
    format!("POST {path} HTTP/1.1\r\nhost: {address}\r\n{key}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// The bytes of a `GET`.
#[must_use]
pub fn get(address: SocketAddr, path: &str, key: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\r\n").into_bytes()
}

/// A connection that stays open.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    address: SocketAddr,
    buffer: Vec<u8>,
}

impl Wire {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.doing("connect to the server")?;
        stream.set_nodelay(true).doing("set up a connection to the server")?;
        Ok(Self { stream, address, buffer: Vec::with_capacity(1024) })
    }

    /// One request and its answer's status. The answer must say how long it is, as answers with JSON do.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<u16> {
        let exchanged = timeout(WITHIN, self.exchange_unbounded(request)).await;
        exchanged.map_err(|_| Error::Unexpected(format!("no answer came within {} s", WITHIN.as_secs())))?
    }

    async fn exchange_unbounded(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request).await.doing("send a request")?;
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await.doing("read an answer")?;
            if let Some((status, length)) = head_of(&self.buffer)
                && self.buffer.len() >= length
            {
                return Ok(status);
            }
            if read == 0 || self.buffer.len() > LONGEST {
                return Err(Error::Unexpected(format!("an answer broke off: {}", self.text())));
            }
        }
    }

    /// Where it leads.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The stream itself, for what is read otherwise.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The last answer.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }
}

/// The status of an answer and its length with its head; `None` while the head is not complete.
fn head_of(answer: &[u8]) -> Option<(u16, usize)> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(answer.get(..head)?).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.map_or(Some(0), |(_, length)| length.trim().parse().ok())?;
    Some((status, head + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_it_says() {
        let answer = b"HTTP/1.1 202 Accepted\r\nContent-Length: 4\r\n\r\n{}{}";
        assert_eq!(head_of(answer), Some((202, answer.len())));
        assert_eq!(head_of(b"HTTP/1.1 202 Accepted\r\nContent-Le"), None);
        assert_eq!(head_of(b"HTTP/1.1 304 Not Modified\r\n\r\n"), Some((304, 29)));
    }
}
