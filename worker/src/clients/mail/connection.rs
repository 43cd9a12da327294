//! One connection to a mail server, stage by stage.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use lettre::transport::smtp::{
    authentication::{Credentials, Mechanism},
    client::{AsyncSmtpConnection, AsyncTokioStream, Certificate, TlsParameters},
    commands::{Data, Mail, Rcpt, Rset},
    extension::ClientId,
    response::Response,
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use rustls_platform_verifier::Verifier;
use secrecy::ExposeSecret;
use shared::mail::{Security, SmtpServer};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{
    Accepted, Composed, Deadlines, Stage, Trouble,
    wire::{Sealed, Spoken, Wire, silent},
};
use crate::clients::cause::{cause, deepest};

/// The longest that a farewell may take; it is a courtesy.
const FAREWELL: Duration = Duration::from_secs(2);

/// The most characters of a reply that are kept.
const REPLY_TEXT: usize = 200;

/// A stage, and what went wrong at it.
pub(super) type Failed = (Stage, Trouble);

/// Opens connections to one server.
pub(super) struct Opener {
    server: SmtpServer,
    authorities: Option<String>,
    hello: ClientId,
    pub(super) deadlines: Deadlines,
    tls: OnceLock<Arc<ClientConfig>>,
    starttls: OnceLock<TlsParameters>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").field("server", &self.server).finish_non_exhaustive()
    }
}

/// An open connection, signed in.
pub(super) struct Connection {
    smtp: AsyncSmtpConnection,
    deadlines: Deadlines,
}

impl Opener {
    pub(super) fn new(server: SmtpServer, authorities: Option<String>, hello: Option<String>, deadlines: Deadlines) -> Self {
        let hello = hello.map_or_else(ClientId::default, ClientId::Domain);
        Self { server, authorities, hello, deadlines, tls: OnceLock::new(), starttls: OnceLock::new() }
    }

    pub(super) fn host(&self) -> &str {
        &self.server.host
    }

    /// Connects, greets, secures and signs in.
    pub(super) async fn open(&self) -> Result<Connection, Failed> {
        let spoken = silent();
        let stream = within(self.deadlines.connect, Stage::Connect, self.connect(&spoken)).await?;

        let greeted = AsyncSmtpConnection::connect_with_transport(stream, &self.hello);
        let mut smtp = self.watched(greeted, &spoken).await?;

        if self.server.security == Security::StartTls {
            if !smtp.can_starttls() {
                return Err((Stage::StartTls, Trouble::Unsupported("the server offers no STARTTLS")));
            }
            let parameters = self.starttls_parameters().map_err(|trouble| (Stage::StartTls, trouble))?;
            let secured = smtp.starttls(parameters, &self.hello);
            within(self.deadlines.starttls, Stage::StartTls, async { secured.await.map_err(|error| trouble(&error)) }).await?;
        }
        if let Some((user, password)) = &self.server.credentials {
            let mechanisms = [Mechanism::Plain, Mechanism::Login];
            if smtp.server_info().get_auth_mechanism(&mechanisms).is_none() {
                return Err((Stage::Auth, Trouble::Unsupported("the server offers neither AUTH PLAIN nor LOGIN")));
            }
            let credentials = Credentials::new(user.clone(), password.expose_secret().to_owned());
            let signed_in = smtp.auth(&mechanisms, &credentials);
            within(self.deadlines.auth, Stage::Auth, async { signed_in.await.map_err(|error| trouble(&error)) }).await?;
        }
        Ok(Connection { smtp, deadlines: self.deadlines })
    }

    /// Greeting and EHLO are one call of lettre's: the one is over, and the other begins, when we speak.
    async fn watched(
        &self,
        greeted: impl Future<Output = Result<AsyncSmtpConnection, lettre::transport::smtp::Error>>,
        spoken: &Spoken,
    ) -> Result<AsyncSmtpConnection, Failed> {
        let late = async {
            let Deadlines { greeting, ehlo, .. } = self.deadlines;
            let mut heard = spoken.subscribe();
            if timeout(greeting, heard.wait_for(|spoken| *spoken)).await.is_err() {
                return (Stage::Greeting, Trouble::Late(greeting));
            }
            tokio::time::sleep(ehlo).await;
            (Stage::Ehlo, Trouble::Late(ehlo))
        };
        tokio::select! {
            done = greeted => done.map_err(|error| (if *spoken.borrow() { Stage::Ehlo } else { Stage::Greeting }, trouble(&error))),
            late = late => Err(late),
        }
    }

    async fn connect(&self, spoken: &Spoken) -> Result<Box<dyn AsyncTokioStream>, Trouble> {
        let cut = |error: std::io::Error| match cause::<rustls::Error>(&error) {
            Some(tls) => Trouble::Tls(tls.to_string()),
            None => Trouble::Cut(deepest(&error)),
        };
        let stream = TcpStream::connect((self.server.host.as_str(), self.server.port)).await.map_err(cut)?;
        // Commands are small and wait for their answers.
        stream.set_nodelay(true).map_err(cut)?;
        if self.server.security != Security::Tls {
            return Ok(Box::new(Wire::new(stream, Arc::clone(spoken))));
        }
        let name = ServerName::try_from(self.server.host.clone()).map_err(|error| Trouble::Tls(error.to_string()))?;
        let connector = TlsConnector::from(self.tls()?);
        let stream = connector.connect(name, Wire::new(stream, silent())).await.map_err(cut)?;
        Ok(Box::new(Sealed::new(stream, Arc::clone(spoken))))
    }

