//! What servers and the attempt loop do, told by small scenarios.

use super::*;
use crate::sim::{
    recovery::Recovery,
    report::{self, PolicyReport, Report},
};

fn simulate(text: &str) -> Report {
    let scenario = Scenario::parse("case", text).unwrap_or_else(|error| panic!("{error}"));
    report::run(&scenario, 1).unwrap()
}

fn first(text: &str) -> PolicyReport {
    simulate(text).policies.remove(0)
}

fn failures(policy: &PolicyReport, how: &str) -> u64 {
    policy.figures.failures.get(how).copied().unwrap_or(0)
}

#[test]
fn a_request_takes_the_network_and_the_work() {
    let run = first(
        "duration: 10s\nnetwork: 2ms\nservers: {a: {latency: 5ms}}\nclients: {c: {rate: 20}}\n",
    );
    let latency = run.figures.latency;
    assert_eq!((latency.p50_ms, latency.max_ms), (Some(7.0), Some(7.0)));
    assert_eq!((run.figures.amplification, run.figures.success), (Some(1.0), Some(1.0)));
}

#[test]
fn who_finds_a_server_busy_waits_and_who_finds_the_queue_full_is_answered_503() {
    let closed = |users, queue| {
        first(&format!(
            "duration: 10s\nnetwork: 0s\nclients: {{c: {{concurrency: {users}}}}}\n\
             servers: {{a: {{latency: 10ms, concurrency: 1, queue: {queue}}}}}\n"
        ))
    };
    let waits = closed(3, 10);
    assert_eq!(waits.figures.latency.p50_ms, Some(30.0), "two are ahead");
    assert_eq!(waits.figures.requests, 1002, "a hundred a second, and two that wait at the end");
    let refused = closed(3, 1);
    assert_eq!(refused.figures.latency.max_ms, Some(20.0), "one is ahead");
    let full = failures(&refused, "503");
    assert!(full > 0 && refused.figures.requests - full == 1001, "{:?}", refused.figures);
}

#[test]
fn a_rate_limit_lets_so_many_through_and_answers_the_others_429() {
    let run = first(
        "duration: 20s\nwarmup: 10s\nservers: {a: {latency: 1ms, rate-limit: 10}}\n\
         clients: {c: {rate: 50}}\n",
    );
    let through = run.figures.requests - failures(&run, "429");
    assert!((95..=105).contains(&through), "{through} in ten seconds");
}

#[test]
fn a_refused_connection_is_made_elsewhere_unasked_whatever_the_method() {
    let run = first(
        "duration: 10s\nservers: {a: {count: 2, latency: 5ms}, dead: {latency: 5ms, fail: {connect: 100%}}}\n\
         clients: {c: {count: 3, rate: 50, method: POST}}\n",
    );
    assert!(run.figures.resends > 0);
    assert_eq!((run.figures.success, run.figures.retries), (Some(1.0), 0));
}

#[test]
fn a_503_is_retried_elsewhere_only_where_the_policy_asks_for_it_and_within_its_limit() {
    let head = "duration: 10s\nclients: {c: {rate: 20}}\npolicies:\n  plain: {}\n  retries: {http: 5xx, limit: 2}\n";
    let one_bad = format!(
        "{head}servers: {{a: {{latency: 5ms}}, b: {{latency: 5ms, fail: {{503: 100%}}}}}}\n"
    );
    let report = simulate(&one_bad);
    assert_eq!(report.policies[0].figures.retries, 0);
    assert!(report.policies[0].figures.success < Some(1.0));
    assert!(report.policies[1].figures.retries > 0);
    assert_eq!(report.policies[1].figures.success, Some(1.0));
    let report =
        simulate(&format!("{head}servers: {{a: {{latency: 5ms, fail: {{503: 100%}}}}}}\n"));
    let figures = &report.policies[1].figures;
    assert_eq!(figures.success, Some(0.0));
    assert!(figures.limit_refused > 0 && figures.amplification <= Some(3.0), "{figures:?}");
}

