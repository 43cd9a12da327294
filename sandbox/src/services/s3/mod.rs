//! An S3 of one's own: s3s and s3s-fs behind a port of this process, on disk, with signatures checked (`SigV4`, headers
//! and presigned links, path style).

mod operation;
mod server;
mod store;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use store::{Object, Upload};

use crate::directory::{Directory, make};
use crate::error::{Doing, Result};
use crate::faults::Faults;
use crate::ports::Port;
use store::Store;

/// The bucket that is there from the start.
pub const BUCKET: &str = "offstage";
/// What the product takes when nothing else is said; the store accepts any.
const REGION: &str = "us-east-1";

/// How long a port of ours may be held by a socket's copy.
const LISTEN_WITHIN: Duration = Duration::from_secs(5);

/// The S3 of one sandbox.
#[derive(Debug)]
pub struct S3 {
    port: Port,
    root: PathBuf,
    key_id: String,
    secret: String,
    faults: Faults,
    service: S3Service,
    paused: watch::Sender<bool>,
    /// Cancelled to stop the server that runs now.
    running: Mutex<Option<CancellationToken>>,
    runtime: tokio::runtime::Handle,
}

impl S3 {
    pub(crate) async fn open(directory: &Directory, key_id: &str, secret: &str, runtime: tokio::runtime::Handle) -> Result<Self> {
        let root = directory.path().join("s3");
        make(&root.join(BUCKET))?;
        let store = Store::open(&root).doing(|| format!("open the object store {}", root.display()))?;
        let mut builder = S3ServiceBuilder::new(store);
        builder.set_auth(SimpleAuth::from_single(key_id, secret));
        let s3 = Self {
            port: Port::reserve()?,
            root,
            key_id: key_id.to_owned(),
            secret: secret.to_owned(),
            faults: Faults::new(),
            service: builder.build(),
            paused: watch::Sender::new(false),
            running: Mutex::new(None),
            runtime,
        };
        s3.start().await?;
        Ok(s3)
    }

    /// Listens again at the same address; nothing when it does already.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn start(&self) -> Result<()> {
        if self.running().is_some() {
            return Ok(());
        }
        let address = self.port.address();
        let listening = self.runtime.spawn(listen(address));
        let listener = listening.await.map_err(|_| crate::Error::Stopping)?.doing(|| format!("listen on {address}"))?;
        let token = CancellationToken::new();
        *self.running() = Some(token.clone());
        let server = server::Server { service: self.service.clone(), faults: self.faults.clone(), paused: self.paused.subscribe() };
        self.runtime.spawn(server.serve(listener, token));
        Ok(())
    }

    /// Stops listening and cuts every connection, as [`S3::kill9`] does: no client of S3 could tell the difference.
    pub fn stop(&self) {
        self.kill9();
    }

    /// Stops listening and cuts every connection. What was stored is there after [`S3::start`].
    pub fn kill9(&self) {
        if let Some(token) = self.running().take() {
            token.cancel();
        }
    }

    /// Requests that come now wait; connections stay open.
    pub fn pause(&self) {
        self.paused.send_replace(true);
    }

    /// Goes on after [`S3::pause`].
    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// What goes wrong, and what was asked.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// `http://127.0.0.1:PORT` (`OFFSTAGE_S3_ENDPOINT`).
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// The access key's id and its secret.
    #[must_use]
    pub fn credentials(&self) -> (&str, &str) {
        (&self.key_id, &self.secret)
    }

    /// The objects of the product's bucket, in the order of their keys, read from the disk.
    ///
    /// # Errors
    /// When the disk can't be read.
    pub fn objects(&self) -> Result<Vec<Object>> {
        store::objects(&self.root, BUCKET).doing(|| format!("list {}", self.root.display()))
    }

    /// An object's bytes, read from the disk.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn object(&self, key: &str) -> Result<Vec<u8>> {
        let path = self.root.join(BUCKET).join(key);
        std::fs::read(&path).doing(|| format!("read the object {}", path.display()))
    }

    /// Multipart uploads that were begun and neither completed nor aborted.
    ///
    /// # Errors
    /// When the disk can't be read.
    pub fn unfinished_uploads(&self) -> Result<Vec<Upload>> {
        store::unfinished(&self.root).doing(|| format!("list {}", self.root.display()))
    }

    /// The settings by which `api` and `worker` find it.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        BTreeMap::from(
            [
                ("OFFSTAGE_S3_ENDPOINT", self.endpoint()),
                ("OFFSTAGE_S3_REGION", REGION.to_owned()),
                ("OFFSTAGE_S3_BUCKET", BUCKET.to_owned()),
                ("OFFSTAGE_S3_ACCESS_KEY_ID", self.key_id.clone()),
                ("OFFSTAGE_S3_SECRET_ACCESS_KEY", self.secret.clone()),
                ("OFFSTAGE_S3_PATH_STYLE", "true".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        )
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The port is ours, so whoever still holds it is about to let go: a process forked by another thread holds a copy of a
/// socket that we closed until it becomes another program.
async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + LISTEN_WITHIN;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            result => return result,
        }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.kill9();
    }
}
