//! Whether a request's body was read to its end, and reading what an early answer left of it.
//!
//! Who refuses a request before its body has come in and then closes, has the client's kernel throw the answer away: bytes
//! that arrive for a closed socket are answered with a reset, and a reset overtakes what the client has not read yet (RFC
//! 9112 §9.6). So what is left is read first and dropped, within bounds, and the connection carries the next request. Where
//! it is too much, the answer says that the connection closes, or a client that keeps its connections sends its next
//! request into one that is closing, and never hears what became of it.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Error, body::Body, extract::Request, http::header};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};

/// The most of a refused body that is read for its connection's sake, in bytes: a mistaken upload, not an attack.
pub const MOST_LEFT: u64 = 16 * 1024 * 1024;

/// How long a refused body may take to come in.
pub const LEFT_DEADLINE: Duration = Duration::from_secs(5);

/// What became of a request's body.
#[derive(Debug)]
pub struct Arrival {
    shared: Arc<Shared>,
    /// The client sends its body only when it is told to (RFC 9110 §10.1.1). Reading would tell it.
    asked_first: bool,
}

#[derive(Debug)]
struct Shared {
    whole: AtomicBool,
    left: Mutex<Option<Body>>,
}

impl Arrival {
    /// Watches the body of a request from here on.
    #[must_use]
    pub fn watch(request: Request) -> (Request, Self) {
        let (head, body) = request.into_parts();
        let asked_first = head.headers.contains_key(header::EXPECT);
        let shared = Arc::new(Shared { whole: AtomicBool::new(body.is_end_stream()), left: Mutex::new(None) });
        let watched = Watched { body, shared: Arc::clone(&shared) };
        (Request::from_parts(head, Body::new(watched)), Self { shared, asked_first })
    }

    /// Whether all of it was read, or there was none.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.shared.whole.load(Ordering::Acquire)
    }

    /// Reads what the answer did not need, within [`MOST_LEFT`] and [`LEFT_DEADLINE`].
    pub async fn read_rest(&self) {
        if self.is_whole() || self.asked_first {
            return;
        }
        // A handler that still holds the body, or was stopped in it, has it all.
        let Some(mut body) = self.shared.left.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if body.size_hint().lower() > MOST_LEFT {
            return;
        }
        let rest = async {
            let mut read = 0;
            while read <= MOST_LEFT {
                match body.frame().await {
                    Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
                    // Whoever hung up hears nothing anyway.
                    Some(Err(_)) => return,
                    None => return self.shared.whole.store(true, Ordering::Release),
                }
            }
        };
        // Too late is as too much: the answer says that the connection closes.
        let _ = tokio::time::timeout(LEFT_DEADLINE, rest).await;
    }
}

struct Watched {
    body: Body,
    shared: Arc<Shared>,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        // Who knows the length stops reading at the last frame and never asks for the end.
        if matches!(polled, Poll::Ready(None)) || (matches!(polled, Poll::Ready(Some(Ok(_)))) && self.body.is_end_stream()) {
            self.shared.whole.store(true, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.shared.whole.load(Ordering::Acquire) {
            let body = std::mem::replace(&mut self.body, Body::empty());
            *self.shared.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