#[test]
fn a_broken_connection_is_not_sent_again_unasked() {
    let run = first(
        "duration: 10s\nservers: {a: {latency: 5ms, fail: {reset: 100%}}}\nclients: {c: {rate: 20}}\n",
    );
    assert_eq!((run.figures.success, run.figures.amplification), (Some(0.0), Some(1.0)));
    assert_eq!(failures(&run, "upstream-reset"), run.figures.requests);
}

#[test]
fn time_outs_end_a_request_that_hangs_and_free_its_place() {
    let hang = |policy: &str| {
        first(&format!(
            "duration: 10s\nservers: {{a: {{latency: 5ms, concurrency: 2, fail: {{hang: 50%}}}}}}\n\
             clients: {{c: {{rate: 2}}}}\npolicies: {{p: {policy}}}\n"
        ))
    };
    let request = hang("{timeout.remora.io/request: 300ms}");
    assert!(failures(&request, "request-timeout") > 0);
    assert_eq!(request.figures.latency.max_ms, Some(300.0));
    // Were places not freed, two that hang would leave none.
    assert!(request.figures.success > Some(0.2), "{:?}", request.figures);
    let response = hang("{timeout.remora.io/response: 200ms}");
    assert!(failures(&response, "response-timeout") > 0);
    assert!(response.figures.success > Some(0.2), "{:?}", response.figures);
    let tried = hang("{retry.remora.io/timeout: 100ms, retry.remora.io/http: 504, limit: 1}");
    assert!(tried.figures.retries > 0);
}

#[test]
fn whoever_is_never_answered_counts_as_failed_and_as_having_waited() {
    let run = first(
        "duration: 5s\nservers: {a: {latency: 5ms, fail: {hang: 100%}}}\nclients: {c: {rate: 5}}\n",
    );
    assert_eq!(failures(&run, "unanswered"), run.figures.requests);
    assert!(run.figures.latency.p50_ms >= Some(60_000.0));
}

#[test]
fn a_crash_breaks_what_is_under_way_and_leaving_does_not() {
    let run = |what: &str| {
        first(&format!(
            "duration: 20s\nservers: {{a: {{count: 2, latency: 100ms}}}}\n\
             clients: {{c: {{count: 5, rate: 20}}}}\nevents: [{{at: 10s, server: a-1, do: {what}}}]\n"
        ))
    };
    let crash = run("crash");
    let broken = failures(&crash, "upstream-reset");
    assert!((1..20).contains(&broken), "{broken} of about five under way");
    assert_eq!(crash.figures.failures.len(), 1, "{:?}", crash.figures.failures);
    assert!(crash.figures.resends > 0, "its address refuses until proxies hear of it");
    assert_eq!(crash.seconds[15].shares[0], Some(0.0));
    let leave = run("leave");
    assert_eq!((leave.figures.success, leave.figures.resends), (Some(1.0), 0));
    assert_eq!(leave.seconds[15].shares[0], Some(0.0));
}

#[test]
fn proxies_hear_of_a_server_after_the_time_of_discovery() {
    let run = first(
        "duration: 10s\ndiscovery: 2s\nservers: {a: {latency: 5ms}, new: {latency: 5ms}}\n\
         clients: {c: {rate: 50}}\nevents: [{at: 3s, server: new, do: join}]\n",
    );
    let share = |second: usize| run.seconds[second].shares[1];
    assert_eq!((share(2), share(4)), (Some(0.0), Some(0.0)));
    assert!(share(5) > Some(0.2), "{:?}", share(5));
}

