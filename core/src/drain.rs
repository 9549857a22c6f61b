//! The shutdown sequence: not ready → stop accepting, tell peers → deadline → abort.
//!
//! One [`Drain`] per process. Servers hold a [`Watch`] clone: it says when to begin draining and,
//! as long as it lives, keeps the process from ending before the deadline.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFuture},
    task::TaskTracker,
};

/// How often [`Drain::drain_once_quiet`] looks.
const LOOK: Duration = Duration::from_millis(50);

/// The side that starts the drain and waits for its end.
#[derive(Debug)]
pub struct Drain {
    watch: Watch,
}

/// The side that servers and connections hold.
#[derive(Debug, Clone)]
pub struct Watch {
    draining: CancellationToken,
    closing: CancellationToken,
    aborted: CancellationToken,
    tasks: TaskTracker,
    /// Accept loops; they live as long as nobody drains, and are no sign of life.
    accepting: TaskTracker,
    /// Work that was ever tracked; tells of what came and went between two looks.
    begun: Arc<AtomicU64>,
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
            closing: CancellationToken::new(),
            aborted: CancellationToken::new(),
            tasks: TaskTracker::new(),
            accepting: TaskTracker::new(),
            begun: Arc::default(),
        };
        (Self { watch: watch.clone() }, watch)
    }

    /// Begins draining, waits up to `grace` for all tracked work, then aborts what is left.
    pub async fn drain(self, grace: Duration) -> Drained {
        self.watch.start();
        let Watch { tasks, accepting, .. } = &self.watch;
        let ended = async {
            accepting.close();
            accepting.wait().await;
            tasks.close();
            tasks.wait().await;
        };
        if timeout(grace, ended).await.is_ok() {
            return Drained::Clean;
        }
        let left = tasks.len();
        self.watch.aborted.cancel();
        Drained::Aborted(left)
    }

    /// Begins draining, but goes on accepting until no tracked work began or was open for `quiet`; then as
    /// [`Drain::drain`]. `grace` is the bound of both together.
    ///
    /// For a server that others still need while they end themselves.
    pub async fn drain_once_quiet(self, quiet: Duration, grace: Duration) -> Drained {
        self.watch.draining.cancel();
        let deadline = Instant::now() + grace;
        let silence = async {
            let mut since = Instant::now();
            let mut begun = self.watch.begun.load(Ordering::Relaxed);
            while since.elapsed() < quiet {
                sleep(LOOK.min(quiet)).await;
                let now = self.watch.begun.load(Ordering::Relaxed);
                if now != begun || !self.watch.tasks.is_empty() {
                    (begun, since) = (now, Instant::now());
                }
            }
        };
        // Over time or not: what follows is the same.
        _ = timeout_at(deadline, silence).await;
        self.drain(deadline.saturating_duration_since(Instant::now())).await
    }
}

/// Runs a program until it ends by itself, or until SIGTERM or SIGINT and then the end of the drain,
/// which takes `grace` at most.
///
/// # Errors
/// The program's, or the system's where signals cannot be listened to.
pub async fn until_signal<E: From<io::Error>, F: Future<Output = Result<(), E>>>(
    grace: Duration,
    program: impl FnOnce(Watch) -> F,
) -> Result<(), E> {
    let (drain, watch) = Drain::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut running = std::pin::pin!(program(watch));
    tokio::select! {
        result = &mut running => return result,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    let (drained, result) = tokio::join!(drain.drain(grace), timeout(grace, &mut running));
    if let Drained::Aborted(left) = drained {
        tracing::warn!(left, "drain deadline passed");
    }
    result.unwrap_or(Ok(()))
}

impl Watch {
    /// Resolves when draining begins. May be awaited any number of times.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.draining.cancelled()
    }

    /// Resolves when nothing new is to be accepted: with the beginning of the drain, or, where that
    /// waits for quiet, after it. May be awaited any number of times.
    pub fn closing(&self) -> WaitForCancellationFuture<'_> {
        self.closing.cancelled()
    }

    /// Whether draining has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Begins draining without waiting for it, for example from the admin endpoint.
    pub fn start(&self) {
        self.draining.cancel();
        self.closing.cancel();
    }

    /// Wraps an accept loop that ends once nothing new is to be accepted. The drain waits for that, so
    /// that what the loop still takes in is served.
    pub fn accepting<F: Future>(&self, accept: F) -> impl Future<Output = F::Output> + use<F> {
        self.accepting.track_future(accept)
    }

    /// Wraps work that the drain waits for; it is dropped when the deadline passes.
    pub fn track<F>(&self, work: F) -> impl Future<Output = Option<F::Output>> + use<F>
    where
        F: Future,
    {
        self.begun.fetch_add(1, Ordering::Relaxed);
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
    async fn what_an_accept_loop_takes_in_at_its_end_is_waited_for() {
        let (drain, watch) = Drain::new();
        let accept = watch.accepting({
            let watch = watch.clone();
            async move {
                watch.closing().await;
                sleep(Duration::from_secs(1)).await;
                tokio::spawn(watch.track(sleep(Duration::from_secs(3))));
            }
        });
        let accept = tokio::spawn(accept);
        let begun = Instant::now();
        let quiet = Duration::from_secs(5);
        assert_eq!(drain.drain_once_quiet(quiet, quiet * 6).await, Drained::Clean);
        assert_eq!(begun.elapsed().as_secs(), 5 + 1 + 3);
        accept.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_aborts_what_is_left() {
        let (drain, watch) = Drain::new();
        let work = tokio::spawn(watch.track(std::future::pending::<()>()));
        assert_eq!(drain.drain(Duration::from_secs(1)).await, Drained::Aborted(1));
        assert_eq!(work.await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_comes_while_others_end_is_still_accepted() {
        let (drain, watch) = Drain::new();
        let begun = Instant::now();
        let late = tokio::spawn({
            let watch = watch.clone();
            async move {
                sleep(Duration::from_secs(3)).await;
                assert!(watch.is_draining() && !watch.closing.is_cancelled());
                watch.track(sleep(Duration::from_secs(4))).await
            }
        });
        let quiet = Duration::from_secs(5);
        let drained = drain.drain_once_quiet(quiet, Duration::from_secs(30)).await;
        assert_eq!(drained, Drained::Clean);
        assert_eq!(late.await.unwrap(), Some(()));
        let took = begun.elapsed();
        assert!((12..13).contains(&took.as_secs()), "{took:?}");
        assert!(watch.closing.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn work_too_short_to_be_seen_is_no_silence() {
        let (drain, watch) = Drain::new();
        let begun = Instant::now();
        let short = tokio::spawn(async move {
            sleep(Duration::from_millis(4010)).await;
            watch.track(std::future::ready(())).await
        });
        let quiet = Duration::from_secs(5);
        assert_eq!(drain.drain_once_quiet(quiet, quiet * 6).await, Drained::Clean);
        assert_eq!(short.await.unwrap(), Some(()));
        assert!(begun.elapsed() > Duration::from_secs(9), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_bounds_the_wait_for_quiet() {
        let (drain, watch) = Drain::new();
        let work = tokio::spawn(watch.track(std::future::pending::<()>()));
        let begun = Instant::now();
        let grace = Duration::from_secs(7);
        let drained = drain.drain_once_quiet(Duration::from_secs(5), grace).await;
        assert_eq!((drained, begun.elapsed()), (Drained::Aborted(1), grace));
        assert_eq!(work.await.unwrap(), None);
    }
}
