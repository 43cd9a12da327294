//! The buffers that parts are written to and sent from, used again and again.
//!
//! Asked for anew for each part they would not be given back to the system as one would think: an allocator keeps freed
//! megabytes in the arena of whichever thread had them, and an upload of gigabytes would hold twice what it needs.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

/// The free buffers of an upload.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// An empty buffer that holds `capacity` bytes without growing.
    pub(super) fn take(&self, capacity: usize) -> Vec<u8> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // Parts grow now and then: buffers of before are let go then.
        free.filter(|buffer| buffer.capacity() >= capacity).unwrap_or_else(|| Vec::with_capacity(capacity))
    }

    /// The content of a buffer that comes back here when the last copy of it is gone.
    pub(super) fn lend(&self, content: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { content, home: Arc::downgrade(&self.free) })
    }
}

/// A buffer on its way.
struct Lent {
    content: Vec<u8>,
    home: Weak<Mutex<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            let mut buffer = std::mem::take(&mut self.content);
            buffer.clear();
            home.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_copy_is_gone() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(1_000);
        buffer.extend_from_slice(b"part");
        let address = buffer.as_ptr();
        let lent = buffers.lend(buffer);
        let copy = lent.clone();
        drop(lent);
        let other = buffers.take(1_000);
        assert_ne!(other.as_ptr(), address, "still in use");
        assert_eq!(copy, "part");
        drop(copy);
        let again = buffers.take(1_000);
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
        drop(buffers.lend(again));
        assert!(buffers.take(2_000).capacity() >= 2_000, "a larger one is another");
        // An upload that is over takes nothing back.
        let lent = buffers.lend(buffers.take(10));
        drop(buffers);
        drop(lent);
    }
}
