use std::fs;

use tempfile::TempDir;

use super::{
    watch::{Differ, Loaded},
    *,
};
use crate::source::Event;

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata:
  name: orders
  namespace: shop
spec:
  clusterIP: 10.96.0.5
  selector:
    app: orders
  ports:
  - port: 80
    targetPort: http
";

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata:
  name: orders
  namespace: shop
spec:
  replicas: 2
  selector:
    matchLabels:
      app: orders
  template:
    metadata:
      labels:
        app: orders
    spec:
      containers:
      - name: c
        ports:
        - name: http
          containerPort: 8080
";

fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// The problems of one file, without the directory.
fn problems(text: &str) -> Vec<String> {
    let dir = dir(&[("a.yaml", text)]);
    let prefix = format!("{}/", dir.path().display());
    let problems = load(&[dir.path().to_owned()]).unwrap_err();
    problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
}

#[test]
fn a_wrong_type_names_file_line_field_and_mend() {
    assert_eq!(
        problems(&SERVICE.replace("port: 80\n", "port: \"80\"\n")),
        [
            "a.yaml:11: spec.ports[0].port: invalid type: string \"80\", expected i32; write a whole number without quotes"
        ]
    );
    assert_eq!(
        problems(&SERVICE.replace("app: orders", "app: 1")),
        [
            "a.yaml:9: spec.selector.app: invalid type: integer `1`, expected a string; write a string (numbers, true and false in quotes)"
        ]
    );
}

#[test]
fn bad_names_ports_and_addresses_are_all_told() {
    let text = SERVICE
        .replace("name: orders", "name: Orders")
        .replace("10.96.0.5", "10.96.0.500")
        .replace("port: 80\n", "port: 70000\n");
    assert_eq!(
        problems(&text),
        [
            "a.yaml:4: metadata.name: \"Orders\" is no valid name; use lower-case letters, digits and '-', at most 63 characters",
            "a.yaml:7: spec.clusterIP: \"10.96.0.500\" is no IP address; use an address such as 10.96.0.10 or fd00::a",
            "a.yaml:11: spec.ports[0].port: 70000 is no port; use a number from 1 to 65535",
        ]
    );
}

#[test]
fn session_affinity_is_checked_as_the_api_server_does() {
    let with = |lines: &str| SERVICE.replace("  selector:\n", &format!("{lines}  selector:\n"));
    let config = |seconds: i32| {
        format!("  sessionAffinityConfig:\n    clientIP:\n      timeoutSeconds: {seconds}\n")
    };
    let client_ip = "  sessionAffinity: ClientIP\n";
    for good in [client_ip.to_owned(), format!("{client_ip}{}", config(86_400))] {
        let dir = dir(&[("a.yaml", &with(&good))]);
        let loaded = load(&[dir.path().to_owned()]).unwrap();
        let found = loaded.all.values().find_map(|object| match object.slim() {
            Some(crate::source::Object::Service(service)) => service.client_ip,
            _ => None,
        });
        assert!(found.is_some(), "{good}");
    }
    assert_eq!(
        problems(&with("  sessionAffinity: Cookie\n")),
        ["a.yaml:8: spec.sessionAffinity: \"Cookie\" is no session affinity; use None or ClientIP"]
    );
    assert_eq!(
        problems(&with(&config(60))),
        [
            "a.yaml:8: spec.sessionAffinityConfig: needs a session affinity; add sessionAffinity: ClientIP, or remove it"
        ]
    );
    assert_eq!(
        problems(&with(&format!("{client_ip}{}", config(0)))),
        [
            "a.yaml:11: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is out of bounds; use a number from 1 to 86400"
        ]
    );
}

#[test]
fn lines_count_through_documents_and_lists() {
    let text =
        format!("# shop\n---\n{DEPLOYMENT}---\n{}", SERVICE.replace("port: 80\n", "port: 0\n"));
    assert_eq!(
        problems(&text),
        ["a.yaml:34: spec.ports[0].port: 0 is no port; use a number from 1 to 65535"]
    );
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: A\n";
    assert_eq!(problems(list).len(), 1);
    assert!(problems(list)[0].starts_with("a.yaml:7: metadata.name: "), "{:?}", problems(list));
}

