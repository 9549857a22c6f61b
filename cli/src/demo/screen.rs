//! The terminal: a few lines that live where it is one, plain lines where it is not.

use std::{collections::BTreeSet, io::Write};

use super::story::{CHAPTERS, Chapter, Summary, Window, percent};

/// Width of a bar.
const BAR: usize = 24;
/// Replicas shown.
const MAX_BARS: usize = 8;

/// Where the story is shown: standard output, or standard error where that is kept for JSON.
pub(crate) struct Screen {
    out: Box<dyn Write>,
    /// Lines may be drawn over.
    live: bool,
    paint: Paint,
    /// Lines of the last frame, to be drawn over.
    drawn: usize,
}

/// What the live lines show.
pub(crate) struct Frame<'a> {
    pub(crate) recent: &'a Window,
    pub(crate) ejected: &'a BTreeSet<String>,
    pub(crate) now: &'a str,
}

/// Colours, where they are wanted.
#[derive(Debug, Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    fn bad(self, text: &str) -> String {
        self.with("31", text)
    }
}

impl Screen {
    /// A screen on that output; `terminal` says whether it is one. Colours follow
    /// <https://no-color.org>.
    pub(crate) fn new(out: Box<dyn Write>, terminal: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let live = terminal && !dumb;
        Self { out, live, paint: Paint(live && !plain), drawn: 0 }
    }

    /// One line that stays.
    pub(crate) fn say(&mut self, line: &str) {
        self.erase();
        self.line(line);
        self.flush();
    }

    /// The head of a chapter.
    pub(crate) fn heading(&mut self, number: usize, title: &str, now: &str) {
        self.erase();
        let head = format!("{number}/{CHAPTERS}  {title}");
        let head = self.paint.bold(&head);
        self.line("");
        self.line(&head);
        self.line(&format!("     {now}"));
        self.flush();
    }

    /// What goes on now; nothing where lines cannot be drawn over.
    pub(crate) fn show(&mut self, frame: &Frame<'_>) {
        if !self.live {
            return;
        }
        self.erase();
        let lines = frame_lines(frame, self.paint);
        for line in &lines {
            self.line(line);
        }
        self.drawn = lines.len();
        self.flush();
    }

    /// The end of a chapter.
    pub(crate) fn verdict(&mut self, chapter: &Chapter) {
        self.erase();
        for line in verdict_lines(chapter, self.paint) {
            self.line(&line);
        }
        self.flush();
    }

