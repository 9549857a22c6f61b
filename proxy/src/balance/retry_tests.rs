use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::balance::testing::epoch;

const UNAVAILABLE: u32 = 14;
const SECOND: Duration = Duration::from_secs(1);

fn policy() -> RetryPolicy {
    RetryPolicy { http: vec![500..=599], grpc: vec![UNAVAILABLE], limit: 2, ..Default::default() }
}

fn answered(status: u16) -> Attempt {
    let answer = Answer::Http(StatusCode::from_u16(status).unwrap());
    let pushback = Pushback::None;
    Attempt { sent: Sent::Yes, answer, pushback, retries: 0, backoffs: 0, resends: 0, endpoints: 3 }
}

fn unsent(resends: u32, endpoints: usize) -> Attempt {
    Attempt { sent: Sent::No, resends, endpoints, ..answered(502) }
}

fn verdict(policy: Option<&RetryPolicy>, attempt: Attempt, method: &Method) -> Verdict {
    let mut rng = fastrand::Rng::with_seed(1);
    decide(policy, request(method), attempt, None, epoch(), &mut rng)
}

fn request(method: &Method) -> Request<'_> {
    Request { method, keyed: false, replayable: true }
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
fn attempts_without_an_answer_are_retried_where_the_policy_says_so() {
    let wanted = RetryPolicy { http: vec![500..=500], unanswered: true, ..policy() };
    let broken = Attempt { sent: Sent::Maybe, ..answered(502) };
    assert!(retries(verdict(Some(&wanted), broken, &Method::GET)));
    assert!(!retries(verdict(Some(&wanted), broken, &Method::POST)), "it may have run");
    assert!(!retries(verdict(Some(&wanted), answered(502), &Method::GET)), "that was an answer");
    let without = RetryPolicy { unanswered: false, ..wanted };
    assert!(!retries(verdict(Some(&without), broken, &Method::GET)));
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
        let request = Request { replayable, ..request(&Method::GET) };
        decide(Some(&policy()), request, attempt, budget, now, &mut rng)
    };
    let spent = Attempt { retries: 2, ..answered(503) };
    let refused = Attempt { pushback: Pushback::Never, ..spent };
    assert_eq!(stop(refused, Some(&empty), true), Verdict::Stop(StopReason::Pushback));
    assert_eq!(stop(spent, Some(&empty), true), Verdict::Stop(StopReason::Limit));
    let bodiless = stop(refused, Some(&empty), false);
    assert_eq!(bodiless, Verdict::Stop(StopReason::NotReplayable));
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
    let refused = Attempt { pushback: Pushback::Never, ..answered(503) };
    for attempt in [Attempt { retries: 2, ..answered(503) }, answered(404), unsent(0, 3), refused] {
        let get = request(&Method::GET);
        let _ = decide(Some(&policy()), get, attempt, Some(&budget), now, &mut rng);
    }
    assert!(budget.withdraw(now));
    assert!(!budget.withdraw(now));
}

/// Many pauses before one retry.
fn pauses(policy: &RetryPolicy, attempt: Attempt) -> Vec<Duration> {
    let mut rng = fastrand::Rng::with_seed(3);
    let limitless = RetryPolicy { limit: u32::MAX, ..policy.clone() };
    let mut pause = || {
        let get = request(&Method::GET);
        match decide(Some(&limitless), get, attempt, None, epoch(), &mut rng) {
            Verdict::Retry { backoff } => backoff,
            Verdict::Stop(why) => panic!("{why:?}"),
        }
    };
    std::iter::repeat_with(&mut pause).take(200).collect()
}

#[test]
fn pauses_double_up_to_a_bound_and_are_spread() {
    for (retries, longest) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (40, 250)] {
        let longest = Duration::from_millis(longest);
        let drawn = pauses(&policy(), Attempt { retries, backoffs: retries, ..answered(503) });
        assert!(drawn.iter().all(|pause| (longest / 2..=longest).contains(pause)));
        assert!(drawn.iter().any(|pause| *pause < longest.mul_f64(0.6)));
        assert!(drawn.iter().any(|pause| *pause > longest.mul_f64(0.9)));
    }
}

#[test]
fn the_first_and_the_longest_pause_are_the_policys() {
    let policy = RetryPolicy { backoff: SECOND, max_backoff: 3 * SECOND, ..policy() };
    for (backoffs, longest) in [(0, 1), (1, 2), (2, 3), (9, 3)] {
        let drawn = pauses(&policy, Attempt { retries: 9, backoffs, ..answered(503) });
        assert!(
            drawn.iter().all(|pause| (longest * SECOND / 2..=longest * SECOND).contains(pause))
        );
    }
    let none = RetryPolicy { backoff: Duration::ZERO, max_backoff: Duration::ZERO, ..policy };
    assert!(pauses(&none, answered(503)).iter().all(Duration::is_zero));
}

