use super::{
    balancer::{Algorithm, HashOn},
    *,
};

const SECOND: Duration = Duration::from_secs(1);

fn map(annotations: &[(&str, &str)]) -> Annotations {
    annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Policy and warnings of a Service without `sessionAffinity`.
fn parse(annotations: &[(&str, &str)]) -> (Policy, Vec<String>) {
    parse_with(annotations, None)
}

fn parse_with(annotations: &[(&str, &str)], client_ip: Option<u64>) -> (Policy, Vec<String>) {
    let mut warn = Warnings::new();
    let client_ip = client_ip.map(Duration::from_secs);
    let policy = Policy::parse(&map(annotations), client_ip, None, &mut warn);
    (policy, warn.iter().map(ToString::to_string).collect())
}

/// Policy of annotations with which nothing is wrong.
fn good(annotations: &[(&str, &str)]) -> Policy {
    let (policy, warnings) = parse(annotations);
    assert_eq!(warnings, Vec::<String>::new());
    policy
}

/// The one warning of annotations.
fn warned(annotations: &[(&str, &str)]) -> String {
    let (_, warnings) = parse(annotations);
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    warning.clone()
}

#[test]
fn an_unknown_key_is_ignored_and_says_nothing_of_what_held_before() {
    assert_eq!(
        warned(&[("timeout.remora.io/reqest", "1s")]),
        "annotation timeout.remora.io/reqest: unknown, ignored; known under \
         timeout.remora.io/: request, response, idle, connect"
    );
}

#[test]
fn every_key_that_is_known_is_read() {
    for key in KNOWN.into_iter().flatten() {
        let (_, warnings) = parse(&[(key, "\u{0}")]);
        let words = ["\"\\0\"", "unknown"].map(|w| warnings.iter().any(|text| text.contains(w)));
        assert_eq!(words, [true, false], "{key}: {warnings:?}");
    }
}

#[test]
fn what_is_hashed_is_named_after_its_kind() {
    let hash_on = |value| {
        let ring = ("balancer.remora.io/algorithm", "ring-hash");
        good(&[ring, ("balancer.remora.io/hash-on", value)]).balancer
    };
    assert_eq!(hash_on("client-address").algorithm, Algorithm::RingHash);
    assert_eq!(hash_on("client-address").hash_on, HashOn::ClientAddress);
    assert_eq!(hash_on("header:X-User").hash_on, HashOn::Header("x-user".to_owned()));
    assert_eq!(hash_on("header: x-user").hash_on, HashOn::Header("x-user".to_owned()));
    assert_eq!(hash_on("cookie:Cart").hash_on, HashOn::Cookie("Cart".to_owned()));
    for bad in ["", "header", "header:", "header:a b", "header::path", "cookie:a=b", "user"] {
        let ring = ("balancer.remora.io/algorithm", "ring-hash");
        let (policy, warnings) = parse(&[ring, ("balancer.remora.io/hash-on", bad)]);
        assert_eq!(policy.balancer, Balancer::default(), "{bad}");
        assert!(warnings[0].ends_with("stays in force"), "{warnings:?}");
    }
}

#[test]
fn a_ring_without_a_key_hashes_the_clients_address_and_says_so() {
    let ring = [("balancer.remora.io/algorithm", "ring-hash")];
    assert_eq!(
        warned(&ring),
        "annotation balancer.remora.io/algorithm: ring-hash without balancer.remora.io/hash-on hashes \
         the client's address; say what to hash: header:NAME, cookie:NAME or client-address"
    );
    let balancer = parse(&ring).0.balancer;
    assert_eq!(
        (balancer.algorithm, balancer.hash_on),
        (Algorithm::RingHash, HashOn::ClientAddress)
    );
}

#[test]
fn what_contradicts_itself_is_one_warning_with_the_mend() {
    let algorithm = "balancer.remora.io/algorithm";
    let accrual = "balancer.remora.io/failure-accrual";
    let ring = [(algorithm, "ring-hash"), ("balancer.remora.io/hash-on", "client-address")];
    for (annotations, key, words) in [
        (vec![("balancer.remora.io/hash-on", "cookie:a")], "hash-on", "ring-hash; add that"),
        (
            vec![("balancer.remora.io/hash-on", "cookie:a"), (algorithm, "random")],
            "hash-on",
            "or remove this",
        ),
        ([&ring[..], &[("balancer.remora.io/slow-start", "9s")]].concat(), "slow-start", "another"),
        (
            vec![("balancer.remora.io/session-affinity-timeout", "9s")],
            "session-affinity-timeout",
            "cookie or client-address; add that",
        ),
        (
            vec![
                ("balancer.remora.io/session-affinity", "client-address"),
                ("balancer.remora.io/session-affinity-cookie-name", "a"),
            ],
            "session-affinity-cookie-name",
            "session-affinity: cookie; add that",
        ),
        (
            vec![(accrual, "none"), ("balancer.remora.io/success-rate-threshold", "0.9")],
            "success-rate-threshold",
            "use consecutive or success-rate",
        ),
        (
            vec![
                (accrual, "success-rate"),
                ("balancer.remora.io/failure-accrual-consecutive-max-failures", "3"),
            ],
            "failure-accrual-consecutive-max-failures",
            "for both rules",
        ),
        (
            vec![("balancer.remora.io/success-rate-window", "5s")],
            "success-rate-window",
            "success-rate-threshold above 0; add that",
        ),
        (vec![("balancer.remora.io/max-pending", "9")], "max-pending", "max-in-flight or"),
        (
            vec![
                ("balancer.remora.io/max-in-flight", "9"),
                ("balancer.remora.io/pending-timeout", "9s"),
            ],
            "pending-timeout",
            "max-pending above 0",
        ),
        (
            vec![
                ("retry.remora.io/http", "503"),
                ("retry.remora.io/budget-ratio", "0"),
                ("retry.remora.io/budget-min-per-second", "0"),
            ],
            "budget-ratio",
            "no retry at all; raise one",
        ),
        (vec![("retry.remora.io/backoff", "9s")], "backoff", "add for example"),
        (vec![("retry.remora.io/budget-window", "9s")], "budget-window", "has no effect without"),
    ] {
        let warning = warned(&annotations);
        let named = warning.split(": ").next().unwrap();
        assert!(named.ends_with(&format!("/{key}")) && warning.contains(words), "{warning}");
        assert!(!warning.contains("stays in force"), "the rest holds: {warning}");
    }
}

#[test]
fn slow_start_is_a_duration_and_zero_switches_it_off() {
    let slow_start = |value| good(&[("balancer.remora.io/slow-start", value)]).balancer.slow_start;
    assert_eq!(slow_start("30s"), Some(30 * SECOND));
    assert_eq!(slow_start("0s"), Some(Duration::ZERO));
    assert_eq!(good(&[]).balancer.slow_start, None);
}

#[test]
fn affinity_is_what_the_annotation_says_and_else_what_the_service_does() {
    let kind = "balancer.remora.io/session-affinity";
    let timeout = ("balancer.remora.io/session-affinity-timeout", "1m");
    let name = ("balancer.remora.io/session-affinity-cookie-name", "cart");
    let address = |seconds| Some(Affinity::ClientAddress { timeout: Duration::from_secs(seconds) });
    let cookie = |name: &str, seconds: Option<u64>| {
        let timeout = seconds.map(Duration::from_secs);
        Some(Affinity::Cookie { name: name.to_owned(), timeout })
    };
    for (annotations, client_ip, expected) in [
        (vec![], None, None),
        (vec![], Some(600), address(600)),
        (vec![timeout], Some(600), address(60)),
        (vec![(kind, "none")], Some(600), None),
        (vec![(kind, "client-address")], None, address(10_800)),
        (vec![(kind, "client-address")], Some(600), address(600)),
        (vec![(kind, "client-address"), timeout], Some(600), address(60)),
        (vec![(kind, "cookie")], None, cookie("remora-affinity", None)),
        (vec![(kind, "cookie")], Some(600), cookie("remora-affinity", None)),
        (vec![(kind, "cookie"), timeout, name], None, cookie("cart", Some(60))),
    ] {
        let (policy, warnings) = parse_with(&annotations, client_ip);
        assert_eq!(policy.affinity, expected, "{annotations:?} {client_ip:?}");
        assert_eq!(warnings, Vec::<String>::new());
    }
}

#[test]
fn a_bad_affinity_leaves_what_the_service_says() {
    for (key, bad) in [
        ("balancer.remora.io/session-affinity", "sticky"),
        ("balancer.remora.io/session-affinity-timeout", "500ms"),
        ("balancer.remora.io/session-affinity-timeout", "25h"),
        ("balancer.remora.io/session-affinity-cookie-name", "a;b"),
    ] {
        let (policy, warnings) = parse_with(&[(key, bad)], Some(600));
        let timeout = 600 * SECOND;
        assert_eq!(policy.affinity, Some(Affinity::ClientAddress { timeout }));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }
}

#[test]
fn failure_accrual_by_success_rate_switches_the_other_rule_off() {
    let accrual = ("balancer.remora.io/failure-accrual", "success-rate");
    let breaker = good(&[accrual]).breaker;
    assert!(breaker.enabled);
    assert_eq!((breaker.consecutive_failures, breaker.success_rate_threshold), (0, 0.8));
    let threshold = ("balancer.remora.io/success-rate-threshold", "0.95");
    let penalty = ("balancer.remora.io/failure-accrual-consecutive-min-penalty", "3s");
    let breaker = good(&[accrual, threshold, penalty]).breaker;
    assert_eq!((breaker.consecutive_failures, breaker.success_rate_threshold), (0, 0.95));
    assert_eq!(breaker.min_penalty, 3 * SECOND);
    // A threshold alone adds its rule to the other.
    let breaker = good(&[threshold]).breaker;
    assert_eq!((breaker.consecutive_failures, breaker.success_rate_threshold), (7, 0.95));
    assert!(!good(&[("balancer.remora.io/failure-accrual", "none")]).breaker.enabled);
    // Both rules off is what `none` says.
    let off = ("balancer.remora.io/success-rate-threshold", "0");
    let (policy, warnings) = parse(&[accrual, off]);
    assert_eq!(policy.breaker, Breaker::default());
    assert!(warnings[0].contains("use a share above 0, or"), "{warnings:?}");
}

#[test]
fn bulkheads_are_counts_from_one() {
    let bulkheads = good(&[
        ("balancer.remora.io/max-connections", "10"),
        ("balancer.remora.io/max-in-flight", "100"),
        ("balancer.remora.io/max-pending", "20"),
        ("balancer.remora.io/pending-timeout", "500ms"),
    ])
    .bulkheads;
    let expected = Bulkheads {
        max_connections: Some(10),
        max_in_flight: Some(100),
        max_pending: 20,
        pending_timeout: Some(SECOND / 2),
    };
    assert_eq!(bulkheads, expected);
    assert_eq!(good(&[]).bulkheads, Bulkheads::default());
    for bad in ["0", "-1", "1.5", "many"] {
        let warning = warned(&[("balancer.remora.io/max-in-flight", bad)]);
        assert!(warning.contains("from 1, or remove the annotation"), "{warning}");
    }
}

#[test]
fn pauses_and_budget_of_retries_have_defaults_and_bounds() {
    let asked = ("retry.remora.io/http", "503");
    let retry = good(&[asked]).retry.unwrap();
    assert_eq!((retry.backoff, retry.max_backoff), (SECOND / 40, SECOND / 4));
    assert_eq!(retry.budget, retry::Budget::default());
    let retry = good(&[
        asked,
        ("retry.remora.io/backoff", "100ms"),
        ("retry.remora.io/max-backoff", "2s"),
        ("retry.remora.io/budget-ratio", "0.5"),
        ("retry.remora.io/budget-min-per-second", "0.1"),
        ("retry.remora.io/budget-window", "1m"),
    ])
    .retry
    .unwrap();
    assert_eq!((retry.backoff, retry.max_backoff), (SECOND / 10, 2 * SECOND));
    let budget = retry::Budget { ratio: 0.5, min_per_second: 0.1, window: 60 * SECOND };
    assert_eq!(retry.budget, budget);
    // The default bound gives way to a longer first pause; a bound that is named does not.
    let retry = good(&[asked, ("retry.remora.io/backoff", "1s")]).retry.unwrap();
    assert_eq!(retry.max_backoff, SECOND);
    let longer = [asked, ("retry.remora.io/backoff", "1s"), ("retry.remora.io/max-backoff", "9ms")];
    assert!(warned(&longer).contains("shorter than the first pause of 1s; raise it or lower"));
    for (key, bad) in [
        ("retry.remora.io/budget-ratio", "1.1"),
        ("retry.remora.io/budget-min-per-second", "-1"),
        ("retry.remora.io/budget-min-per-second", "NaN"),
        ("retry.remora.io/budget-window", "61s"),
        ("retry.remora.io/budget-window", "0s"),
        ("retry.remora.io/backoff", "soon"),
    ] {
        let (policy, warnings) = parse(&[asked, (key, bad)]);
        assert_eq!((policy.retry, warnings.len()), (None, 1), "{key}: {bad}");
    }
}

#[test]
fn how_to_retry_without_what_to_retry_is_a_warning() {
    let (_, said) = parse(&[("retry.remora.io/timeout", "1s"), ("retry.remora.io/limit", "2")]);
    assert_eq!(
        said,
        [
            "annotation retry.remora.io/limit: has no effect without retry.remora.io/http or \
             retry.remora.io/grpc; add for example retry.remora.io/http: \"504\"",
            "annotation retry.remora.io/timeout: bounds an attempt but repeats none without \
             retry.remora.io/http or retry.remora.io/grpc; add for example \
             retry.remora.io/http: \"504\"",
        ]
    );
    good(&[("retry.remora.io/timeout", "1s"), ("retry.remora.io/grpc", "unavailable")]);
}
