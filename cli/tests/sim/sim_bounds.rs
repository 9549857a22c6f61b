//! Bounds on what the proxy's balancing, breaking and retrying do, each over several seeds. A bound
//! is between what was measured and what worse code does, and says so where that is not plain.

use remora_cli::sim::{self, Report, Scenario};

/// Seeds of every case.
const SEEDS: [u64; 3] = [1, 2, 3];

fn simulate(text: &str, seed: u64) -> Report {
    let scenario = Scenario::parse("case", text).unwrap();
    assert!(!scenario.expect.is_empty(), "a case without expectations cannot fail");
    sim::run(&scenario, seed).unwrap()
}

/// All that a scenario expects holds, whatever the seed.
fn holds(text: &str) {
    for seed in SEEDS {
        let report = simulate(text, seed);
        let failed: Vec<_> = report.expect.iter().filter(|expected| !expected.held).collect();
        assert!(failed.is_empty(), "seed {seed}: {failed:#?}");
    }
}

#[test]
fn a_replica_ten_times_slower_keeps_a_small_share_whatever_the_load() {
    // Random and round robin give it a quarter, least-request a sixth.
    for rate in [4, 20, 60] {
        holds(&format!(
            "
            duration: 40s
            warmup: 10s
            servers:
              fast: {{count: 3, latency: lognormal p50=5ms p99=20ms, concurrency: 16}}
              slow: {{latency: lognormal p50=50ms p99=200ms, concurrency: 16}}
            clients: {{web: {{count: 5, rate: {rate}}}}}
            expect:
              - share.slow <= 0.05
              - share.fast-1 <= 0.5
            "
        ));
    }
}

#[test]
fn peak_ewma_spares_callers_a_slow_replica_that_other_algorithms_send_them_to() {
    holds(
        "
        duration: 40s
        warmup: 10s
        servers:
          fast: {count: 3, latency: lognormal p50=5ms p99=20ms, concurrency: 16}
          slow: {latency: lognormal p50=50ms p99=200ms, concurrency: 16}
        clients: {web: {count: 5, rate: 60}}
        policies:
          default: {}
          least-request: {algorithm: least-request}
          round-robin: {algorithm: round-robin}
        expect:
          - p99 <= 0.35 * p99.least-request
          - p99 <= 0.35 * p99.round-robin
        ",
    );
}

#[test]
fn retries_stay_within_the_budget_while_every_endpoint_fails() {
    // The budget is a fifth of the requests of the last ten seconds, however long that lasts. Arrivals
    // are by chance: those of the ten seconds before may be a few per cent more than those that follow.
    holds(
        "
        duration: 30s
        servers: {a: {count: 3, latency: 2ms, fail: {5xx: 100%}}}
        clients: {web: {count: 2, rate: 250}}
        policies: {default: {retry.remora.io/http: 5xx, retry.remora.io/limit: 3}}
        expect:
          - amplification <= 1.205
          - amplification >= 1.15
        ",
    );
}

#[test]
fn nobody_is_left_without_an_endpoint_and_no_endpoint_alone_while_all_fail() {
    // Ten proxies would hide what one does: with one, every share is that of its own choice.
    holds(
        "
        duration: 60s
        servers: {a: {count: 6, latency: 2ms, fail: {5xx: 100%}}}
        clients: {web: {rate: 100}}
        expect:
          # A request without an endpoint has no attempt.
          - amplification >= 1
          # At least half of the six are in balancing: a third each, and what is random.
          - peak-share.a-1@10s..60s <= 0.6
          - peak-share.a-2@10s..60s <= 0.6
          - peak-share.a-3@10s..60s <= 0.6
          - peak-share.a-4@10s..60s <= 0.6
          - peak-share.a-5@10s..60s <= 0.6
          - peak-share.a-6@10s..60s <= 0.6
        ",
    );
}

#[test]
fn a_hundred_proxies_share_evenly_and_do_not_swing() {
    holds(
        "
        duration: 20s
        servers: {a: {count: 5, latency: lognormal p50=5ms p99=20ms, concurrency: 8}}
        clients: {herd: {count: 100, rate: 10}}
        expect:
          - oscillation <= 2 * oscillation-by-chance
          - share.a-1 <= 0.25
          - share.a-1 >= 0.15
          - p99 <= 40ms
        ",
    );
}

#[test]
fn a_herd_that_calls_again_at_once_does_not_swing_either() {
    // A closed loop: each of 100 proxies has always two requests under way, and all begin at once.
    holds(
        "
        duration: 12s
        warmup: 1s
        servers: {a: {count: 5, latency: lognormal p50=100ms p99=200ms, concurrency: 60}}
        clients: {herd: {count: 100, concurrency: 2}}
        expect:
          - oscillation <= 2 * oscillation-by-chance
          - peak-share.a-1 <= 0.3
        ",
    );
}