    /// The end of the story.
    pub(crate) fn summary(&mut self, summary: &Summary) {
        self.erase();
        for line in summary_lines(summary, self.paint) {
            self.line(&line);
        }
        self.flush();
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            let _ = write!(self.out, "\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }

    // A terminal that is gone must not end the story, whose exit status still counts.
    fn line(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}");
    }

    fn flush(&mut self) {
        let _ = self.out.flush();
    }
}

fn frame_lines(frame: &Frame<'_>, paint: Paint) -> Vec<String> {
    let total = frame.recent.total();
    let latency = frame.recent.latency();
    let success = total.success_rate().map_or_else(|| "–".into(), percent);
    let success = if total.failed == 0 { paint.good(&success) } else { paint.bad(&success) };
    let mut lines = vec![
        format!("     {}", paint.faint(frame.now)),
        format!(
            "     {:>4}/s   success {success}   p50 {:.1} ms   p99 {:.1} ms",
            total.count(),
            latency.p50_ms,
            latency.p99_ms
        ),
    ];
    let mut shares = frame.recent.shares();
    for pod in frame.ejected {
        shares.entry(pod.clone()).or_insert(0.0);
    }
    for (pod, share) in shares.iter().take(MAX_BARS) {
        let note = if frame.ejected.contains(pod) { paint.bad("  ejected") } else { String::new() };
        lines.push(format!("     {pod:<12} {} {:>4.0} %{note}", bar(*share), share * 100.0));
    }
    lines
}

fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

fn verdict_lines(chapter: &Chapter, paint: Paint) -> Vec<String> {
    let word = if chapter.held { paint.good("held") } else { paint.bad("NOT HELD") };
    let mut lines = vec![format!("     {word}: {}", chapter.expected)];
    for check in &chapter.checks {
        let mark = if check.held { paint.good("✓") } else { paint.bad("✗") };
        lines.push(format!("       {mark} {}", check.said));
    }
    let measured = &chapter.measured;
    let latency = &measured.latency;
    lines.push(format!(
        "       p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms; {}",
        latency.p50_ms,
        latency.p99_ms,
        latency.p999_ms,
        shares(chapter)
    ));
    for (why, count) in &measured.failures {
        lines.push(paint.bad(&format!("       {count} × {why}")));
    }
    lines
}

fn shares(chapter: &Chapter) -> String {
    let each = chapter.measured.shares.iter();
    let each: Vec<_> = each.map(|(pod, share)| format!("{pod} {:.0} %", share * 100.0)).collect();
    each.join(", ")
}

fn summary_lines(summary: &Summary, paint: Paint) -> Vec<String> {
    let head = format!(
        "{:<28} {:>6} {:>9} {:>8} {:>8} {:>8} {:>6} {:>7}  {}",
        "chapter", "calls", "success", "p50 ms", "p99 ms", "p99.9", "eject", "retries", "verdict"
    );
    let mut lines = vec![String::new(), paint.bold(&head)];
    for chapter in &summary.chapters {
        let measured = &chapter.measured;
        let calls: u64 = measured.calls.values().map(|tally| tally.count()).sum();
        let word = if chapter.held { paint.good("held") } else { paint.bad("NOT HELD") };
        lines.push(format!(
            "{:<28} {calls:>6} {:>9} {:>8.1} {:>8.1} {:>8.1} {:>6} {:>7}  {word}",
            format!("{} {}", chapter.number, chapter.title),
            percent(measured.success_rate),
            measured.latency.p50_ms,
            measured.latency.p99_ms,
            measured.latency.p999_ms,
            measured.ejections,
            measured.retries,
        ));
        for check in chapter.checks.iter().filter(|check| !check.held) {
            lines.push(format!("    {} {}", paint.bad("✗"), check.said));
        }
    }
    let end = if summary.held {
        paint.good("Everything held.")
    } else {
        paint.bad("Not everything held.")
    };
    lines.push(String::new());
    lines.push(format!(
        "{end} {:.0} s at {} calls per second to web and a few to the other Services; latency \
         counts from the time a call was due.",
        summary.seconds, summary.rate
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{
        load::{Class, Outcome, Report, Sample},
        story::{Check, Measured},
    };
    use std::time::Duration;

    fn window() -> Window {
        let mut window = Window::default();
        let sample = |pod: &str| Sample {
            class: Class::Http,
            latency: Duration::from_millis(3),
            outcome: Outcome::Answered(Some(pod.into())),
        };
        window.take(&Report { samples: vec![sample("orders-0"), sample("orders-2")] });
        window
    }

    fn chapter(held: bool) -> Chapter {
        Chapter {
            number: 3,
            title: "A replica fails",
            expected: "nobody notices",
            held,
            checks: vec![Check { held, said: "3 of 9 calls failed, expected 0".into() }],
            seconds: 1.0,
            measured: Measured::new(&window(), &window(), 1, 2),
        }
    }

    #[test]
    fn nothing_is_coloured_where_colours_are_not_wanted() {
        let ejected = BTreeSet::from(["orders-1".to_owned()]);
        let frame = Frame { recent: &window(), ejected: &ejected, now: "now" };
        let summary = Summary {
            held: false,
            mode: "namespaces",
            seconds: 1.0,
            rate: 100,
            chapters: vec![chapter(false)],
        };
        for (paint, coloured) in [(Paint(false), false), (Paint(true), true)] {
            let text = [
                frame_lines(&frame, paint),
                verdict_lines(&chapter(true), paint),
                summary_lines(&summary, paint),
            ];
            for lines in text {
                assert_eq!(lines.concat().contains('\x1b'), coloured);
            }
        }
    }

    #[test]
    fn an_ejected_replica_is_shown_although_it_answers_nothing() {
        let ejected = BTreeSet::from(["orders-1".to_owned()]);
        let lines =
            frame_lines(&Frame { recent: &window(), ejected: &ejected, now: "" }, Paint(false));
        let line = lines.iter().find(|line| line.contains("orders-1")).unwrap();
        assert!(line.ends_with("0 %  ejected"), "{line}");
    }

    #[test]
    fn a_chapter_that_did_not_hold_says_so_in_the_summary() {
        let summary = Summary {
            held: false,
            mode: "namespaces",
            seconds: 1.0,
            rate: 100,
            chapters: vec![chapter(false)],
        };
        let text = summary_lines(&summary, Paint(false)).join("\n");
        assert!(text.contains("NOT HELD") && text.contains("3 of 9 calls failed"), "{text}");
        assert!(text.contains("Not everything held."), "{text}");
    }

    #[test]
    fn bars_have_one_width() {
        for share in [0.0, 0.333, 1.0, 7.0, f64::NAN] {
            assert_eq!(bar(share).chars().count(), BAR, "{share}");
        }
    }
}
