//! Object storage that speaks S3: where files stand. The worker writes them, the API hands out links to them.
//!
//! What must stay true, with any server (AWS, `MinIO`, R2, Ceph, OVH …):
//! - nobody retries in secret: the SDK's retries are off, and who calls decides by the error's class;
//! - every call has a total deadline ([`Storage::call`]), the body included;
//! - requests carry no checksum headers that the operation doesn't ask for: the SDK's default ones are refused by R2, OVH
//!   and older `MinIO` (<https://github.com/awslabs/aws-sdk-rust/issues/1240>). Bodies are guarded on their way by the signed
//!   SHA-256 of `SigV4`, which every server checks;
//! - a presigned link is as good as the file: it is never logged, and it lives minutes.

mod disposition;
mod error;

use std::{fmt, time::Duration};

use aws_sdk_s3::{
    Client, Config,
    config::{
        BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
        retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    presigning::PresigningConfig,
};
use secrecy::ExposeSecret;
use url::Url;

use crate::config::S3;

pub use disposition::content_disposition;
pub use error::{StorageError, StorageFault};

/// The longest a connection may take to stand, TLS included.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The longest that a presigned link can live: `SigV4`'s limit.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>
pub const LONGEST_LINK: Duration = Duration::from_hours(7 * 24);

/// The way to one bucket. Clones share connections.
#[derive(Clone)]
pub struct Storage {
    client: Client,
    /// Signs links under the name by which clients reach the server; sends nothing.
    links: Client,
    bucket: String,
    /// Host and port, for messages.
    host: String,
    deadline: Duration,
}

impl fmt::Debug for Storage {
    /// The SDK's own would print its whole configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("bucket", &self.bucket).field("host", &self.host).finish_non_exhaustive()
    }
}

impl Storage {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(settings: &S3) -> Self {
        let client = Client::from_conf(configuration(settings, settings.endpoint.as_ref()));
        let links = match &settings.public_endpoint {
            Some(public) => Client::from_conf(configuration(settings, Some(public))),
            None => client.clone(),
        };
        let host = settings.endpoint.as_ref().map_or_else(|| format!("s3.{}.amazonaws.com", settings.region), host_of);
        Self { client, links, bucket: settings.bucket.clone(), host, deadline: settings.call }
    }

    /// The SDK's client, for calls through [`Storage::call`].
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The longest that a call without a body may take.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Makes a call and names what went wrong with it. `action` completes "object storage … while" such as `writing the
    /// file`; the deadline covers everything from the connection to the answer's last byte.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn call<T, E>(
        &self,
        action: &'static str,
        deadline: Duration,
        request: impl Future<Output = Result<T, SdkError<E>>> + Send,
    ) -> impl Future<Output = Result<T, StorageError>> + Send
    where
        T: Send,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        // The SDK's futures have some ten kilobytes each; as part of every future above them they would be copied around.
        let request = Box::pin(request);
        async move {
            match tokio::time::timeout(deadline, request).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(StorageError::of_sdk(action, &self.bucket, &self.host, error)),
                Err(_) => Err(StorageError::timeout(action, &self.bucket, &self.host, deadline)),
            }
        }
    }

    /// The error for an answer that lacks what S3 promises, such as an upload's id.
    #[must_use]
    pub fn unexpected(&self, action: &'static str, detail: &'static str) -> StorageError {
        StorageError::refused(action, &self.bucket, &self.host, detail.into())
    }

    /// A link by which anyone can download an object for a while, under a name and as a type. Asks no server, so it is no
    /// proof that the object is there.
    ///
    /// The link is dated by the operating system's clock and not by business time: S3 judges it by its own.
    ///
    /// # Errors
    /// [`StorageError`], permanent: for a lifetime of nothing or over [`LONGEST_LINK`].
    pub async fn presign_get(&self, key: &str, file_name: &str, content_type: &str, lifetime: Duration) -> Result<String, StorageError> {
        const ACTION: &str = "signing a link";
        let refused = |source| StorageError::refused(ACTION, &self.bucket, &self.host, source);
        let lifetime = PresigningConfig::expires_in(lifetime).map_err(|error| refused(error.into()))?;
        let request = self
            .links
            .get_object()
            .bucket(&self.bucket)
            .key(key)
            .response_content_disposition(content_disposition(file_name))
            .response_content_type(content_type)
            .presigned(lifetime);
        let signed = self.call(ACTION, self.deadline, request).await?;
        Ok(signed.uri().to_owned())
    }

    /// Deletes an object. One that is not there counts as deleted.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let request = self.client.delete_object().bucket(&self.bucket).key(key).send();
        match self.call("deleting a file", self.deadline, request).await {
            Err(error) if error.fault() == StorageFault::ObjectMissing => Ok(()),
            answer => answer.map(|_| ()),
        }
    }
}

