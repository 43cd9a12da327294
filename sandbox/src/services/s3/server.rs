//! The listening side: connections, and the faults before the store.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Response, StatusCode, header};
use s3s::service::S3Service;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::operation;
use crate::faults::{Body, Fault, Faults, Metered, Request};
use crate::services::door::{LONGEST_WAIT, http};

#[derive(Clone)]
pub(super) struct Server {
    pub(super) service: S3Service,
    pub(super) faults: Faults,
    pub(super) paused: watch::Receiver<bool>,
}

impl Server {
    pub(super) async fn connection(self, stream: TcpStream, token: CancellationToken) {
        let cut = token.clone();
        http(stream, cut, move |request| self.clone().answer(request, token.clone())).await;
    }

    /// An error cuts the connection.
    async fn answer(mut self, request: hyper::Request<Incoming>, connection: CancellationToken) -> std::io::Result<Response<Body>> {
        let operation = operation::name(request.method(), request.uri().path(), request.uri().query());
        let (number, fault) = self.faults.decide(Request {
            operation: operation.to_owned(),
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
        });
        // An error means that the sandbox has gone.
        let _ = tokio::time::timeout(LONGEST_WAIT, self.paused.wait_for(|paused| !paused)).await?;
        match fault {
            Some(Fault::Status(status) | Fault::Busy { status, .. } | Fault::Reply { code: status, .. }) => {
                let path = request.uri().path().to_owned();
                // Who still sends when the connection is closed may hear of that before the answer.
                let sent = request.into_body().collect();
                let _ = tokio::time::timeout(LONGEST_WAIT, sent).await;
                self.faults.answered(number, status);
                return refusal(status, &path);
            }
            Some(Fault::Hang) => {
                let _ = tokio::time::timeout(LONGEST_WAIT, self.faults.hang()).await;
                return Err(cut("let go after a hang"));
            }
            Some(Fault::Drop { after_bytes: 0 }) => return Err(cut("cut by a fault")),
            _ => {}
        }

        let passed = matches!(fault, Some(Fault::Drop { .. } | Fault::Slow { .. }));
        let (wrap_request, wrap_response) = Metered::pair(fault, &connection);
        let request = request.map(|body| {
            if passed {
                s3s::Body::http_body_unsync(wrap_request(Box::pin(body.map_err(std::io::Error::other))))
            } else {
                s3s::Body::from(body)
            }
        });
        let response = self.service.call(request).await.map_err(|error| std::io::Error::other(format!("{error:?}")))?;
        // The store calls a body that was cut a fault of its own; the client of a cut connection hears nothing of that.
        if connection.is_cancelled() {
            return Err(cut("cut by a fault"));
        }
        if fault == Some(Fault::LoseAnswer) {
            return Err(cut("the answer is lost by a fault"));
        }
        self.faults.answered(number, response.status().as_u16());
        Ok(response.map(|body| -> Body {
            let body: Body = Box::pin(body.map_err(std::io::Error::other));
            if passed { Box::pin(wrap_response(body)) } else { body }
        }))
    }
}

fn cut(reason: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::ConnectionAborted, reason)
}

/// An error as S3 words it: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>.
fn refusal(status: u16, path: &str) -> std::io::Result<Response<Body>> {
    let (code, message) = match status {
        400 => ("InvalidRequest", "Invalid Request"),
        403 => ("AccessDenied", "Access Denied"),
        404 => ("NoSuchBucket", "The specified bucket does not exist"),
        429 | 503 => ("SlowDown", "Please reduce your request rate."),
        _ => ("InternalError", "We encountered an internal error. Please try again."),
    };
    let resource: String = path.chars().filter(|letter| !matches!(letter, '<' | '>' | '&')).collect();
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
         <Resource>{resource}</Resource><RequestId>sandbox</RequestId></Error>"
    );
    let body: Body = Box::pin(http_body_util::Full::new(Bytes::from(text)).map_err(|never| match never {}));
    Response::builder()
        .status(StatusCode::from_u16(status).map_err(std::io::Error::other)?)
        .header(header::CONTENT_TYPE, "application/xml")
        .header(header::CONNECTION, "close")
        .body(body)
        .map_err(std::io::Error::other)
}
