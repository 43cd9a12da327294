//! One part, or one small object, on its way: how long it may take, and what of it is sent again.

use std::time::Duration;

use aws_sdk_s3::{primitives::ByteStream, types::CompletedPart};
use bytes::Bytes;
use shared::{
    random,
    storage::{Storage, StorageError, StorageFault},
};

/// The slowest a body may travel, bytes a second; slower counts as hanging.
const SLOWEST: u64 = 32 * 1024;

/// How often a part is sent before its fault is the upload's.
pub(super) const TRIES: u32 = 4;

/// The pause before a part is sent again; it doubles.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// One part.
pub(super) struct Part {
    pub(super) storage: Storage,
    pub(super) key: String,
    pub(super) upload: String,
    pub(super) number: i32,
}

impl Part {
    pub(super) async fn send(self, body: Bytes) -> Result<CompletedPart, StorageError> {
        const ACTION: &str = "sending a part";
        let Self { storage, key, upload, number } = self;
        let put = || {
            let request = storage.client().upload_part().bucket(storage.bucket()).key(&key).upload_id(&upload).part_number(number);
            let request = request.body(ByteStream::from(body.clone()));
            storage.call(ACTION, deadline(&storage, body.len()), request.send())
        };
        let answer = retried(put).await?;
        let etag = answer.e_tag.ok_or_else(|| storage.unexpected(ACTION, "the answer has no ETag"))?;
        Ok(CompletedPart::builder().part_number(number).e_tag(etag).build())
    }
}

/// Sends again what met a fault that passes within seconds.
pub(super) async fn retried<T, F>(send: impl Fn() -> F) -> Result<T, StorageError>
where
    F: Future<Output = Result<T, StorageError>>,
{
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match send().await {
            Err(error) if is_worth_sending_again(&error) => {
                tracing::info!(error = &error as &dyn std::error::Error, "sending again");
                tokio::time::sleep(pause.mul_f64(0.5 + random::fraction())).await;
                pause *= 2;
            }
            ended => return ended,
        }
    }
    send().await
}

/// A fault that passes within seconds. What hung once is not waited for again: that is the job's to decide.
pub(super) fn is_worth_sending_again(error: &StorageError) -> bool {
    matches!(error.fault(), StorageFault::Unavailable | StorageFault::Unreachable)
}

/// A body's total deadline: what any call may take, and the body at its slowest.
pub(super) fn deadline(storage: &Storage, bytes: usize) -> Duration {
    storage.deadline() + Duration::from_secs(bytes as u64 / SLOWEST)
}
