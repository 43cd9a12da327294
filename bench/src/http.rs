//! The load generator's side of HTTP: one connection, one request at a time, as little work as possible.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, StatusCode,
    client::conn::http1::{SendRequest, handshake},
    header,
    http::request::Builder,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle};

use crate::error::{Doing, Error, Result};

/// A connection to the API that stays open.
#[derive(Debug)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
    host: String,
    authorization: String,
}

impl Client {
    /// Connects; requests carry `key`.
    pub async fn connect(address: SocketAddr, key: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.doing("connect to the API")?;
        stream.set_nodelay(true).doing("set up a connection to the API")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(async move {
            // A connection that breaks fails the request on it, which says so.
            let _ = connection.await;
        });
        Ok(Self { sender, connection, host: address.to_string(), authorization: format!("Bearer {key}") })
    }

    /// One `POST` and its answer.
    pub async fn post(&mut self, path: &str, body: String) -> Result<(StatusCode, Bytes)> {
        self.send(Request::post(path), body).await
    }

    /// One `POST` for a user of the product's.
    pub async fn post_as(&mut self, user: &str, path: &str, body: String) -> Result<(StatusCode, Bytes)> {
        self.send(Request::post(path).header("x-acting-user", user), body).await
    }

    /// One `GET` and its answer.
    pub async fn get(&mut self, path: &str) -> Result<(StatusCode, Bytes)> {
        self.send(Request::get(path), String::new()).await
    }

    async fn send(&mut self, request: Builder, body: String) -> Result<(StatusCode, Bytes)> {
        let request = request
            .header(header::HOST, &self.host)
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Error::Unexpected(format!("no request could be made: {error}")))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
