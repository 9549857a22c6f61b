//! The two rules: failures in a row, and the success rate in a window.

use super::{
    tests::{Fixture, policy},
    *,
};

/// Five results at least, of which 80 % succeed, within 10 s.
fn rate() -> BreakerPolicy {
    BreakerPolicy { consecutive_failures: 0, success_rate_threshold: 0.8, ..policy() }
}

fn run(f: &mut Fixture, results: &[(Health, u64)]) -> Vec<Option<Reason>> {
    results.iter().map(|(health, now)| f.end(*health, *now).map(|e| e.reason)).collect()
}

/// The reason of the last result, where none before it opened the breaker.
fn last(f: &mut Fixture, results: &[(Health, u64)]) -> Option<Reason> {
    let told = run(f, results);
    let (last, before) = told.split_last().unwrap();
    assert!(before.iter().all(Option::is_none), "{told:?}");
    *last
}

use Health::{Bad, Good, Refusing};

#[test]
fn failures_in_a_row_open_it_and_a_success_breaks_the_row() {
    let mut f = Fixture::new(policy());
    for health in [Health::Bad, Health::Bad, Health::Good, Health::Bad, Health::Bad] {
        assert_eq!(f.end(health, 0), None);
    }
    let ejection = f.end(Health::Bad, 7).unwrap();
    let reason = Reason::ConsecutiveFailures;
    assert_eq!(ejection, Ejection { reason, penalty: Duration::from_secs(1), again: false });
    assert_eq!(f.state(8), State::Open);
    assert_eq!(f.breaker.reason(), Some(reason));
    assert_eq!(f.breaker.since(), Some(f.at(7)));
    assert_eq!(f.breaker.next_probe(), Some(f.at(1007)));
    assert_eq!(f.breaker.trips(), 1);
}

#[test]
fn with_a_limit_of_one_the_first_failure_opens_it() {
    let mut f = Fixture::new(BreakerPolicy { consecutive_failures: 1, ..policy() });
    assert_eq!(last(&mut f, &[(Good, 0), (Bad, 0)]), Some(Reason::ConsecutiveFailures));
}

#[test]
fn a_limit_of_zero_switches_the_rule_off() {
    let mut f = Fixture::new(BreakerPolicy { consecutive_failures: 0, ..policy() });
    assert_eq!(last(&mut f, &[(Bad, 0); 10_000]), None);
}

#[test]
fn a_row_does_not_age() {
    let mut f = Fixture::new(policy());
    let day = 86_400_000;
    let row = [(Bad, 0), (Bad, day), (Bad, 2 * day)];
    assert_eq!(last(&mut f, &row), Some(Reason::ConsecutiveFailures));
}

#[test]
fn a_refusal_neither_breaks_nor_lengthens_a_row() {
    let mut f = Fixture::new(policy());
    let row = [(Bad, 0), (Refusing, 0), (Bad, 0), (Refusing, 0), (Refusing, 0), (Bad, 0)];
    assert_eq!(last(&mut f, &row), Some(Reason::ConsecutiveFailures));
}

#[test]
fn a_request_given_up_neither_breaks_nor_lengthens_a_row() {
    let mut f = Fixture::new(policy());
    for _ in 0..2 {
        assert_eq!(f.end(Bad, 0), None);
        for _ in 0..10 {
            let ticket = f.breaker.ticket();
            f.breaker.release(ticket);
        }
    }
    assert!(f.end(Bad, 0).is_some());
}

#[test]
fn results_count_in_the_order_in_which_requests_end() {
    let mut f = Fixture::new(policy());
    let [a, b, c, d] = std::array::from_fn(|_| f.breaker.ticket());
    assert_eq!(f.record(d, Bad, 1), None);
    assert_eq!(f.record(a, Good, 2), None);
    assert_eq!(f.record(c, Bad, 3), None);
    assert_eq!(f.record(b, Bad, 4), None);
    assert_eq!(f.end(Bad, 5).unwrap().reason, Reason::ConsecutiveFailures);
}

#[test]
fn a_limit_that_is_lowered_holds_from_the_next_failure_on() {
    let mut f = Fixture::new(BreakerPolicy { consecutive_failures: 100, ..policy() });
    assert_eq!(last(&mut f, &[(Bad, 0); 50]), None);
    f.policy.consecutive_failures = 10;
    assert!(f.breaker.is_closed());
    assert_eq!(last(&mut f, &[(Refusing, 0), (Bad, 0)]), Some(Reason::ConsecutiveFailures));
}

