use std::fs;

use super::*;

const BAD: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: cart
  namespace: shop
  annotations: {timeout.remora.io/request: soon, retry.remora.io/limt: \"2\"}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: cart}]
  rules:
    - matches: [{path: {value: /a}}]
      backendRefs: [{name: cart, port: 81}, {name: stock, namespace: other, port: 80}]
    - matches: [{path: {value: /a}}]
      backendRefs: [{name: cart, port: 80}]
";

fn of_text(text: &str) -> Result<Vec<Finding>, Error> {
    findings(&[PathBuf::from(STDIN)], text.as_bytes())
}

fn of_files(dir: &Path) -> Vec<Finding> {
    findings(&[dir.to_owned()], io::empty()).unwrap()
}

#[test]
fn people_are_told_place_object_field_why_and_mend() {
    let mut out = Vec::new();
    report::text(&mut out, &of_text(BAD).unwrap()).unwrap();
    // Word by word, since it is what they act on.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lint/golden.txt");
    assert_eq!(String::from_utf8(out).unwrap(), fs::read_to_string(golden).unwrap());
}

#[test]
fn programs_get_the_same_as_json() {
    let found = of_text(BAD).unwrap();
    let mut out = Vec::new();
    report::json(&mut out, &found).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(value.as_array().unwrap().len(), found.len());
    let shadowed = value.as_array().unwrap().iter().find(|one| one["rule"] == "rule-shadowed");
    let shadowed = shadowed.unwrap();
    assert_eq!(shadowed["object"]["kind"], "HTTPRoute");
    assert_eq!((shadowed["file"].as_str(), shadowed["line"].as_u64()), (Some("-"), Some(9)));
    assert_eq!(shadowed["field"], "spec.rules[1]");
}

#[test]
fn files_and_standard_input_are_one_set() {
    let dir = tempfile::tempdir().unwrap();
    let (service, route) = BAD.split_once("---").unwrap();
    fs::write(dir.path().join("a.yaml"), service).unwrap();
    let inputs = [dir.path().to_owned(), PathBuf::from(STDIN)];
    let rules = |found: &[Finding]| found.iter().map(|one| one.rule.id()).collect::<Vec<_>>();
    let together = findings(&inputs, route.as_bytes()).unwrap();
    let mut expected = rules(&of_text(BAD).unwrap());
    let mut got = rules(&together);
    expected.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, expected);
}

#[test]
fn what_is_no_manifest_at_all_has_not_been_read() {
    assert!(matches!(of_text("a: ["), Err(Error::Unreadable(_))));
    assert!(matches!(of_text("- 1"), Err(Error::Unreadable(_))));
    assert!(matches!(of_text(""), Err(Error::Nothing(_))));
    let missing = findings(&[PathBuf::from("/nowhere/at/all")], io::empty());
    assert!(matches!(missing, Err(Error::Unreadable(_))));
    let bad =
        of_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 0}]}\n");
    assert_eq!(bad.unwrap()[0].rule.id(), "manifest-invalid");
}

#[test]
fn our_own_examples_are_clean() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    assert_eq!(of_files(&root.join("docs/examples/hello")), []);
}
