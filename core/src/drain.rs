//! The shutdown sequence: not ready → stop accepting, tell peers → deadline → abort.
//!
//! One [`Drain`] per process. Servers hold a [`Watch`] clone: it says when to begin draining and,
//! as long as it lives, keeps the process from ending before the deadline.

use std::{future::Future, time::Duration};

use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFuture},
    task::TaskTracker,
};

/// The side that starts the drain and waits for its end.
#[derive(Debug)]
pub struct Drain {
    watch: Watch,
}

/// The side that servers and connections hold.
#[derive(Debug, Clone)]
pub struct Watch {
    draining: CancellationToken,
    aborted: CancellationToken,
    tasks: TaskTracker,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything finished by itself.
    Clean,
    /// The deadline passed with this many tasks left; they were told to abort.
    Aborted(usize),
}

impl Drain {
    /// A new drain and its first watch.
    #[must_use]
    pub fn new() -> (Self, Watch) {
        let watch = Watch {
            draining: CancellationToken::new(),
            aborted: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        (Self { watch: watch.clone() }, watch)
    }

    /// Begins draining, waits up to `grace` for all tracked work, then aborts what is left.
    pub async fn drain(self, grace: Duration) -> Drained {
        self.watch.draining.cancel();
        self.watch.tasks.close();
        if tokio::time::timeout(grace, self.watch.tasks.wait()).await.is_ok() {
            return Drained::Clean;
        }
        let left = self.watch.tasks.len();
        self.watch.aborted.cancel();
        Drained::Aborted(left)
    }
}

impl Watch {
    /// Resolves when draining begins. May be awaited any number of times.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.draining.cancelled()
    }

    /// Whether draining has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Begins draining without waiting for it, for example from the admin endpoint.
    pub fn start(&self) {
        self.draining.cancel();
    }

    /// Wraps work that the drain waits for; it is dropped when the deadline passes.
    pub fn track<F>(&self, work: F) -> impl Future<Output = Option<F::Output>> + use<F>
    where
        F: Future,
    {
        let aborted = self.aborted.clone();
        self.tasks.track_future(async move { aborted.run_until_cancelled_owned(work).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_tracked_work() {
        let (drain, watch) = Drain::new();
        let work = watch.track({
            let watch = watch.clone();
            async move {
                watch.draining().await;
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        });
        let work = tokio::spawn(work);
        let started = tokio::time::Instant::now();
        assert_eq!(drain.drain(Duration::from_secs(10)).await, Drained::Clean);
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        assert_eq!(work.await.unwrap(), Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_aborts_what_is_left() {
        let (drain, watch) = Drain::new();
        let work = tokio::spawn(watch.track(std::future::pending::<()>()));
        assert_eq!(drain.drain(Duration::from_secs(1)).await, Drained::Aborted(1));
        assert_eq!(work.await.unwrap(), None);
    }
}
