//! Objects on disk, by s3s-fs, with what it lacks and the product needs: a list of unfinished uploads, `ListParts` in order
//! and with `ETag`s, and a `CompleteMultipartUpload` that refuses parts other than those named, as S3 does.
//!
//! Known limits of s3s-fs, which a test must not mistake for the product's: an object's key may have some 150 bytes (its
//! name in Base64 is a file name); parts must be numbered 1, 2, 3 … without gaps; a second `CompleteMultipartUpload` of
//! the same upload is refused with `NoSuchUpload`, where S3 would repeat its success; no lifecycle rules.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart,
    CopyObjectInput, CopyObjectOutput, CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput,
    DeleteBucketInput, DeleteBucketOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, ETag,
    GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput,
    HeadObjectOutput, ListBucketsInput, ListBucketsOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsInput,
    ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput, MultipartUpload, Part, PutObjectInput,
    PutObjectOutput, Timestamp, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

/// A multipart upload that was begun and neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Upload {
    /// The bucket it was begun in.
    pub bucket: String,
    /// The object it would become.
    pub key: String,
    /// S3's name for it.
    pub upload_id: String,
    /// How many parts have arrived.
    pub parts: usize,
    /// Their size together.
    pub bytes: u64,
    /// When it was begun.
    #[serde(skip)]
    pub begun: SystemTime,
}

/// An object as it lies on the disk.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Object {
    /// Its key within the bucket.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The uploads that are unfinished in a store, in no order. Read from the files that s3s-fs keeps for them:
/// `.bucket-B.object-K.upload-ID.metadata.json` (B and K in Base64) from beginning to end, `.upload_id-ID.part-N` for parts.
pub(super) fn unfinished(root: &Path) -> std::io::Result<Vec<Upload>> {
    let mut uploads = Vec::new();
    let mut parts: Vec<(String, u64)> = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // A file may be renamed or removed while we look: then it is no longer an unfinished upload.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if let Some((id, _part)) = name.strip_prefix(".upload_id-").and_then(|rest| rest.split_once(".part-")) {
            parts.push((id.to_owned(), metadata.len()));
        } else if let Some((bucket, key, upload_id)) = parse_upload(name) {
            let begun = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            uploads.push(Upload { bucket, key, upload_id, parts: 0, bytes: 0, begun });
        }
    }
    for upload in &mut uploads {
        for (_, size) in parts.iter().filter(|(id, _)| *id == upload.upload_id) {
            upload.parts += 1;
            upload.bytes += size;
        }
    }
    Ok(uploads)
}

fn parse_upload(name: &str) -> Option<(String, String, String)> {
    let rest = name.strip_prefix(".bucket-")?.strip_suffix(".metadata.json")?;
    let (bucket, rest) = rest.split_once(".object-")?;
    let (key, upload_id) = rest.split_once(".upload-")?;
    let decode = |text: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok();
    Some((decode(bucket)?, decode(key)?, upload_id.to_owned()))
}

/// The objects of a bucket, in the order of their keys.
pub(super) fn objects(root: &Path, bucket: &str) -> std::io::Result<Vec<Object>> {
    let bucket = root.join(bucket);
    let mut found = Vec::new();
    let mut directories = vec![bucket.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if let Ok(key) = entry.path().strip_prefix(&bucket) {
                found.push(Object { key: key.to_string_lossy().into_owned(), size: entry.metadata()?.len() });
            }
        }
    }
    found.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(found)
}

/// The S3 that clients talk to.
#[derive(Debug)]
pub(super) struct Store {
    files: Arc<FileSystem>,
    root: PathBuf,
    parts: Mutex<Parts>,
}

/// The `ETag` and size of each part that arrived, by upload and number. Lost with the process: uploads of before have no parts then.
type Parts = HashMap<String, BTreeMap<i32, (ETag, i64)>>;

impl Store {
    pub(super) fn open(root: &Path) -> std::io::Result<Self> {
        let files = FileSystem::new(root).map_err(|error| std::io::Error::other(format!("{error:?}")))?;
        Ok(Self { files: Arc::new(files), root: root.to_owned(), parts: Mutex::default() })
    }
}

