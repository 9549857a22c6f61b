use std::path::Path;

use super::*;
use crate::source::manifest;

mod routes;

/// Two Services of the namespace `shop` with a Deployment each.
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {remora.io/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: next, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}}
    spec: {containers: [{name: cart, ports: [{name: web, containerPort: 8080}]}]}
";

fn linted(text: &str) -> Vec<Finding> {
    match manifest::parse(Path::new("a.yaml"), text) {
        Ok(objects) => lint(&objects),
        Err(problems) => unloadable(&problems),
    }
}

/// What is found of the shop with one more document.
fn with_shop(document: &str) -> Vec<String> {
    let found = linted(&format!("{SHOP}\n---\n{document}"));
    found.iter().map(|finding| format!("{} {}", finding.rule, finding.field)).collect()
}

/// The bad document has exactly that finding, the mended one none.
fn case(expected: &str, bad: &str, mended: &str) {
    assert_eq!(with_shop(bad), [expected], "in {bad}");
    assert_eq!(with_shop(mended), [""; 0], "in {mended}");
}

/// A route of a kind on `cart`.
fn route(kind: &str, metadata: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: r, namespace: shop{metadata}}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: cart}}]\n  rules: {rules}\n"
    )
}

fn http(rules: &str) -> String {
    route("HTTPRoute", "", rules)
}

const TO_NEXT: &str = "backendRefs: [{name: next, port: 80}]";

fn service(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop{metadata}}}\n\
         spec: {spec}\n"
    )
}

fn annotated(annotations: &str) -> String {
    let metadata = format!(", annotations: {{{annotations}}}");
    service("more", &metadata, "{selector: {app: cart}, ports: [{port: 80, targetPort: web}]}")
}

fn pod(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop{metadata}}}\n\
         spec: {{containers: [{{name: c, {spec}}}]}}\n"
    )
}

#[test]
fn a_sound_shop_is_clean() {
    assert_eq!(with_shop(&http(&format!("[{{{TO_NEXT}}}]"))), [""; 0]);
}

#[test]
fn a_file_that_the_control_plane_refuses_is_invalid() {
    case(
        "manifest-invalid spec.ports[0].port",
        &service("more", "", "{selector: {app: cart}, ports: [{port: 70000}]}"),
        &service("more", "", "{selector: {app: cart}, ports: [{port: 7000}]}"),
    );
}

#[test]
fn a_field_that_nothing_reads_is_a_slip() {
    case(
        "manifest-slip spec.selectors",
        &service("more", "", "{selectors: {app: cart}, ports: [{port: 80}]}"),
        &service("more", "", "{selector: {app: cart}, ports: [{port: 80}]}"),
    );
}

#[test]
fn kinds_that_are_not_used_here_are_nobodys_mistake() {
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, namespace: shop}\n";
    assert_eq!(with_shop(map), [""; 0]);
}

#[test]
fn values_of_annotations_are_read_as_the_index_reads_them() {
    case(
        "annotation-value metadata.annotations[timeout.remora.io/request]",
        &annotated("timeout.remora.io/request: soon"),
        &annotated("timeout.remora.io/request: 3s"),
    );
    case(
        "annotation-ignored metadata.annotations[retry.remora.io/hhtp]",
        &annotated("retry.remora.io/hhtp: \"503\""),
        &annotated("retry.remora.io/http: \"503\""),
    );
    case(
        "annotation-ignored metadata.annotations[balancer.remora.io/algorithm]",
        &route(
            "HTTPRoute",
            ", annotations: {balancer.remora.io/algorithm: p2c}",
            &format!("[{{{TO_NEXT}}}]"),
        ),
        &http(&format!("[{{{TO_NEXT}}}]")),
    );
}

