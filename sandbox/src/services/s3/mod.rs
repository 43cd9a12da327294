//! An S3 of one's own: s3s and s3s-fs behind a port of this process, on disk, with signatures checked (`SigV4`, headers
//! and presigned links, path style).

mod operation;
mod server;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;

use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};

pub use store::{Object, Upload};

use crate::directory::{Directory, make};
use crate::error::{Doing, Result};
use crate::faults::Faults;
use crate::ports::Port;
use crate::services::door::{Door, verbs};
use store::Store;

/// The bucket that is there from the start.
pub const BUCKET: &str = "offstage";
/// What the product takes when nothing else is said; the store accepts any.
const REGION: &str = "us-east-1";

/// The S3 of one sandbox.
#[derive(Debug)]
pub struct S3 {
    door: Door,
    root: PathBuf,
    key_id: String,
    secret: String,
    faults: Faults,
    service: S3Service,
}

impl S3 {
    pub(crate) async fn open(directory: &Directory, key_id: &str, secret: &str, runtime: tokio::runtime::Handle) -> Result<Self> {
        let root = directory.path().join("s3");
        make(&root.join(BUCKET))?;
        let store = Store::open(&root).doing(|| format!("open the object store {}", root.display()))?;
        let mut builder = S3ServiceBuilder::new(store);
        builder.set_auth(SimpleAuth::from_single(key_id, secret));
        let s3 = Self {
            door: Door::new(Port::reserve()?, runtime),
            root,
            key_id: key_id.to_owned(),
            secret: secret.to_owned(),
            faults: Faults::new(),
            service: builder.build(),
        };
        s3.start().await?;
        Ok(s3)
    }

    /// Listens again at the same address; nothing when it does already.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn start(&self) -> Result<()> {
        let server = server::Server { service: self.service.clone(), faults: self.faults.clone(), paused: self.door.paused() };
        self.door.open(move |stream, token| server.clone().connection(stream, token)).await
    }

    verbs!();

    /// What goes wrong, and what was asked.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// `http://127.0.0.1:PORT` (`OFFSTAGE_S3_ENDPOINT`).
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.door.address())
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
}
