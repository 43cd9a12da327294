//! Uploads to a real S3 server that misbehaves on command.

use std::time::Instant;

use sandbox::{Fault, Options, Rule, Sandbox};
use secrecy::SecretString;
use shared::{config, job::FailureClass};

use super::*;

const MIB: usize = 1024 * 1024;

async fn world() -> (Sandbox, Storage) {
    let sandbox = Sandbox::start(Options::test().without_migrations()).await.unwrap();
    let storage = storage(&sandbox, None);
    (sandbox, storage)
}

fn storage(sandbox: &Sandbox, secret: Option<&str>) -> Storage {
    let (id, key) = sandbox.s3.credentials();
    Storage::new(&settings(&sandbox.s3.endpoint(), id, secret.unwrap_or(key).into()))
}

fn settings(endpoint: &str, id: &str, secret: SecretString) -> config::S3 {
    config::S3 {
        endpoint: Some(endpoint.parse().unwrap()),
        public_endpoint: None,
        region: "us-east-1".into(),
        bucket: "offstage".into(),
        access_key_id: id.into(),
        secret_access_key: secret,
        session_token: None,
        path_style: true,
        call: Duration::from_secs(30),
    }
}

/// `size` bytes that don't repeat soon.
fn content(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()
    };
    let mut bytes: Vec<u8> = (0..size.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(size);
    bytes
}

/// Writes as a handler does: piece by piece, sending what makes a part.
async fn write(upload: &mut Upload, content: &[u8]) -> Result<(), StorageError> {
    for piece in content.chunks(100_003) {
        upload.buffer().extend_from_slice(piece);
        upload.advance();
        if upload.parts_waiting() > 0 {
            if upload.id().is_none() {
                upload.create().await?;
            }
            upload.send().await?;
        }
    }
    Ok(())
}

async fn upload(storage: &Storage, key: &str, content: &[u8]) -> Result<Receipt, StorageError> {
    let mut upload = Upload::new(storage.clone(), key.into(), "text/csv");
    let written = async {
        write(&mut upload, content).await?;
        upload.finish().await
    };
    let written = written.await;
    if written.is_ok() {
        upload.keep();
    } else {
        upload.discard().await;
    }
    written
}

