//! Bounds on what of one Service may be going on in this proxy at a time, so that one that hangs
//! does not take everything with it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::policy::Bulkheads;

/// The bulkheads of one Service, shared by all workers. Whoever waits is served in the order in
/// which it came.
#[derive(Debug)]
pub struct Bulkhead {
    policy: Bulkheads,
    requests: Option<Arc<Semaphore>>,
    /// Exchanges that need a connection for themselves: an HTTP/1 request, a connection of bytes.
    exclusive: Option<Arc<Semaphore>>,
    /// Connections that are there, idle ones included.
    connections: Option<Arc<Semaphore>>,
    pending: AtomicU32,
    /// Of those, who waits for a connection to be closed.
    starved: AtomicU32,
}

/// The right to one request; its end gives it back.
#[derive(Debug)]
pub struct Permit {
    _request: Option<OwnedSemaphorePermit>,
    _exclusive: Option<OwnedSemaphorePermit>,
}

/// The right to one connection; its end gives it back.
#[derive(Debug)]
pub struct Berth {
    _permit: OwnedSemaphorePermit,
}

/// As many wait as may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all places are taken, and all that may wait are waiting")]
pub struct Full;

impl Bulkhead {
    /// Bulkheads with nothing in them; `None` where nothing is bounded.
    #[must_use]
    pub fn new(policy: &Bulkheads) -> Option<Self> {
        if policy.max_in_flight.is_none() && policy.max_connections.is_none() {
            return None;
        }
        let semaphore = |most: Option<u32>| {
            let most = usize::try_from(most?).unwrap_or(usize::MAX);
            Some(Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))))
        };
        Some(Self {
            policy: policy.clone(),
            requests: semaphore(policy.max_in_flight),
            exclusive: semaphore(policy.max_connections),
            connections: semaphore(policy.max_connections),
            pending: AtomicU32::new(0),
            starved: AtomicU32::new(0),
        })
    }

    /// What it was made from.
    #[must_use]
    pub fn policy(&self) -> &Bulkheads {
        &self.policy
    }

    /// Requests that wait.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// The right to a request, if there is one and nobody waits for it. `exclusive`: the request has
    /// its connection for itself.
    #[must_use]
    pub fn try_enter(&self, exclusive: bool) -> Option<Permit> {
        // The semaphore itself lets nobody pass who waits.
        let one = |semaphore: &Option<Arc<Semaphore>>| match semaphore {
            None => Some(None),
            Some(semaphore) => Arc::clone(semaphore).try_acquire_owned().ok().map(Some),
        };
        let request = one(&self.requests)?;
        let own = if exclusive { one(&self.exclusive)? } else { None };
        Some(Permit { _request: request, _exclusive: own })
    }

    /// Waits for the right to a request. The caller bounds the time.
    ///
    /// # Errors
    /// Where too many wait already.
    pub async fn enter(&self, exclusive: bool) -> Result<Permit, Full> {
        let _waiting = self.wait(&self.pending)?;
        let request = acquire(self.requests.as_ref()).await;
        let own = acquire(self.exclusive.as_ref().filter(|_| exclusive)).await;
        Ok(Permit { _request: request, _exclusive: own })
    }

    /// The right to a connection, if there is one.
    ///
    /// # Errors
    /// Where there is none: close an idle one, or [`Self::connect`].
    pub fn try_connect(&self) -> Result<Option<Berth>, Full> {
        match &self.connections {
            None => Ok(None),
            Some(semaphore) => match Arc::clone(semaphore).try_acquire_owned() {
                Ok(permit) => Ok(Some(Berth { _permit: permit })),
                Err(_) => Err(Full),
            },
        }
    }

    /// Waits for the right to a connection. The caller bounds the time.
    ///
    /// # Errors
    /// Where too many wait already.
    pub async fn connect(&self) -> Result<Option<Berth>, Full> {
        let _waiting = self.wait(&self.pending)?;
        let _starved = Counted::one_more(&self.starved);
        Ok(acquire(self.connections.as_ref()).await.map(|permit| Berth { _permit: permit }))
    }

    /// Whether somebody waits for a connection: better close one than keep it idle.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed) > 0
    }

    fn wait<'a>(&self, pending: &'a AtomicU32) -> Result<Counted<'a>, Full> {
        let one = Counted::one_more(pending);
        // First counted, then looked: of several that race for the last place one gets it.
        if one.after > self.policy.max_pending { Err(Full) } else { Ok(one) }
    }
}

