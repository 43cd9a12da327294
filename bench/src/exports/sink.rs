//! An S3 that takes uploads and keeps nothing: what is left of an upload when storage costs nothing.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::error::{Doing, Result};

const UPLOAD: &str = "<InitiateMultipartUploadResult><UploadId>upload</UploadId></InitiateMultipartUploadResult>";
const COMPLETE: &str = "<CompleteMultipartUploadResult><ETag>\"etag\"</ETag></CompleteMultipartUploadResult>";

/// The running server; ends when dropped.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Sink {
    /// Starts it on a free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.doing("listen for uploads")?;
        let address = listener.local_addr().doing("listen for uploads")?;
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
                tokio::spawn(async move {
                    // A worker that ends leaves its connections.
                    let _ = connection.await;
                });
            }
        });
        Ok(Self { address, server })
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(request: Request<Incoming>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default();
    let content = match (request.method(), query) {
        (&Method::POST, query) if query.contains("uploadId=") => COMPLETE,
        (&Method::POST, query) if query.contains("uploads") => UPLOAD,
        _ => "",
    };
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let mut response = Response::new(Full::new(Bytes::from_static(content.as_bytes())));
    response.headers_mut().insert(header::ETAG, header::HeaderValue::from_static("\"etag\""));
    Ok(response)
}
