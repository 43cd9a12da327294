//! Writes an object of unknown length to S3 in bounded memory.
//!
//! What is written collects in a buffer. A small object goes out as one `PutObject`; once a part's worth has collected it
//! becomes a multipart upload, of which [`IN_FLIGHT`] parts travel while the next one fills. So a run holds three parts: 24 MiB
//! for objects up to 8 GiB (see [`parts`] for larger ones).
//!
//! What must stay true: an upload ends by [`Upload::finish`] and [`Upload::keep`] or leaves nothing behind, also when its future is dropped at any
//! await: then a task of its own, with a deadline, aborts it. What can't be known or reached then (a creation whose answer
//! never came, a server that is away) is left to whoever swept by key: [`Upload::discard`] says so.
//!
//! A part that meets a passing fault is sent again, a few times within seconds: over thousands of parts a server's hiccup
//! is the rule, and starting a ten-gigabyte file anew for it would never end. Everything else is the job's policy's.

mod buffers;
mod part;
mod parts;
mod resume;

use std::{mem, time::Duration};

use aws_sdk_s3::{
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use shared::{
    random,
    storage::{Storage, StorageError, StorageFault},
};
use tokio::{
    runtime::Handle,
    task::{JoinError, JoinSet},
};

use buffers::Buffers;
use part::{FIRST_PAUSE, Part, TRIES, deadline, is_worth_sending_again, retried};
pub use resume::Stop;

/// Parts that travel at a time.
const IN_FLIGHT: usize = 2;

/// How long a server may take to put many parts together before its answer.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html> speaks of several minutes.
const COMPLETE_WITHIN: Duration = Duration::from_secs(600);

/// How long cleaning up may take when nobody waits for it.
const DISCARD_WITHIN: Duration = Duration::from_secs(10);

/// From here on a buffer is made as large as a part.
const GROWN: usize = 1024 * 1024;

/// A part with what it usually exceeds its size by.
const FULL: usize = parts::FIRST + parts::SLACK;

/// How much is hashed at a time.
const HASHED: usize = 64 * 1024;

/// An object on its way.
#[derive(Debug)]
pub struct Upload {
    storage: Storage,
    key: String,
    content_type: &'static str,
    buffer: Vec<u8>,
    buffers: Buffers,
    /// How much of the buffer is in the digest.
    hashed: usize,
    digest: Sha256,
    /// Bytes that left the buffer.
    sent: u64,
    stage: Stage,
}

/// What the server knows of the upload.
#[derive(Debug)]
enum Stage {
    /// Nothing, or nothing any more.
    Unknown,
    /// A multipart upload may have been created; its id never reached us.
    Creating,
    /// Parts.
    Multipart(Multipart),
    /// The object itself may stand: it was being put, or put together.
    Publishing(Option<Multipart>),
}

#[derive(Debug)]
struct Multipart {
    id: String,
    /// By number from 1; what has arrived.
    arrived: Vec<CompletedPart>,
    /// Parts begun.
    begun: i32,
    in_flight: JoinSet<Result<CompletedPart, StorageError>>,
    /// The parts begun that are not known to have arrived: no more than travel.
    under_way: Vec<i32>,
}

/// What became of a finished upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The object's length.
    pub bytes: u64,
    /// The SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// What the server calls this very content.
    pub etag: Option<String>,
}

impl Upload {
    /// An upload to `key`, of which the server knows nothing yet.
    #[must_use]
    pub fn new(storage: Storage, key: String, content_type: &'static str) -> Self {
        let digest = Sha256::new();
        Self {
            storage,
            key,
            content_type,
            buffer: Vec::new(),
            buffers: Buffers::default(),
            hashed: 0,
            digest,
            sent: 0,
            stage: Stage::Unknown,
        }
    }

