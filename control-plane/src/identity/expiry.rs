//! Warns before the issuer runs out.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How near the end is. Ordered: a later level is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// At most 30 days are left.
    Month,
    /// At most 7 days are left.
    Week,
    /// At most a day is left.
    Day,
    /// It has run out.
    Expired,
}

/// A level that has been reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warning {
    /// How near the end is.
    pub level: Level,
    /// Time that is left; zero where it has run out.
    pub left: Duration,
}

/// The level that has been reached since the last warning about the same certificate; each is told
/// once, and one that was slept through is not told later.
#[must_use]
pub fn due(now: SystemTime, not_after: SystemTime, last: Option<Level>) -> Option<Warning> {
    let left = not_after.duration_since(now).unwrap_or_default();
    let level = if left.is_zero() {
        Level::Expired
    } else if left <= DAY {
        Level::Day
    } else if left <= 7 * DAY {
        Level::Week
    } else if left <= 30 * DAY {
        Level::Month
    } else {
        return None;
    };
    (last < Some(level)).then_some(Warning { level, left })
}

impl Level {
    /// A word for labels and names of objects.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Month => "30-days",
            Self::Week => "7-days",
            Self::Day => "1-day",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, hours) = (self.left.as_secs() / 86400, self.left.as_secs() % 86400 / 3600);
        match self.level {
            Level::Expired => f.write_str(
                "the issuer's certificate has expired: no certificates are given out; put a new \
                 issuer in its place",
            ),
            Level::Day => write!(
                f,
                "the issuer's certificate expires in {hours} h: no workload's certificate outlives \
                 it; renew it now"
            ),
            Level::Month | Level::Week => {
                write!(f, "the issuer's certificate expires in {days} days; renew it")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(left: Duration, last: Option<Level>) -> Option<Level> {
        let now = SystemTime::UNIX_EPOCH + 1000 * DAY;
        due(now, now + left, last).map(|warning| warning.level)
    }

    #[test]
    fn each_level_is_told_once_when_it_is_reached() {
        let second = Duration::from_secs(1);
        assert_eq!(level(30 * DAY + second, None), None);
        assert_eq!(level(30 * DAY, None), Some(Level::Month));
        assert_eq!(level(8 * DAY, Some(Level::Month)), None);
        assert_eq!(level(7 * DAY, Some(Level::Month)), Some(Level::Week));
        assert_eq!(level(DAY, Some(Level::Week)), Some(Level::Day));
        assert_eq!(level(second, Some(Level::Day)), None);
        assert_eq!(level(Duration::ZERO, Some(Level::Day)), Some(Level::Expired));
        assert_eq!(level(Duration::ZERO, Some(Level::Expired)), None);
    }

    #[test]
    fn a_level_that_was_slept_through_is_not_told() {
        assert_eq!(level(DAY / 2, None), Some(Level::Day));
        assert_eq!(level(DAY / 2, Some(Level::Day)), None);
    }

    #[test]
    fn a_moment_past_the_end_has_nothing_left() {
        let now = SystemTime::UNIX_EPOCH + 10 * DAY;
        let warning = due(now, now - DAY, None).unwrap();
        assert_eq!((warning.level, warning.left), (Level::Expired, Duration::ZERO));
    }
}
