//! Unfinished uploads that no effect tells of: a process died between beginning one and writing its id down, or the ledger
//! was restored from a backup. The store's own list has them; they cost money and nobody sees them.

use shared::{
    job::JobId,
    ledger::files::{self, ClaimOfKey, NamedKey},
};
use uuid::Uuid;

use super::{Sweep, SweepError};

/// Pages of a thousand that one sweep reads.
const MOST_PAGES: usize = 100;

impl Sweep<'_> {
    /// Aborts those of claims that this ledger knows and that are gone. Everything else in the bucket is somebody else's.
    pub(super) async fn uploads(&self) -> Result<(), SweepError> {
        let (mut key_marker, mut id_marker) = (None, None);
        for _ in 0..MOST_PAGES {
            let request = self.storage.client().list_multipart_uploads().bucket(self.storage.bucket());
            let request = request.set_key_marker(key_marker.take()).set_upload_id_marker(id_marker.take()).send();
            let page = self.storage.call("looking for unfinished uploads", self.storage.deadline(), request).await?;
            let (keys, ids): (Vec<NamedKey>, Vec<String>) = page
                .uploads
                .unwrap_or_default()
                .into_iter()
                .filter_map(|upload| {
                    let key = upload.key?;
                    Some((NamedKey { claim: claim_of(&key)?, key }, upload.upload_id?))
                })
                .unzip();
            for place in files::gone(&self.services.pool, &keys).await? {
                let (Some(NamedKey { claim, key }), Some(id)) = (keys.get(place), ids.get(place)) else { continue };
                tracing::info!(job = %claim.job, "aborting an unfinished upload that no run holds");
                self.abort(key, id).await?;
            }
            if self.is_over() || page.is_truncated != Some(true) || page.next_key_marker.is_none() {
                break;
            }
            (key_marker, id_marker) = (page.next_key_marker, page.next_upload_id_marker);
        }
        Ok(())
    }
}

/// The claim in an object's key, `tenant/job/token/name`, as the export handler's drafts write it.
fn claim_of(key: &str) -> Option<ClaimOfKey> {
    let mut parts = key.splitn(4, '/');
    let (tenant, job, token, _name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if token.len() != 16 || job.len() != 36 {
        return None;
    }
    let token = u64::from_str_radix(token, 16).ok()?.cast_signed();
    Some(ClaimOfKey { tenant: tenant.parse().ok()?, job: JobId(Uuid::try_parse(job).ok()?), token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_their_claims() {
        let job = JobId(Uuid::from_u128(7));
        for token in [0, 1, -1, i64::MIN, i64::MAX] {
            let key = format!("12/{job}/{token:016x}/prompts.csv");
            assert_eq!(claim_of(&key), Some(ClaimOfKey { tenant: 12, job, token }), "{key}");
        }
        for other in
            ["", "a", "12/x/0000000000000001/a.csv", &format!("12/{job}/1/a.csv"), &format!("x/{job}/0000000000000001/a"), "a/b/c/d"]
        {
            assert_eq!(claim_of(other), None, "{other}");
        }
    }
}