    /// Where the content is written to, by appending.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The id of the multipart upload, once there is one.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match &self.stage {
            Stage::Multipart(multipart) => Some(&multipart.id),
            _ => None,
        }
    }

    /// How many parts stand in the buffer; from one on, [`Upload::send`] them.
    #[must_use]
    pub fn parts_waiting(&self) -> usize {
        let begun = match &self.stage {
            Stage::Multipart(multipart) => multipart.begun,
            _ => 0,
        };
        self.buffer.len() / parts::size(begun + 1)
    }

    /// Hashes what was written meanwhile, in pieces large enough to be worth it.
    pub fn advance(&mut self) {
        if self.buffer.len() - self.hashed >= HASHED {
            self.hash();
        }
        // Small files are most; what gets this large becomes a part, whose size is known.
        if self.buffer.len() >= GROWN && self.buffer.capacity() < FULL {
            let mut full = self.buffers.take(FULL);
            full.extend_from_slice(&self.buffer);
            self.buffer = full;
        }
    }

    fn hash(&mut self) {
        self.digest.update(self.buffer.get(self.hashed..).unwrap_or_default());
        self.hashed = self.buffer.len();
    }

    /// Makes it a multipart upload. Its id is to be written down before the first part is sent.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn create(&mut self) -> Result<&str, StorageError> {
        const ACTION: &str = "beginning an upload";
        let storage = self.storage.clone();
        let request =
            storage.client().create_multipart_upload().bucket(storage.bucket()).key(&self.key).content_type(self.content_type).send();
        self.stage = Stage::Creating;
        let created = storage.call(ACTION, storage.deadline(), request).await;
        if created.as_ref().is_err_and(is_shut_out) {
            self.stage = Stage::Unknown;
        }
        let id = created?.upload_id.filter(|id| !id.is_empty()).ok_or_else(|| storage.unexpected(ACTION, "the answer has no upload id"))?;
        self.stage = Stage::Multipart(Multipart { id, arrived: Vec::new(), begun: 0, in_flight: JoinSet::new(), under_way: Vec::new() });
        Ok(self.id().unwrap_or_default())
    }

    /// Sends the buffer as the next part, once there is room among those that travel. Needs [`Upload::create`] before.
    ///
    /// # Errors
    /// [`StorageError`] of any part.
    pub async fn send(&mut self) -> Result<(), StorageError> {
        self.hash();
        let Stage::Multipart(multipart) = &mut self.stage else {
            return Err(self.storage.unexpected("sending a part", "the upload was not created before"));
        };
        while multipart.in_flight.len() >= multipart.room() {
            multipart.arrive(&self.storage).await?;
        }
        multipart.begun += 1;
        if multipart.begun > parts::MOST {
            return Err(self.storage.unexpected("sending a part", "the object is larger than the 5 TiB that S3 stores"));
        }
        // The next part is as large, give or take a batch of rows.
        let next = self.buffers.take(parts::size(multipart.begun + 1) + parts::SLACK);
        let body = self.buffers.lend(mem::replace(&mut self.buffer, next));
        self.sent += body.len() as u64;
        self.hashed = 0;
        multipart.under_way.push(multipart.begun);
        let part = Part { storage: self.storage.clone(), key: self.key.clone(), upload: multipart.id.clone(), number: multipart.begun };
        multipart.in_flight.spawn(part.send(body));
        Ok(())
    }

    /// Sends what is left and publishes the object.
    ///
    /// # Errors
    /// [`StorageError`]; the upload is then still to be discarded.
    pub async fn finish(&mut self) -> Result<Receipt, StorageError> {
        self.hash();
        let etag = match self.stage {
            Stage::Multipart(_) => {
                if !self.buffer.is_empty() {
                    self.send().await?;
                }
                self.complete().await?
            }
            _ => self.put().await?,
        };
        let sha256 = self.digest.clone().finalize().into();
        self.stage = Stage::Publishing(None);
        Ok(Receipt { bytes: self.sent, sha256, etag })
    }

    /// Lets a finished object stand: until then it is discarded with the upload.
    pub fn keep(mut self) {
        if matches!(self.stage, Stage::Publishing(None)) {
            self.stage = Stage::Unknown;
        }
    }

    /// Leaves what the server has of it for a later run to [go on](Upload::resume) with; what travels is given up.
    pub fn leave(mut self) {
        self.stage = Stage::Unknown;
    }

    async fn put(&mut self) -> Result<Option<String>, StorageError> {
        let body = Bytes::from(mem::take(&mut self.buffer));
        self.sent = body.len() as u64;
        self.stage = Stage::Publishing(None);
        let storage = self.storage.clone();
        let deadline = deadline(&storage, body.len());
        let put = || {
            let body = ByteStream::from(body.clone());
            let request = storage.client().put_object().bucket(storage.bucket()).key(&self.key).content_type(self.content_type).body(body);
            storage.call("writing a file", deadline, request.send())
        };
        let answer = retried(put).await;
        if answer.as_ref().is_err_and(is_shut_out) {
            self.stage = Stage::Unknown;
        }
        answer.map(|answer| answer.e_tag)
    }

    async fn complete(&mut self) -> Result<Option<String>, StorageError> {
        const ACTION: &str = "finishing an upload";
        let storage = self.storage.clone();
        let (list, id) = match &mut self.stage {
            Stage::Multipart(multipart) => {
                while !multipart.in_flight.is_empty() {
                    multipart.arrive(&storage).await?;
                }
                let mut parts = mem::take(&mut multipart.arrived);
                parts.sort_unstable_by_key(|part| part.part_number);
                (CompletedMultipartUpload::builder().set_parts(Some(parts)).build(), multipart.id.clone())
            }
            _ => return Err(storage.unexpected(ACTION, "the upload was not created before")),
        };
        if let Stage::Multipart(multipart) = mem::replace(&mut self.stage, Stage::Unknown) {
            self.stage = Stage::Publishing(Some(multipart));
        }
        let mut pause = FIRST_PAUSE;
        for tries_left in (0..TRIES).rev() {
            let request = storage.client().complete_multipart_upload().bucket(storage.bucket()).key(&self.key).upload_id(&id);
            let error = match storage.call(ACTION, COMPLETE_WITHIN, request.multipart_upload(list.clone()).send()).await {
                Ok(answer) => return Ok(answer.e_tag),
                Err(error) => error,
            };
            // Done all the same, and only the answer was lost? Nobody else writes under this key. Asking comes before
            // trying again: servers differ in what they call an upload that is completed already.
            if error.is_transient()
                && let Some(etag) = self.find_published().await
            {
                return Ok(etag);
            }
            if tries_left == 0 || !is_worth_sending_again(&error) {
                return Err(error);
            }
            tracing::info!(error = &error as &dyn std::error::Error, "finishing the upload again");
            tokio::time::sleep(pause.mul_f64(0.5 + random::fraction())).await;
            pause *= 2;
        }
        Err(storage.unexpected(ACTION, "it was never tried"))
    }

    /// The published object's `ETag`, if the object stands and has all our bytes.
    async fn find_published(&self) -> Option<Option<String>> {
        let request = self.storage.client().head_object().bucket(self.storage.bucket()).key(&self.key).send();
        let object = self.storage.call("looking for the file", self.storage.deadline(), request).await.ok()?;
        let length = object.content_length.and_then(|length| u64::try_from(length).ok())?;
        (length == self.sent).then_some(object.e_tag)
    }

    /// Removes whatever the server has of it. Answers whether that is certain: if not, something may be left under its key.
    pub async fn discard(mut self) -> bool {
        let stage = mem::replace(&mut self.stage, Stage::Unknown);
        remove(self.storage.clone(), mem::take(&mut self.key), stage).await
    }
}

