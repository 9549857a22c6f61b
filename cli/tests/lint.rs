//! `remora lint` as people run it.

#![allow(clippy::unwrap_used, reason = "the functions that tests share are tests too")]

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

/// Runs it over a text on standard input.
fn lint(args: &[&str], text: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_remora"))
        .arg("lint")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It need not have read all of it.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    child.wait_with_output().unwrap()
}

fn status(args: &[&str], text: &str) -> Option<i32> {
    lint(args, text).status.code()
}

fn service(annotation: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: a, annotations: {{{annotation}}}}}\n\
         spec: {{ports: [{{port: 80}}]}}\n"
    )
}

#[test]
fn lint_ends_with_a_status_that_says_how_bad_it_is() {
    let (clean, warned, wrong) = (
        service("timeout.remora.io/request: 1s"),
        service("timeout.remora.io/requests: 1s"),
        service("timeout.remora.io/request: soon"),
    );
    assert_eq!(status(&["-"], &clean), Some(0));
    assert_eq!(status(&["-", "--strict"], &clean), Some(0));
    assert_eq!(status(&["-"], &warned), Some(0));
    assert_eq!(status(&["-", "--strict"], &warned), Some(1));
    assert_eq!(status(&["-"], &wrong), Some(1));
}

#[test]
fn lint_tells_wrong_usage_and_unreadable_input_apart_from_findings() {
    assert_eq!(status(&[], ""), Some(2));
    assert_eq!(status(&["--unknown", "-"], ""), Some(2));
    assert_eq!(status(&["/nowhere/at/all"], ""), Some(2));
    let out = lint(&["-"], "a: [");
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8(out.stderr).unwrap().starts_with("remora: -:"));
    assert!(out.stdout.is_empty());
}

#[test]
fn lint_prints_json_where_it_is_asked_to() {
    let out = lint(&["--json", "-"], &service("timeout.remora.io/request: soon"));
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(found[0]["rule"], "annotation-value");
    assert_eq!(found[0]["severity"], "error");
    assert_eq!(
        found[0]["object"],
        serde_json::json!({"kind": "Service", "namespace": "default", "name": "a"})
    );
    let none = lint(&["--json", "-"], &service("timeout.remora.io/request: 1s"));
    assert_eq!(String::from_utf8(none.stdout).unwrap(), "[]\n");
}