#[test]
fn annotations_where_nobody_reads_them_are_told() {
    case(
        "annotation-ignored metadata.annotations[fault.remora.io/delay]",
        &annotated("fault.remora.io/delay: 1s"),
        &route(
            "HTTPRoute",
            ", annotations: {fault.remora.io/delay: 1s}",
            &format!("[{{{TO_NEXT}}}]"),
        ),
    );
    case(
        "annotation-ignored metadata.annotations[config.remora.io/opaque-port]",
        &pod(", annotations: {config.remora.io/opaque-port: \"25\"}", "image: x"),
        &pod(", annotations: {config.remora.io/opaque-ports: \"25\"}", "image: x"),
    );
    case(
        "annotation-ignored metadata.annotations[retry.remora.io/limit]",
        &pod(", annotations: {retry.remora.io/limit: \"2\"}", "image: x"),
        &pod("", "image: x"),
    );
    case(
        "annotation-value metadata.annotations[remora.io/inject]",
        &pod(", annotations: {remora.io/inject: \"yes\"}", "image: x"),
        &pod(", annotations: {remora.io/inject: enabled}", "image: x"),
    );
}

#[test]
fn an_annotation_of_a_pod_template_is_told_once_and_of_the_deployment() {
    let of = |on_deployment: &str, on_template: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d-1, namespace: shop{on_deployment}}}\n\
             spec:\n  replicas: 3\n  selector: {{matchLabels: {{app: d}}}}\n  template:\n    \
             metadata: {{labels: {{app: d}}{on_template}}}\n    spec: {{containers: [{{name: d}}]}}\n"
        )
    };
    let bad = of("", ", annotations: {config.remora.io/opaque-ports: many}");
    case(
        "annotation-value spec.template.metadata.annotations[config.remora.io/opaque-ports]",
        &bad,
        &of("", ", annotations: {config.remora.io/opaque-ports: \"80\"}"),
    );
    case(
        "annotation-ignored metadata.annotations[remora.io/inject]",
        &of(", annotations: {remora.io/inject: disabled}", ""),
        &of("", ", annotations: {remora.io/inject: disabled}"),
    );
}

#[test]
fn selectors_and_target_ports_must_lead_to_pods() {
    let spec = |app: &str, port: &str| {
        service(
            "more",
            "",
            &format!("{{selector: {{app: {app}}}, ports: [{{port: 80, targetPort: {port}}}]}}"),
        )
    };
    case("selector-matches-no-pod spec.selector", &spec("card", "web"), &spec("cart", "web"));
    case(
        "target-port-unknown spec.ports[0].targetPort",
        &spec("cart", "wbe"),
        &spec("cart", "web"),
    );
}

#[test]
fn a_deployment_without_replicas_has_pods_all_the_same() {
    let none = SHOP.replace("replicas: 2", "replicas: 0");
    assert_eq!(linted(&none), []);
}

#[test]
fn retries_of_what_may_have_been_done_need_more_than_a_star() {
    const AT: &str = "retry-unsafe metadata.annotations[retry.remora.io]";
    let http = |statuses: &str, methods: &str| {
        annotated(&format!(
            "retry.remora.io/http: \"{statuses}\", retry.remora.io/methods: \"{methods}\""
        ))
    };
    case(AT, &http("503", "*"), &http("503", "GET"));
    case(AT, &http("5xx", "GET,POST"), &http("429,503", "GET,POST"));
    let grpc = |codes: &str| annotated(&format!("retry.remora.io/grpc: \"{codes}\""));
    case(AT, &grpc("unavailable,internal"), &grpc("unavailable"));
}

#[test]
fn a_retry_of_post_alone_needs_a_word_for_it() {
    let rule = |method: &str, codes: &str, metadata: &str| {
        let rule = format!(
            "[{{matches: [{{method: {method}}}], {TO_NEXT}, retry: {{codes: {codes}, attempts: 1}}}}]"
        );
        route("HTTPRoute", metadata, &rule)
    };
    const AT: &str = "retry-never spec.rules[0].retry";
    case(AT, &rule("POST", "[503]", ""), &rule("GET", "[503]", ""));
    let said = ", annotations: {retry.remora.io/methods: POST}";
    assert_eq!(with_shop(&rule("POST", "[503]", said)), [""; 0]);
    case(AT, &rule("GET", "[]", ""), &rule("GET", "[503]", ""));
}

