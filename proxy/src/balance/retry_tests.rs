use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use proptest::prelude::*;

use super::*;
use crate::balance::sim_tests::epoch;

const UNAVAILABLE: u32 = 14;

fn policy() -> RetryPolicy {
    RetryPolicy { http: vec![500..=599], grpc: vec![UNAVAILABLE], limit: 2, ..Default::default() }
}

fn answered(status: u16) -> Attempt {
    let answer = Answer::Http(StatusCode::from_u16(status).unwrap());
    Attempt { sent: Sent::Yes, answer, retries: 0, resends: 0, endpoints: 3 }
}

fn unsent(resends: u32, endpoints: usize) -> Attempt {
    Attempt { sent: Sent::No, resends, endpoints, ..answered(502) }
}

fn verdict(policy: Option<&RetryPolicy>, attempt: Attempt, method: &Method) -> Verdict {
    let mut rng = fastrand::Rng::with_seed(1);
    decide(policy, attempt, method, None, true, epoch(), &mut rng)
}

fn retries(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Retry { .. })
}

#[test]
fn what_never_reached_an_application_is_sent_again_unasked_and_at_once() {
    let at_once = Verdict::Retry { backoff: Duration::ZERO };
    for method in [Method::GET, Method::POST] {
        assert_eq!(verdict(None, unsent(0, 3), &method), at_once);
        // The policy's limit is for other failures.
        let spent = Attempt { retries: 2, ..unsent(1, 3) };
        assert_eq!(verdict(Some(&policy()), spent, &method), at_once);
    }
}

#[test]
fn resends_are_bounded_by_three_and_by_the_number_of_endpoints() {
    for (endpoints, allowed) in [(1, 1), (2, 2), (3, 3), (100, 3)] {
        let count =
            (0..10).take_while(|n| retries(verdict(None, unsent(*n, endpoints), &Method::GET)));
        assert_eq!(count.count(), allowed);
    }
}

#[test]
fn what_may_have_had_an_effect_is_not_sent_again_unasked() {
    for sent in [Sent::Maybe, Sent::Yes] {
        let attempt = Attempt { sent, ..answered(503) };
        assert_eq!(verdict(None, attempt, &Method::GET), Verdict::Stop(StopReason::NotRetryable));
    }
}

#[test]
fn statuses_and_methods_are_retried_as_the_policy_names_them() {
    let idempotent = policy();
    let all = RetryPolicy { methods: RetryMethods::All, ..policy() };
    let post = RetryPolicy { methods: RetryMethods::Only(vec![Method::POST]), ..policy() };
    for (policy, status, method, expected) in [
        (&idempotent, 503, Method::GET, true),
        (&idempotent, 503, Method::DELETE, true),
        (&idempotent, 503, Method::POST, false),
        (&idempotent, 503, Method::PATCH, false),
        (&idempotent, 404, Method::GET, false),
        (&all, 500, Method::POST, true),
        (&post, 500, Method::POST, true),
        (&post, 500, Method::GET, false),
    ] {
        let verdict = verdict(Some(policy), answered(status), &method);
        assert_eq!(retries(verdict), expected, "{status} {method}");
    }
}

#[test]
fn a_named_grpc_code_is_retried_though_the_method_is_post() {
    let answer = |code| Attempt { answer: Answer::Grpc(code), ..answered(200) };
    assert!(retries(verdict(Some(&policy()), answer(UNAVAILABLE), &Method::POST)));
    let other = verdict(Some(&policy()), answer(13), &Method::POST);
    assert_eq!(other, Verdict::Stop(StopReason::NotRetryable));
}

#[test]
fn each_reason_to_stop_has_its_name() {
    let (now, mut rng) = (epoch(), fastrand::Rng::with_seed(1));
    let none = BudgetPolicy { ratio: 0.0, min_per_second: 0.0, window: Duration::from_secs(10) };
    let empty = Budget::new(none, now);
    let mut stop = |attempt, budget, replayable| {
        decide(Some(&policy()), attempt, &Method::GET, budget, replayable, now, &mut rng)
    };
    let spent = Attempt { retries: 2, ..answered(503) };
    assert_eq!(stop(spent, None, true), Verdict::Stop(StopReason::Limit));
    assert_eq!(stop(answered(503), None, false), Verdict::Stop(StopReason::NotReplayable));
    assert_eq!(stop(answered(503), Some(&empty), true), Verdict::Stop(StopReason::Budget));
    assert_eq!(stop(unsent(0, 3), Some(&empty), false), Verdict::Stop(StopReason::NotReplayable));
    assert!(retries(stop(unsent(0, 3), Some(&empty), true)));
}

