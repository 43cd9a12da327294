//! The name of the S3 operation that an HTTP request asks for (path style), for rules and records.
//!
//! From the S3 API reference: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html>.

use hyper::Method;

/// `Unknown` for what the product does not use.
pub(super) fn name(method: &Method, path: &str, query: Option<&str>) -> &'static str {
    let asks = |name: &str| {
        query.unwrap_or_default().split('&').any(|pair| pair.split('=').next().is_some_and(|found| found.eq_ignore_ascii_case(name)))
    };
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    match (method, bucket.is_empty(), key.is_empty()) {
        (&Method::GET, true, _) => "ListBuckets",
        (&Method::GET, false, true) if asks("uploads") => "ListMultipartUploads",
        (&Method::GET, false, true) if asks("location") => "GetBucketLocation",
        (&Method::GET, false, true) if asks("list-type") => "ListObjectsV2",
        (&Method::GET, false, true) => "ListObjects",
        (&Method::HEAD, false, true) => "HeadBucket",
        (&Method::PUT, false, true) => "CreateBucket",
        (&Method::DELETE, false, true) => "DeleteBucket",
        (&Method::POST, false, true) if asks("delete") => "DeleteObjects",
        (&Method::GET, false, false) if asks("uploadId") => "ListParts",
        (&Method::GET, false, false) => "GetObject",
        (&Method::HEAD, false, false) => "HeadObject",
        (&Method::PUT, false, false) if asks("partNumber") => "UploadPart",
        (&Method::PUT, false, false) => "PutObject",
        (&Method::POST, false, false) if asks("uploads") => "CreateMultipartUpload",
        (&Method::POST, false, false) if asks("uploadId") => "CompleteMultipartUpload",
        (&Method::DELETE, false, false) if asks("uploadId") => "AbortMultipartUpload",
        (&Method::DELETE, false, false) => "DeleteObject",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_told_apart() {
        let cases = [
            (Method::PUT, "/bucket/a/b.csv", Some("x-id=PutObject"), "PutObject"),
            (Method::PUT, "/bucket/a/b.csv", Some("x-id=UploadPart&partNumber=1&uploadId=u"), "UploadPart"),
            (Method::POST, "/bucket/a/b.csv", Some("uploads"), "CreateMultipartUpload"),
            (Method::POST, "/bucket/a/b.csv", Some("uploadId=u"), "CompleteMultipartUpload"),
            (Method::DELETE, "/bucket/a/b.csv", Some("uploadId=u"), "AbortMultipartUpload"),
            (Method::DELETE, "/bucket/a/b.csv", None, "DeleteObject"),
            (Method::GET, "/bucket/a", Some("X-Amz-Signature=s"), "GetObject"),
            (Method::GET, "/bucket", Some("uploads"), "ListMultipartUploads"),
            (Method::GET, "/bucket/", Some("list-type=2&prefix=a"), "ListObjectsV2"),
            (Method::HEAD, "/bucket", None, "HeadBucket"),
            (Method::GET, "/", None, "ListBuckets"),
            (Method::PATCH, "/bucket/a", None, "Unknown"),
        ];
        for (method, path, query, expected) in cases {
            assert_eq!(name(&method, path, query), expected, "{method} {path}?{query:?}");
        }
    }
}
