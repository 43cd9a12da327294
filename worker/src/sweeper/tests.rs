//! Against a real store and a real ledger.

use std::time::Duration;

use chrono::TimeDelta;
use sandbox::{Fault, Rule};
use serde_json::json;
use shared::{
    job::{JobId, Outcome, Policy, PublishedFile, Success},
    kinds::ExportCreate,
    ledger::{
        claim::{ClaimedJob, claim},
        recover::give_back,
        settle::{Settlement, settle},
    },
};

use super::*;
use crate::handlers::{JobContext, workbench::Workbench};

const MANIFEST: &str = r#"
[tenant]
name = "acme"
[sources.main]
url_env = "OFFSTAGE_SOURCE_PROMPTLOCKR_URL"
[datasets.words]
source = "main"
audience = "users"
sql = "SELECT 'a' AS word"
"#;

struct Bench(Workbench);

impl Bench {
    async fn start() -> Self {
        Self(Workbench::start(MANIFEST).await)
    }

    async fn run(&self) -> JobContext {
        let payload: ExportCreate = serde_json::from_value(json!({"dataset": "words", "format": "csv"})).unwrap();
        self.0.claimed(&payload, Some("ada")).await
    }

    fn services(&self) -> &Services {
        &self.0.services
    }

    fn key(run: &JobContext) -> String {
        format!("{}/{}/{:016x}/words.csv", run.job.tenant, run.job.id, run.job.token)
    }

    async fn put(&self, key: &str) {
        let storage = &self.services().clients.storage;
        storage.client().put_object().bucket(storage.bucket()).key(key).send().await.unwrap();
    }

    async fn begin_upload(&self, key: &str) -> String {
        let storage = &self.services().clients.storage;
        let begun = storage.client().create_multipart_upload().bucket(storage.bucket()).key(key).send().await.unwrap();
        begun.upload_id.unwrap()
    }

    /// As a run that was killed leaves it: its effects, an object or an unfinished upload.
    async fn leave(&self, run: &JobContext) {
        let key = Self::key(run);
        run.intend(&format!("object:{:016x}", run.job.token), &json!({"bucket": "offstage", "key": key})).await.unwrap();
        let id = self.begin_upload(&key).await;
        let intent = json!({"bucket": "offstage", "key": key, "upload_id": id});
        run.intend(&format!("upload:{:016x}", run.job.token), &intent).await.unwrap();
        self.put(&key).await;
    }

    /// Its claim is lost, and the job claimed anew.
    async fn claim_again(&self, run: &JobContext) -> ClaimedJob {
        let services = self.services();
        give_back(&mut services.pool.acquire().await.unwrap(), &[(run.job.id, run.job.token)], services.clock.now()).await.unwrap();
        claim(&services.pool, &[run.job.id], services.clock.new_id(), services.clock.now()).await.unwrap().remove(0)
    }

    async fn publish(&self, run: &JobContext) {
        let services = self.services();
        let file = PublishedFile {
            object_key: Self::key(run),
            file_name: "words.csv".into(),
            content_type: "text/csv".into(),
            bytes: 0,
            sha256: [7; 32],
            expires_at: services.clock.now() + TimeDelta::days(7),
        };
        let outcome = Outcome::Succeeded(Success { result: None, file: Some(file) });
        let settlement = Settlement::decide(&run.job, &Policy::DEFAULT, outcome, services.clock.now());
        assert_eq!(settle(&mut services.pool.acquire().await.unwrap(), &[settlement]).await.unwrap().len(), 1);
    }

    async fn sweep(&self) -> Result<(), SweepError> {
        let sweep = Sweep::begin(self.services());
        let published = sweep.published().await;
        sweep.leftovers().await.and(published)
    }

    fn objects(&self) -> Vec<String> {
        self.0.sandbox.s3.objects().unwrap().into_iter().map(|object| object.key).collect()
    }

    fn uploads(&self) -> usize {
        self.0.sandbox.s3.unfinished_uploads().unwrap().len()
    }

