//! A file that is not published yet, and what the effect ledger knows of it.
//!
//! Two effects are written down before their steps: `object:<token>` before anything is sent, with the key that the file
//! gets, and `upload:<token>` before the first part, with the id of the multipart upload. So whatever a crash leaves can be found
//! and swept, by key or by id; and a run whose claim is gone is fenced off before it sends anything. A draft that goes on with an
//! earlier attempt's upload keeps that one's key, and writes the two effects down for its own claim.

use serde_json::{Value, json};
use shared::job::Failure;
use tokio::runtime::Handle;

use crate::{
    clients::upload::{Receipt, Stop, Upload},
    handlers::JobContext,
};

/// A file on its way to object storage, for one claim of one job.
pub(super) struct Draft {
    context: JobContext,
    key: String,
    /// Gone once it was published or discarded.
    upload: Option<Upload>,
    /// What the upload writes to when there is none: never read.
    nowhere: Vec<u8>,
    /// Whether a checkpoint tells of the upload, or may: then the next attempt may go on with it, and dropping it removes nothing.
    kept: bool,
}

impl Draft {
    /// Notes the file in the ledger; sends nothing yet. `name` ends the object's key.
    pub(super) async fn begin(context: JobContext, name: String, content_type: &'static str) -> Result<Self, Failure> {
        let job = &context.job;
        // The token keeps two runs of a job from writing the same object.
        let key = format!("{}/{}/{:016x}/{name}", job.tenant, job.id, job.token);
        let storage = context.services.clients.storage.clone();
        context.intend(&object(&context), &json!({ "bucket": storage.bucket(), "key": key })).await?;
        let upload = Upload::new(storage, key.clone(), content_type);
        Ok(Self { context, key, upload: Some(upload), nowhere: Vec::new(), kept: false })
    }

    /// Goes on with the file of an earlier attempt; `None` when the store has not what that takes.
    pub(super) async fn resume(context: JobContext, stop: &Stop, content_type: &'static str) -> Result<Option<Self>, Failure> {
        let storage = context.services.clients.storage.clone();
        let bucket = storage.bucket().to_owned();
        let Some(upload) = Upload::resume(storage, stop, content_type).await? else { return Ok(None) };
        let key = stop.key.clone();
        let draft = Self { context, key: key.clone(), upload: Some(upload), nowhere: Vec::new(), kept: true };
        let context = &draft.context;
        context.intend(&object(context), &json!({ "bucket": bucket, "key": key })).await?;
        context.intend(&multipart(context), &json!({ "bucket": bucket, "key": key, "upload_id": stop.upload_id })).await?;
        Ok(Some(draft))
    }

    /// Where the upload stands, right after a part was sent.
    pub(super) fn stop(&self) -> Option<Stop> {
        self.upload.as_ref()?.stop()
    }

    /// Up to which part everything has arrived.
    pub(super) fn confirmed(&mut self) -> Result<i32, Failure> {
        Ok(self.upload.as_mut().map_or(Ok(0), Upload::confirmed)?)
    }

    /// Saves where the upload of `key` stands; from here on it outlives this attempt.
    pub(super) async fn save(&mut self, state: &Value, key: &str) -> Result<(), Failure> {
        // From the moment that it is asked for: a run that is dropped before the answer would else remove what was saved after all.
        // What is kept in vain, the sweep finds by its effect.
        self.kept = true;
        self.context.checkpoint(state, Some(key)).await
    }

    /// Whether a checkpoint tells of it, or may.
    pub(super) const fn is_kept(&self) -> bool {
        self.kept
    }

    /// Leaves what was sent to the next attempt.
    pub(super) fn leave(mut self) {
        if let Some(upload) = self.upload.take() {
            upload.leave();
        }
    }

    /// Where the content is written to, by appending.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        match &mut self.upload {
            Some(upload) => upload.buffer(),
            None => &mut self.nowhere,
        }
    }

    /// Sends what makes a part. Answers whether it did.
    pub(super) async fn send_if_full(&mut self) -> Result<bool, Failure> {
        self.send_from(1).await
    }

    /// Sends what makes two parts: rows that turned out much longer than those before. Answers whether it did.
    pub(super) async fn send_if_overfull(&mut self) -> Result<bool, Failure> {
        self.send_from(2).await
    }

    async fn send_from(&mut self, parts: usize) -> Result<bool, Failure> {
        let Some(upload) = &mut self.upload else { return Ok(false) };
        upload.advance();
        if upload.parts_waiting() < parts {
            return Ok(false);
        }
        if upload.id().is_none() {
            let id = upload.create().await?.to_owned();
            let intent = json!({ "bucket": self.context.services.clients.storage.bucket(), "key": self.key, "upload_id": id });
            self.context.intend(&multipart(&self.context), &intent).await?;
        }
        upload.send().await?;
        Ok(true)
    }

    /// Sends the rest; the object stands then, and only the job's success makes it known.
    pub(super) async fn finish(&mut self) -> Result<Receipt, Failure> {
        let Some(upload) = &mut self.upload else {
            return Err(Failure::permanent("draft_gone", "the file was published before; this is a fault in the product"));
        };
        let was_multipart = upload.id().is_some();
        let receipt = upload.finish().await?;
        let said = json!({ "etag": receipt.etag, "bytes": receipt.bytes, "sha256": hex::encode(receipt.sha256) });
        self.context.receipt(&object(&self.context), &said).await?;
        if was_multipart {
            self.context.forget_effect(&multipart(&self.context)).await?;
        }
        Ok(receipt)
    }

    /// Lets go of the file, so that the job's success can publish it. Answers its key.
    pub(super) fn publish(mut self) -> String {
        if let Some(upload) = self.upload.take() {
            upload.keep();
        }
        std::mem::take(&mut self.key)
    }

    /// Removes whatever was sent, and strikes the effects out if that is certain.
    pub(super) async fn discard(mut self) {
        if let Some(upload) = self.upload.take() {
            discard(upload, self.context.clone(), self.key.clone()).await;
        }
    }
}

impl Drop for Draft {
    /// The run was dropped: its timeout, its lease, a shutdown. Nobody waits for the tidying up.
    fn drop(&mut self) {
        if self.kept
            && let Some(upload) = self.upload.take()
        {
            upload.leave();
        }
        if let (Some(upload), Ok(runtime)) = (self.upload.take(), Handle::try_current()) {
            runtime.spawn(discard(upload, self.context.clone(), std::mem::take(&mut self.key)));
        }
    }
}

async fn discard(upload: Upload, context: JobContext, key: String) {
    if !upload.discard().await {
        // The effects stay and say what may be left.
        return;
    }
    for effect in [multipart(&context), object(&context)] {
        if let Err(failure) = context.forget_effect(&effect).await {
            tracing::info!(job = %context.job.id, key, effect, code = failure.code, "an effect that was undone still stands in the ledger");
        }
    }
}

fn object(context: &JobContext) -> String {
    format!("object:{:016x}", context.job.token)
}

fn multipart(context: &JobContext) -> String {
    format!("upload:{:016x}", context.job.token)
}