#[test]
fn a_replica_that_was_slow_is_found_again_and_not_run_over() {
    holds(
        "
        duration: 60s
        servers: {a: {count: 3, latency: lognormal p50=5ms p99=20ms, concurrency: 16}}
        clients: {web: {count: 10, rate: 20}}
        events: [{at: 12s, for: 5s, server: a-1, latency: 200ms}]
        expect:
          - share.a-1@13s..17s <= 0.1
          - share.a-1@50s..60s >= 0.1
          - peak-share.a-1@17s..60s <= 0.5
          - recovery <= 1s
        ",
    );
}

#[test]
fn callers_are_served_again_as_soon_as_a_total_failure_ends() {
    // Half of the endpoints stay in balancing, so nobody waits for a probe.
    holds(
        "
        duration: 45s
        servers: {a: {count: 4, latency: lognormal p50=5ms p99=20ms, concurrency: 32}}
        clients: {web: {count: 4, rate: 60}}
        events: [{at: 10s, for: 20s, server: all, fail: {5xx: 100%}, fail-latency: 1ms}]
        expect:
          - success@11s..29s <= 0.01
          - recovery <= 1s
          - success@31s..45s >= 1
        ",
    );
}

#[test]
fn answering_429_at_once_does_not_attract_traffic() {
    // A fifth of the traffic would go there by chance, and more to the fastest answer. What keeps
    // it away is the penalty, or the Retry-After where there is one.
    for (retry_after, penalty) in [("0s", "5s"), ("60s", "0s")] {
        holds(&format!(
            "
            duration: 40s
            warmup: 5s
            servers:
              open: {{count: 4, latency: lognormal p50=5ms p99=20ms, concurrency: 32}}
              limited: {{latency: 5ms, rate-limit: 5, fail-latency: 1ms, retry-after: {retry_after}}}
            clients: {{web: {{count: 4, rate: 60}}}}
            policies: {{default: {{failure-penalty: {penalty}}}}}
            expect:
              - share.limited <= 0.08
              - success >= 0.995
            "
        ));
    }
}

#[test]
fn a_replica_that_fails_every_call_is_ejected_and_then_costs_one_request_per_probe() {
    // Without the penalty a fast failure is attractive: the breaker alone must hold. Seven in a
    // row, what was under way then, and probes after at least 1, 2, 4 and 8 seconds: 15 of 6000.
    holds(
        "
        duration: 30s
        servers:
          good: {count: 2, latency: 5ms}
          bad: {latency: 1ms, fail: {5xx: 100%}}
        clients: {web: {rate: 200}}
        policies: {default: {failure-penalty: 0s}}
        expect:
          - success >= 0.9975
          - ejected.bad >= 0.95
          - ejections.bad >= 1
        ",
    );
}

#[test]
fn the_penalty_keeps_callers_from_noticing_and_not_the_breaker_from_deciding() {
    for rate in [20, 200] {
        holds(&format!(
            "
            duration: 60s
            servers:
              good: {{count: 2, latency: 5ms}}
              bad: {{latency: 1ms, fail: {{5xx: 100%}}}}
            clients: {{web: {{rate: {rate}}}}}
            expect:
              # Seven in a row, and the probes of a minute.
              - success >= {}
              - ejections.bad >= 1
            ",
            1.0 - 15.0 / (60.0 * f64::from(rate) * 0.9)
        ));
    }
}

#[test]
fn a_replica_that_fails_every_other_call_is_shunned_without_being_ejected() {
    holds(
        "
        duration: 20s
        servers:
          good: {count: 2, latency: 5ms}
          flaky: {latency: 5ms, fail: {5xx: 50%}}
        clients: {web: {count: 5, rate: 100}}
        expect:
          - success >= 0.99
          - ejected.flaky <= 0.5
        ",
    );
}

#[test]
fn a_new_replica_gets_its_share_within_a_second_and_not_all() {
    holds(
        "
        duration: 15s
        discovery: 0s
        servers:
          old: {count: 2, latency: 5ms, concurrency: 32}
          new: {latency: 5ms, concurrency: 32}
        clients: {web: {count: 20, rate: 50}}
        events: [{at: 5s, server: new, do: join}]
        expect:
          - share.new@5s..6s >= 0.15
          - peak-share.new <= 0.6
          - success >= 1
        ",
    );
}

