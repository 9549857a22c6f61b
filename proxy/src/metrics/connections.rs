//! Connections to the endpoints of one Service.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use super::Tls;

/// How many there were and are, and the bytes of those that are carried as bytes.
#[derive(Debug, Default)]
pub struct Connections {
    /// Opened over mTLS, and without.
    pub opened: [AtomicU64; 2],
    /// Open now.
    pub open: AtomicI64,
    /// Of opaque connections, towards endpoints and back.
    pub bytes: [AtomicU64; 2],
}

impl Connections {
    /// One more; it is open as long as the guard lives.
    #[must_use]
    pub fn open(self: &Arc<Self>, tls: Tls) -> Open {
        self.opened[usize::from(tls != Tls::Mutual)].fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        Open(Arc::clone(self))
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Open(Arc<Connections>);

impl Open {
    /// Counts bytes that it carried.
    pub fn carried(&self, sent: u64, received: u64) {
        self.0.bytes[0].fetch_add(sent, Relaxed);
        self.0.bytes[1].fetch_add(received, Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}