#[test]
fn only_a_verdict_to_retry_takes_from_the_budget() {
    let (now, mut rng) = (epoch(), fastrand::Rng::with_seed(1));
    let one = BudgetPolicy { ratio: 0.0, min_per_second: 0.1, window: Duration::from_secs(10) };
    let budget = Budget::new(one, now);
    for attempt in [Attempt { retries: 2, ..answered(503) }, answered(404), unsent(0, 3)] {
        let _ = decide(Some(&policy()), attempt, &Method::GET, Some(&budget), true, now, &mut rng);
    }
    assert!(budget.withdraw(now));
    assert!(!budget.withdraw(now));
}

#[test]
fn pauses_double_up_to_a_bound_and_are_spread() {
    let mut rng = fastrand::Rng::with_seed(3);
    for (retries, longest) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (40, 250)] {
        let longest = Duration::from_millis(longest);
        let drawn: Vec<_> = (0..200).map(|_| backoff(retries, &mut rng)).collect();
        assert!(drawn.iter().all(|pause| (longest / 2..=longest).contains(pause)));
        assert!(drawn.iter().any(|pause| *pause < longest.mul_f64(0.6)));
        assert!(drawn.iter().any(|pause| *pause > longest.mul_f64(0.9)));
    }
}

#[test]
fn a_budget_holds_its_share_of_the_requests_and_its_minimum() {
    let now = epoch();
    let budget = Budget::new(BudgetPolicy { min_per_second: 1.0, ..Default::default() }, now);
    for _ in 0..100 {
        budget.deposit(now);
    }
    let granted =
        |now| std::iter::repeat_with(|| budget.withdraw(now)).take_while(|got| *got).count();
    assert_eq!(granted(now), 100 / 5 + 10);
    // Asking in vain costs nothing; a window later the minimum is back, the share is gone.
    assert_eq!(granted(now + Duration::from_secs(9)), 0);
    assert_eq!(granted(now + Duration::from_secs(10)), 10);
}

#[test]
fn threads_that_race_do_not_overdraw() {
    let now = epoch();
    let budget = Budget::new(BudgetPolicy::default(), now);
    let granted = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    granted.fetch_add(usize::from(budget.withdraw(now)), Ordering::SeqCst);
                }
            });
        }
    });
    // Two that race for the last one may both go without; it is still there afterwards.
    let left = std::iter::repeat_with(|| budget.withdraw(now)).take_while(|got| *got).count();
    assert_eq!(granted.load(Ordering::SeqCst) + left, 100);
}

proptest! {
    #[test]
    fn a_budget_never_grants_more_than_its_share_its_rate_and_its_start(
        steps in prop::collection::vec((0u64..3000, 0u32..20, 0u32..20), 1..100),
        ratio in 0.0f64..1.0,
        min_per_second in 0.0f64..20.0,
    ) {
        let start = epoch();
        let window = Duration::from_secs(10);
        let budget = Budget::new(BudgetPolicy { ratio, min_per_second, window }, start);
        let (mut elapsed, mut requests, mut granted) = (Duration::ZERO, 0u32, 0u32);
        for (gap, deposits, withdrawals) in steps {
            elapsed += Duration::from_millis(gap);
            for _ in 0..deposits {
                budget.deposit(start + elapsed);
            }
            requests += deposits;
            for _ in 0..withdrawals {
                granted += u32::from(budget.withdraw(start + elapsed));
            }
            // A tenth of the window is how finely time is counted.
            let seconds = (elapsed + window + window / 10).as_secs_f64();
            let bound = ratio * f64::from(requests) + min_per_second * seconds;
            prop_assert!(f64::from(granted) <= bound + 1e-6, "{granted} > {bound}");
        }
    }
}