#[test]
fn a_refused_connection_costs_nobody_an_answer() {
    // A crash is heard of a second later; until then its address refuses, and nothing was sent.
    holds(
        "
        duration: 30s
        discovery: 1s
        servers: {a: {count: 3, latency: 5ms, concurrency: 32}}
        clients: {web: {count: 5, rate: 50, method: POST}}
        events: [{at: 10s, for: 10s, server: a-1, do: crash}]
        expect:
          - success@11s..30s >= 1
          # Only what it was busy with is lost.
          - success >= 0.999
          - recovery <= 1s
        ",
    );
}

#[test]
fn a_hanging_replica_is_noticed_by_the_bound_on_an_answer() {
    holds(
        "
        duration: 40s
        servers:
          good: {count: 2, latency: lognormal p50=5ms p99=20ms}
          hangs: {latency: 5ms}
        clients: {web: {count: 2, rate: 50}}
        policies: {default: {timeout.remora.io/response: 500ms}}
        events: [{at: 10s, for: 20s, server: hangs, fail: {hang: 100%}}]
        expect:
          - success@12s..30s >= 0.98
          - p99@12s..30s <= 500ms
        ",
    );
}

#[test]
fn a_client_with_one_request_at_a_time_does_not_leave_a_replica_for_a_tenth_of_latency() {
    // The faster of two that are almost equal would otherwise take nearly all.
    holds(
        "
        duration: 30s
        servers: {a: {latency: 5ms}, b: {latency: 5.8ms}}
        clients: {web: {concurrency: 1, think: 5ms}}
        expect:
          - share.b >= 0.4
        ",
    );
}

#[test]
fn a_replica_that_becomes_slow_is_left_after_its_first_slow_answer() {
    // Nothing is in flight when the next request comes, so the estimate alone must tell.
    holds(
        "
        duration: 15s
        servers: {a: {count: 3, latency: 1ms}}
        clients: {web: {concurrency: 1, think: 8ms}}
        events: [{at: 10s, server: a-1, latency: 8ms}]
        expect:
          - share.a-1@0s..10s >= 0.25
          - share.a-1@10s..11s <= 0.05
        ",
    );
}

#[test]
fn one_request_tries_a_replica_that_was_slow_and_not_a_herd() {
    // Its estimate has faded after 85 seconds. It then takes 30 seconds to answer, in which a
    // request after the other would come, were fading not stopped by the first. 15000 are sent.
    holds(
        "
        duration: 150s
        servers: {fast: {count: 2, latency: 5ms}, slow: {latency: 30s}}
        clients: {web: {rate: 100}}
        expect:
          - share.slow <= 0.0005
        ",
    );
}

#[test]
fn a_slower_replica_has_its_part_where_the_faster_one_is_busy() {
    // In flight times latency is the same on both: 500 a second are 430 and 70.
    holds(
        "
        duration: 20s
        warmup: 5s
        servers: {fast: {latency: 10ms}, slow: {latency: 25ms}}
        clients: {web: {rate: 500}}
        expect:
          - share.slow >= 0.08
          - share.slow <= 0.2
        ",
    );
}

#[test]
fn a_retry_goes_to_another_endpoint() {
    holds(
        "
        duration: 20s
        servers: {good: {latency: 5ms}, bad: {latency: 5ms, fail: {503: 100%}}}
        clients: {web: {rate: 50}}
        policies:
          default:
            algorithm: random
            failure-accrual: none
            retry.remora.io/http: 503
            retry.remora.io/limit: 1
            budget-ratio: 1
        expect:
          - amplification >= 1.4
          - success >= 1
        ",
    );
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let text = "
        duration: 15s
        servers:
          a: {count: 3, latency: lognormal p50=5ms p99=50ms, concurrency: 4, fail: {5xx: 5%, reset: 1%}}
          b: {latency: exponential mean=20ms, rate-limit: 20, retry-after: 1s, fail: {hang: 1%}}
        clients:
          open: {count: 5, rate: 20}
          closed: {count: 3, concurrency: 2, think: 20ms}
        events:
          - {at: 5s, for: 2s, server: a-1, do: crash}
          - {at: 8s, for: 2s, client: open, rate: 60}
        policies:
          default: {retry.remora.io/http: 5xx, timeout.remora.io/request: 1s}
          round-robin: {algorithm: round-robin, retry.remora.io/timeout: 100ms, retry.remora.io/http: 504}
        expect: [success >= 0.5]
        ";
    let bytes = |seed| {
        let report = simulate(text, seed);
        let mut out = Vec::new();
        report.json(&mut out).unwrap();
        sim::text::write(&mut out, &report, sim::text::Style { width: 80, colours: true }).unwrap();
        out.extend(sim::svg::picture(&report).into_bytes());
        out
    };
    assert!(bytes(1) == bytes(1), "one seed, two outputs");
    assert!(bytes(1) != bytes(2), "two seeds, one output");
}
