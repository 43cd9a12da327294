//! What runs left in object storage that did not publish it: killed, fenced off, cancelled, failed while the store was away.
//! The effect ledger knows the keys.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use shared::{
    ledger::files::{self, Leftover},
    storage::StorageError,
};

use super::{AT_ONCE, BATCH, FIRST_PAUSE, Sweep, SweepError, is_away};

impl Sweep<'_> {
    /// Removes what gone claims left, twice: at once, and when no straggler of theirs can arrive any more.
    pub(super) async fn leftovers(&self) -> Result<(), SweepError> {
        let pool = &self.services.pool;
        files::set_published_aside(pool, BATCH * 10).await?;
        while !self.is_over() {
            let left = files::leftovers(pool, self.now(), BATCH).await?;
            let last = left.len() < usize::try_from(BATCH).unwrap_or(usize::MAX);
            // A run's object and its upload have one key, and each removal looks for both: side by side they would abort one
            // upload twice, and the store's answer to the second would pass for a fault.
            let mut by_key: BTreeMap<Option<String>, Vec<Leftover>> = BTreeMap::new();
            for leftover in left {
                by_key.entry(leftover.object_key.clone()).or_default().push(leftover);
            }
            let answers: Vec<(Leftover, Result<(), StorageError>)> = stream::iter(by_key.into_values())
                .map(|of_one_key| async move {
                    let mut answers = Vec::with_capacity(of_one_key.len());
                    for leftover in of_one_key {
                        let answer = self.remove(&leftover).await;
                        answers.push((leftover, answer));
                    }
                    answers
                })
                .buffer_unordered(AT_ONCE)
                .concat()
                .await;
            let mut away = None;
            for (leftover, answer) in answers {
                match answer {
                    Ok(()) => {
                        files::swept(pool, &leftover, self.now()).await?;
                        metrics::counter!("offstage_leftovers_swept_total").increment(u64::from(!leftover.swept));
                    }
                    Err(error) => {
                        metrics::counter!("offstage_file_deletions_failed_total").increment(1);
                        tracing::warn!(job = %leftover.job, effect = leftover.effect, error = &error as &dyn std::error::Error,
                            "what a lost run left could not be removed; trying again later");
                        files::not_swept(pool, &leftover, self.now() + FIRST_PAUSE).await?;
                        if is_away(&error) {
                            away = Some(error);
                        }
                    }
                }
            }
            if let Some(error) = away {
                return Err(error.into());
            }
            if last {
                break;
            }
        }
        Ok(())
    }

    async fn remove(&self, leftover: &Leftover) -> Result<(), StorageError> {
        // Without a key nothing was written, or nobody can tell where.
        let Some(key) = &leftover.object_key else { return Ok(()) };
        match self.uploads_of(key).await {
            // The store's own list also has an upload whose id never reached its run.
            Ok(uploads) => {
                for id in uploads {
                    self.abort(key, &id).await?;
                }
            }
            Err(error) if is_away(&error) => return Err(error),
            // A store that can't list: what the ledger knows must do.
            Err(_) => {
                if let Some(id) = &leftover.upload_id {
                    self.abort(key, id).await?;
                }
            }
        }
        self.storage.delete(key).await
    }

    /// The unfinished uploads to one object.
    async fn uploads_of(&self, key: &str) -> Result<Vec<String>, StorageError> {
        let request = self.storage.client().list_multipart_uploads().bucket(self.storage.bucket()).prefix(key).send();
        let listed = self.storage.call("looking for unfinished uploads", self.storage.deadline(), request).await?;
        let uploads = listed.uploads.unwrap_or_default().into_iter();
        Ok(uploads.filter(|upload| upload.key.as_deref() == Some(key)).filter_map(|upload| upload.upload_id).collect())
    }
}
