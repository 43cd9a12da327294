//! A body that is slowed, counted and cut.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::Fault;

/// Slowed bodies pass this many pieces a second, so that they flow and don't jerk.
const PIECES_PER_SECOND: u64 = 20;

/// Any body of bytes.
pub(crate) type Body = Pin<Box<dyn HttpBody<Data = Bytes, Error = std::io::Error> + Send>>;

/// What one exchange still may do; shared by its two bodies.
#[derive(Debug, Clone)]
pub(crate) struct Allowance {
    bytes_per_second: Option<u64>,
    /// Bytes before the cut.
    left: Option<Arc<AtomicU64>>,
    /// Cancelled to cut the connection.
    connection: CancellationToken,
}

impl Allowance {
    fn new(fault: Option<Fault>, connection: CancellationToken) -> Self {
        let bytes_per_second = match fault {
            Some(Fault::Slow { bytes_per_second }) => Some(bytes_per_second.max(1)),
            _ => None,
        };
        let left = match fault {
            Some(Fault::Drop { after_bytes }) => Some(Arc::new(AtomicU64::new(after_bytes))),
            _ => None,
        };
        Self { bytes_per_second, left, connection }
    }

    /// Takes `size` bytes off what may pass. False when that is too much: the connection is then cut.
    fn pass(&self, size: u64) -> bool {
        let Some(left) = &self.left else { return true };
        let passed = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(size)).is_ok();
        if !passed {
            self.connection.cancel();
        }
        passed
    }
}

/// A body under a fault.
pub(crate) struct Metered {
    inner: Body,
    allowance: Allowance,
    /// The part of a frame that has to wait its turn.
    rest: Bytes,
    /// When the next piece may pass.
    turn: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    /// The two bodies of one exchange: each wraps what it is given.
    pub(crate) fn pair(fault: Option<Fault>, connection: &CancellationToken) -> (impl FnOnce(Body) -> Self, impl FnOnce(Body) -> Self) {
        let allowance = Allowance::new(fault, connection.clone());
        let other = allowance.clone();
        (move |body| Self::new(body, allowance), move |body| Self::new(body, other))
    }

    fn new(inner: Body, allowance: Allowance) -> Self {
        Self { inner, allowance, rest: Bytes::new(), turn: None }
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Some(turn) = this.turn.as_mut() {
            ready!(turn.as_mut().poll(context));
            this.turn = None;
        }
        if !this.rest.has_remaining() {
            match ready!(this.inner.as_mut().poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let size = match this.allowance.bytes_per_second {
            Some(rate) => usize::try_from((rate / PIECES_PER_SECOND).max(1)).unwrap_or(usize::MAX).min(this.rest.len()),
            None => this.rest.len(),
        };
        let piece = this.rest.split_to(size);
        let bytes = u64::try_from(size).unwrap_or(u64::MAX);
        if let Some(rate) = this.allowance.bytes_per_second {
            let pause = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
            this.turn = Some(Box::pin(tokio::time::sleep_until(Instant::now() + pause)));
        }
        if !this.allowance.pass(bytes) {
            return Poll::Ready(Some(Err(std::io::Error::other("cut by a fault"))));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        !self.rest.has_remaining() && self.turn.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}
