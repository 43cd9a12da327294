//! Whether a request's body was read to its end.
//!
//! A connection on which something unread is still to come can't carry another request: the server closes it after the
//! answer. It has to say so (RFC 9112 §9.6), or a client that keeps its connections sends its next request into one that is
//! closing, and never hears what became of it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{Error, body::Body, extract::Request};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};

/// What became of a request's body.
#[derive(Debug)]
pub struct Arrival(Arc<AtomicBool>);

impl Arrival {
    /// Watches the body of a request from here on.
    #[must_use]
    pub fn watch(request: Request) -> (Request, Self) {
        let (head, body) = request.into_parts();
        let whole = Arc::new(AtomicBool::new(body.is_end_stream()));
        let watched = Watched { body, whole: Arc::clone(&whole) };
        (Request::from_parts(head, Body::new(watched)), Self(whole))
    }

    /// Whether all of it was read, or there was none.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

struct Watched {
    body: Body,
    whole: Arc<AtomicBool>,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        // Who knows the length stops reading at the last frame and never asks for the end.
        if matches!(polled, Poll::Ready(None)) || (matches!(polled, Poll::Ready(Some(Ok(_)))) && self.body.is_end_stream()) {
            self.whole.store(true, Ordering::Release);
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
