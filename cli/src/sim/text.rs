//! The report on a terminal.

use std::io::{self, Write};

use super::{
    chart::{self, Of},
    measure::{Figures, Second},
    recovery::Recovery,
    report::{Expected, PolicyReport, Report},
};

/// Servers that are shown one by one.
const MAX_SERVERS: usize = 24;
/// Columns before a chart.
const LABEL: usize = 12;

/// Where and how it is shown.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Columns, from 60 to 200.
    pub width: usize,
    /// Whether colours are wanted.
    pub colours: bool,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Writes a report for people.
///
/// # Errors
/// Where it cannot be written.
pub fn write(out: &mut impl Write, report: &Report, style: Style) -> io::Result<()> {
    let title = match report.about.as_str() {
        "" => report.scenario.clone(),
        about => format!("{}: {about}", report.scenario),
    };
    heading(out, &title, style)?;
    wrap(&subtitle(report), style.width).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    writeln!(out)?;
    let longest = report.policies.iter().map(|policy| policy.name.len()).max().unwrap_or(0);
    let column = longest.max(15);
    // So many fit beside the names of the figures.
    let at_once = (style.width - 26) / (column + 1);
    for policies in report.policies.chunks(at_once) {
        table(out, policies, column, style)?;
    }
    for policy in &report.policies {
        charts(out, report, policy, style)?;
    }
    expectations(out, &report.expect, style)
}

/// A line in bold, and what does not fit on it below.
fn heading(out: &mut impl Write, text: &str, style: Style) -> io::Result<()> {
    for (index, line) in wrap(text, style.width).iter().enumerate() {
        writeln!(out, "{}", if index == 0 { style.paint("1", line) } else { line.clone() })?;
    }
    Ok(())
}

/// How much was simulated.
pub(super) fn subtitle(report: &Report) -> String {
    let servers = report.policies.first().map_or(0, |policy| policy.servers.len());
    let warmup = match report.warmup_s {
        0.0 => String::new(),
        warmup => format!(", of which the first {warmup} do not count"),
    };
    let Report { duration_s, proxies, seed, .. } = report;
    format!("{duration_s} s{warmup}; {proxies} proxies, {servers} servers; seed {seed}")
}

/// A table with one column for each policy.
fn table(
    out: &mut impl Write,
    policies: &[PolicyReport],
    column: usize,
    style: Style,
) -> io::Result<()> {
    let line = |name: &str, cells: Vec<String>| {
        let cells = cells.iter().map(|cell| format!(" {cell:>column$}"));
        format!("{name:<26}{}", cells.collect::<String>())
    };
    let names = policies.iter().map(|policy| policy.name.clone()).collect();
    writeln!(out, "{}", style.paint("1", &line("", names)))?;
    for (name, cell) in FIGURES {
        let cells = policies.iter().map(|policy| cell(&policy.figures)).collect();
        writeln!(out, "{}", line(name, cells))?;
    }
    writeln!(out)
}

/// How a figure is written.
pub(super) type Cell = fn(&Figures) -> String;

/// The figures that are shown, by name.
pub(super) const FIGURES: [(&str, Cell); 14] = [
    ("requests", |f| f.requests.to_string()),
    ("success", |f| f.success.map_or_else(none, percent)),
    ("success, worst second", |f| f.worst_success.map_or_else(none, percent)),
    ("p50", |f| f.latency.p50_ms.map_or_else(none, ms)),
    ("p90", |f| f.latency.p90_ms.map_or_else(none, ms)),
    ("p99", |f| f.latency.p99_ms.map_or_else(none, ms)),
    ("p99.9", |f| f.latency.p999_ms.map_or_else(none, ms)),
    ("attempts per request", |f| f.amplification.map_or_else(none, |a| format!("{a:.3}"))),
    ("retries, resends", |f| format!("{}, {}", f.retries, f.resends)),
    ("refused by budget, limit", |f| format!("{}, {}", f.budget_refused, f.limit_refused)),
    ("ejections, failed probes", |f| format!("{}, {}", f.ejections, f.failed_probes)),
    ("longest ejection", |f| match f.longest_ejection_s {
        0.0 => none(),
        seconds => format!("{seconds:.1} s"),
    }),
    ("recovery", |f| match f.recovery {
        Recovery::NotMeasured => none(),
        Recovery::After(seconds) => format!("{seconds:.1} s"),
        Recovery::Never => "never".to_owned(),
    }),
    ("oscillation (by chance)", |f| match f.oscillation.zip(f.oscillation_by_chance) {
        Some((is, chance)) => format!("{is:.3} ({chance:.3})"),
        None => none(),
    }),
];