#[test]
fn attempts_and_pauses_must_fit_into_the_request() {
    let of = |request: &str| {
        annotated(&format!(
            "retry.remora.io/http: \"503\", retry.remora.io/limit: \"2\", \
             retry.remora.io/timeout: 300ms, timeout.remora.io/request: {request}"
        ))
    };
    // 3 × 300 ms and pauses of 25 and 50 ms.
    case("retry-beyond-timeout metadata.annotations[retry.remora.io]", &of("974ms"), &of("975ms"));
}

#[test]
fn a_rule_fits_its_attempts_into_the_time_that_the_service_gives() {
    let rule = |attempts: u32| {
        let more = annotated("timeout.remora.io/request: 1s");
        let route = http(&format!(
            "[{{{TO_NEXT}, timeouts: {{backendRequest: 400ms}}, retry: {{codes: [503], attempts: {attempts}, backoff: 10ms}}}}]"
        ));
        format!("{more}---\n{}", route.replace("name: cart}", "name: more}"))
    };
    case("retry-beyond-timeout spec.rules[0].retry", &rule(2), &rule(1));
}

#[test]
fn a_time_out_that_another_comes_before_is_told() {
    let of = |response: &str| {
        annotated(&format!("timeout.remora.io/response: {response}, timeout.remora.io/request: 1s"))
    };
    const AT: &str = "timeout-never metadata.annotations[timeout.remora.io]";
    case(AT, &of("1s"), &of("900ms"));
    let opaque = |ports: &str| {
        annotated(&format!(
            "timeout.remora.io/request: 1s, config.remora.io/opaque-ports: \"{ports}\""
        ))
    };
    case(AT, &opaque("80"), &opaque("81"));
}

#[test]
fn a_probe_of_an_opaque_port_is_kept_out_by_a_strict_policy() {
    let probed = |probe: &str, annotations: &str| {
        let metadata = format!(
            ", annotations: {{config.remora.io/default-inbound-policy: deny, {annotations}}}"
        );
        pod(
            &metadata,
            &format!("ports: [{{name: web, containerPort: 80}}], readinessProbe: {{{probe}}}"),
        )
    };
    let get = "httpGet: {path: /ready, port: web}";
    const AT: &str = "probe-denied spec.containers[0].readinessProbe";
    let opaque = "config.remora.io/opaque-ports: \"80\"";
    case(AT, &probed(get, opaque), &probed(get, "config.remora.io/opaque-ports: \"81\""));
    case(AT, &probed("grpc: {port: 80}", opaque), &probed("tcpSocket: {port: web}", opaque));
    let bypassed = format!("{opaque}, config.remora.io/skip-inbound-ports: \"80\"");
    assert_eq!(with_shop(&probed(get, &bypassed)), [""; 0]);
    let without = format!("{opaque}, remora.io/inject: disabled");
    assert_eq!(with_shop(&probed(get, &without)), [""; 0]);
}

#[test]
fn a_probe_names_a_port_of_its_container() {
    let probed = |port: &str| {
        pod(
            "",
            &format!(
                "ports: [{{name: web, containerPort: 80}}], livenessProbe: {{httpGet: {{port: {port}}}}}"
            ),
        )
    };
    case(
        "probe-port spec.containers[0].livenessProbe.httpGet.port",
        &probed("wbe"),
        &probed("web"),
    );
}

#[test]
fn findings_name_file_line_and_object_in_their_order() {
    let document = http("[{backendRefs: [{name: nixt, port: 80}]}]");
    let text = format!("{SHOP}\n---\n{document}");
    let found = linted(&text);
    // An object begins with its apiVersion, one line above; lines count from 1.
    let line = text.lines().position(|line| line == "kind: HTTPRoute").unwrap() as u64;
    assert_eq!(found[0].place, Some(("a.yaml".into(), line)));
    assert_eq!(found[0].object.as_ref().map(ToString::to_string).unwrap(), "HTTPRoute shop/r");
}

#[test]
fn every_rule_is_in_the_documentation_with_its_severity() {
    let text = include_str!("../../../docs/lint.md");
    for rule in Rule::ALL {
        let row = format!("| `{rule}` | {} |", rule.severity());
        assert_eq!(text.matches(&row).count(), 1, "{row}");
    }
}
