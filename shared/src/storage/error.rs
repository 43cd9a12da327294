//! What can be wrong with object storage, in words that an operator can act on.

use std::{error::Error, fmt, time::Duration};

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::job::{Failure, FailureClass};

/// A fault of object storage or of the way to it. Shows what happened and where, never a key.
#[derive(Debug)]
pub struct StorageError {
    fault: StorageFault,
    action: &'static str,
    bucket: String,
    host: String,
    retry_after: Option<Duration>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageFault {
    /// No connection, or it broke.
    Unreachable,
    /// No answer within the deadline.
    Timeout(Duration),
    /// The server has trouble of its own, or asks for fewer requests (5xx, 429).
    Unavailable,
    /// The server's clock and ours are too far apart.
    ClockSkew,
    /// The temporary credentials have run out.
    Expired,
    /// There is no such bucket.
    BucketMissing,
    /// The bucket is in another region.
    WrongRegion,
    /// The key is good but may not do this.
    Denied,
    /// The access key is unknown, or its secret is another.
    BadKey,
    /// The multipart upload is gone.
    UploadMissing,
    /// The object is not there.
    ObjectMissing,
    /// Anything else: a fault of ours, or a server that can't do what we need.
    Refused,
}

impl StorageFault {
    /// By S3's error code where there is one, else by the HTTP status.
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
    fn of(status: u16, code: Option<&str>) -> Self {
        match (code.unwrap_or_default(), status) {
            ("NoSuchBucket", _) => Self::BucketMissing,
            // Parts that are not those that were sent: as good as gone.
            ("NoSuchUpload" | "InvalidPart" | "InvalidPartOrder", _) => Self::UploadMissing,
            ("NoSuchKey" | "NotFound", _) => Self::ObjectMissing,
            ("RequestTimeTooSkewed", _) => Self::ClockSkew,
            ("ExpiredToken" | "TokenRefreshRequired", _) => Self::Expired,
            ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "NotSignedUp" | "UnauthorizedAccess", _) => Self::BadKey,
            ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" | "IncorrectEndpoint", _) => {
                Self::WrongRegion
            }
            // Faults that pass whatever their status: a body that was cut or altered on its way, a race of two requests, and the
            // completion of an upload, which answers 200 at once and may say later, in the body, that it failed.
            (
                "RequestTimeout"
                | "IncompleteBody"
                | "BadDigest"
                | "XAmzContentSHA256Mismatch"
                | "OperationAborted"
                | "InternalError"
                | "SlowDown"
                | "ServiceUnavailable",
                _,
            )
            | (_, 408 | 429 | 500..) => Self::Unavailable,
            ("AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidObjectState", _) | (_, 401 | 403) => Self::Denied,
            _ => Self::Refused,
        }
    }
}

impl StorageError {
    /// Reads the SDK's error: its cause is kept, its codes become a [`StorageFault`].
    pub(super) fn of_sdk<E>(action: &'static str, bucket: &str, host: &str, error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let new =
            |fault, retry_after, source| Self { fault, action, bucket: bucket.to_owned(), host: host.to_owned(), retry_after, source };
        match error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let retry_after = retry_after(answer.raw());
                let said =
                    Answer { status, code: answer.err().code().map(str::to_owned), message: answer.err().message().map(str::to_owned) };
                new(StorageFault::of(status, said.code.as_deref()), retry_after, Some(Box::new(said)))
            }
            SdkError::ResponseError(answer) => {
                let status = answer.raw().status().as_u16();
                // An answer that is none of S3's: a proxy's page, or one that was cut.
                let fault = if status < 400 { StorageFault::Unavailable } else { StorageFault::of(status, None) };
                let retry_after = retry_after(answer.raw());
                new(fault, retry_after, SdkError::<E, HttpResponse>::ResponseError(answer).into_source().ok())
            }
            SdkError::TimeoutError(_) => new(StorageFault::Unreachable, None, error.into_source().ok()),
            SdkError::DispatchFailure(ref failure) => {
                let fault = if failure.is_user() { StorageFault::Refused } else { StorageFault::Unreachable };
                new(fault, None, error.into_source().ok())
            }
            other => new(StorageFault::Refused, None, other.into_source().ok()),
        }
    }

    pub(super) fn timeout(action: &'static str, bucket: &str, host: &str, deadline: Duration) -> Self {
        let (bucket, host) = (bucket.to_owned(), host.to_owned());
        Self { fault: StorageFault::Timeout(deadline), action, bucket, host, retry_after: None, source: None }
    }

    pub(super) fn refused(action: &'static str, bucket: &str, host: &str, source: Box<dyn Error + Send + Sync>) -> Self {
        let (bucket, host) = (bucket.to_owned(), host.to_owned());
        Self { fault: StorageFault::Refused, action, bucket, host, retry_after: None, source: Some(source) }
    }

    /// What kind of fault.
    #[must_use]
    pub const fn fault(&self) -> StorageFault {
        self.fault
    }

    /// Whether trying the same again later may work.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self.fault {
            StorageFault::Unreachable
            | StorageFault::Timeout(_)
            | StorageFault::Unavailable
            // Clocks get set and tokens renewed, by a restart of this very process at the latest.
            | StorageFault::ClockSkew
            | StorageFault::Expired
            // A rerun makes another.
            | StorageFault::UploadMissing => true,
            StorageFault::BucketMissing
            | StorageFault::WrongRegion
            | StorageFault::Denied
            | StorageFault::BadKey
            | StorageFault::ObjectMissing
            | StorageFault::Refused => false,
        }
    }

    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self.fault {
            StorageFault::Unreachable => "storage_unreachable",
            StorageFault::Timeout(_) => "storage_timeout",
            StorageFault::Unavailable => "storage_unavailable",
            StorageFault::ClockSkew => "storage_clock_skew",
            StorageFault::Expired => "storage_credentials_expired",
            StorageFault::BucketMissing => "storage_bucket_missing",
            StorageFault::WrongRegion => "storage_wrong_region",
            StorageFault::Denied => "storage_access_denied",
            StorageFault::BadKey => "storage_credentials_refused",
            StorageFault::UploadMissing => "storage_upload_lost",
            StorageFault::ObjectMissing => "storage_object_missing",
            StorageFault::Refused => "storage_refused",
        }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, bucket, host, .. } = self;
        match self.fault {
            StorageFault::Unreachable => write!(f, "object storage at {host} can't be reached ({action})"),
            StorageFault::Timeout(deadline) => {
                write!(f, "object storage at {host} did not finish {action} within {} s", deadline.as_secs())
            }
            StorageFault::Unavailable => write!(f, "object storage at {host} is not able to serve now ({action})"),
            StorageFault::ClockSkew => {
                write!(f, "object storage at {host} refused {action}: its clock and this machine's are too far apart; set them by NTP")
            }
            StorageFault::Expired => {
                write!(
                    f,
                    "object storage at {host} refused {action}: the temporary credentials have run out; renew OFFSTAGE_S3_SESSION_TOKEN and its key"
                )
            }
            StorageFault::BucketMissing => {
                write!(f, "the bucket `{bucket}` does not exist at {host} ({action}); create it, or correct OFFSTAGE_S3_BUCKET")
            }
            StorageFault::WrongRegion => {
                write!(
                    f,
                    "the bucket `{bucket}` is not in the region or at the endpoint that was asked ({host}; {action}); correct OFFSTAGE_S3_REGION or OFFSTAGE_S3_ENDPOINT"
                )
            }
            StorageFault::Denied => {
                write!(f, "object storage at {host} denied {action} in the bucket `{bucket}`; allow it for the access key that is used")
            }
            StorageFault::BadKey => {
                write!(
                    f,
                    "object storage at {host} does not accept the access key ({action}); correct OFFSTAGE_S3_ACCESS_KEY_ID and OFFSTAGE_S3_SECRET_ACCESS_KEY"
                )
            }
            StorageFault::UploadMissing => {
                write!(f, "the upload under way vanished from the bucket `{bucket}` at {host} ({action}); something else aborted it")
            }
            StorageFault::ObjectMissing => write!(f, "the file is not in the bucket `{bucket}` at {host} ({action})"),
            StorageFault::Refused => write!(f, "object storage at {host} refused {action} in the bucket `{bucket}`"),
        }
    }
}

