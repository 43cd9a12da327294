//! The listening side of SMTP: one connection, command by command.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::{Mail, Mailbox};
use crate::faults::{Fault, Faults, Request};
use crate::services::door::LONGEST_WAIT;

/// The longest line of a command, with room for what nobody should send.
const LINE: u64 = 8_192;
/// The longest message.
const MESSAGE: usize = 25 * 1024 * 1024;
/// Recipients of one mail.
const RECIPIENTS: usize = 100;

#[derive(Clone)]
pub(super) struct Server {
    pub(super) faults: Faults,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) acceptor: TlsAcceptor,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) paused: watch::Receiver<bool>,
    pub(super) connections: Arc<AtomicU64>,
}

/// How a connection goes on after a part of it.
enum Next<S> {
    /// It ends.
    End,
    /// Under TLS, on this.
    Upgrade(S),
}

/// What a stage does, faults considered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// As it should.
    Proceed,
    /// As it should, and then the connection is cut instead of an answer.
    ProceedAndCut,
    /// It was answered instead; go on with the next command.
    Answered,
    /// The connection is cut.
    Cut,
}

/// A mail in the making.
#[derive(Default)]
struct Draft {
    from: Option<String>,
    to: Vec<String>,
}

impl Server {
    pub(super) async fn plain(mut self, stream: TcpStream) {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        if let Ok(Next::Upgrade(stream)) = self.talk(stream, false, true, connection).await
            && let Ok(stream) = self.acceptor.clone().accept(stream).await
        {
            let _ = self.talk(stream, true, false, connection).await;
        }
    }

    pub(super) async fn tls(mut self, stream: TcpStream) {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        if let Ok(stream) = self.acceptor.clone().accept(stream).await {
            let _ = self.talk(stream, true, true, connection).await;
        }
    }

    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: S,
        tls: bool,
        greets: bool,
        connection: u64,
    ) -> std::io::Result<Next<S>> {
        let mut stream = BufReader::new(stream);
        let (mut draft, mut user) = (Draft::default(), None);
        if greets {
            match self.stage(&mut stream, "greeting", "").await? {
                Told::Proceed => say(&mut stream, "220 sandbox ESMTP").await?,
                Told::Answered => {}
                Told::Cut | Told::ProceedAndCut => return Ok(Next::End),
            }
        }
        loop {
            let Some(line) = line(&mut stream).await? else { return Ok(Next::End) };
            let (verb, argument) = line.split_once(' ').unwrap_or((line.as_str(), ""));
            let verb = verb.to_ascii_uppercase();
            let operation = if verb == "HELO" { "EHLO" } else { verb.as_str() };
            // A password is nothing to be written down.
            let told = self.stage(&mut stream, operation, if verb == "AUTH" { "" } else { argument }).await?;
            match told {
                Told::Cut => return Ok(Next::End),
                Told::Answered => continue,
                Told::Proceed | Told::ProceedAndCut => {}
            }
            let reply = match verb.as_str() {
                "EHLO" => {
                    draft = Draft::default();
                    let tls_offered = if tls { "" } else { "250-STARTTLS\r\n" };
                    format!(
                        "250-sandbox\r\n{tls_offered}250-AUTH PLAIN LOGIN\r\n250-SIZE {MESSAGE}\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES"
                    )
                }
                "HELO" => "250 sandbox".to_owned(),
                "STARTTLS" if !tls => {
                    if told == Told::ProceedAndCut {
                        return Ok(Next::End);
                    }
                    say(&mut stream, "220 2.0.0 go on").await?;
                    return Ok(Next::Upgrade(stream.into_inner()));
                }
                "AUTH" => match self.sign_in(&mut stream, argument).await? {
                    Some(who) if who == (self.user.clone(), self.password.clone()) => {
                        user = Some(who.0);
                        "235 2.7.0 welcome".to_owned()
                    }
                    Some(_) => "535 5.7.8 wrong user or password".to_owned(),
                    None => "504 5.5.4 PLAIN or LOGIN".to_owned(),
                },
                "MAIL" => {
                    draft = Draft { from: address(argument, "FROM:"), to: Vec::new() };
                    if draft.from.is_some() { "250 2.1.0 yes".to_owned() } else { "501 5.5.4 MAIL FROM:<address>".to_owned() }
                }
                "RCPT" => match address(argument, "TO:") {
                    _ if draft.from.is_none() => "503 5.5.1 MAIL first".to_owned(),
                    Some(_) if draft.to.len() >= RECIPIENTS => "452 4.5.3 too many recipients".to_owned(),
                    Some(to) => {
                        draft.to.push(to);
                        "250 2.1.5 yes".to_owned()
                    }
                    None => "501 5.5.4 RCPT TO:<address>".to_owned(),
                },
                "DATA" if draft.to.is_empty() => "503 5.5.1 RCPT first".to_owned(),
                "DATA" => {
                    if told == Told::ProceedAndCut {
                        return Ok(Next::End);
                    }
                    say(&mut stream, "354 end with a dot").await?;
                    let Some(bytes) = message(&mut stream).await? else { return Ok(Next::End) };
                    let to = draft.to.first().cloned().unwrap_or_default();
                    let told = self.stage(&mut stream, "message", &to).await?;
                    let Draft { from, to } = std::mem::take(&mut draft);
                    if matches!(told, Told::Proceed | Told::ProceedAndCut) {
                        let (from, user) = (from.unwrap_or_default(), user.clone());
                        self.mailbox.add(Mail { number: 0, from, to, user, tls, connection, bytes });
                    }
                    match told {
                        Told::Proceed => "250 2.0.0 taken".to_owned(),
                        Told::Answered => continue,
                        Told::Cut | Told::ProceedAndCut => return Ok(Next::End),
                    }
                }
                "RSET" => {
                    draft = Draft::default();
                    "250 2.0.0 forgotten".to_owned()
                }
                "NOOP" => "250 2.0.0 yes".to_owned(),
                "QUIT" => {
                    say(&mut stream, "221 2.0.0 bye").await?;
                    return Ok(Next::End);
                }
                _ => "502 5.5.1 unknown here".to_owned(),
            };
            if told == Told::ProceedAndCut {
                return Ok(Next::End);
            }
            say(&mut stream, &reply).await?;
        }
    }

    /// Records a stage and does what its fault says.
    async fn stage<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut BufReader<S>,
        operation: &str,
        argument: &str,
    ) -> std::io::Result<Told> {
        // An error means that the sandbox has gone.
        let _ = tokio::time::timeout(LONGEST_WAIT, self.paused.wait_for(|paused| !paused)).await?;
        let request = Request { operation: operation.to_owned(), method: "SMTP".to_owned(), path: argument.to_owned() };
        let (number, fault) = self.faults.decide(request);
        let (code, reply) = match fault {
            None | Some(Fault::Slow { .. }) => return Ok(Told::Proceed),
            Some(Fault::LoseAnswer) => return Ok(Told::ProceedAndCut),
            Some(Fault::Drop { .. }) => return Ok(Told::Cut),
            Some(Fault::Hang) => {
                let _ = tokio::time::timeout(LONGEST_WAIT, self.faults.hang()).await;
                return Ok(Told::Cut);
            }
            Some(Fault::Status(code) | Fault::Busy { status: code, .. }) => (code, format!("{code} told so")),
            Some(Fault::Reply { code, enhanced: [a, b, c] }) => (code, format!("{code} {a}.{b}.{c} told so")),
        };
        self.faults.answered(number, code);
        say(stream, &reply).await?;
        // RFC 5321, section 3.8: after 421 the channel closes. A refused greeting leaves nothing to say either.
        Ok(if code == 421 || operation == "greeting" { Told::Cut } else { Told::Answered })
    }

    /// User and password; `None` for a mechanism that is not known here.
    async fn sign_in<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut BufReader<S>,
        argument: &str,
    ) -> std::io::Result<Option<(String, String)>> {
        let decode = |text: &str| String::from_utf8(BASE64_STANDARD.decode(text.trim()).unwrap_or_default()).unwrap_or_default();
        let (mechanism, initial) = argument.split_once(' ').unwrap_or((argument, ""));
        match mechanism.to_ascii_uppercase().as_str() {
            "PLAIN" => {
                let response = if initial.is_empty() { ask(stream, "334 ").await? } else { initial.to_owned() };
                let response = decode(&response);
                let mut parts = response.split('\0').skip(1);
                Ok(Some((parts.next().unwrap_or_default().to_owned(), parts.next().unwrap_or_default().to_owned())))
            }
            "LOGIN" => {
                let user = if initial.is_empty() { ask(stream, "334 VXNlcm5hbWU6").await? } else { initial.to_owned() };
                let password = ask(stream, "334 UGFzc3dvcmQ6").await?;
                Ok(Some((decode(&user), decode(&password))))
            }
            _ => Ok(None),
        }
    }
}