#[test]
fn syntax_no_object_no_kind_and_a_wrong_version_are_told() {
    assert!(problems("a: [1\nb: 2\n")[0].starts_with("a.yaml:"));
    assert_eq!(
        problems("just text\n"),
        ["a.yaml:1: document: not an object; write apiVersion, kind and metadata"]
    );
    assert_eq!(
        problems("apiVersion: v1\nmetadata: {name: a}\n"),
        ["a.yaml:1: kind: missing or not a string; add kind"]
    );
    assert_eq!(
        problems(&DEPLOYMENT.replace("apps/v1", "v1")),
        ["a.yaml:1: apiVersion: \"v1\" has no Deployment; use apps/v1"]
    );
}

#[test]
fn duplicates_and_shared_cluster_ips_are_told_across_files() {
    let dir = dir(&[
        ("a.yaml", SERVICE),
        ("b.yaml", SERVICE),
        ("c.yaml", &SERVICE.replace("name: orders", "name: other")),
    ]);
    let problems = load(&[dir.path().to_owned()]).unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].file.ends_with("b.yaml"));
    assert!(problems[0].problem.contains("Service shop/orders is also in"), "{}", problems[0]);
    assert!(problems[1].file.ends_with("c.yaml"));
    assert_eq!(problems[1].problem, "10.96.0.5 is also the address of Service shop/orders");
}

#[test]
fn a_missing_directory_is_a_problem_not_an_empty_one() {
    let problems = load(&[PathBuf::from("/nonexistent/manifests")]).unwrap_err();
    assert!(problems[0].to_string().starts_with("/nonexistent/manifests:1: file: cannot be read"));
}

#[test]
fn unknown_kinds_and_fields_are_warnings() {
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\n---\n{}",
        SERVICE.replace("  ports:", "  prots: []\n  sessionAfinity: None\n  ports:")
    );
    let dir = dir(&[("sub/a.yml", &text), ("notes.txt", "x: ["), (".hidden.yaml", "x: [")]);
    let objects = load(&[dir.path().to_owned()]).unwrap();
    let warnings: Vec<_> = objects.warnings.iter().map(|w| (w.line, w.field.as_str())).collect();
    assert_eq!(warnings, [(2, "kind"), (15, "spec.sessionAfinity")]);
    assert_eq!(objects.all().len(), 1);
}

#[test]
fn json_is_read_and_the_namespace_defaults() {
    let dir = dir(&[(
        "ns.json",
        "{\n\t\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"p\"},\n\t\"spec\": {\"containers\": [{\"name\": \"c\"}]}\n}",
    )]);
    let objects = load(&[dir.path().to_owned()]).unwrap();
    assert_eq!(objects.pods().keys().next().unwrap().to_string(), "Pod default/p");
}

#[test]
fn pods_of_deployments_yield_to_real_ones_and_make_endpoints() {
    let pod = "{\"apiVersion\": \"v1\", \"kind\": \"Pod\",
        \"metadata\": {\"name\": \"orders-1\", \"namespace\": \"shop\", \"labels\": {\"app\": \"orders\"}},
        \"spec\": {\"containers\": [{\"name\": \"c\", \"ports\": [{\"name\": \"http\", \"containerPort\": 9090}]}]},
        \"status\": {\"podIP\": \"10.244.0.9\"}}";
    let dir = dir(&[("a.yaml", SERVICE), ("b.yaml", DEPLOYMENT), ("c.json", pod)]);
    let objects = load(&[dir.path().to_owned()]).unwrap();
    let pods = objects.pods();
    assert_eq!(pods.len(), 2);
    assert!(pods.values().last().unwrap().status.is_some());
    let resolved = objects.resolved();
    let slices: Vec<_> = resolved.keys().filter(|k| k.kind == Kind::EndpointSlice).collect();
    assert_eq!(slices.len(), 1);
    let source::Object::EndpointSlice(slice) = &resolved[slices[0]] else { panic!() };
    assert_eq!(slice.ports[0].1, 9090);
}