impl Store {
    /// Whether an upload has been begun and neither completed nor aborted. s3s-fs denies access to those it does not know.
    fn check(&self, upload_id: &str) -> S3Result<()> {
        let known = self.parts().contains_key(upload_id)
            || unfinished(&self.root).map_err(|error| s3_error!(error, InternalError))?.iter().any(|upload| upload.upload_id == upload_id);
        if known { Ok(()) } else { Err(s3_error!(NoSuchUpload)) }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parts of one `ListParts` (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html>).
const PAGE: usize = 1_000;

/// Hands operations on to s3s-fs as they are.
macro_rules! by_files {
    ($($operation:ident: $input:ty => $output:ty),* $(,)?) => {
        #[async_trait::async_trait]
        impl S3 for Store {
            $(
                async fn $operation(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                    self.files.$operation(request).await
                }
            )*

            async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
                let (upload, number) = (request.input.upload_id.clone(), request.input.part_number);
                let size = request.input.content_length.unwrap_or_default();
                self.check(&upload)?;
                let response = self.files.upload_part(request).await?;
                if let Some(etag) = &response.output.e_tag {
                    self.parts().entry(upload).or_default().insert(number, (etag.clone(), size));
                }
                Ok(response)
            }

            async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
                let ListPartsInput { bucket, key, upload_id, part_number_marker, .. } = request.input;
                let after = part_number_marker.unwrap_or(0);
                self.check(&upload_id)?;
                let known = self.parts().get(&upload_id).cloned().unwrap_or_default();
                let mut page: Vec<_> = known.into_iter().filter(|(number, _)| *number > after).take(PAGE + 1).collect();
                let truncated = page.len() > PAGE;
                page.truncate(PAGE);
                let next = page.last().filter(|_| truncated).map(|(number, _)| *number);
                let part = |(number, (etag, size))| Part { part_number: Some(number), e_tag: Some(etag), size: Some(size), ..Default::default() };
                Ok(S3Response::new(ListPartsOutput {
                    bucket: Some(bucket),
                    key: Some(key),
                    upload_id: Some(upload_id),
                    parts: Some(page.into_iter().map(part).collect()),
                    is_truncated: Some(truncated),
                    next_part_number_marker: next,
                    ..Default::default()
                }))
            }

            async fn complete_multipart_upload(
                &self,
                request: S3Request<CompleteMultipartUploadInput>,
            ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
                let upload = request.input.upload_id.clone();
                self.check(&upload)?;
                let named = request.input.multipart_upload.as_ref().and_then(|upload| upload.parts.as_deref()).unwrap_or_default();
                let known = self.parts().get(&upload).cloned().unwrap_or_default();
                let is_known = |part: &CompletedPart| {
                    let (Some(number), Some(etag)) = (part.part_number, &part.e_tag) else { return false };
                    known.get(&number).is_some_and(|(known, _)| known.value() == etag.value())
                };
                if !named.iter().all(is_known) {
                    return Err(s3_error!(InvalidPart));
                }
                // In a task of its own: a client that goes away must not leave half an object.
                let files = Arc::clone(&self.files);
                let completed = tokio::spawn(async move { files.complete_multipart_upload(request).await }).await;
                let response = completed.map_err(|error| s3_error!(error, InternalError))??;
                self.parts().remove(&upload);
                Ok(response)
            }

            async fn abort_multipart_upload(
                &self,
                request: S3Request<AbortMultipartUploadInput>,
            ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
                let upload = request.input.upload_id.clone();
                self.check(&upload)?;
                let response = self.files.abort_multipart_upload(request).await?;
                self.parts().remove(&upload);
                Ok(response)
            }

            /// Of one page only, as few as there ever are here.
            async fn list_multipart_uploads(
                &self,
                request: S3Request<ListMultipartUploadsInput>,
            ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
                let input = request.input;
                let prefix = input.prefix.clone().unwrap_or_default();
                let mut uploads = unfinished(&self.root).map_err(|error| s3_error!(error, InternalError))?;
                uploads.retain(|upload| upload.bucket == input.bucket && upload.key.starts_with(&prefix));
                uploads.sort_by(|one, other| (&one.key, one.begun).cmp(&(&other.key, other.begun)));
                let uploads = uploads.into_iter().map(|upload| MultipartUpload {
                    key: Some(upload.key),
                    upload_id: Some(upload.upload_id),
                    initiated: Some(Timestamp::from(upload.begun)),
                    ..Default::default()
                });
                Ok(S3Response::new(ListMultipartUploadsOutput {
                    bucket: Some(input.bucket),
                    prefix: input.prefix,
                    is_truncated: Some(false),
                    uploads: Some(uploads.collect()),
                    ..Default::default()
                }))
            }
        }
    };
}

by_files! {
    copy_object: CopyObjectInput => CopyObjectOutput,
    create_bucket: CreateBucketInput => CreateBucketOutput,
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput,
    delete_bucket: DeleteBucketInput => DeleteBucketOutput,
    delete_object: DeleteObjectInput => DeleteObjectOutput,
    delete_objects: DeleteObjectsInput => DeleteObjectsOutput,
    get_bucket_location: GetBucketLocationInput => GetBucketLocationOutput,
    get_object: GetObjectInput => GetObjectOutput,
    head_bucket: HeadBucketInput => HeadBucketOutput,
    head_object: HeadObjectInput => HeadObjectOutput,
    list_buckets: ListBucketsInput => ListBucketsOutput,
    list_objects: ListObjectsInput => ListObjectsOutput,
    list_objects_v2: ListObjectsV2Input => ListObjectsV2Output,
    put_object: PutObjectInput => PutObjectOutput,
    upload_part_copy: UploadPartCopyInput => UploadPartCopyOutput,
}