    /// The machine's authorities and the operator's own, as lettre has them for STARTTLS.
    fn tls(&self) -> Result<Arc<ClientConfig>, Trouble> {
        if let Some(config) = self.tls.get() {
            return Ok(Arc::clone(config));
        }
        let failed = |error: rustls::Error| Trouble::Tls(error.to_string());
        let own: Vec<_> = CertificateDer::pem_slice_iter(self.authorities.as_deref().unwrap_or_default().as_bytes()).flatten().collect();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Verifier::new_with_extra_roots(own, Arc::clone(&provider)).map_err(failed)?;
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(failed)?;
        let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
        Ok(Arc::clone(self.tls.get_or_init(|| Arc::new(config))))
    }

    /// The same for STARTTLS; made once, for it reads the machine's authorities.
    fn starttls_parameters(&self) -> Result<TlsParameters, Trouble> {
        if let Some(parameters) = self.starttls.get() {
            return Ok(parameters.clone());
        }
        let mut builder = TlsParameters::builder(self.server.host.clone());
        if let Some(pem) = &self.authorities {
            let certificate = Certificate::from_pem(pem.as_bytes()).map_err(|error| Trouble::Tls(deepest(&error)))?;
            builder = builder.add_root_certificate(certificate);
        }
        let parameters = builder.build_rustls().map_err(|error| Trouble::Tls(deepest(&error)))?;
        Ok(self.starttls.get_or_init(|| parameters).clone())
    }
}

impl Connection {
    /// Sends one mail to its one recipient.
    pub(super) async fn send(&mut self, mail: &Composed) -> Result<Accepted, Failed> {
        let command = self.deadlines.command;
        let from = self.smtp.command(Mail::new(Some(mail.from.clone()), Vec::new()));
        expect(Stage::Mail, command, 2, from).await?;
        let to = self.smtp.command(Rcpt::new(mail.to.clone(), Vec::new()));
        expect(Stage::Rcpt, command, 2, to).await?;
        expect(Stage::Data, command, 3, self.smtp.command(Data)).await?;
        // lettre ends the last line itself.
        let taken = self.smtp.message(mail.bytes.strip_suffix(b"\r\n").unwrap_or(&mail.bytes));
        expect(Stage::Message, self.deadlines.message, 2, taken).await
    }

    /// Forgets a mail that was refused half way. Whether the connection may be used again.
    pub(super) async fn reset(&mut self) -> bool {
        expect(Stage::Mail, self.deadlines.command, 2, self.smtp.command(Rset)).await.is_ok()
    }

    /// Takes its leave.
    pub(super) async fn farewell(mut self) {
        let _ = timeout(FAREWELL, self.smtp.quit()).await;
    }
}

async fn within<T>(deadline: Duration, stage: Stage, doing: impl Future<Output = Result<T, Trouble>>) -> Result<T, Failed> {
    match timeout(deadline, doing).await {
        Ok(done) => done.map_err(|trouble| (stage, trouble)),
        Err(_) => Err((stage, Trouble::Late(deadline))),
    }
}

/// An exchange whose reply must be of a class: 2 for done, 3 for go on.
async fn expect(
    stage: Stage,
    deadline: Duration,
    class: u16,
    exchange: impl Future<Output = Result<Response, lettre::transport::smtp::Error>>,
) -> Result<Accepted, Failed> {
    within(deadline, stage, async {
        let response = exchange.await.map_err(|error| trouble(&error))?;
        let code = u16::from(response.code());
        let text = text(&response.message().collect::<Vec<_>>().join(" "));
        if code / 100 == class {
            Ok(Accepted { code, text })
        } else {
            Err(Trouble::Cut(format!("an answer that makes no sense here: {code} {text}")))
        }
    })
    .await
}

/// What lettre says went wrong.
fn trouble(error: &lettre::transport::smtp::Error) -> Trouble {
    let words = deepest(error);
    if let Some(code) = error.status() {
        let enhanced = enhanced(&words);
        let rest = if enhanced.is_some() { words.split_once(' ').map_or("", |(_, rest)| rest) } else { &words };
        return Trouble::Reply { code: code.into(), enhanced, text: text(rest) };
    }
    if let Some(tls) = cause::<rustls::Error>(error) {
        return Trouble::Tls(tls.to_string());
    }
    Trouble::Cut(text(&words))
}

/// The enhanced code that a reply begins with (RFC 2034, section 4).
fn enhanced(words: &str) -> Option<[u16; 3]> {
    let mut parts = words.split_ascii_whitespace().next()?.splitn(3, '.').map(|part| part.parse().ok().filter(|part| *part < 1_000));
    let (class, subject, detail) = (parts.next()??, parts.next()??, parts.next()??);
    matches!(class, 2 | 4 | 5).then_some([class, subject, detail])
}

/// A reply's words for errors and receipts: one line, no more than so long, and without addresses, which are somebody's data.
fn text(words: &str) -> String {
    let words = words.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(|word| if word.contains('@') { "…" } else { word }).collect();
    words.join(" ").chars().take(REPLY_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_and_cleaned() {
        assert_eq!(enhanced("5.1.1 <a@b.example> unknown"), Some([5, 1, 1]));
        assert_eq!(enhanced("5.1.10"), Some([5, 1, 10]));
        for none in ["", "no", "5.1", "3.1.1 x", "5.1.1000 x", "5.1.1.1 x", "192.0.2 x"] {
            assert_eq!(enhanced(none), None, "{none}");
        }
        assert_eq!(text("<a@b.example>:\r\n user\tunknown \u{7}"), "… user unknown");
        assert_eq!(text(&"a".repeat(1_000)).len(), REPLY_TEXT);
    }
}