#[test]
fn grpc_pushback_takes_the_place_of_the_pause() {
    let ms = Duration::from_millis;
    let answer = Answer::Grpc(UNAVAILABLE);
    for asked in [ms(0), ms(1), ms(1700), 5 * SECOND] {
        let attempt = Attempt { answer, pushback: Pushback::Exactly(asked), ..answered(200) };
        assert!(pauses(&policy(), attempt).iter().all(|pause| *pause == asked));
    }
    for pushback in [Pushback::Never, Pushback::Exactly(5 * SECOND + ms(1))] {
        let attempt = Attempt { answer, pushback, ..answered(200) };
        let verdict = verdict(Some(&policy()), attempt, &Method::POST);
        assert_eq!(verdict, Verdict::Stop(StopReason::Pushback));
    }
}

#[test]
fn pauses_double_anew_after_a_pushback() {
    let again = Attempt { retries: 5, backoffs: 0, ..answered(503) };
    let longest = Duration::from_millis(25);
    assert!(pauses(&policy(), again).iter().all(|pause| *pause <= longest));
}

#[test]
fn retry_after_is_waited_for_and_those_who_wait_come_back_apart() {
    let at_least =
        |seconds| Attempt { pushback: Pushback::AtLeast(seconds * SECOND), ..answered(503) };
    for seconds in [0, 1, 5] {
        let mut drawn = pauses(&policy(), at_least(seconds));
        let asked = seconds * SECOND;
        let range = asked..=asked + Duration::from_millis(25);
        assert!(drawn.iter().all(|pause| range.contains(pause)));
        drawn.dedup();
        assert!(drawn.len() > 100, "spread");
    }
    let long = verdict(Some(&policy()), at_least(6), &Method::GET);
    assert_eq!(long, Verdict::Stop(StopReason::Pushback));
}

#[test]
fn a_pushback_permits_nothing_that_the_policy_does_not() {
    let asked = |attempt| Attempt { pushback: Pushback::Exactly(SECOND), ..attempt };
    let spent = asked(Attempt { retries: 2, ..answered(503) });
    let policy = policy();
    let verdict = |policy, attempt| verdict(policy, attempt, &Method::GET);
    assert_eq!(verdict(Some(&policy), spent), Verdict::Stop(StopReason::Limit));
    let unnamed = Verdict::Stop(StopReason::NotRetryable);
    assert_eq!(verdict(Some(&policy), asked(answered(404))), unnamed);
    assert_eq!(verdict(None, asked(answered(503))), unnamed);
    // What never reached an application has no say.
    let unsent = Attempt { pushback: Pushback::Never, ..unsent(0, 3) };
    assert_eq!(verdict(None, unsent), Verdict::Retry { backoff: Duration::ZERO });
}

#[test]
fn pushback_is_read_as_grpc_writes_it() {
    let ms = |n| Pushback::Exactly(Duration::from_millis(n));
    let read = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("grpc-retry-pushback-ms", HeaderValue::from_static(value));
        }
        // Not its business.
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("3"));
        Pushback::read(Answer::Grpc(UNAVAILABLE), &headers)
    };
    assert_eq!(read(&[]), Pushback::None);
    for (value, expected) in [
        ("0", ms(0)),
        ("1700", ms(1700)),
        ("2147483647", ms(2_147_483_647)),
        ("2147483648", Pushback::Never),
        ("99999999999999999999999", Pushback::Never),
        ("-1", Pushback::Never),
        ("+1", Pushback::Never),
        ("1.5", Pushback::Never),
        ("1 s", Pushback::Never),
        ("", Pushback::Never),
        ("\t", Pushback::Never),
    ] {
        assert_eq!(read(&[value]), expected, "{value:?}");
    }
    assert_eq!(read(&["5", "5"]), Pushback::Never);
}

#[test]
fn retry_after_is_read_where_it_has_a_meaning() {
    let read = |status, value| {
        let status = StatusCode::from_u16(status).unwrap();
        let value = HeaderValue::from_static(value);
        let pushback = ("grpc-retry-pushback-ms", HeaderValue::from_static("7"));
        let mut headers = HeaderMap::from_iter([(header::RETRY_AFTER, value)]);
        headers.insert(pushback.0, pushback.1);
        Pushback::read(Answer::Http(status), &headers)
    };
    for status in [429, 503] {
        assert_eq!(read(status, "3"), Pushback::AtLeast(3 * SECOND));
        for nothing in ["", "soon", "-1", "+1", "1.5", "Fri, 31 Dec 2027 23:59:59 GMT"] {
            assert_eq!(read(status, nothing), Pushback::None, "{nothing:?}");
        }
        let for_ever = Pushback::AtLeast(Duration::from_secs(u64::MAX));
        assert_eq!(read(status, "99999999999999999999999"), for_ever);
    }
    for status in [200, 500, 502] {
        assert_eq!(read(status, "3"), Pushback::None);
    }
    assert_eq!(
        Pushback::read(Answer::Http(StatusCode::BAD_GATEWAY), &HeaderMap::new()),
        Pushback::None
    );
}

