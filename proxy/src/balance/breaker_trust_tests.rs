//! Probes that are believed before they are over.

use super::{
    tests::{Fixture, policy},
    *,
};

impl Fixture {
    /// A breaker that has opened at 0 and closed for a probe at 1000.
    fn trusting() -> (Self, Trust) {
        let mut f = Self::new(policy());
        f.trip(0);
        let probe = f.probe(1000).unwrap();
        let trust = f.breaker.trust(&probe, Some(&f.policy)).unwrap();
        assert_eq!(f.state(1000), State::Closed);
        (f, trust)
    }

    fn disappoint(&mut self, trust: &Trust, millis: u64) -> Option<Ejection> {
        let now = self.at(millis);
        self.breaker.disappoint(trust, now, Some(&self.policy), &mut self.rng)
    }
}

#[test]
fn one_that_fails_after_all_opens_it_as_a_failed_probe_would_have() {
    let (mut f, trust) = Fixture::trusting();
    let ejection = f.disappoint(&trust, 1100).unwrap();
    assert_eq!((ejection.penalty, ejection.again), (Duration::from_secs(2), true));
    assert_eq!(f.breaker.since(), Some(f.at(0)), "it was not well in between");
    assert_eq!(f.breaker.next_probe(), Some(f.at(3100)));
    assert_eq!(f.disappoint(&trust, 1200), None, "once");
}

#[test]
fn failures_of_others_meanwhile_make_no_difference() {
    let (mut f, trust) = Fixture::trusting();
    assert_eq!(f.end(Health::Bad, 1001), None);
    assert!(f.disappoint(&trust, 1002).is_some_and(|ejection| ejection.again));
}

#[test]
fn once_others_have_succeeded_it_is_a_failure_like_any_other() {
    let (mut f, trust) = Fixture::trusting();
    assert_eq!(f.end(Health::Good, 1001), None);
    assert_eq!(f.disappoint(&trust, 1002), None);
    assert_eq!(f.end(Health::Bad, 1003), None, "that was one, this is two");
    assert!(f.end(Health::Bad, 1004).is_some_and(|ejection| !ejection.again));
}

#[test]
fn a_breaker_that_tripped_meanwhile_is_not_moved() {
    let (mut f, trust) = Fixture::trusting();
    f.trip(1001);
    let next = f.breaker.next_probe();
    assert_eq!(f.disappoint(&trust, 1002), None);
    assert_eq!(f.breaker.next_probe(), next);
    let probe = f.probe(9000).unwrap();
    f.record(probe, Health::Good, 9000);
    assert_eq!(f.disappoint(&trust, 9001), None);
    assert!(!f.breaker.doubts(), "nor after that");
}

#[test]
fn only_a_probe_that_decides_is_believed() {
    let mut f = Fixture::new(policy());
    let ordinary = f.breaker.ticket();
    assert!(f.breaker.trust(&ordinary, Some(&f.policy)).is_none());
    f.trip(0);
    let probe = f.probe(1000).unwrap();
    assert!(f.breaker.trust(&ordinary, Some(&f.policy)).is_none());
    assert!(f.breaker.trust(&probe, None).is_none());
    f.breaker.release(probe);
}
