//! Where pushes and mails go: servers of the benchmark's own that take everything and do as little as possible, the same for ours and for
//! peers. They check nothing and decrypt nothing; that what is sent is right is the tests' affair.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::error::{Doing, Result};

/// The longest line of a header or a command.
const LONGEST_LINE: u64 = 16 * 1024;
/// The longest body of a push (RFC 8030, section 7.2).
const LONGEST_BODY: u64 = 4_096;

/// A server; it ends when this is dropped.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    taken: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

/// What it speaks.
#[derive(Debug, Clone, Copy)]
pub enum Speech {
    /// HTTP/1.1: every request is answered 201.
    Http,
    /// SMTP in the clear, without signing in: every mail is taken.
    Smtp,
}

impl Sink {
    /// Listens on a port of its own.
    pub async fn open(speech: Speech) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.doing("listen for what is sent")?;
        let address = listener.local_addr().doing("listen for what is sent")?;
        let taken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&taken);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    // A connection's end is its client's affair; what it did not send is missed in the count.
                    let _ = match speech {
                        Speech::Http => http(stream, &counted).await,
                        Speech::Smtp => smtp(stream, &counted).await,
                    };
                });
            }
        });
        Ok(Self { address, taken, accepting })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many messages it has taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

type Wire = BufReader<TcpStream>;

/// A line without its end; `false` at the end of the connection.
async fn line(wire: &mut Wire, into: &mut Vec<u8>) -> std::io::Result<bool> {
    into.clear();
    (&mut *wire).take(LONGEST_LINE).read_until(b'\n', into).await?;
    Ok(into.ends_with(b"\n"))
}

async fn http(stream: TcpStream, taken: &AtomicUsize) -> std::io::Result<()> {
    let mut wire = BufReader::new(stream);
    let (mut text, mut body) = (Vec::new(), Vec::new());
    loop {
        let mut length = 0;
        loop {
            if !line(&mut wire, &mut text).await? {
                return Ok(());
            }
            let header = String::from_utf8_lossy(&text);
            let header = header.trim_end();
            if header.is_empty() {
                break;
            }
            if let Some((_, value)) = header.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        body.clear();
        (&mut wire).take(LONGEST_BODY.min(length)).read_to_end(&mut body).await?;
        taken.fetch_add(1, Ordering::Relaxed);
        wire.get_mut().write_all(b"HTTP/1.1 201 Created\r\nLocation: /message\r\nContent-Length: 0\r\n\r\n").await?;
    }
}

async fn smtp(stream: TcpStream, taken: &AtomicUsize) -> std::io::Result<()> {
    let mut wire = BufReader::new(stream);
    let mut text = Vec::new();
    wire.get_mut().write_all(b"220 sink ESMTP\r\n").await?;
    while line(&mut wire, &mut text).await? {
        let verb = text.get(..4).unwrap_or_default().to_ascii_uppercase();
        let answer: &[u8] = match verb.as_slice() {
            b"EHLO" => b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n",
            b"DATA" => {
                wire.get_mut().write_all(b"354 go on\r\n").await?;
                while line(&mut wire, &mut text).await? && text != b".\r\n" {}
                taken.fetch_add(1, Ordering::Relaxed);
                b"250 2.0.0 taken\r\n"
            }
            b"QUIT" => {
                wire.get_mut().write_all(b"221 2.0.0 bye\r\n").await?;
                return Ok(());
            }
            _ => b"250 2.0.0 fine\r\n",
        };
        wire.get_mut().write_all(answer).await?;
    }
    Ok(())
}