async fn say<S: AsyncWrite + Unpin>(stream: &mut BufReader<S>, reply: &str) -> std::io::Result<()>
where
    BufReader<S>: AsyncWrite,
{
    stream.write_all(format!("{reply}\r\n").as_bytes()).await?;
    stream.flush().await
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>, challenge: &str) -> std::io::Result<String> {
    say(stream, challenge).await?;
    Ok(line(stream).await?.unwrap_or_default())
}

/// A command without its line's end; `None` when the other side is gone or says too much.
async fn line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    (&mut *stream).take(LINE).read_until(b'\n', &mut bytes).await?;
    if bytes.pop() != Some(b'\n') {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned()))
}

/// What stands between DATA and the dot, SMTP's doubled dots undone (RFC 5321, section 4.5.2).
async fn message<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Option<Vec<u8>>> {
    let mut message = Vec::new();
    loop {
        let start = message.len();
        let room = u64::try_from(MESSAGE.saturating_sub(start)).unwrap_or_default();
        (&mut *stream).take(room).read_until(b'\n', &mut message).await?;
        match message.get(start..) {
            Some(b".\r\n") => {
                message.truncate(start);
                return Ok(Some(message));
            }
            Some([b'.', .., b'\n']) => _ = message.remove(start),
            Some([.., b'\n']) => {}
            _ => return Ok(None),
        }
    }
}

/// `FROM:<a@example.com> SIZE=1`, in whatever case.
fn address(argument: &str, word: &str) -> Option<String> {
    let (found, rest) = argument.split_at_checked(word.len())?;
    let rest = rest.trim_start().strip_prefix('<')?;
    let (address, _) = rest.split_once('>')?;
    found.eq_ignore_ascii_case(word).then(|| address.to_owned())
}
