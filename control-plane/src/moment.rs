//! One moment on both clocks, so that what was noted on the monotonic one can be told in wall time.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: Instant,
    pub(crate) wall: SystemTime,
}

impl Moment {
    /// Now, where the wall clock says `wall`.
    pub(crate) fn at(wall: SystemTime) -> Self {
        Self { now: Instant::now(), wall }
    }

    /// The moment itself in milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.unix_ms_of(self.now)
    }

    /// What another instant is in milliseconds since 1970, by the wall clock of this moment.
    pub(crate) fn unix_ms_of(&self, at: Instant) -> u64 {
        let since_epoch = self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ahead = at.saturating_duration_since(self.now);
        let unix = (since_epoch + ahead).saturating_sub(self.now.saturating_duration_since(at));
        millis(unix)
    }
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_told_by_the_wall_clock_of_now() {
        let now = Instant::now() + Duration::from_secs(60);
        let moment = Moment { now, wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1000) };
        assert_eq!(moment.unix_ms(), 1_000_000);
        assert_eq!(moment.unix_ms_of(now - Duration::from_millis(1500)), 998_500);
        assert_eq!(moment.unix_ms_of(now + Duration::from_millis(1500)), 1_001_500);
    }
}
