//! Upstream connections of one worker that wait for their next request.
//!
//! Newest first, so that the surplus ages out. A server that closes idle connections may do so in the
//! very moment in which a request is written, and then nobody knows whether it ran. So a connection
//! is not kept for as long as its server would: the server says how long that is (`Keep-Alive:
//! timeout=5`), or is seen to close, were it by a request that fails, and from then on its connections
//! are dropped before.
//!
//! Only its own worker uses a pool, so its lock is free; it is never held across an await.

use std::{collections::HashMap, hash::Hash, time::Duration};

use parking_lot::Mutex;
use tokio::{io::AsyncRead, time::Instant};

use super::wire::Wire;

/// Idle connections kept per endpoint.
const MAX_IDLE: usize = 1024;
/// Of the time after which a server closes, this share is made use of.
const SHARE: f64 = 0.75;
/// What was learned of an endpoint is forgotten after this time without a new lesson.
const MEMORY: Duration = Duration::from_secs(600);

/// Idle connections by endpoint.
#[derive(Debug)]
pub struct Pool<K, IO> {
    idle_timeout: Duration,
    all: Mutex<HashMap<K, Kept<IO>>>,
}

/// The connections to one endpoint.
#[derive(Debug)]
struct Kept<IO> {
    idle: Vec<Idle<IO>>,
    /// How long they may be idle, where that is less than the pool's own bound, and since when this
    /// is known.
    limit: Option<(Duration, Instant)>,
}

impl<IO> Default for Kept<IO> {
    fn default() -> Self {
        Self { idle: Vec::new(), limit: None }
    }
}

#[derive(Debug)]
struct Idle<IO> {
    wire: Wire<IO>,
    since: Instant,
}

impl<K: Hash + Eq + Clone, IO: AsyncRead + Unpin> Pool<K, IO> {
    /// An empty pool whose connections close after `idle_timeout` without use.
    #[must_use]
    pub fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, all: Mutex::default() }
    }

    /// The connection that was used last, if there is one that its peer neither closed nor is about
    /// to, and how long it was idle.
    pub fn take(&self, key: &K, now: Instant) -> Option<(Wire<IO>, Duration)> {
        let mut all = self.all.lock();
        let kept = all.get_mut(key)?;
        loop {
            let Idle { mut wire, since } = kept.idle.pop()?;
            let age = now.duration_since(since);
            if !wire.is_quiet() {
                kept.learn(age, now);
            } else if age < kept.limit(self.idle_timeout) {
                return Some((wire, age));
            }
        }
    }

    /// A connection that was idle for so long broke, without an answer, under the request that came
    /// then: most likely its server was closing it.
    pub fn broke(&self, key: &K, idle: Duration, now: Instant) {
        self.all.lock().entry(key.clone()).or_default().learn(idle, now);
    }

    /// Keeps a connection whose response is complete. `promised`: how long its server said that it
    /// keeps it.
    pub fn give_back(&self, key: &K, wire: Wire<IO>, promised: Option<Duration>, now: Instant) {
        let mut all = self.all.lock();
        let kept = match all.get_mut(key) {
            Some(kept) => kept,
            None => all.entry(key.clone()).or_default(),
        };
        if let Some(promised) = promised.filter(|promised| *promised < self.idle_timeout * 2) {
            kept.learn(promised, now);
        }
        if kept.idle.len() < MAX_IDLE {
            kept.idle.push(Idle { wire, since: now });
        }
    }

    /// Closes the connection that is idle for longest; `false` where there is none.
    pub fn close_oldest(&self, key: &K) -> bool {
        let mut all = self.all.lock();
        let Some(kept) = all.get_mut(key).filter(|kept| !kept.idle.is_empty()) else {
            return false;
        };
        kept.idle.remove(0);
        true
    }

    /// Closes what was idle too long, or closed by its peer; called now and then by the worker.
    pub fn sweep(&self, now: Instant) {
        self.all.lock().retain(|_, kept| {
            let limit = kept.limit(self.idle_timeout);
            let mut closed = None;
            kept.idle.retain_mut(|idle| {
                let age = now.duration_since(idle.since);
                let quiet = idle.wire.is_quiet();
                if !quiet {
                    closed = closed.max(Some(age));
                }
                quiet && age < limit
            });
            if let Some(age) = closed {
                kept.learn(age, now);
            }
            kept.limit = kept.limit.filter(|(_, since)| now.duration_since(*since) < MEMORY);
            !kept.idle.is_empty() || kept.limit.is_some()
        });
    }

    /// Whether there is no connection at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.lock().values().all(|kept| kept.idle.is_empty())
    }

    /// Closes the connections of endpoints for which `gone` holds.
    pub fn forget(&self, gone: impl Fn(&K) -> bool) {
        self.all.lock().retain(|key, _| !gone(key));
    }
}

