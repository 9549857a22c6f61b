//! How findings are shown.

use std::{
    io::{self, Write},
    path::Path,
};

use remora_control_plane::lint::{Finding, Severity};
use serde::Serialize;

/// A finding as programs read it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    rule: &'static str,
    severity: &'static str,
    file: Option<&'a Path>,
    line: Option<u64>,
    object: Option<Object<'a>>,
    field: &'a str,
    problem: &'a str,
    mend: &'a str,
}

#[derive(Debug, Serialize)]
struct Object<'a> {
    kind: &'static str,
    namespace: &'a str,
    name: &'a str,
}

/// Writes findings for programs: one JSON array.
pub(super) fn json(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    let lines: Vec<Line<'_>> = findings.iter().map(Line::from).collect();
    serde_json::to_writer_pretty(&mut *out, &lines)?;
    writeln!(out)
}

/// Writes findings for people: place, object and field, what is wrong, the mend; the sum at the end.
pub(super) fn text(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    for finding in findings {
        if let Some((file, line)) = &finding.place {
            write!(out, "{}:{line}: ", file.display())?;
        }
        writeln!(out, "{} [{}]", finding.severity, finding.rule)?;
        match &finding.object {
            Some(object) => writeln!(out, "  {object}, {}", finding.field)?,
            None => writeln!(out, "  {}", finding.field)?,
        }
        writeln!(out, "  {}\n  mend: {}\n", finding.problem, finding.mend)?;
    }
    let count = |severity| findings.iter().filter(|one| one.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    writeln!(out, "{errors} errors, {warnings} warnings")
}

impl<'a> From<&'a Finding> for Line<'a> {
    fn from(finding: &'a Finding) -> Self {
        let place = finding.place.as_ref();
        Self {
            rule: finding.rule.id(),
            severity: finding.severity.as_str(),
            file: place.map(|(file, _)| &**file),
            line: place.map(|(_, line)| *line),
            object: finding.object.as_ref().map(|key| Object {
                kind: key.kind.as_str(),
                namespace: &key.namespace,
                name: &key.name,
            }),
            field: &finding.field,
            problem: &finding.problem,
            mend: &finding.mend,
        }
    }
}