async fn acquire(semaphore: Option<&Arc<Semaphore>>) -> Option<OwnedSemaphorePermit> {
    // It is never closed.
    Arc::clone(semaphore?).acquire_owned().await.ok()
}

/// Counts as long as it lives.
struct Counted<'a> {
    counter: &'a AtomicU32,
    after: u32,
}

impl<'a> Counted<'a> {
    fn one_more(counter: &'a AtomicU32) -> Self {
        Self { counter, after: counter.fetch_add(1, Ordering::SeqCst).saturating_add(1) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn bulkhead(max_in_flight: u32, max_connections: u32, max_pending: u32) -> Arc<Bulkhead> {
        let policy = Bulkheads {
            max_in_flight: Some(max_in_flight),
            max_connections: Some(max_connections),
            max_pending,
            ..Bulkheads::default()
        };
        Arc::new(Bulkhead::new(&policy).unwrap())
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_bounded() {
        let pending_only = Bulkheads { max_pending: 5, ..Bulkheads::default() };
        assert!(Bulkhead::new(&pending_only).is_none());
    }

    #[test]
    fn a_request_over_the_bound_has_to_wait_and_an_end_makes_room() {
        let bulkhead = bulkhead(2, 10, 0);
        let one = bulkhead.try_enter(true).unwrap();
        let _two = bulkhead.try_enter(false).unwrap();
        assert!(bulkhead.try_enter(false).is_none());
        drop(one);
        assert!(bulkhead.try_enter(false).is_some());
    }

    #[test]
    fn requests_that_need_a_connection_each_are_bounded_by_connections() {
        let bulkhead = bulkhead(10, 1, 0);
        let _one = bulkhead.try_enter(true).unwrap();
        assert!(bulkhead.try_enter(true).is_none());
        assert!(bulkhead.try_enter(false).is_some(), "a stream shares one");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_served_in_order_and_one_too_many_is_not() {
        let bulkhead = bulkhead(1, 1, 2);
        let first = bulkhead.try_enter(true).unwrap();
        let (done, mut order) = tokio::sync::mpsc::channel(3);
        for n in 0..2 {
            let (bulkhead, done) = (Arc::clone(&bulkhead), done.clone());
            tokio::spawn(async move {
                let _permit = bulkhead.enter(true).await.unwrap();
                done.send(n).await.unwrap();
            });
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(bulkhead.pending(), 2);
        assert_eq!(bulkhead.enter(true).await.unwrap_err(), Full);
        assert!(bulkhead.try_enter(true).is_none(), "nobody jumps the queue");
        drop(first);
        assert_eq!((order.recv().await, order.recv().await), (Some(0), Some(1)));
        assert_eq!(bulkhead.pending(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_waiting_leaves_its_place() {
        let bulkhead = bulkhead(1, 1, 1);
        let first = bulkhead.try_enter(false).unwrap();
        let gave_up = tokio::time::timeout(Duration::from_secs(1), bulkhead.enter(false)).await;
        assert!(gave_up.is_err() && bulkhead.pending() == 0);
        drop(first);
        assert!(bulkhead.enter(false).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_closes_feeds_one_that_starves() {
        let bulkhead = bulkhead(9, 1, 1);
        let berth = bulkhead.try_connect().unwrap();
        assert_eq!(bulkhead.try_connect().unwrap_err(), Full);
        let starving = tokio::spawn({
            let bulkhead = Arc::clone(&bulkhead);
            async move { bulkhead.connect().await.is_ok() }
        });
        tokio::task::yield_now().await;
        assert!(bulkhead.is_starved());
        drop(berth);
        assert!(starving.await.unwrap() && !bulkhead.is_starved());
    }
}