fn changed(loaded: Option<Loaded>) -> Vec<String> {
    let Some(Loaded::Changed(events)) = loaded else { panic!("no change: {loaded:?}") };
    events
        .iter()
        .map(|event| match event {
            Event::Apply(object) => format!("+{}", object.key()),
            Event::Delete(key) => format!("-{key}"),
            Event::Replace(..) | Event::Reset(_) => "reset".to_owned(),
        })
        .collect()
}

#[test]
fn a_new_state_becomes_the_difference_and_a_bad_one_changes_nothing() {
    let dir = dir(&[("a.yaml", SERVICE), ("b.yaml", DEPLOYMENT)]);
    let path = dir.path().to_owned();
    let mut differ = Differ::new(vec![path.clone()]);
    assert!(matches!(differ.load(), Some(Loaded::First(_))));
    assert!(differ.load().is_none());

    fs::write(path.join("b.yaml"), DEPLOYMENT.replace("replicas: 2", "replicas: 1 # less"))
        .unwrap();
    assert_eq!(changed(differ.load()), ["-Pod shop/orders-1"]);

    fs::write(path.join("a.yaml"), "kind: [").unwrap();
    fs::remove_file(path.join("b.yaml")).unwrap();
    assert!(matches!(differ.load(), Some(Loaded::Bad(_))));
    assert!(differ.load().is_none(), "told once");

    fs::rename(&path, path.with_extension("old")).unwrap();
    assert!(matches!(differ.load(), Some(Loaded::Bad(_))));
    fs::rename(path.with_extension("old"), &path).unwrap();

    fs::write(path.join("a.yaml"), SERVICE).unwrap();
    assert_eq!(changed(differ.load()), ["-Pod shop/orders-0"]);
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: orders
  namespace: shop
spec:
  parentRefs:
  - group: \"\"
    kind: Service
    name: orders
  rules:
  - matches:
    - path:
        value: /a
    backendRefs:
    - name: orders
      port: 80
    timeouts:
      request: 1s
";

#[test]
fn a_route_is_read_without_a_word() {
    let dir = dir(&[("a.yaml", ROUTE)]);
    let loaded = load(&[dir.path().to_owned()]).unwrap();
    assert_eq!(loaded.warnings, []);
    let objects = loaded.resolved();
    let [source::Object::Route(route)] = &objects.values().collect::<Vec<_>>()[..] else {
        panic!("{objects:?}")
    };
    assert_eq!((route.kind(), route.parents.len()), (Kind::HttpRoute, 1));
}

#[test]
fn what_an_api_server_would_refuse_of_a_route_is_told() {
    let text = ROUTE
        .replace("  - group: \"\"\n    kind: Service", "  - kind: Service")
        .replace("value: /a", "type: Glob\n        value: a")
        .replace("      port: 80", "      weight: -1\n    filters:\n    - type: RequestRedirect")
        .replace("request: 1s", "request: 1s\n      backendRequest: 2s")
        .replace("rules:", "rule: x\n  rules:");
    assert_eq!(
        problems(&text),
        [
            "a.yaml:8: spec.parentRefs[0].group: missing; add group: \"\" for a Service",
            "a.yaml:14: spec.rules[0].matches[0].path.type: \"Glob\" is not known; use Exact, PathPrefix, RegularExpression",
            "a.yaml:15: spec.rules[0].matches[0].path.value: \"a\" is no path; begin it with /",
            "a.yaml:20: spec.rules[0].filters[0].requestRedirect: missing; add it, or change the type",
            "a.yaml:17: spec.rules[0].backendRefs[0].port: missing; add the Service's port",
            "a.yaml:18: spec.rules[0].backendRefs[0].weight: -1 is no weight; use a number from 0 to 1000000",
            "a.yaml:16: spec.rules[0].backendRefs: a redirect has no backend; remove it, or the redirect",
            "a.yaml:23: spec.rules[0].timeouts.backendRequest: longer than that of the whole request; make it shorter",
        ]
    );
}
