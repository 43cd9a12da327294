//! HTTP between programs of this machine, as far as the sandbox itself needs it: asking whether one is ready or a key still good, and who
//! asks us.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Method, Request, header};
use hyper_util::rt::TokioIo;

/// More than any answer the sandbox asks for.
const BODY_LIMIT: usize = 1024 * 1024;

/// An answer: status code and body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Who asks the API.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Caller<'a> {
    /// The product's key.
    pub(crate) key: Option<&'a str>,
    /// The end user that it acts for.
    pub(crate) acting: Option<&'a str>,
}

/// One request on a connection of its own. All of it, with connecting and reading, takes at most `deadline`.
pub(crate) async fn ask(
    address: SocketAddr,
    method: Method,
    path: &str,
    caller: Caller<'_>,
    body: String,
    deadline: Duration,
) -> std::io::Result<Answer> {
    let asking = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        if let Some(key) = caller.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if let Some(user) = caller.acting {
            request = request.header("x-acting-user", user);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(std::io::Error::other)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(std::io::Error::other)?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await.map_err(std::io::Error::other)?;
            Ok(Answer { status, body: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
        };
        // The connection does its work only while it is polled, and ends with the exchange.
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            _ = &mut connection => exchange.await,
        }
    };
    tokio::time::timeout(deadline, asking).await?
}

/// Whether a request was made by the names that a server of ours has (`hosts`), and by no page of somebody else's: a browser sends `Origin`
/// with what a page asks for, and the page's own name as `Host` where that leads here.
pub(crate) fn comes_from_here(headers: &HeaderMap, hosts: &[String; 2]) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    !headers.contains_key(header::ORIGIN) && host.is_some_and(|host| hosts.iter().any(|ours| ours == host))
}
