use std::time::Duration;

use super::*;
use crate::sim::scenario::timeline::Step;

const HEAD: &str = "duration: 60s\nservers:\n  a: {count: 2, latency: 5ms}\n  b: {latency: 9ms}\n\
                    clients:\n  web: {count: 3, rate: 10}\n";

fn parse(rest: &str) -> Result<Scenario, ScenarioError> {
    Scenario::parse("case", &format!("{HEAD}{rest}"))
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn constant(ms: u64) -> Latency {
    Latency::Constant(Duration::from_millis(ms))
}

/// What follows the head, the line of the mistake, and how what is said begins.
const WRONG: &[(&str, u64, &str)] = &[
    ("colour: red\n", 7, "unknown field `colour`, expected one of about, seed, duration"),
    ("warmup: 60s\n", 7, "warmup: leave something to measure"),
    ("network: fast\n", 7, "network: \"fast\" is no time; use for example 500us"),
    (
        "policies:\n  p:\n    decya: 1s\n",
        9,
        "policy \"p\": decya: \"decya\" is no word of a policy; use",
    ),
    ("policies:\n  p:\n    decay: 0s\n", 9, "policy \"p\": decay: \"0s\" is no time at all"),
    (
        "policies:\n  p:\n    decay: 1s\n    balancer.remora.io/decay: 2s\n",
        10,
        "policy \"p\": balancer.remora.io/decay: balancer.remora.io/decay is there twice",
    ),
    ("policies:\n  p:\n    budget-ratio: 2\n", 9, "policy \"p\": budget-ratio: \"2\" is no share"),
    ("policies: {P: {}}\n", 7, "\"P\" is no name here; use up to 24 of a-z"),
    (
        "events:\n  - {at: 5s, server: c, latency: 1ms}\n",
        8,
        "event: no server \"c\"; there are a, b, and all",
    ),
    (
        "events:\n  - {at: 5s, client: app, rate: 1}\n",
        8,
        "event: no client \"app\"; there are web, and all",
    ),
    (
        "events:\n  - {at: 5s, client: web, concurrency: 1}\n",
        8,
        "event: a client with rate changes its rate",
    ),
    ("events:\n  - {at: 5s, server: a}\n", 8, "event: nothing happens; add for example"),
    ("events:\n  - {at: 5s, rate: 5}\n", 8, "event: say server: NAME"),
    ("events:\n  - {at: 5s, server: a, do: stop}\n", 8, "do: \"stop\": use join, leave or crash"),
    ("events:\n  - {at: 5s, server: a, do: leave, latency: 1ms}\n", 8, "event: do stands alone"),
    ("events:\n  - {at: 60s, server: a, do: leave}\n", 8, "at: this is after the end"),
    (
        "events:\n  - {at: 1s, for: 2s, every: 2s, server: a, do: leave}\n",
        8,
        "event: every is not longer",
    ),
    (
        "events:\n  - {at: 1s, every: 1ms, server: a, do: leave}\n",
        8,
        "more than 1000 events; make every longer",
    ),
    (
        "events:\n  - {at: 1s, server: a, fail: {500: 60%, hang: 50%}}\n",
        8,
        "fail: shares add up to 1.1",
    ),
    (
        "events:\n  - {at: 1s, server: a, fail: {404: 1}}\n",
        8,
        "fail: \"404\" is no kind of failure; use",
    ),
    (
        "events:\n  - {at: 1s, server: a, retry-after: 1500ms}\n",
        8,
        "retry-after: \"1500ms\": Retry-After has whole",
    ),
    ("expect: [p99 < 5ms, share < 1]\n", 7, "expect: \"share\": whose? write share.SERVER"),
];

#[test]
fn what_is_wrong_is_said_in_one_line_with_its_place_and_the_mend() {
    for (rest, line, said) in WRONG.iter().copied() {
        let error = parse(rest).unwrap_err();
        assert_eq!(error.line, line, "{rest}: {error}");
        assert!(error.problem.starts_with(said), "{rest}: {}", error.problem);
        assert_eq!(error.problem.lines().count(), 1, "{error}");
    }
}

#[test]
fn what_is_too_much_is_refused_before_it_is_simulated() {
    for (text, said) in [
        (
            "duration: 2h\nservers: {a: {latency: 1ms}}\nclients: {c: {rate: 1}}\n",
            "duration: \"2h\" is longer",
        ),
        (
            "duration: 100ms\nservers: {a: {latency: 1ms}}\nclients: {c: {rate: 1}}\n",
            "duration: simulate at least",
        ),
        (
            "duration: 1s\nservers: {a: {count: 60, latency: 1ms}, b: {count: 60, latency: 1ms}}\n\
          clients: {c: {rate: 1}}\n",
            "more than 100 servers",
        ),
        (
            "duration: 1s\nservers: {a: {latency: 1ms}}\nclients: {c: {count: 600, rate: 1}, \
          d: {count: 600, rate: 1}}\n",
            "more than 1000 proxies",
        ),
        (
            "duration: 1h\nservers: {a: {latency: 1ms}}\nclients: {c: {count: 1000, rate: 1}}\n",
            "about 3600000 requests, more than 2000000; lower",
        ),
        ("duration: 1s\nservers: {}\nclients: {c: {rate: 1}}\n", "servers: there is none"),
        (
            "duration: 1s\nservers: {a: {latency: 1ms}}\nclients: {c: {}}\n",
            "clients \"c\": say either rate",
        ),
        (
            "duration: 1s\nservers: {a: {latency: 1ms}, a-1: {latency: 1ms}}\nclients: {}\n",
            "clients: there is none",
        ),
        (
            "duration: 1s\nservers: {a-1: {latency: 1ms}, a: {count: 2, latency: 1ms}}\nclients: {}\n",
            "there are two servers \"a-1\"",
        ),
    ] {
        let error = Scenario::parse("case", text).unwrap_err();
        assert!(error.problem.starts_with(said), "{error}");
    }
}

#[test]
fn the_rate_of_a_surge_counts_towards_the_bound() {
    let surge = "events:\n  - {at: 10s, for: 40s, client: web, rate: 100000}\n";
    assert!(parse(surge).unwrap_err().problem.starts_with("about 12000"), "3 proxies, 40 s");
    let requests = parse("events:\n  - {at: 10s, for: 10s, client: web, rate: 40}\n").unwrap();
    assert_eq!(requests.open_requests().round(), 3.0 * (50.0 * 10.0 + 10.0 * 40.0));
}

#[test]
fn of_events_that_overlap_the_one_that_began_later_wins_while_it_lasts() {
    let scenario = parse(
        "events:\n  - {at: 20s, for: 10s, server: a-1, latency: 100ms}\n  \
         - {at: 10s, for: 30s, server: a, latency: 50ms, concurrency: 3}\n",
    )
    .unwrap();
    let at = |second, server| scenario.behaviour(server, secs(second));
    let latencies: Vec<Latency> = [9, 10, 20, 29, 30, 40].map(|s| at(s, 0).latency).to_vec();
    assert_eq!(latencies, [5, 50, 100, 100, 50, 5].map(constant));
    assert_eq!(at(25, 0).concurrency, Some(3), "what the later one does not say stays");
    assert_eq!((at(25, 1).latency, at(25, 2).latency), (constant(50), constant(9)));
    assert_eq!(scenario.disturbances(), [secs(10)..secs(40)]);
}

#[test]
fn what_comes_every_so_often_comes_until_the_end() {
    let scenario =
        parse("events:\n  - {at: 10s, for: 1s, every: 20s, server: b, do: crash}\n").unwrap();
    let steps: Vec<(u64, Step)> =
        scenario.moves.iter().map(|step| (step.at.as_secs(), step.step)).collect();
    let expected = [10, 30, 50].map(|s| [(s, Step::Crash), (s + 1, Step::Join)]).concat();
    assert_eq!(steps, expected);
    assert_eq!(scenario.disturbances().len(), 3);
}

#[test]
fn a_server_to_which_joining_happens_first_is_not_there_before() {
    let scenario = parse(
        "events:\n  - {at: 20s, server: a-1, do: leave}\n  - {at: 10s, server: a-1, do: join}\n  \
         - {at: 10s, for: 5s, server: b, do: leave}\n",
    )
    .unwrap();
    let there: Vec<bool> = (0..3).map(|server| scenario.is_there_at_first(server)).collect();
    assert_eq!(there, [false, true, true]);
}

#[test]
fn clients_send_between_start_and_stop_and_a_surge_is_a_disturbance() {
    let text = "duration: 60s\nservers: {a: {latency: 1ms}}\nclients:\n  all-the-time: {rate: 1}\n  \
                surge: {rate: 9, start: 10s, stop: 20s}\n  late: {concurrency: 2, start: 30s}\n";
    let scenario = Scenario::parse("case", text).unwrap();
    assert_eq!(scenario.load(1, secs(9)), None);
    assert_eq!(scenario.load(1, secs(10)), Some(Load::Open { rate: 9.0 }));
    assert_eq!(scenario.load(1, secs(20)), None);
    let late = Load::Closed { users: 2, think: Duration::ZERO };
    assert_eq!(scenario.load(2, secs(59)), Some(late));
    assert_eq!(scenario.disturbances(), [secs(10)..secs(20)]);
}

#[test]
fn words_mean_the_same_with_and_without_their_prefix() {
    let text = "policies:\n  short: {decay: 2s, limit: 2, http: 503}\n  long:\n    \
                balancer.remora.io/decay: 2s\n    retry.remora.io/limit: \"2\"\n    \
                retry.remora.io/http: \"503\"\n  other: {decay: 3s}\n";
    let scenario = parse(text).unwrap();
    let rules = |index: usize| format!("{:?}", scenario.policies[index].rules);
    assert_eq!(rules(0), rules(1));
    assert_ne!(rules(0), rules(2));
}

#[test]
fn setting_a_word_replaces_it_in_every_policy() {
    let mut scenario = parse("policies:\n  p: {balancer.remora.io/decay: 2s}\n  q: {}\n").unwrap();
    scenario.set("decay", "3s").unwrap();
    for policy in &scenario.policies {
        assert_eq!(policy.words, [("decay".to_owned(), "3s".to_owned())]);
    }
    assert!(scenario.set("decay", "soon").unwrap_err().starts_with("\"soon\" is no duration; use"));
    assert!(scenario.set("dekay", "1s").unwrap_err().contains("is no word of a policy"));
}

#[test]
fn a_policy_without_words_is_that_of_a_service_without_annotations() {
    let scenario = parse("").unwrap();
    assert_eq!(scenario.policies.len(), 1);
    let rules = format!("{:?}", scenario.policies[0].rules);
    assert!(rules.contains("breaker: Some(") && rules.contains("retry: None"), "{rules}");
    assert!(rules.contains("algorithm: PeakEwma"), "{rules}");
}