fn configuration(settings: &S3, endpoint: Option<&Url>) -> Config {
    let credentials = Credentials::new(
        &settings.access_key_id,
        settings.secret_access_key.expose_secret(),
        settings.session_token.as_ref().map(|token| token.expose_secret().to_owned()),
        None,
        "offstage",
    );
    let mut builder = Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(settings.region.clone()))
        .credentials_provider(credentials)
        .force_path_style(settings.path_style)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_WITHIN).build())
        // `call`'s deadline ends what stalls.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint_url(endpoint.as_str().trim_end_matches('/'));
    }
    builder.build()
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> S3 {
        S3 {
            endpoint: Some("http://127.0.0.1:9/".parse().unwrap()),
            public_endpoint: None,
            region: "eu-central-1".into(),
            bucket: "files".into(),
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: "the secret part".into(),
            session_token: None,
            path_style: true,
            call: Duration::from_secs(30),
        }
    }

    async fn link(settings: &S3) -> Url {
        let link = Storage::new(settings).presign_get("1/a b.csv", "Größe \"1\".csv", "text/csv", Duration::from_secs(300)).await;
        link.unwrap().parse().unwrap()
    }

    fn query(url: &Url, name: &str) -> Option<String> {
        url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    #[tokio::test]
    async fn links_name_the_public_endpoint_the_file_and_the_time() {
        let mut settings = settings();
        let plain = link(&settings).await;
        assert!(plain.as_str().starts_with("http://127.0.0.1:9/files/1/a%20b.csv?"), "{plain}");
        assert_eq!(query(&plain, "X-Amz-Expires").as_deref(), Some("300"));
        assert_eq!(query(&plain, "response-content-type").as_deref(), Some("text/csv"));
        assert_eq!(
            query(&plain, "response-content-disposition").as_deref(),
            Some("attachment; filename=\"Gr__e _1_.csv\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe%20%221%22.csv")
        );
        assert_eq!(query(&plain, "X-Amz-Security-Token"), None);

        settings.public_endpoint = Some("https://files.example.com".parse().unwrap());
        settings.session_token = Some("a token".into());
        let public = link(&settings).await;
        assert!(public.as_str().starts_with("https://files.example.com/files/1/a%20b.csv?"), "{public}");
        assert_eq!(query(&public, "X-Amz-Security-Token").as_deref(), Some("a token"));

        settings.path_style = false;
        assert_eq!(link(&settings).await.host_str(), Some("files.files.example.com"));
        assert!(!public.as_str().contains("secret"));
        let shown = format!("{:?}", Storage::new(&settings));
        assert!(!shown.contains("secret") && shown.contains("127.0.0.1:9"), "{shown}");
    }

    #[tokio::test]
    async fn a_link_of_eight_days_is_refused() {
        let storage = Storage::new(&settings());
        for lifetime in [LONGEST_LINK + Duration::from_secs(1), Duration::from_secs(u64::MAX / 4)] {
            let error = storage.presign_get("key", "name", "text/plain", lifetime).await.unwrap_err();
            assert_eq!(error.fault(), StorageFault::Refused);
        }
        assert!(storage.presign_get("key", "name", "text/plain", LONGEST_LINK).await.is_ok());
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named() {
        // Port 9 of loopback: bound by nobody who would take a connection.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut settings = settings();
        settings.endpoint = Some(format!("http://127.0.0.1:{port}").parse().unwrap());
        let error = Storage::new(&settings).delete("key").await.unwrap_err();
        assert_eq!(error.fault(), StorageFault::Unreachable);
        assert!(error.is_transient());
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    }
}
