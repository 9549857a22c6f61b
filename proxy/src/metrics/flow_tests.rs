use std::time::{Duration, Instant};

use http::StatusCode;

use super::*;
use crate::metrics::past::Ticks;

const MS: Duration = Duration::from_millis(1);

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn answered(status: u16) -> Finished {
    let status = StatusCode::from_u16(status).unwrap();
    Finished { status, rpc: Rpc::No, end: End::Whole, trace: None }
}

fn call(status: u16, rpc: Rpc, end: End) -> Finished {
    Finished { rpc, end, ..answered(status) }
}

/// A flow, the ticks and a clock.
struct Fixture {
    flow: Flow,
    ticks: Ticks,
    began: Instant,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        let now = now();
        Self { flow: Flow::default(), ticks: Ticks::new(now), began: now, now }
    }

    fn requests(&self, count: u32, status: u16, took: Duration) {
        for _ in 0..count {
            self.flow.finished(&answered(status), took, self.now);
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        self.flow.rotate(self.ticks.end(self.now));
    }

    fn windows(&self) -> Windows {
        self.flow.windows(&self.ticks.spans(self.began, self.now))
    }
}

#[test]
fn a_window_has_the_requests_of_its_time_and_says_what_that_is() {
    let mut f = Fixture::new();
    f.requests(10, 200, MS);
    f.now += 3 * Duration::from_secs(1);
    let seen = f.windows();
    assert_eq!(
        [seen.last, seen.minute, seen.start].map(|w| (w.requests, w.seconds)),
        [(10, 3.0); 3]
    );
    f.tick();
    f.requests(5, 500, 10 * MS);
    let seen = f.windows();
    assert_eq!((seen.last.requests, seen.last.failures, seen.last.seconds), (15, 5, 13.0));
    f.tick();
    f.now += Duration::from_secs(4);
    let seen = f.windows();
    assert_eq!((seen.last.requests, seen.last.failures, seen.last.seconds), (5, 5, 14.0));
    assert_eq!((seen.minute.requests, seen.start.requests), (15, 15));
    for _ in 0..4 {
        f.tick();
    }
    // The first ten are over a minute ago now, the other five within it.
    let seen = f.windows();
    assert_eq!((seen.minute.requests, seen.minute.seconds), (5, 54.0));
    f.tick();
    let seen = f.windows();
    assert_eq!((seen.last.requests, seen.minute.requests), (0, 0));
    assert_eq!((seen.start.requests, seen.start.failures), (15, 5));
    assert_eq!(seen.last.p99_us, 0);
    assert!((9_900..=10_100).contains(&seen.start.max_us), "{seen:?}");
}

#[test]
fn quantiles_are_those_of_the_window_alone() {
    let mut f = Fixture::new();
    f.requests(1000, 200, 100 * MS);
    for _ in 0..3 {
        f.tick();
    }
    for n in 1..=100 {
        f.requests(1, 200, n * MS);
    }
    let seen = f.windows();
    assert!((49_000..=51_000).contains(&seen.last.p50_us), "{seen:?}");
    assert!((98_000..=100_500).contains(&seen.last.p99_us), "{seen:?}");
    assert!((99_000..=101_000).contains(&seen.minute.p50_us), "{seen:?}");
    assert_eq!(seen.start.requests, f.flow.quantiles().count);
}

#[test]
fn a_flow_younger_than_a_window_covers_its_own_age() {
    let f = Fixture::new();
    for _ in 0..8 {
        f.ticks.end(f.now);
    }
    let spans = f.ticks.spans(f.now + 2 * Duration::from_secs(1), f.now + Duration::from_secs(5));
    let seen = f.flow.windows(&spans);
    assert_eq!([seen.last, seen.minute, seen.start].map(|w| w.seconds), [3.0; 3]);
}

#[test]
fn a_tick_that_comes_twice_changes_nothing() {
    let mut f = Fixture::new();
    f.requests(3, 200, MS);
    f.tick();
    f.requests(4, 200, MS);
    f.flow.rotate(1);
    let seen = f.windows();
    assert_eq!((seen.last.requests, seen.start.requests), (7, 7));
}

#[test]
fn nothing_is_lost_between_workers_and_a_control_thread_that_takes_away_and_reads() {
    const EACH: u64 = 20_000;
    let f = Fixture::new();
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (flow, now) = (&f.flow, f.now);
            scope.spawn(move || {
                on_worker(worker);
                (0..EACH).for_each(|_| flow.finished(&answered(200), MS, now));
            });
        }
        let mut seen = 0;
        for tick in 1.. {
            let (counts, _) = f.flow.totals();
            let total = counts.finished();
            assert!(total >= seen, "{total} after {seen}");
            assert_eq!(counts.responses[1], total);
            seen = total;
            if seen == 2 * EACH {
                break;
            }
            f.flow.rotate(tick);
            std::thread::yield_now();
        }
    });
    assert_eq!(f.flow.quantiles().count, 2 * EACH);
}

