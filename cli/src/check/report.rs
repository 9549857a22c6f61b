//! What the checks found, and how it is shown.

use std::io::{self, Write};

use serde::Serialize;

use super::api::Unread;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// It does not work.
    Failed,
    /// It could not be looked at; the message says why.
    Skipped,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Which check: `topic.what`. One check may have several lines.
    pub check: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found, with the cause where it is not as it should be.
    pub message: String,
    /// What to do about it.
    pub mend: Option<String>,
}

impl Line {
    pub(crate) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, message: message.into(), mend: None }
    }

    pub(crate) fn warning(
        check: &'static str,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let mend = Some(mend.into());
        Self { check, status: Status::Warning, message: message.into(), mend }
    }

    pub(crate) fn failed(
        check: &'static str,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let mend = Some(mend.into());
        Self { check, status: Status::Failed, message: message.into(), mend }
    }

    pub(crate) fn skipped(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, status: Status::Skipped, message: message.into(), mend: None }
    }

    /// For what could not be read: skipped where that is not allowed, failed otherwise.
    pub(crate) fn unread(check: &'static str, what: &str, why: &Unread) -> Self {
        match why {
            Unread::Forbidden { .. } => Self::skipped(check, format!("{what} not checked: {why}")),
            Unread::Absent => Self::failed(
                check,
                format!("{what} is not there"),
                "install again: remora install | kubectl apply -f -",
            ),
            Unread::Failed { .. } => Self::failed(
                check,
                format!("{what} cannot be read: {why}"),
                "run this again; where it stays, look at what is named here",
            ),
        }
    }
}

/// Whether any line failed.
pub(crate) fn found_trouble(lines: &[Line]) -> bool {
    lines.iter().any(|line| line.status == Status::Failed)
}

/// Titles of the topics, in the order in which they are shown.
const TOPICS: [(&str, &str); 11] = [
    ("kubernetes", "Kubernetes"),
    ("permissions", "Permissions"),
    ("leftovers", "Leftovers"),
    ("programs", "Programs"),
    ("webhook", "Webhook"),
    ("lint", "Answers at admission"),
    ("certificates", "Certificates"),
    ("clocks", "Clocks"),
    ("control-plane", "Control plane"),
    ("namespaces", "Namespaces"),
    ("data-path", "Data path"),
];

fn topic(check: &str) -> &str {
    check.split_once('.').map_or(check, |(topic, _)| topic)
}

/// Writes the lines for people: by topic, each mend below its line, the sum at the end.
pub(crate) fn text(out: &mut impl Write, lines: &[Line], colours: bool) -> io::Result<()> {
    for (name, title) in TOPICS {
        let mut of_topic = lines.iter().filter(|line| topic(line.check) == name).peekable();
        if of_topic.peek().is_none() {
            continue;
        }
        writeln!(out, "{title}")?;
        for line in of_topic {
            writeln!(out, "  {} {}", mark(line.status, colours), line.message)?;
            if let Some(mend) = &line.mend {
                let indent = if colours { "    " } else { "         " };
                writeln!(out, "{indent}mend: {mend}")?;
            }
        }
    }
    writeln!(out, "\n{}", sum(lines))
}

/// Writes the lines for programs: one JSON array.
pub(crate) fn json(out: &mut impl Write, lines: &[Line]) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, lines)?;
    writeln!(out)
}

fn mark(status: Status, colours: bool) -> &'static str {
    match (status, colours) {
        (Status::Ok, true) => "\x1b[32m✔\x1b[0m",
        (Status::Warning, true) => "\x1b[33m‼\x1b[0m",
        (Status::Failed, true) => "\x1b[31m✖\x1b[0m",
        (Status::Skipped, true) => "\x1b[2m–\x1b[0m",
        (Status::Ok, false) => "ok    ",
        (Status::Warning, false) => "warn  ",
        (Status::Failed, false) => "FAIL  ",
        (Status::Skipped, false) => "skip  ",
    }
}

fn sum(lines: &[Line]) -> String {
    let count = |status| lines.iter().filter(|line| line.status == status).count();
    format!(
        "{} failed, {} warnings, {} skipped, {} fine",
        count(Status::Failed),
        count(Status::Warning),
        count(Status::Skipped),
        count(Status::Ok)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        vec![
            Line::failed("webhook.configuration", "no caBundle", "wait"),
            Line::ok("kubernetes.api", "answers"),
        ]
    }

    #[test]
    fn text_goes_by_topic_and_has_each_mend_below_its_line() {
        let mut out = Vec::new();
        text(&mut out, &lines(), false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "Kubernetes\n  ok     answers\nWebhook\n  FAIL   no caBundle\n         mend: wait\n\n\
             1 failed, 0 warnings, 0 skipped, 1 fine\n"
        );
    }

    #[test]
    fn json_has_the_four_fields_of_every_line() {
        let mut out = Vec::new();
        json(&mut out, &lines()).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            value,
            serde_json::json!([
                { "check": "webhook.configuration", "status": "failed",
                  "message": "no caBundle", "mend": "wait" },
                { "check": "kubernetes.api", "status": "ok", "message": "answers", "mend": null },
            ])
        );
    }

    #[test]
    fn what_may_not_be_read_is_skipped_and_no_trouble() {
        let forbidden = Unread::Forbidden { need: "list pods".to_owned() };
        let line = Line::unread("data-path.sample", "the proxies", &forbidden);
        assert_eq!(line.status, Status::Skipped);
        assert!(line.message.contains("list pods"));
        assert!(!found_trouble(&[line]));
        assert!(found_trouble(&lines()));
    }
}