#[test]
fn an_idempotency_key_makes_a_request_idempotent_and_nothing_more() {
    let keyed = |policy: &RetryPolicy, method: Method, status| {
        let request = Request { keyed: true, ..request(&method) };
        let mut rng = fastrand::Rng::with_seed(1);
        decide(Some(policy), request, answered(status), None, epoch(), &mut rng)
    };
    assert!(retries(keyed(&policy(), Method::POST, 503)));
    assert!(retries(keyed(&policy(), Method::PATCH, 503)));
    assert!(!retries(keyed(&policy(), Method::POST, 404)));
    // Who lists methods means the list.
    let put = RetryPolicy { methods: RetryMethods::Only(vec![Method::PUT]), ..policy() };
    assert!(!retries(keyed(&put, Method::POST, 503)));
}

#[test]
fn reasons_to_stop_have_words() {
    for (reason, word) in [
        (StopReason::NotRetryable, "not-retryable"),
        (StopReason::NotReplayable, "not-replayable"),
        (StopReason::Pushback, "pushback"),
        (StopReason::Limit, "limit"),
        (StopReason::Budget, "budget"),
    ] {
        assert_eq!(reason.as_str(), word);
    }
}

/// All that a budget grants at one moment.
fn all(budget: &Budget, now: Instant) -> usize {
    std::iter::repeat_with(|| budget.withdraw(now)).take_while(|got| *got).count()
}

/// What it grants in each of these seconds after `deposits` requests in each.
fn by_second(budget: &Budget, seconds: Range<u32>, deposits: usize) -> Vec<usize> {
    let grants = seconds.map(|n| {
        let now = epoch() + n * SECOND;
        (0..deposits).for_each(|_| budget.deposit(now));
        all(budget, now)
    });
    grants.collect()
}

#[test]
fn a_budget_holds_its_share_of_the_requests_and_then_its_minimum() {
    let policy = BudgetPolicy { min_per_second: 1.0, ..Default::default() };
    let budget = Budget::new(policy, epoch());
    assert_eq!(by_second(&budget, 0..1, 100), [20]);
    // Asking in vain costs nothing; a window later the share is gone and the minimum is what is left.
    assert_eq!(by_second(&budget, 1..10, 0), [0; 9]);
    assert_eq!(by_second(&budget, 10..20, 0), [1; 10]);
}

#[test]
fn the_larger_of_share_and_minimum_holds_and_not_their_sum() {
    for (min_per_second, in_a_window) in [(2.0, 100), (10.0, 100), (20.0, 200)] {
        let policy = BudgetPolicy { min_per_second, ..Default::default() };
        let budget = Budget::new(policy, epoch());
        by_second(&budget, 0..10, 50);
        let granted: usize = by_second(&budget, 10..20, 50).iter().sum();
        assert_eq!(granted, in_a_window, "{min_per_second}");
    }
}

#[test]
fn what_was_saved_up_is_not_spent_at_once() {
    let policy = BudgetPolicy { min_per_second: 0.0, ..Default::default() };
    let budget = Budget::new(policy, epoch());
    for n in 0..10 {
        (0..100).for_each(|_| budget.deposit(epoch() + n * SECOND));
    }
    // Two hundred in all, and twice the share of a second in each.
    assert_eq!(by_second(&budget, 9..10, 0), [40]);
    assert_eq!(by_second(&budget, 10..19, 100), [40, 40, 40, 40, 0, 0, 0, 0, 0]);
}

#[test]
fn nothing_is_granted_where_nothing_came_and_one_where_that_is_the_share() {
    let policy = BudgetPolicy { min_per_second: 0.0, ..Default::default() };
    let budget = Budget::new(policy, epoch());
    assert_eq!(by_second(&budget, 0..1, 0), [0]);
    assert_eq!(by_second(&budget, 0..1, 5), [1]);
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
    assert_eq!(granted.load(Ordering::SeqCst) + left, 10);
}

proptest! {
    #[test]
    fn a_budget_never_grants_more_than_its_share_its_rate_and_its_start(
        steps in prop::collection::vec((0u64..3000, 0u32..20, 0u32..20), 1..100),
        ratio in 0.0f64..1.0,
        min_per_second in 0.0f64..20.0,
        window in 1u64..60,
    ) {
        let start = epoch();
        let window = Duration::from_secs(window);
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