#[test]
fn a_flow_that_nothing_used_is_a_pointer_and_one_that_is_idle_has_no_histogram() {
    assert!(size_of::<Flow>() <= 2 * size_of::<usize>());
    let mut f = Fixture::new();
    f.tick();
    assert!(f.flow.0.get().is_none());
    f.requests(1, 200, MS);
    f.tick();
    let parts = &f.flow.0.get().unwrap().parts;
    assert!(parts.iter().all(|part| part.0.lock().is_none()));
}

#[test]
fn failures_are_5xx_codes_that_blame_the_server_breaks_and_answers_of_ours() {
    for (finished, failed) in [
        (answered(200), false),
        (answered(404), false),
        (answered(429), false),
        (answered(500), true),
        (answered(200).ended(End::Broken), true),
        (answered(404).ended(End::Made), true),
        (answered(500).ended(End::Cancelled), false),
        (call(200, Rpc::Said(0), End::Whole), false),
        (call(200, Rpc::Said(5), End::Whole), false),
        (call(200, Rpc::Said(14), End::Whole), true),
        (call(200, Rpc::Unsaid, End::Whole), true),
        (call(404, Rpc::Unsaid, End::Whole), true),
    ] {
        assert_eq!(finished.failed(), failed, "{finished:?}");
    }
}

#[test]
fn calls_count_by_code_and_others_by_class_alone() {
    let (flow, now) = (Flow::default(), now());
    flow.finished(&answered(204), MS, now);
    assert!(flow.totals().0.grpc.is_none());
    for finished in [
        call(200, Rpc::Said(0), End::Whole),
        call(200, Rpc::Said(99), End::Whole),
        call(200, Rpc::Unsaid, End::Cancelled),
        call(200, Rpc::Unsaid, End::Broken),
        call(503, Rpc::Unsaid, End::Whole),
    ] {
        flow.finished(&finished, MS, now);
    }
    let (counts, _) = flow.totals();
    let codes = counts.grpc.unwrap();
    let used: Vec<_> = grpc::NAMES.iter().zip(*codes).filter(|(_, count)| *count > 0).collect();
    assert_eq!(used, [(&"OK", 1), (&"CANCELLED", 1), (&"UNKNOWN", 1), (&"UNAVAILABLE", 2)]);
    assert_eq!((counts.responses, counts.cancelled), ([0, 5, 0, 0, 1], 1));
}

#[test]
fn what_the_client_gave_up_is_no_latency_and_an_attempt_without_an_answer_is_no_response() {
    let (flow, now) = (Flow::default(), now());
    flow.finished(&answered(200).ended(End::Cancelled), MS, now);
    flow.unanswered(3 * MS);
    flow.left();
    let (counts, _) = flow.totals();
    assert_eq!((counts.finished(), counts.failures, counts.cancelled), (1, 1, 2));
    assert_eq!((counts.responses, counts.micros), ([0, 1, 0, 0, 0], 3000));
}

#[test]
fn a_time_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
    let (flow, now) = (Flow::default(), now());
    let micros = [1, 500, 501, 10_000_000, 10_000_001, u64::MAX];
    for micros in micros {
        flow.finished(&answered(200), Duration::from_micros(micros), now);
    }
    let (counts, _) = flow.totals();
    let used: Vec<_> = counts.buckets.iter().enumerate().filter(|(_, count)| **count > 0).collect();
    assert_eq!(used, [(0, &2), (1, &1), (BUCKETS - 2, &1), (BUCKETS - 1, &2)]);
}

#[test]
fn each_bucket_keeps_the_trace_of_its_last_request_over_ticks() {
    let trace = |n: u128| Some(TraceId(n));
    let mut f = Fixture::new();
    let traced = |n| Finished { trace: trace(n), ..answered(200) };
    f.flow.finished(&traced(1), MS, f.now);
    f.now += MS;
    f.flow.finished(&traced(2), MS, f.now);
    f.flow.finished(&traced(3), 40 * MS, f.now);
    f.tick();
    f.flow.finished(&answered(200), MS, f.now);
    let shown = |flow: &Flow| flow.totals().1.map(|e| e.map(|e| e.trace.to_string()));
    let seen = shown(&f.flow);
    assert_eq!(seen.iter().flatten().count(), 2);
    assert_eq!(seen[1], trace(2).map(|t| t.to_string()));
    f.flow.finished(&traced(4), MS, f.now);
    assert_eq!(shown(&f.flow)[1], trace(4).map(|t| t.to_string()));
    f.tick();
    assert_eq!(shown(&f.flow)[1], trace(4).map(|t| t.to_string()));
}