/// One policy: its servers with their shares over time, success and p99 over time.
fn charts(
    out: &mut impl Write,
    report: &Report,
    policy: &PolicyReport,
    style: Style,
) -> io::Result<()> {
    let words: Vec<String> = policy.policy.iter().map(|(k, v)| format!("{k}: {v}")).collect();
    let title = match words.is_empty() {
        true => format!("{}: as without annotations", policy.name),
        false => format!("{}: {}", policy.name, words.join(", ")),
    };
    heading(out, &title, style)?;
    if !policy.figures.failures.is_empty() {
        let each = policy.figures.failures.iter().map(|(how, n)| format!("{n} {how}"));
        let text = format!("callers were failed: {}", each.collect::<Vec<_>>().join(", "));
        wrap(&text, style.width).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    shares(out, policy, style)?;
    let columns = style.width - LABEL;
    let of = |value: fn(&Second) -> Option<f64>, of| {
        let values: Vec<Option<f64>> = policy.seconds.iter().map(value).collect();
        chart::fit(&values, columns, of)
    };
    let success = of(|second| second.success, Of::Least);
    if let Some(worst) = success.iter().copied().flatten().min_by(f64::total_cmp) {
        for row in chart::rows(&success, 1, worst.min(0.95), 1.0) {
            writeln!(out, "{:<LABEL$}{}", "success", row.trim_end())?;
        }
    }
    // Logarithms, since a stall is often a hundred times what is usual.
    let p99 = of(|second| second.p99_ms.map(|ms| ms.max(0.001).ln()), Of::Greatest);
    let some = || p99.iter().copied().flatten();
    if let Some((low, high)) = some().min_by(f64::total_cmp).zip(some().max_by(f64::total_cmp)) {
        let labels = [ms(high.exp()), "p99".to_owned(), "(log)".to_owned(), ms(low.exp())];
        let rows = chart::rows(&p99, labels.len(), low, high);
        for (label, row) in labels.iter().zip(rows) {
            writeln!(out, "{label:<LABEL$}{}", row.trim_end())?;
        }
    }
    if !report.disturbances.is_empty() {
        writeln!(out, "{:<LABEL$}{}", "disturbed", disturbed(report, columns))?;
    }
    writeln!(out, "{:<LABEL$}{}\n", "", axis(report, columns))
}

fn shares(out: &mut impl Write, policy: &PolicyReport, style: Style) -> io::Result<()> {
    let name = policy.servers.iter().map(|server| server.name.len()).max().unwrap_or(0).max(6);
    let head = format!(
        "{:<name$} {:>7} {:>8} {:>7} {:>7}",
        "server", "share", "attempts", "failed", "ejected"
    );
    // Beside long names there may be no room for charts.
    let columns = style.width.saturating_sub(head.len() + 2);
    let greatest = policy.seconds.iter().flat_map(|second| second.shares.iter().copied().flatten());
    let high = greatest.fold(0.01, f64::max);
    let scale = format!("share over time, to {:.0} %", high * 100.0);
    writeln!(out, "{}", format!("{head}  {}", shorten(&scale, columns)).trim_end())?;
    for (index, server) in policy.servers.iter().enumerate().take(MAX_SERVERS) {
        let values: Vec<Option<f64>> = policy.seconds.iter().map(|s| s.shares[index]).collect();
        let row = chart::rows(&chart::fit(&values, columns, Of::Mean), 1, 0.0, high).concat();
        let line = format!(
            "{:<name$} {:>7} {:>8} {:>7} {:>7}  {row}",
            server.name,
            server.share.map_or_else(none, |share| format!("{:.1} %", share * 100.0)),
            server.attempts,
            server.failed,
            format!("{:.0} %", server.ejected * 100.0),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    if policy.servers.len() > MAX_SERVERS {
        let more = policy.servers.len() - MAX_SERVERS;
        writeln!(out, "and {more} more: --json has them all")?;
    }
    Ok(())
}

/// Where something was disturbed.
fn disturbed(report: &Report, columns: usize) -> String {
    let first = report.warmup_s.ceil();
    let width = (report.duration_s.floor() - first) / columns as f64;
    let mark = |column: usize| {
        let from = first + column as f64 * width;
        let over =
            |&(start, end): &(f64, f64)| start < from + width && end.max(start + width) > from;
        if report.disturbances.iter().any(over) { '▔' } else { ' ' }
    };
    (0..columns).map(mark).collect::<String>().trim_end().to_owned()
}

fn axis(report: &Report, columns: usize) -> String {
    let first = format!("{} s", report.warmup_s.ceil());
    let last = format!("{} s", report.duration_s.floor());
    let space = columns.saturating_sub(first.len());
    format!("{first}{last:>space$}")
}

fn expectations(out: &mut impl Write, all: &[Expected], style: Style) -> io::Result<()> {
    let width = all.iter().map(|expected| expected.text.chars().count()).max().unwrap_or(0);
    for expected in all {
        let word = match expected.held {
            true => style.paint("32", "held  "),
            false => style.paint("31", "FAILED"),
        };
        let compared = compared(expected);
        if 8 + width + 3 + compared.chars().count() <= style.width {
            writeln!(out, "{word}  {:<width$}   {compared}", expected.text)?;
            continue;
        }
        let lines = wrap(&format!("{}: {compared}", expected.text), style.width - 8);
        for (index, line) in lines.iter().enumerate() {
            writeln!(out, "{}  {line}", if index == 0 { word.as_str() } else { "      " })?;
        }
    }
    Ok(())
}

/// What was measured, and with what it was compared.
pub(super) fn compared(expected: &Expected) -> String {
    let value = |value: Option<f64>| match value {
        None => "not measured".to_owned(),
        Some(value) if value.is_infinite() => "never".to_owned(),
        Some(value) if expected.is_time => ms(value * 1000.0),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.4}"),
    };
    format!("{}, {}", value(expected.measured), value(expected.compared_with))
}

fn none() -> String {
    "–".to_owned()
}

fn percent(share: f64) -> String {
    // Never rounded up to all.
    format!("{:.2} %", (share * 10_000.0).floor() / 100.0)
}

/// Three digits or so.
pub(super) fn ms(ms: f64) -> String {
    match ms {
        0.0 => "0 ms".to_owned(),
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1000.0),
        ms if ms >= 1000.0 => format!("{:.2} s", ms / 1000.0),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms => format!("{ms:.1} ms"),
    }
}

fn shorten(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// Lines of at most `width`, broken between words; a longer word stays whole.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Scenario, report};

    fn report() -> Report {
        let text = "about: A sentence that is long enough to need a second line where the terminal is \
                    as narrow as it may be.\nduration: 20s\n\
                    servers: {a: {count: 30, latency: 5ms}, with-a-very-long-name: {latency: 9ms}}\n\
                    clients: {c: {rate: 50}}\n\
                    events: [{at: 10s, for: 2s, server: a, fail: {5xx: 50%, reset: 1%}}]\n\
                    policies: {p: {}, with-a-very-long-name: {algorithm: round-robin}, q: {}, r: {}}\n\
                    expect: [p99 <= 1s, success > 1, recovery <= 5s, \
                    peak-share.a.with-a-very-long-name@10s..20s <= 2 * share.a]\n";
        report::run(&Scenario::parse("case", text).unwrap(), 1).unwrap()
    }

    fn shown(style: Style) -> String {
        let mut out = Vec::new();
        write(&mut out, &report(), style).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [60, 80, 200] {
            let text = shown(Style { width, colours: false });
            let widest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
            assert!(widest.chars().count() <= width, "{width}: {widest}");
        }
    }

    #[test]
    fn colours_are_there_only_where_they_are_wanted() {
        assert!(!shown(Style { width: 80, colours: false }).contains('\x1b'));
        let coloured = shown(Style { width: 80, colours: true });
        assert!(coloured.contains("\x1b[32mheld") && coloured.contains("\x1b[31mFAILED"));
    }

    #[test]
    fn every_policy_has_its_column_and_its_charts() {
        let text = shown(Style { width: 60, colours: false });
        assert_eq!(text.matches("attempts per request").count(), 4, "one column fits at a time");
        for head in ["p: as without annotations", "with-a-very-long-name: algorithm: round-robin"] {
            assert_eq!(text.matches(head).count(), 1, "{head}");
        }
        assert_eq!(text.matches("\np99 ").count(), 4 + 4, "the row of the table and the chart");
        assert!(text.contains("and 7 more: --json has them all"), "{text}");
        assert!(text.contains('▔'), "the disturbance is marked");
    }

    #[test]
    fn a_share_is_never_rounded_up_to_all() {
        assert_eq!((percent(0.99999), percent(1.0)), ("99.99 %".to_owned(), "100.00 %".to_owned()));
        assert_eq!(
            (ms(9.96), ms(123.4), ms(12_345.0)),
            ("10.0 ms".into(), "123 ms".into(), "12.3 s".into())
        );
    }
}
