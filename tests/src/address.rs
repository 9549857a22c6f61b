//! Loopback addresses: every pod has its own, so that ports need not be searched for.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU8, Ordering},
};

/// Port whose listener on the first address marks a block as taken.
const CLAIM: u16 = 4199;

/// 250 addresses `127.x.y.*` that are this block's until it is dropped.
#[derive(Debug)]
pub struct Block {
    network: [u8; 3],
    next: AtomicU8,
    _claim: TcpListener,
}

impl Block {
    /// Takes a block that no other test on this machine has.
    ///
    /// # Panics
    /// Where none is to be had.
    #[must_use]
    pub fn claim() -> Self {
        let mut rng = fastrand::Rng::new();
        for _ in 0..1000 {
            // The lower ones are what people choose by hand.
            let network = [127, rng.u8(64..=250), rng.u8(..)];
            let first = Ipv4Addr::new(network[0], network[1], network[2], 1);
            if let Ok(claim) = TcpListener::bind(SocketAddr::from((first, CLAIM))) {
                return Self { network, next: AtomicU8::new(2), _claim: claim };
            }
        }
        panic!("no free block of loopback addresses");
    }

    /// An address that was not given out before.
    ///
    /// # Panics
    /// Where all were.
    pub fn next(&self) -> Ipv4Addr {
        let last = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(last < 252, "a block has 250 addresses");
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, last)
    }
}