fn sha256(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

/// Waits until nothing is left of any upload, or fails after ten seconds.
async fn wait_until_nothing_is_left(sandbox: &Sandbox) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (uploads, objects) = (sandbox.s3.unfinished_uploads().unwrap(), sandbox.s3.objects().unwrap());
        if uploads.is_empty() && objects.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still there: {uploads:?} {objects:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_all_sizes_arrive_whole() {
    let (sandbox, storage) = world().await;
    for (size, puts, parts) in [(0, 1, 0), (1, 1, 0), (8 * MIB - 100_003, 1, 0), (8 * MIB + 200_000, 0, 2), (17 * MIB + 7, 0, 3)] {
        let content = content(size);
        sandbox.s3.faults().forget_requests();
        let key = format!("1/a b/{size}.csv");
        let receipt = upload(&storage, &key, &content).await.unwrap();
        assert_eq!((receipt.bytes, receipt.sha256), (size as u64, sha256(&content)), "{size}");
        assert!(receipt.etag.is_some_and(|etag| !etag.is_empty()), "{size}");
        assert!(sandbox.s3.object(&key).unwrap() == content, "{size}");
        assert_eq!((sandbox.s3.faults().count("PutObject"), sandbox.s3.faults().count("UploadPart")), (puts, parts), "{size}");
    }
    assert!(sandbox.s3.unfinished_uploads().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn hiccups_are_sent_again() {
    let (sandbox, storage) = world().await;
    let large = content(17 * MIB);
    let faults = sandbox.s3.faults();
    faults.add(Rule::from(Fault::Status(503)).on("UploadPart").skip(1).times(2));
    faults.add(Rule::from(Fault::Drop { after_bytes: 3_000_000 }).on("UploadPart").times(1));
    faults.add(Rule::from(Fault::Status(500)).on("CompleteMultipartUpload").times(1));
    assert_eq!(upload(&storage, "large", &large).await.unwrap().sha256, sha256(&large));
    assert!(sandbox.s3.object("large").unwrap() == large);

    // It was done, and we never heard of it.
    faults.add(Rule::from(Fault::LoseAnswer).on("CompleteMultipartUpload").times(1));
    let receipt = upload(&storage, "unheard", &large).await.unwrap();
    assert!(receipt.etag.is_some());
    assert!(sandbox.s3.object("unheard").unwrap() == large);

    faults.add(Rule::from(Fault::LoseAnswer).on("PutObject").times(1));
    faults.add(Rule::from(Fault::Status(429)).on("PutObject").times(1));
    let small = content(1_000);
    assert_eq!(upload(&storage, "small", &small).await.unwrap().sha256, sha256(&small));
    assert!(sandbox.s3.object("small").unwrap() == small);
    assert!(faults.rules().is_empty() && sandbox.s3.unfinished_uploads().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_that_stay_end_the_upload_and_leave_nothing() {
    let (sandbox, storage) = world().await;
    let faults = sandbox.s3.faults();
    for (rule, class, code) in [
        (Rule::from(Fault::Drop { after_bytes: 0 }).on("UploadPart"), FailureClass::Transient, "storage_unreachable"),
        (Rule::from(Fault::Status(403)).on("CompleteMultipartUpload"), FailureClass::Permanent, "storage_access_denied"),
        (Rule::from(Fault::Status(503)).on("CompleteMultipartUpload"), FailureClass::Transient, "storage_unavailable"),
        (Rule::from(Fault::Status(403)).on("CreateMultipartUpload"), FailureClass::Permanent, "storage_access_denied"),
    ] {
        faults.add(rule.clone());
        let failure = shared::job::Failure::from(upload(&storage, "key", &content(8 * MIB + 300_000)).await.unwrap_err());
        assert_eq!((failure.class, failure.code), (class, code), "{rule:?} {failure:?}");
        faults.clear();
        wait_until_nothing_is_left(&sandbox).await;
    }
    faults.add(Rule::from(Fault::Status(503)).on("PutObject"));
    let error = upload(&storage, "key", b"small").await.unwrap_err();
    assert!(error.is_transient());
    assert_eq!(faults.count("PutObject"), TRIES as usize);
    faults.clear();
    wait_until_nothing_is_left(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_a_wrong_bucket_are_named() {
    let (sandbox, storage) = world().await;
    let host = sandbox.s3.endpoint().replace("http://", "");
    let stranger = self::storage(&sandbox, Some("another-secret-entirely"));
    let failure = shared::job::Failure::from(upload(&stranger, "key", b"small").await.unwrap_err());
    assert_eq!((failure.class, failure.code), (FailureClass::Permanent, "storage_credentials_refused"), "{failure:?}");
    assert!(failure.message.contains(&host) && failure.message.contains("OFFSTAGE_S3_SECRET_ACCESS_KEY"), "{}", failure.message);
    assert!(!format!("{failure:?}").contains("another-secret"));

    sandbox.s3.faults().add(Rule::from(Fault::Status(404)).on("PutObject").times(1));
    let failure = shared::job::Failure::from(upload(&storage, "key", b"small").await.unwrap_err());
    assert_eq!((failure.class, failure.code), (FailureClass::Permanent, "storage_bucket_missing"), "{failure:?}");
    assert!(failure.message.contains("`offstage`") && failure.message.contains(&host), "{}", failure.message);

    sandbox.s3.stop();
    let failure = shared::job::Failure::from(upload(&storage, "key", b"small").await.unwrap_err());
    assert_eq!((failure.class, failure.code), (FailureClass::Transient, "storage_unreachable"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_dropped_or_discarded_leaves_nothing() {
    let (sandbox, storage) = world().await;
    let large = content(17 * MIB);

    // While parts travel, one of which never gets an answer.
    sandbox.s3.faults().add(Rule::from(Fault::Hang).on("UploadPart").skip(1).times(1));
    let mut dropped = Upload::new(storage.clone(), "dropped".into(), "text/csv");
    write(&mut dropped, &large).await.unwrap();
    assert_eq!(sandbox.s3.unfinished_uploads().unwrap().len(), 1);
    drop(dropped);
    wait_until_nothing_is_left(&sandbox).await;
    sandbox.s3.faults().clear();

    let mut discarded = Upload::new(storage.clone(), "discarded".into(), "text/csv");
    write(&mut discarded, &large).await.unwrap();
    assert!(discarded.discard().await);
    assert!(sandbox.s3.unfinished_uploads().unwrap().is_empty());

    // Finished, and never kept.
    for content in [&large[..], &large[..100]] {
        let mut finished = Upload::new(storage.clone(), "finished".into(), "text/csv");
        write(&mut finished, content).await.unwrap();
        finished.finish().await.unwrap();
        assert_eq!(sandbox.s3.objects().unwrap().len(), 1);
        drop(finished);
        wait_until_nothing_is_left(&sandbox).await;
    }

    // Whether it was begun is not known: that is said, so that the ledger keeps its key.
    sandbox.s3.faults().add(Rule::from(Fault::LoseAnswer).on("CreateMultipartUpload").times(1));
    let mut uncertain = Upload::new(storage.clone(), "uncertain".into(), "text/csv");
    assert!(uncertain.create().await.unwrap_err().is_transient());
    assert!(!uncertain.discard().await);
    assert_eq!(sandbox.s3.unfinished_uploads().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_two_parts_travel() {
    let (sandbox, storage) = world().await;
    sandbox.s3.faults().add(Rule::from(Fault::Hang).on("UploadPart"));
    let mut upload = Upload::new(storage, "key".into(), "text/csv");
    let large = content(33 * MIB);
    let writing = write(&mut upload, &large);
    tokio::select! {
        written = writing => panic!("all parts were taken: {written:?}"),
        two = sandbox.s3.faults().wait_for(Duration::from_secs(10), |requests| requests.iter().filter(|r| r.request.operation == "UploadPart").count() == 2) => {
            two.unwrap();
        }
    }
    assert_eq!(sandbox.s3.faults().count("UploadPart"), 2);
    assert!(upload.discard().await);
}

#[test]
fn deadlines_leave_time_for_slow_lines() {
    let storage = Storage::new(&settings("http://127.0.0.1:9", "id", "secret".into()));
    assert_eq!(deadline(&storage, 0), Duration::from_secs(30));
    assert_eq!(deadline(&storage, 8 * MIB), Duration::from_secs(286));
}