impl Error for StorageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        let class = match (error.is_transient(), error.retry_after) {
            (true, Some(_)) => FailureClass::Limited,
            (true, None) => FailureClass::Transient,
            (false, _) => FailureClass::Permanent,
        };
        let words = if error.is_transient() {
            "the file could not be stored for now; try again later"
        } else {
            "the file could not be stored; whoever runs this service has to look into it"
        };
        let failure = Self {
            class,
            code: error.code(),
            message: error.to_string(),
            for_owner: Some(words.to_owned()),
            causes: Vec::new(),
            retry_after: error.retry_after,
        };
        match error.source() {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        }
    }
}

/// What the server said.
#[derive(Debug)]
struct Answer {
    status: u16,
    code: Option<String>,
    message: Option<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        match &self.message {
            Some(message) => write!(f, ": {}", message.chars().take(500).collect::<String>()),
            None => Ok(()),
        }
    }
}

impl Error for Answer {}

/// `Retry-After` in seconds; S3 sends no dates.
fn retry_after(answer: &HttpResponse) -> Option<Duration> {
    answer.headers().get("retry-after")?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_before_statuses() {
        for (status, code, fault) in [
            (404, Some("NoSuchBucket"), StorageFault::BucketMissing),
            (404, Some("NoSuchUpload"), StorageFault::UploadMissing),
            (404, Some("NoSuchKey"), StorageFault::ObjectMissing),
            (403, Some("AccessDenied"), StorageFault::Denied),
            (403, Some("InvalidAccessKeyId"), StorageFault::BadKey),
            (403, Some("SignatureDoesNotMatch"), StorageFault::BadKey),
            (403, Some("RequestTimeTooSkewed"), StorageFault::ClockSkew),
            (400, Some("ExpiredToken"), StorageFault::Expired),
            (301, Some("PermanentRedirect"), StorageFault::WrongRegion),
            (400, Some("AuthorizationHeaderMalformed"), StorageFault::WrongRegion),
            (400, Some("RequestTimeout"), StorageFault::Unavailable),
            (400, Some("XAmzContentSHA256Mismatch"), StorageFault::Unavailable),
            (503, Some("SlowDown"), StorageFault::Unavailable),
            (500, Some("InternalError"), StorageFault::Unavailable),
            (507, Some("XMinioStorageFull"), StorageFault::Unavailable),
            (429, None, StorageFault::Unavailable),
            (502, None, StorageFault::Unavailable),
            (403, None, StorageFault::Denied),
            (400, Some("EntityTooSmall"), StorageFault::Refused),
            (400, None, StorageFault::Refused),
            (200, Some("InternalError"), StorageFault::Unavailable),
        ] {
            assert_eq!(StorageFault::of(status, code), fault, "{status} {code:?}");
        }
    }
}
