//! Calls of observers on this very machine: what `probe.run` tells whoever watches it.
//!
//! What must stay true: a connection goes to a loopback address and nowhere else, whatever the URL says; the
//! [guarded client](super::outbound) sees to it.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use shared::{job::Failure, outbound::Reach};
use url::Url;

use super::outbound::{Call, Outbound, OutboundError};

/// The longest a call may take.
const WITHIN: Duration = Duration::from_secs(5);

/// A client that only reaches this machine.
#[derive(Debug, Default)]
pub struct Callback {
    outbound: Arc<Outbound>,
}

/// A callback that was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum CallbackError {
    /// The address is not one of this machine's own.
    #[error("`callback_url` must be an http or https URL of a loopback address (127.0.0.1, [::1]) or of `localhost`")]
    NotLoopback,
    /// Nobody answered.
    #[error("the observer at `callback_url` did not answer")]
    Unanswered(#[source] OutboundError),
    /// The answer says no.
    #[error("the observer at `callback_url` answered {0}")]
    Refused(reqwest::StatusCode),
}

impl CallbackError {
    /// Whether the observer may have heard the call all the same: it was sent, and the answer did not come.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Unanswered(error) if error.may_have_arrived())
    }
}

impl From<CallbackError> for Failure {
    fn from(error: CallbackError) -> Self {
        let failure = match error {
            CallbackError::NotLoopback => Self::permanent("callback_not_allowed", error.to_string()),
            // Observers count on every call, so a probe that can't make one has not done its work.
            _ => Self::transient("callback_failed", error.to_string()),
        };
        match std::error::Error::source(&error) {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        }
    }
}

impl Callback {
    /// Through this client.
    #[must_use]
    pub fn new(outbound: Arc<Outbound>) -> Self {
        Self { outbound }
    }

    /// POSTs a JSON body; any 2xx is delivery, and is answered.
    ///
    /// # Errors
    /// [`CallbackError`].
    pub async fn post(&self, url: &str, body: &Value) -> Result<reqwest::StatusCode, CallbackError> {
        let url = Url::parse(url).map_err(|_| CallbackError::NotLoopback)?;
        let call = Call::post(url, Reach::Loopback, body.to_string().into(), WITHIN).header("content-type", "application/json");
        match self.outbound.send(call).await {
            Ok(answer) if answer.status.is_success() => Ok(answer.status),
            Ok(answer) => Err(CallbackError::Refused(answer.status)),
            Err(OutboundError::NotAllowed { .. }) => Err(CallbackError::NotLoopback),
            Err(error) => Err(CallbackError::Unanswered(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn only_this_machine() {
        for url in
            ["http://10.0.0.1/", "http://localhost.example.com/", "http://127.0.0.1@example.com/", "ftp://127.0.0.1/", "127.0.0.1", ""]
        {
            let error = Callback::default().post(url, &json!({})).await.unwrap_err();
            assert!(matches!(error, CallbackError::NotLoopback), "{url}: {error}");
        }
    }

    /// Answers one request after the other with `answer`; gives the requests out.
    async fn observer(answer: &'static str) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut request, mut piece) = (Vec::new(), [0; 1024]);
                while !request.ends_with(b"}") {
                    match stream.read(&mut piece).await {
                        Ok(read) if read > 0 => request.extend_from_slice(&piece[..read]),
                        _ => break,
                    }
                }
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = sender.send(String::from_utf8_lossy(&request).into_owned());
            }
        });
        (port, receiver)
    }

    #[tokio::test]
    async fn delivers_to_an_address_and_to_localhost() {
        let (port, mut requests) = observer("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
        let callback = Callback::default();
        for host in ["127.0.0.1", "localhost"] {
            callback.post(&format!("http://{host}:{port}/seen?by=test"), &json!({"phase": "started"})).await.unwrap();
            let request = requests.recv().await.unwrap();
            assert!(request.starts_with("POST /seen?by=test HTTP/1.1\r\n"), "{request}");
            assert!(request.ends_with("\r\n\r\n{\"phase\":\"started\"}"), "{request}");
        }
    }

    #[tokio::test]
    async fn a_redirect_is_no_delivery_and_is_not_followed() {
        let (port, mut requests) = observer("HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n").await;
        let error = Callback::default().post(&format!("http://127.0.0.1:{port}/"), &json!({})).await.unwrap_err();
        assert!(matches!(error, CallbackError::Refused(status) if status == 307), "{error}");
        assert!(requests.recv().await.unwrap().starts_with("POST / "));
        assert!(requests.try_recv().is_err());
        let failure = Failure::from(error);
        assert_eq!((failure.class, failure.code), (shared::job::FailureClass::Transient, "callback_failed"));
    }

    #[tokio::test]
    async fn nobody_there_is_transient_and_elsewhere_is_permanent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let callback = Callback::default();
        let failure = Failure::from(callback.post(&format!("http://127.0.0.1:{port}/"), &json!({})).await.unwrap_err());
        assert_eq!((failure.class, failure.code), (shared::job::FailureClass::Transient, "callback_failed"));
        assert!(!failure.causes.is_empty());
        let failure = Failure::from(callback.post("http://192.0.2.1/", &json!({})).await.unwrap_err());
        assert_eq!((failure.class, failure.code), (shared::job::FailureClass::Permanent, "callback_not_allowed"));
    }
}