impl<IO> Kept<IO> {
    fn limit(&self, most: Duration) -> Duration {
        self.limit.map_or(most, |(limit, _)| limit.min(most))
    }

    /// The server closes connections that were idle for so long. One that closes at once does not
    /// keep any, or is going away; that says nothing about time.
    fn learn(&mut self, closes_after: Duration, now: Instant) {
        let limit = closes_after.mul_f64(SHARE);
        let news = self.limit.is_none_or(|(known, _)| limit <= known);
        if news && limit >= Duration::from_millis(100) {
            self.limit = Some((limit, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    const POOL: Duration = Duration::from_secs(30);

    fn pair() -> (Wire<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(64);
        (Wire::new(near, Vec::new()), far)
    }

    fn pool() -> Pool<u8, DuplexStream> {
        Pool::new(POOL)
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_is_taken_and_one_that_was_closed_is_not() {
        let (pool, now) = (pool(), Instant::now());
        let ((one, _far), (two, closed)) = (pair(), pair());
        pool.give_back(&1, one, None, now);
        pool.give_back(&1, two, None, now);
        drop(closed);
        assert!(pool.take(&1, now).is_some() && pool.take(&1, now).is_none());
        assert!(pool.take(&2, now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_is_not_used_even_before_it_is_swept() {
        let (pool, now) = (pool(), Instant::now());
        let (one, _far) = pair();
        pool.give_back(&1, one, None, now);
        assert!(pool.take(&1, now + POOL).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_fails_since_its_server_was_closing_is_the_last() {
        let (pool, now) = (pool(), Instant::now());
        let (one, _far) = pair();
        pool.give_back(&1, one, None, now);
        let later = now + Duration::from_secs(4);
        let (_wire, idle) = pool.take(&1, later).unwrap();
        pool.broke(&1, idle, later);
        let ((two, _far2), (three, _far3)) = (pair(), pair());
        pool.give_back(&1, two, None, later);
        assert!(pool.take(&1, later + Duration::from_secs(3)).is_none());
        pool.give_back(&1, three, None, later);
        assert!(pool.take(&1, later + Duration::from_secs(2)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_seen_to_close_is_not_waited_for_again() {
        let (pool, now) = (pool(), Instant::now());
        let (one, far) = pair();
        pool.give_back(&1, one, None, now);
        drop(far);
        let later = now + Duration::from_secs(4);
        pool.sweep(later);
        let (two, _far) = pair();
        pool.give_back(&1, two, None, later);
        assert!(pool.take(&1, later + Duration::from_secs(3)).is_none());
        let (three, _far) = pair();
        pool.give_back(&1, three, None, later);
        assert!(pool.take(&1, later + Duration::from_secs(2)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_when_it_closes_is_believed_for_a_while() {
        let (pool, now) = (pool(), Instant::now());
        let (one, _far) = pair();
        pool.give_back(&1, one, Some(Duration::from_secs(2)), now);
        assert!(pool.take(&1, now + Duration::from_millis(1600)).is_none());
        let much_later = now + MEMORY;
        pool.sweep(much_later);
        let (two, _far) = pair();
        pool.give_back(&1, two, None, much_later);
        assert!(pool.take(&1, much_later + Duration::from_secs(20)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_something_unasked_is_not_used() {
        use tokio::io::AsyncWriteExt;
        let (pool, now) = (pool(), Instant::now());
        let (one, mut far) = pair();
        far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        pool.give_back(&1, one, None, now);
        assert!(pool.take(&1, now).is_none());
    }
}