    async fn file(&self, job: JobId) -> (Option<DateTime<Utc>>, i16) {
        sqlx::query_as("SELECT deleted_at, deletion_failures FROM job_file WHERE job_id = $1")
            .bind(job.0)
            .fetch_one(&self.services().pool)
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_when_its_time_is_over_and_not_before() {
    let bench = Bench::start().await;
    let run = bench.run().await;
    bench.leave(&run).await;
    bench.services().clients.storage.delete("nothing").await.unwrap();
    bench.publish(&run).await;
    bench.services().clock.advance(TimeDelta::days(7) - TimeDelta::seconds(1));
    bench.sweep().await.unwrap();
    assert_eq!((bench.objects().len(), bench.file(run.job.id).await), (1, (None, 0)), "it has a second left");

    // A store that can't delete now: it stays due, is counted, and is left alone for a while.
    bench.services().clock.advance(TimeDelta::seconds(1));
    let faults = bench.0.sandbox.s3.faults();
    faults.add(Rule::from(Fault::Status(503)).on("DeleteObject"));
    bench.sweep().await.unwrap();
    bench.sweep().await.unwrap();
    assert_eq!((bench.objects().len(), bench.file(run.job.id).await), (1, (None, 1)));
    faults.clear();
    bench.sweep().await.unwrap();
    assert_eq!(bench.objects().len(), 1, "its pause is not over");
    bench.services().clock.advance(FIRST_PAUSE);
    bench.sweep().await.unwrap();
    assert_eq!((bench.objects(), bench.file(run.job.id).await), (vec![], (Some(bench.services().clock.now()), 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_s_wish_goes_before_the_time() {
    let bench = Bench::start().await;
    let (removed, kept) = (bench.run().await, bench.run().await);
    for run in [&removed, &kept] {
        bench.put(&Bench::key(run)).await;
        bench.publish(run).await;
    }
    let wish = sqlx::query("UPDATE job_file SET removed_at = $2 WHERE job_id = $1").bind(removed.job.id.0);
    wish.bind(bench.services().clock.now()).execute(&bench.services().pool).await.unwrap();
    bench.sweep().await.unwrap();
    assert_eq!(bench.objects(), [Bench::key(&kept)]);
    assert!(bench.file(removed.job.id).await.0.is_some() && bench.file(kept.job.id).await.0.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_run_left_goes_and_its_stragglers_too() {
    let bench = Bench::start().await;
    let lost = bench.run().await;
    bench.leave(&lost).await;
    bench.sweep().await.unwrap();
    assert_eq!((bench.objects().len(), bench.uploads()), (1, 1), "what a live claim writes is not touched");

    let winner = JobContext { job: Arc::new(bench.claim_again(&lost).await), ..lost.clone() };
    bench.leave(&winner).await;
    bench.sweep().await.unwrap();
    assert_eq!((bench.objects(), bench.uploads()), (vec![Bench::key(&winner)], 1), "the winner's, which still runs");

    // A call of the lost run that was on its way all the time.
    bench.put(&Bench::key(&lost)).await;
    let storage = &bench.services().clients.storage;
    let late = bench.begin_upload(&Bench::key(&lost)).await;
    assert!(!late.is_empty());
    // The winner's upload was completed.
    let uploads = bench.0.sandbox.s3.unfinished_uploads().unwrap();
    let own = uploads.iter().find(|upload| upload.key == Bench::key(&winner)).unwrap();
    let abort = storage.client().abort_multipart_upload().bucket(storage.bucket()).key(&own.key).upload_id(&own.upload_id);
    abort.send().await.unwrap();
    bench.publish(&winner).await;
    bench.sweep().await.unwrap();
    assert_eq!(bench.objects().len(), 2, "looked at once more when nothing can arrive any more");
    bench.services().clock.advance(shared::ledger::files::STRAGGLERS_ARRIVE_WITHIN);
    bench.sweep().await.unwrap();
    assert_eq!((bench.objects(), bench.uploads()), (vec![Bench::key(&winner)], 0));
    let effects: Vec<String> = bench.0.effects(lost.job.id).await.into_iter().map(|(key, _)| key).collect();
    let token = winner.job.token;
    assert_eq!(
        effects,
        [format!("object:{token:016x}"), format!("upload:{token:016x}")],
        "the lost run's are struck out, the winner's stay"
    );
    bench.services().clock.advance(TimeDelta::days(1));
    bench.sweep().await.unwrap();
    assert_eq!(bench.objects(), [Bench::key(&winner)], "what is published stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_nobody_noted_are_found_and_others_left_alone() {
    let bench = Bench::start().await;
    let (lost, live) = (bench.run().await, bench.run().await);
    let foreign = format!("{}/{}/{:016x}/words.csv", lost.job.tenant, Uuid::from_u128(7), 7);
    for key in [Bench::key(&lost), Bench::key(&live), foreign.clone(), "backups/database.tar".to_owned()] {
        bench.begin_upload(&key).await;
    }
    Sweep::begin(bench.services()).uploads().await.unwrap();
    assert_eq!(bench.uploads(), 4);
    bench.claim_again(&lost).await;
    Sweep::begin(bench.services()).uploads().await.unwrap();
    let mut left: Vec<String> = bench.0.sandbox.s3.unfinished_uploads().unwrap().into_iter().map(|upload| upload.key).collect();
    left.sort();
    let mut expected = vec![Bench::key(&live), foreign, "backups/database.tar".to_owned()];
    expected.sort();
    assert_eq!(left, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_ends_a_sweep_and_loses_nothing() {
    let bench = Bench::start().await;
    let lost = bench.run().await;
    bench.leave(&lost).await;
    bench.claim_again(&lost).await;
    bench.0.sandbox.s3.kill9();
    assert!(matches!(bench.sweep().await, Err(SweepError::Storage(_))));
    bench.0.sandbox.s3.start().await.unwrap();
    bench.services().clock.advance(FIRST_PAUSE);
    bench.sweep().await.unwrap();
    assert_eq!((bench.objects(), bench.uploads()), (vec![], 0));
}

#[test]
fn pauses_grow_to_a_bound() {
    let now = DateTime::<Utc>::UNIX_EPOCH;
    let pause = |failures| (retry_at(now, failures) - now).to_std().unwrap();
    assert_eq!(pause(0), Duration::from_secs(30));
    assert_eq!(pause(1), Duration::from_secs(60));
    for failures in [10, 100, i16::MAX, -1] {
        assert!(pause(failures) <= Duration::from_secs(900), "{failures}");
    }
}
