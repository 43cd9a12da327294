//! A mail server of one's own: takes every mail, shows it on a page, and can be told at which stage of SMTP (RFC 5321) to answer what,
//! hang or hang up.
//!
//! Three ports: SMTP with STARTTLS, SMTP under TLS from the start, and the page. Its operations, for [`Faults`], are the stages `greeting`,
//! `EHLO`, `STARTTLS`, `AUTH`, `MAIL`, `RCPT`, `DATA` (the command), `message` (what follows it), `RSET` and `QUIT`.

mod dialogue;
mod page;
mod tls;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::directory::Directory;
use crate::error::{Doing, Result};
use crate::faults::Faults;
use crate::ports::Port;
use crate::random;
use crate::services::door::Door;
use dialogue::Server;
use tls::Certificate;

/// Mails that are kept; older ones go.
const MAILS_KEPT: usize = 10_000;

/// The mail server of one sandbox.
#[derive(Debug)]
pub struct MailServer {
    plain: Door,
    tls: Door,
    page: Door,
    faults: Faults,
    mailbox: Arc<Mailbox>,
    certificate: Certificate,
    certificate_file: Option<PathBuf>,
    user: String,
    password: String,
}

/// A mail that was taken.
#[derive(Debug, Clone, Serialize)]
pub struct Mail {
    /// Counted from 1.
    pub number: u64,
    /// The envelope's sender.
    pub from: String,
    /// The envelope's recipients.
    pub to: Vec<String>,
    /// Who signed in, if anybody.
    pub user: Option<String>,
    /// Whether it came under TLS.
    pub tls: bool,
    /// Which connection it came by, counted from 1.
    pub connection: u64,
    /// As it came, without SMTP's doubled dots.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// What arrived.
#[derive(Debug, Default)]
struct Mailbox {
    mails: Mutex<VecDeque<Mail>>,
    arrived: Mutex<u64>,
}

impl Mailbox {
    fn mails(&self) -> MutexGuard<'_, VecDeque<Mail>> {
        self.mails.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, mut mail: Mail) {
        let mut mails = self.mails();
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        *arrived += 1;
        mail.number = *arrived;
        if mails.len() == MAILS_KEPT {
            mails.pop_front();
        }
        mails.push_back(mail);
    }
}

impl MailServer {
    /// Writes its certificate into the directory, where the product's settings name it.
    pub(crate) async fn open(directory: &Directory, runtime: tokio::runtime::Handle) -> Result<Self> {
        let path = directory.path().join("mail.pem");
        let server = Self { certificate_file: Some(path.clone()), ..Self::alone(runtime).await? };
        std::fs::write(&path, server.certificate()).doing(|| format!("write {}", path.display()))?;
        Ok(server)
    }

    /// Listens on ports of its own, with a certificate of its own making, beside no other service.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn alone(runtime: tokio::runtime::Handle) -> Result<Self> {
        let door = || Ok::<_, crate::Error>(Door::new(Port::reserve()?, runtime.clone()));
        let server = Self {
            plain: door()?,
            tls: door()?,
            page: door()?,
            faults: Faults::new(),
            mailbox: Arc::default(),
            certificate: Certificate::new()?,
            certificate_file: None,
            user: "offstage".to_owned(),
            password: random::characters(24)?,
        };
        server.start().await?;
        Ok(server)
    }

    /// Listens again at the same addresses; nothing when it does already.
    ///
    /// # Errors
    /// When somebody else took a port.
    pub async fn start(&self) -> Result<()> {
        let server = Server {
            faults: self.faults.clone(),
            mailbox: Arc::clone(&self.mailbox),
            acceptor: self.certificate.acceptor()?,
            user: self.user.clone(),
            password: self.password.clone(),
            paused: self.plain.paused(),
            connections: Arc::default(),
        };
        let implicit = server.clone();
        self.plain.open(move |stream, _| server.clone().plain(stream)).await?;
        self.tls.open(move |stream, _| implicit.clone().tls(stream)).await?;
        let pages = page::router(Arc::clone(&self.mailbox), self.page.address());
        self.page.open(move |stream, _| page::serve(stream, pages.clone())).await
    }

    /// Stops listening and cuts every connection. What arrived is still shown after [`MailServer::start`].
    pub fn stop(&self) {
        self.kill9();
    }

    /// The same.
    pub fn kill9(&self) {
        self.plain.shut();
        self.tls.shut();
        self.page.shut();
    }

    /// Commands that come now wait; connections stay open.
    pub fn pause(&self) {
        self.plain.pause();
    }

    /// Goes on after [`MailServer::pause`].
    pub fn resume(&self) {
        self.plain.resume();
    }

    /// What goes wrong, and what was asked.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The page that shows what arrived: `http://127.0.0.1:PORT/`; `/mails` is the same as JSON.
    #[must_use]
    pub fn page(&self) -> String {
        format!("http://{}/", self.page.address())
    }

    /// Signing in, over STARTTLS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("smtp://{}:{}@localhost:{}", self.user, self.password, self.plain.address().port())
    }

    /// Signing in, under TLS from the start.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("smtps://{}:{}@localhost:{}", self.user, self.password, self.tls.address().port())
    }

    /// In the clear, without signing in.
    #[must_use]
    pub fn plain_url(&self) -> String {
        format!("smtp://127.0.0.1:{}?tls=none", self.plain.address().port())
    }

    /// The certificate, in PEM, that a client must trust for `localhost`.
    #[must_use]
    pub fn certificate(&self) -> &str {
        self.certificate.pem()
    }

    /// The settings by which `worker` finds it.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let certificate = self.certificate_file.as_ref().map(|path| ("OFFSTAGE_MAIL_CA_FILE".to_owned(), path.display().to_string()));
        certificate.into_iter().chain([("OFFSTAGE_SMTP_URL".to_owned(), self.url())]).collect()
    }

    /// What arrived, oldest first.
    #[must_use]
    pub fn mails(&self) -> Vec<Mail> {
        self.mailbox.mails().iter().cloned().collect()
    }

    /// Forgets what arrived.
    pub fn forget(&self) {
        self.mailbox.mails().clear();
    }

    /// Waits until `count` mails have arrived.
    ///
    /// # Errors
    /// What did arrive, when the deadline has passed.
    pub async fn wait_for(&self, deadline: Duration, count: usize) -> std::result::Result<Vec<Mail>, Vec<Mail>> {
        let end = Instant::now() + deadline;
        loop {
            let mails = self.mails();
            if mails.len() >= count {
                return Ok(mails);
            }
            if Instant::now() > end {
                return Err(mails);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