#[test]
fn a_rate_that_changes_holds_from_then_on() {
    let run = first(
        "duration: 30s\nservers: {a: {latency: 1ms}}\nclients: {c: {count: 10, rate: 10}}\n\
         events: [{at: 10s, for: 10s, client: c, rate: 50}]\n",
    );
    let requests = |seconds: Range<usize>| -> u64 {
        run.seconds[seconds].iter().map(|second| second.requests).sum()
    };
    for (seconds, expected) in [(0..10, 1000.0), (10..20, 5000.0), (20..30, 1000.0)] {
        let is = requests(seconds.clone()) as f64;
        assert!((is / expected - 1.0).abs() < 0.12, "{seconds:?}: {is}");
    }
}

#[test]
fn a_closed_loop_keeps_so_many_under_way_and_no_more() {
    let run = first(
        "duration: 20s\nnetwork: 0s\nservers: {a: {latency: 10ms}}\n\
         clients: {c: {concurrency: 2, think: 10ms}}\n\
         events: [{at: 10s, for: 5s, client: c, concurrency: 6}]\n",
    );
    let per_second = |second: usize| run.seconds[second].requests;
    assert_eq!((per_second(5), per_second(12), per_second(17)), (100, 300, 100));
}

#[test]
fn a_caller_that_is_refused_at_once_does_not_stop_time() {
    let run = first(
        "duration: 5s\nservers: {late: {latency: 5ms}}\nclients: {c: {concurrency: 1}}\n\
         events: [{at: 3s, server: late, do: join}]\n",
    );
    assert!(failures(&run, "no-endpoints") > 100, "{:?}", run.figures.failures);
    assert_eq!(run.seconds[4].success, Some(1.0));
}

#[test]
fn a_closed_loop_that_sends_too_much_is_ended() {
    let text = "duration: 1h\nservers: {a: {latency: 4ms}}\nclients: {c: {concurrency: 1}}\n";
    let scenario = Scenario::parse("case", text).unwrap();
    let error = run(&scenario, 0, 1, 1000).unwrap_err().to_string();
    assert!(error.starts_with("more than 1000 requests by 5s; lower duration"), "{error}");
}

#[test]
fn policies_are_compared_on_the_same_requests() {
    let report = simulate(
        "duration: 10s\nservers: {a: {count: 3, latency: lognormal p50=5ms p99=50ms}}\n\
         clients: {c: {count: 3, rate: 30}}\npolicies: {p: {}, q: {algorithm: random}}\n",
    );
    let requests = |policy: usize| -> Vec<u64> {
        report.policies[policy].seconds.iter().map(|second| second.requests).collect()
    };
    assert_eq!(requests(0), requests(1));
    assert_ne!(report.policies[0].servers, report.policies[1].servers);
}

#[test]
fn what_comes_before_the_warm_up_is_over_does_not_count() {
    let run = first(
        "duration: 10s\nwarmup: 5s\nservers: {a: {latency: 1ms}}\nclients: {c: {rate: 40}}\n\
         events: [{at: 1s, for: 2s, server: a, fail: {5xx: 100%}}]\n",
    );
    assert_eq!(run.figures.success, Some(1.0));
    assert_eq!((run.seconds.len(), run.seconds[0].at), (5, 5));
    assert_eq!((run.servers[0].failed, run.figures.ejections), (0, 0));
    assert_eq!(run.figures.recovery, Recovery::NotMeasured, "nothing is known of before");
}

#[test]
fn an_ejection_is_counted_from_its_beginning_to_the_probe_that_ends_it() {
    let run = first(
        "duration: 30s\nservers: {a: {count: 2, latency: 5ms}, b: {latency: 5ms}}\n\
         clients: {c: {rate: 100}}\npolicies: {p: {algorithm: round-robin}}\n\
         events: [{at: 10s, for: 4s, server: b, fail: {5xx: 100%}}]\n",
    );
    let b = &run.servers[2];
    assert_eq!(b.ejections, 1);
    assert!(run.figures.failed_probes > 0);
    let seconds = b.ejected * 30.0;
    assert!((3.9..12.0).contains(&seconds), "{seconds}");
    assert!((run.figures.longest_ejection_s - seconds).abs() < 1e-6);
    assert_eq!(run.servers[0].ejected, 0.0);
}
