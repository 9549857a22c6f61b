//! What moments of the process's own clock are to the world.

use std::time::{Duration, Instant, UNIX_EPOCH};

/// One moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Wall {
    now: Instant,
    unix: Duration,
}

impl Wall {
    /// Now.
    #[must_use]
    pub fn clock() -> Self {
        Self::at(tokio::time::Instant::now().into_std(), wall_clock())
    }

    /// A moment that is so long after 1970.
    #[must_use]
    pub fn at(now: Instant, unix: Duration) -> Self {
        Self { now, unix }
    }

    /// The moment by the process's clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// How long after 1970 another moment is.
    #[must_use]
    pub fn unix(&self, moment: Instant) -> Duration {
        match moment.checked_duration_since(self.now) {
            Some(later) => self.unix + later,
            None => self.unix.saturating_sub(self.now.saturating_duration_since(moment)),
        }
    }

    /// The same in milliseconds.
    #[must_use]
    pub fn unix_ms(&self, moment: Instant) -> u64 {
        u64::try_from(self.unix(moment).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Since 1970, by the system's clock; one that is set before that says 1970.
#[must_use]
pub fn wall_clock() -> Duration {
    UNIX_EPOCH.elapsed().unwrap_or_default()
}
