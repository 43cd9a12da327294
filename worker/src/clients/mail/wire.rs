//! The bytes beneath lettre: bounded, and no further ahead than a line.
//!
//! What must stay true: what a server may say in answer to one command has a bound, whether it ends its lines or not; and nothing that came
//! before TLS is taken for an answer under it (command injection, CVE-2011-0411 and its kin), since lines are handed up one at a time.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use lettre::transport::smtp::client::AsyncTokioStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::client::TlsStream;

/// The most bytes that come between two of ours: a reply, or the server's part of a TLS handshake.
const REPLY: usize = 32_768;

/// The most lines among them; under TLS a line's end is a byte like any other. lettre reads a reply anew with each of its lines.
const LINES: usize = 512;

/// What is read at once.
const PIECE: usize = 4_096;

/// Whether we have said anything yet: what fails before is the greeting.
pub(super) type Spoken = Arc<watch::Sender<bool>>;

/// Nothing has been said yet.
pub(super) fn silent() -> Spoken {
    Arc::new(watch::Sender::new(false))
}

fn speak(spoken: &Spoken) {
    if !*spoken.borrow() {
        spoken.send_replace(true);
    }
}

/// A TCP connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// Read and not handed up yet.
    held: BytesMut,
    /// Bytes that may still come before we speak again.
    left: usize,
    /// Lines likewise.
    lines: usize,
    spoken: Spoken,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, spoken: Spoken) -> Self {
        Self { stream, held: BytesMut::new(), left: REPLY, lines: LINES, spoken }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lines == 0 || (this.held.is_empty() && this.left == 0) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the server says more than an answer may have")));
        }
        if this.held.is_empty() {
            let mut piece = [0; PIECE];
            let mut read = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut read))?;
            this.left = this.left.saturating_sub(read.filled().len());
            this.held.extend_from_slice(read.filled());
        }
        let line = this.held.iter().position(|byte| *byte == b'\n').map_or(this.held.len(), |end| end + 1);
        let given = this.held.split_to(line.min(out.remaining()));
        this.lines -= usize::from(given.ends_with(b"\n"));
        out.put_slice(&given);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        (self.left, self.lines) = (REPLY, LINES);
        speak(&self.spoken);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncTokioStream for Wire {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

/// The same under TLS from the start.
#[derive(Debug)]
pub(super) struct Sealed {
    stream: TlsStream<Wire>,
    spoken: Spoken,
}

impl Sealed {
    pub(super) fn new(stream: TlsStream<Wire>, spoken: Spoken) -> Self {
        Self { stream, spoken }
    }
}

impl AsyncRead for Sealed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, out)
    }
}

impl AsyncWrite for Sealed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        speak(&self.spoken);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncTokioStream for Sealed {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().0.peer_addr()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::TcpListener,
    };

    use super::*;

    /// What a server says at once, as it comes out of a wire.
    async fn said(text: String) -> BufReader<Wire> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let _ = server.write_all(text.as_bytes()).await;
        });
        BufReader::new(Wire::new(stream, silent()))
    }

    #[tokio::test]
    async fn what_was_slipped_in_behind_an_answer_is_left_to_the_handshake() {
        let mut reader = said("220 go on\r\n250 slipped in\r\n".to_owned()).await;
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        assert_eq!(line, "220 go on\r\n");
        // lettre keeps its reader over the handshake: what stood in it would be an answer under TLS.
        assert_eq!(reader.buffer(), b"");
        assert_eq!(reader.get_ref().held, b"250 slipped in\r\n".as_slice());
    }

    #[tokio::test]
    async fn an_answer_has_an_end_by_lines_and_by_bytes() {
        for text in ["a\n".repeat(2 * LINES), "a".repeat(2 * REPLY)] {
            let mut reader = said(text.clone()).await;
            let mut read = Vec::new();
            let error = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut read).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(read.len() < REPLY + PIECE && read.len() >= LINES, "{}", read.len());
        }
    }
}
