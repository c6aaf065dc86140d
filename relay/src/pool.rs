//! Buffers that only exist while bytes are under way.
//!
//! A connection that waits for its peers holds none: it takes one when a read
//! is tried and gives it back when nothing came. Each thread keeps a few,
//! last in first out, so that the next one is still in the cache.

use std::cell::RefCell;

use crate::VSOCK_WRITE_MAX;

/// Bytes of one buffer. Large, because the number of system calls decides what
/// a byte costs; whole vsock writes, so that none is cut short.
pub(crate) const BUFFER: usize = 8 * VSOCK_WRITE_MAX;
/// Buffers that a thread keeps for later.
const KEPT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// [`BUFFER`] bytes of the pool; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Buffer(Box<[u8]>);

impl Buffer {
    pub(crate) fn take() -> Buffer {
        let free = FREE.with_borrow_mut(Vec::pop);
        Buffer(free.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()))
    }

    /// One that begins with `bytes`.
    pub(crate) fn of(mut bytes: Vec<u8>) -> Buffer {
        bytes.resize(bytes.len().max(BUFFER), 0);
        Buffer(bytes.into_boxed_slice())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // At the end of a thread its pool may be gone already.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(bytes);
            }
        });
    }
}
