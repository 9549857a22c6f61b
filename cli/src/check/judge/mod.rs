//! What the facts mean. Pure: facts in, lines out.

mod certificates;
mod clocks;
mod cluster;
mod control_plane;
mod data_path;
mod lint;
mod namespaces;
mod permissions;
mod programs;
mod webhook;

#[cfg(test)]
mod fixtures;

use super::{
    facts::{After, Before, Facts, Stage},
    report::Line,
};

/// Names shown in one message before it says how many more there are.
const MAX_NAMED: usize = 5;

/// All lines, in the order of their topics.
pub(super) fn lines(facts: &Facts) -> Vec<Line> {
    let mut lines = cluster::lines(facts);
    match &facts.stage {
        Stage::Unreachable => {}
        Stage::Before(before) => lines.extend(before_install(before)),
        Stage::After(after) => lines.extend(after_install(facts, after)),
    }
    lines
}

/// The one line where there is no cluster to ask.
pub(super) fn no_cluster(why: &str) -> Line {
    Line::failed(
        "kubernetes.api",
        format!("no cluster to ask: {why}"),
        "name one with --kubeconfig FILE and --context NAME, or set KUBECONFIG",
    )
}

fn before_install(before: &Before) -> Vec<Line> {
    let mut lines = permissions::install(&before.may_install);
    lines.extend(webhook::leftover(before));
    lines
}

fn after_install(facts: &Facts, after: &After) -> Vec<Line> {
    let mut lines = permissions::programs(after);
    lines.extend(programs::lines(after));
    lines.extend(webhook::lines(&after.webhook, facts.now));
    lines.extend(lint::lines(after));
    lines.extend(certificates::lines(after, facts.now));
    lines.extend(clocks::lines(facts.clock, after));
    lines.extend(control_plane::lines(after, facts.now));
    lines.extend(namespaces::lines(after));
    lines.extend(data_path::lines(after, facts.now));
    lines
}

/// `a, b, c and 4 more`.
fn named<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_NAMED).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(MAX_NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `1 pod`, `2 pods`.
fn count(n: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(n as u64), if n == 1 { "" } else { "s" })
}

/// `1,204`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Major and minor of `0.1.0` or `v1.34.4+k3s1`.
fn version(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.trim_start_matches('v').split('.');
    let number = |part: &str| {
        let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        part[..digits].parse().ok()
    };
    Some((number(parts.next()?)?, number(parts.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_for_people() {
        assert_eq!(named(&["a", "b"]), "a, b");
        assert_eq!(named(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
        for (n, text) in [(0, "0"), (999, "999"), (1204, "1,204"), (1_000_000, "1,000,000")] {
            assert_eq!(grouped(n), text);
        }
        assert_eq!((count(1, "pod"), count(2, "pod")), ("1 pod".into(), "2 pods".into()));
    }

    #[test]
    fn versions_of_all_kinds_are_read() {
        for (text, expected) in [
            ("0.1.0", Some((0, 1))),
            ("v1.34.4+k3s1", Some((1, 34))),
            ("1.29+", Some((1, 29))),
            ("dev", None),
            ("", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }
}