impl Drop for Upload {
    /// Somebody walked away from it: a timeout, a lost lease, a panic.
    fn drop(&mut self) {
        let stage = mem::replace(&mut self.stage, Stage::Unknown);
        if matches!(stage, Stage::Unknown) {
            return;
        }
        let (storage, key) = (self.storage.clone(), mem::take(&mut self.key));
        // No runtime is left when the whole process ends; the sweep finds the upload by its key then.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(remove(storage, key, stage));
        }
    }
}

/// Aborts the multipart upload and deletes the object, as far as either may exist.
async fn remove(storage: Storage, key: String, stage: Stage) -> bool {
    let (multipart, published) = match stage {
        Stage::Unknown => return true,
        Stage::Creating => {
            tracing::warn!(key, "whether an upload was begun under this key is not known");
            return false;
        }
        Stage::Multipart(multipart) => (Some(multipart), false),
        Stage::Publishing(multipart) => (multipart, true),
    };
    let work = async {
        if let Some(mut multipart) = multipart {
            // A part that arrives after the abort would stay, and be paid for.
            multipart.in_flight.shutdown().await;
            let request = storage.client().abort_multipart_upload().bucket(storage.bucket()).key(&key).upload_id(&multipart.id);
            match storage.call("aborting an upload", storage.deadline(), request.send()).await {
                Err(error) if error.fault() != StorageFault::UploadMissing => return Err(error),
                _ => {}
            }
        }
        if published { storage.delete(&key).await } else { Ok(()) }
    };
    match tokio::time::timeout(DISCARD_WITHIN, work).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(key, error = &error as &dyn std::error::Error, "an unfinished upload could not be removed");
            false
        }
        Err(_) => {
            tracing::warn!(key, "an unfinished upload could not be removed in time");
            false
        }
    }
}

impl Multipart {
    /// Large parts travel alone, so that memory grows with three of them at most where it must.
    fn room(&self) -> usize {
        if parts::size(self.begun) > parts::LARGE { 1 } else { IN_FLIGHT }
    }

    /// Waits for one of the parts that travel.
    async fn arrive(&mut self, storage: &Storage) -> Result<(), StorageError> {
        match self.in_flight.join_next().await {
            Some(ended) => self.note(ended, storage),
            None => Ok(()),
        }
    }

    fn note(&mut self, ended: Result<Result<CompletedPart, StorageError>, JoinError>, storage: &Storage) -> Result<(), StorageError> {
        match ended {
            Ok(part) => {
                let part = part?;
                self.under_way.retain(|number| part.part_number != Some(*number));
                self.arrived.push(part);
            }
            // Ours to mend: the run panics too and is settled as such.
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => return Err(storage.unexpected("sending a part", "its task was ended")),
        }
        Ok(())
    }
}

/// Whether the server let us do nothing at all, so that nothing can be left of it.
fn is_shut_out(error: &StorageError) -> bool {
    matches!(error.fault(), StorageFault::BucketMissing | StorageFault::WrongRegion | StorageFault::Denied | StorageFault::BadKey)
}

#[cfg(test)]
mod tests;
