//! Warns before the issuer runs out.

use std::time::SystemTime;

use crate::leader::events::Expiry;

/// The level that has been reached since the last warning about the same issuer; each is told once,
/// and one that was slept through is not told later.
#[must_use]
pub fn due(now: SystemTime, not_after: SystemTime, last: Option<Expiry>) -> Option<Expiry> {
    Expiry::at(now, not_after).filter(|level| last < Some(*level))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn level(left: Duration, last: Option<Expiry>) -> Option<Expiry> {
        let now = SystemTime::UNIX_EPOCH + 1000 * DAY;
        due(now, now + left, last)
    }

    #[test]
    fn each_level_is_told_once_when_it_is_reached() {
        let second = Duration::from_secs(1);
        assert_eq!(level(30 * DAY + second, None), None);
        assert_eq!(level(30 * DAY, None), Some(Expiry::Month));
        assert_eq!(level(8 * DAY, Some(Expiry::Month)), None);
        assert_eq!(level(7 * DAY, Some(Expiry::Month)), Some(Expiry::Week));
        assert_eq!(level(DAY, Some(Expiry::Week)), Some(Expiry::Day));
        assert_eq!(level(second, Some(Expiry::Day)), None);
        assert_eq!(level(Duration::ZERO, Some(Expiry::Day)), Some(Expiry::Over));
        assert_eq!(level(Duration::ZERO, Some(Expiry::Over)), None);
    }

    #[test]
    fn a_level_that_was_slept_through_is_not_told() {
        assert_eq!(level(DAY / 2, None), Some(Expiry::Day));
        assert_eq!(level(DAY / 2, Some(Expiry::Day)), None);
    }
}
