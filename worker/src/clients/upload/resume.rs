//! Going on with an upload that an earlier run began: what that run must have written down, and how its word is checked.
//!
//! The store's own list of parts decides: it must have all parts up to the stop, and they must hold as many bytes as were
//! counted. A part that a straggler of the earlier run overwrites after that has another `ETag` than the list that completes the upload
//! names, which the store refuses (`InvalidPart`); so a file is either what was hashed or none.

use aws_sdk_s3::types::CompletedPart;
use serde::{Deserialize, Serialize};
use sha2::{
    Sha256,
    digest::common::hazmat::{SerializableState, SerializedState},
};
use shared::storage::{Storage, StorageError, StorageFault};
use tokio::task::JoinSet;

use super::{Multipart, Stage, Upload};

/// The most pages of a thousand parts that are read.
const MOST_PAGES: usize = 10;

/// How far an upload had got at the end of a part: what a later run needs to go on from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The object it becomes.
    pub key: String,
    /// The multipart upload.
    pub upload_id: String,
    /// The last part before the stop, from 1.
    pub part: i32,
    /// Bytes up to there.
    pub bytes: u64,
    /// The state of the SHA-256 there, in hexadecimal.
    digest: String,
}

impl Upload {
    /// What is needed to go on from the end of the part that was sent last. `None` before the first.
    #[must_use]
    pub fn stop(&self) -> Option<Stop> {
        let Stage::Multipart(multipart) = &self.stage else { return None };
        // What stands in the buffer is not sent, so it must not be in the digest either.
        if multipart.begun == 0 || !self.buffer.is_empty() {
            return None;
        }
        let digest = hex::encode(self.digest.serialize());
        Some(Stop { key: self.key.clone(), upload_id: multipart.id.clone(), part: multipart.begun, bytes: self.sent, digest })
    }

    /// Up to which part, from 1, everything has arrived, as far as it is known without waiting.
    ///
    /// # Errors
    /// [`StorageError`] of any part.
    pub fn confirmed(&mut self) -> Result<i32, StorageError> {
        let Stage::Multipart(multipart) = &mut self.stage else { return Ok(0) };
        while let Some(ended) = multipart.in_flight.try_join_next() {
            multipart.note(ended, &self.storage)?;
        }
        Ok(multipart.under_way.iter().min().map_or(multipart.begun, |first| first - 1))
    }

    /// Goes on with an upload from a stop. `None` when the server has not what it takes: the upload is gone, or others are its parts.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn resume(storage: Storage, stop: &Stop, content_type: &'static str) -> Result<Option<Self>, StorageError> {
        let Some(digest) = digest(&stop.digest) else { return Ok(None) };
        let mut arrived = Vec::new();
        let mut bytes = 0_u64;
        let mut marker = None;
        for _ in 0..MOST_PAGES {
            let request = storage.client().list_parts().bucket(storage.bucket()).key(&stop.key).upload_id(&stop.upload_id);
            let page = match storage
                .call("looking for an upload's parts", storage.deadline(), request.set_part_number_marker(marker.take()).send())
                .await
            {
                Ok(page) => page,
                // Gone, or a store that can't list parts: the file begins anew.
                Err(error) if !error.is_transient() || error.fault() == StorageFault::UploadMissing => return Ok(None),
                Err(error) => return Err(error),
            };
            for part in page.parts.unwrap_or_default() {
                let (Some(number), Some(etag), Some(size)) = (part.part_number, part.e_tag, part.size) else { return Ok(None) };
                // Later ones were sent after the stop; they are sent again.
                if number <= stop.part {
                    bytes += u64::try_from(size).unwrap_or_default();
                    arrived.push(CompletedPart::builder().part_number(number).e_tag(etag).build());
                }
            }
            marker = page.next_part_number_marker.filter(|_| page.is_truncated == Some(true));
            if marker.is_none() {
                break;
            }
        }
        if bytes != stop.bytes || i32::try_from(arrived.len()) != Ok(stop.part) {
            return Ok(None);
        }
        let mut upload = Self::new(storage, stop.key.clone(), content_type);
        upload.digest = digest;
        upload.sent = stop.bytes;
        upload.stage = Stage::Multipart(Multipart {
            id: stop.upload_id.clone(),
            arrived,
            begun: stop.part,
            in_flight: JoinSet::new(),
            under_way: Vec::new(),
        });
        Ok(Some(upload))
    }
}

fn digest(hexadecimal: &str) -> Option<Sha256> {
    let mut state = SerializedState::<Sha256>::default();
    hex::decode_to_slice(hexadecimal, &mut state).ok()?;
    Sha256::deserialize(&state).ok()
}