#[test]
fn a_doubt_is_one_failure_that_no_success_followed() {
    let mut f = Fixture::new(policy());
    let mut doubts = |health| {
        f.end(health, 0);
        f.breaker.doubts()
    };
    assert_eq!(
        [Good, Bad, Refusing, Good, Refusing].map(&mut doubts),
        [false, true, true, false, false]
    );
    f.trip(0);
    assert!(!f.breaker.doubts(), "it is certain");
}

#[test]
fn a_low_success_rate_opens_it_once_there_are_enough_requests() {
    let mut f = Fixture::new(BreakerPolicy {
        consecutive_failures: 0,
        success_rate_threshold: 0.8,
        ..policy()
    });
    for _ in 0..4 {
        assert_eq!(f.end(Health::Refusing, 0), None);
    }
    assert_eq!(f.end(Health::Good, 0).unwrap().reason, Reason::SuccessRate);
    // The window starts empty after a probe.
    let probe = f.probe(1000).unwrap();
    assert_eq!(f.record(probe, Health::Good, 1000), None);
    for _ in 0..4 {
        assert_eq!(f.end(Health::Bad, 1001), None);
    }
    // What has left the window does not count.
    assert_eq!(f.end(Health::Bad, 20_000), None);
}

#[test]
fn a_cold_start_says_nothing_however_bad_it_is() {
    let mut f = Fixture::new(BreakerPolicy { success_rate_min_requests: 20, ..rate() });
    assert_eq!(last(&mut f, &[(Bad, 0); 19]), None);
    assert_eq!(f.end(Bad, 0).unwrap().reason, Reason::SuccessRate);
}

#[test]
fn a_minimum_of_no_requests_is_one() {
    let mut f = Fixture::new(BreakerPolicy { success_rate_min_requests: 0, ..rate() });
    assert_eq!(last(&mut f, &[(Bad, 0)]), Some(Reason::SuccessRate));
}

#[test]
fn a_rate_of_just_the_threshold_is_good_enough() {
    for (good, threshold) in [(8, 0.8), (7, 0.7), (9, 0.9), (3, 0.3)] {
        let policy = BreakerPolicy {
            success_rate_threshold: threshold,
            success_rate_min_requests: 10,
            ..rate()
        };
        let mut f = Fixture::new(policy.clone());
        assert_eq!(last(&mut f, &vec![(Good, 0); good]), None);
        assert_eq!(last(&mut f, &vec![(Bad, 0); 10 - good]), None, "{threshold}");
        assert_eq!(f.end(Bad, 0).unwrap().reason, Reason::SuccessRate, "{threshold}");
    }
}

#[test]
fn a_threshold_of_one_forgives_nothing_and_one_of_zero_everything() {
    let mut f = Fixture::new(BreakerPolicy { success_rate_threshold: 1.0, ..rate() });
    assert_eq!(last(&mut f, &[(Good, 0); 1000]), None);
    assert_eq!(f.end(Bad, 0).unwrap().reason, Reason::SuccessRate);
    let mut f = Fixture::new(BreakerPolicy { success_rate_threshold: 0.0, ..rate() });
    assert_eq!(last(&mut f, &[(Bad, 0); 1000]), None);
}

#[test]
fn refusals_and_failures_both_lower_the_rate() {
    let mut f = Fixture::new(rate());
    let results = [(Good, 0), (Good, 0), (Good, 0), (Bad, 0), (Refusing, 0)];
    assert_eq!(last(&mut f, &results), Some(Reason::SuccessRate));
}

#[test]
fn requests_given_up_do_not_count_in_the_rate() {
    let mut f = Fixture::new(rate());
    assert_eq!(last(&mut f, &[(Bad, 0); 4]), None);
    for _ in 0..100 {
        let ticket = f.breaker.ticket();
        f.breaker.release(ticket);
    }
    assert!(f.end(Bad, 0).is_some());
}

#[test]
fn an_idle_gap_ages_the_window_out() {
    let mut f = Fixture::new(rate());
    assert_eq!(last(&mut f, &[(Bad, 0); 4]), None);
    // Ten tenths later nothing of it is left.
    assert_eq!(last(&mut f, &[(Bad, 10_000); 4]), None);
    assert_eq!(f.end(Bad, 10_000).unwrap().reason, Reason::SuccessRate);
}

#[test]
fn the_window_slides_by_tenths() {
    let mut f = Fixture::new(rate());
    let (four, nine) = ([(Bad, 0); 4], [(Good, 9999)]);
    assert_eq!(last(&mut f, &four), None);
    // Just within: one in five.
    assert_eq!(last(&mut f, &nine), Some(Reason::SuccessRate));
    // A trickle of failures, one in each window, is never five.
    let mut f = Fixture::new(rate());
    for n in 0..100 {
        assert_eq!(f.end(Bad, n * 2500), None);
    }
}

