//! Bytes of the bodies of requests and responses, counted as they go through.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of content, without what frames it and without trailers.
#[derive(Debug, Default)]
pub struct Bodies {
    /// Of requests. What is sent once more is not counted again.
    pub requests: AtomicU64,
    /// Of responses that the client gets.
    pub responses: AtomicU64,
}

impl Bodies {
    /// So much more of a request came.
    pub fn of_request(&self, bytes: usize) {
        self.requests.fetch_add(bytes as u64, Relaxed);
    }

    /// So much more of a response came.
    pub fn of_response(&self, bytes: usize) {
        self.responses.fetch_add(bytes as u64, Relaxed);
    }
}