#[test]
fn a_rate_above_the_threshold_never_opens_it_and_one_below_soon_does() {
    let mut f = Fixture::new(rate());
    // 85 % for ten minutes, failures evenly among them.
    for n in 0..6000 {
        let health = if n % 20 % 7 == 6 { Bad } else { Good };
        assert_eq!(f.end(health, n * 100), None, "{n}");
    }
    // 75 %: once the good past has left the window.
    let opened = (0..200u64).find(|n| {
        let health = if n % 4 == 3 { Bad } else { Good };
        f.end(health, 600_000 + n * 100).is_some()
    });
    assert!(opened.is_some_and(|n| n < 110), "{opened:?}");
}

#[test]
fn a_shorter_window_forgets_sooner() {
    for (gap, opens) in [(25, false), (20, true)] {
        let success_rate_window = Duration::from_millis(100);
        let mut f = Fixture::new(BreakerPolicy { success_rate_window, ..rate() });
        assert_eq!((0..40).any(|n| f.end(Bad, n * gap).is_some()), opens, "every {gap} ms");
    }
}

#[test]
fn a_window_whose_length_changes_begins_empty() {
    let mut f = Fixture::new(rate());
    assert_eq!(last(&mut f, &[(Bad, 0); 4]), None);
    f.policy.success_rate_window = Duration::from_secs(20);
    assert_eq!(last(&mut f, &[(Bad, 1); 4]), None);
    assert!(f.end(Bad, 1).is_some());
}

#[test]
fn the_window_begins_empty_after_a_trip_by_the_other_rule_too() {
    let mut f = Fixture::new(BreakerPolicy { consecutive_failures: 4, ..rate() });
    assert_eq!(f.trip(0).reason, Reason::ConsecutiveFailures);
    let probe = f.probe(1000).unwrap();
    assert_eq!(f.record(probe, Good, 1000), None);
    let mixed = [(Bad, 1001), (Bad, 1001), (Good, 1001), (Bad, 1001)];
    assert_eq!(last(&mut f, &mixed), None, "four of four are too few");
    assert_eq!(f.end(Bad, 1001).unwrap().reason, Reason::SuccessRate);
}

#[test]
fn late_answers_do_not_get_into_the_new_window() {
    let mut f = Fixture::new(rate());
    let old: Vec<_> = (0..20).map(|_| f.breaker.ticket()).collect();
    assert_eq!(last(&mut f, &[(Bad, 0); 5]), Some(Reason::SuccessRate));
    let probe = f.probe(1000).unwrap();
    assert_eq!(f.record(probe, Good, 1000), None);
    for ticket in old {
        assert_eq!(f.record(ticket, Bad, 1001), None);
    }
    assert_eq!(last(&mut f, &[(Bad, 1002); 4]), None);
}

#[test]
fn where_both_rules_hold_the_run_of_failures_is_the_reason() {
    let mut f = Fixture::new(BreakerPolicy {
        consecutive_failures: 5,
        success_rate_threshold: 0.8,
        ..policy()
    });
    assert_eq!(f.trip(0).reason, Reason::ConsecutiveFailures);
}

#[test]
fn both_rules_watch_at_the_same_time() {
    let both = BreakerPolicy { consecutive_failures: 3, ..rate() };
    let mut f = Fixture::new(both.clone());
    let flaky = [(Bad, 0), (Good, 0), (Bad, 0), (Good, 0), (Bad, 0)];
    assert_eq!(last(&mut f, &flaky), Some(Reason::SuccessRate));
    let mut f = Fixture::new(both);
    assert_eq!(last(&mut f, &[(Good, 0); 100]), None);
    let row = last(&mut f, &[(Bad, 0); 3]);
    assert_eq!(row, Some(Reason::ConsecutiveFailures), "97 % are good");
}

#[test]
fn one_result_that_breaks_both_rules_opens_it_once_and_for_one_reason() {
    let mut f = Fixture::new(BreakerPolicy { consecutive_failures: 5, ..rate() });
    let told: Vec<_> = run(&mut f, &[(Bad, 0); 20]).into_iter().flatten().collect();
    assert_eq!(told, [Reason::ConsecutiveFailures]);
    assert_eq!((f.breaker.trips(), f.breaker.reason()), (1, Some(Reason::ConsecutiveFailures)));
}

#[test]
fn reasons_have_words() {
    assert_eq!(Reason::ConsecutiveFailures.as_str(), "consecutive-failures");
    assert_eq!(Reason::SuccessRate.as_str(), "success-rate");
}
