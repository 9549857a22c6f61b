//! Tables for people, and the words for numbers in them.

use std::{
    fmt,
    io::{self, Write},
};

use k8s_openapi::jiff::Timestamp;

/// What stands where nothing is known.
pub(crate) const NOTHING: &str = "-";
/// Longest cell, in characters; what is longer is cut.
const MAX_CELL: usize = 80;
/// Between two columns.
const GAP: &str = "  ";

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// How a row looks on a terminal that has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// As it is.
    Plain,
    /// The head.
    Bold,
    /// Something is wrong.
    Bad,
    /// Something may be wrong.
    Doubtful,
}

/// Colours, where they are wanted (<https://no-color.org>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Colours(pub(crate) bool);

impl Colours {
    /// Text in the look of a row.
    pub(crate) fn paint(self, look: Look, text: &str) -> String {
        let code = match look {
            _ if !self.0 => return text.to_owned(),
            Look::Plain => return text.to_owned(),
            Look::Bold => "1",
            Look::Bad => "31",
            Look::Doubtful => "33",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A table: its columns, and rows that have a cell for each.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<(Look, Vec<String>)>,
}

impl Table {
    /// An empty one.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One row more.
    pub(crate) fn row(&mut self, look: Look, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().take(self.columns.len()).map(|cell| clean(&cell));
        self.rows.push((look, cells.collect()));
    }

    /// Its lines, the head first.
    pub(crate) fn lines(&self, colours: Colours) -> Vec<String> {
        let mut widths: Vec<usize> =
            self.columns.iter().map(|(title, _)| title.chars().count()).collect();
        for (_, cells) in &self.rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let head: Vec<&str> = self.columns.iter().map(|(title, _)| *title).collect();
        let line = |look, cells: &[&str]| {
            let padded =
                cells.iter().zip(&widths).zip(&self.columns).map(|((cell, &width), (_, align))| {
                    match align {
                        Align::Left => format!("{cell:<width$}"),
                        Align::Right => format!("{cell:>width$}"),
                    }
                });
            let text = padded.collect::<Vec<_>>().join(GAP);
            colours.paint(look, text.trim_end())
        };
        let rows = self.rows.iter().map(|(look, cells)| {
            line(*look, &cells.iter().map(String::as_str).collect::<Vec<_>>())
        });
        std::iter::once(line(Look::Bold, &head)).chain(rows).collect()
    }

    /// Writes all lines.
    ///
    /// # Errors
    /// Of the output.
    pub(crate) fn write(&self, out: &mut impl Write, colours: Colours) -> io::Result<()> {
        self.lines(colours).iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

/// Somebody else's text on one line, without anything that a terminal acts on, and not too long;
/// [`NOTHING`] where it is empty.
pub(crate) fn clean(text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() {
        return NOTHING.to_owned();
    }
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let mut cut: String = text.chars().take(MAX_CELL).map(printable).collect();
    if text.chars().nth(MAX_CELL).is_some() {
        cut.pop();
        cut.push('…');
    }
    cut
}

/// Somebody else's text of whatever length, without anything that a terminal acts on.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Something known, or [`NOTHING`].
pub(crate) fn known<T>(value: Option<T>, words: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NOTHING.to_owned(), words)
}

/// A share of 1 as `99.95 %`; only what is all of it is `100 %`.
pub(crate) fn percent(share: f64) -> String {
    if share >= 1.0 {
        return "100 %".to_owned();
    }
    // Cut, not rounded: 100 would say that nothing failed.
    format!("{:.2} %", (share * 10_000.0).floor() / 100.0)
}

/// A number of things each second.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        low if low < 10.0 => format!("{low:.1}"),
        high => format!("{high:.0}"),
    }
}

/// Microseconds as `310 µs`, `1.2 ms`, and so on.
pub(crate) fn micros(micros: u64) -> String {
    match micros {
        short @ 0..1000 => format!("{short} µs"),
        long => millis(long as f64 / 1e3),
    }
}

/// Milliseconds as `1.2 ms`, `38 ms`, `1.3 s`, or minutes and more.
pub(crate) fn millis(millis: f64) -> String {
    match millis.max(0.0) {
        low if low < 9.95 => format!("{low:.1} ms"),
        middle if middle < 999.5 => format!("{middle:.0} ms"),
        seconds if seconds < 99_500.0 => format!("{:.1} s", seconds / 1e3),
        minutes if minutes < 5_970_000.0 => format!("{:.0} min", minutes / 6e4),
        hours => format!("{:.0} h", hours / 3.6e6),
    }
}

/// How many of how many.
pub(crate) struct Of(pub(crate) usize, pub(crate) usize);

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.0, self.1)
    }
}

/// Unix milliseconds as a time of day, in UTC.
pub(crate) fn time_of_day(at_ms: i64) -> String {
    instant(at_ms, "%H:%M:%S%.3f")
}

/// Unix milliseconds as date and time, in UTC.
pub(crate) fn date_time(at_ms: i64) -> String {
    instant(at_ms, "%Y-%m-%d %H:%M:%S%.3f")
}

fn instant(at_ms: i64, format: &str) -> String {
    let at = Timestamp::from_millisecond(at_ms);
    at.map_or_else(|_| NOTHING.to_owned(), |at| at.strftime(format).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[("SERVICE", Align::Left), ("RPS", Align::Right)]);
        table.row(Look::Plain, ["shop/web:80".to_owned(), "1200".to_owned()]);
        table.row(Look::Bad, [String::new(), "3.1".to_owned()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let lines = table().lines(Colours(false));
        assert_eq!(lines, ["SERVICE       RPS", "shop/web:80  1200", "-             3.1"]);
    }

    #[test]
    fn colours_are_around_whole_lines() {
        let lines = table().lines(Colours(true));
        assert_eq!(lines[0], "\x1b[1mSERVICE       RPS\x1b[0m");
        assert_eq!(lines[1], "shop/web:80  1200");
        assert_eq!(lines[2], "\x1b[31m-             3.1\x1b[0m");
    }

    #[test]
    fn nothing_of_somebody_elses_reaches_the_terminal_as_a_command() {
        assert_eq!(clean("a\x1b[2Jb\nc"), "a [2Jb c");
        assert_eq!(clean(&"x".repeat(500)).chars().count(), MAX_CELL);
        assert_eq!(clean(" "), NOTHING);
    }

    #[test]
    fn numbers_have_as_many_digits_as_mean_something() {
        let times = [0.0, 1.24, 9.96, 38.4, 999.6, 61_234.0, 180_000.0, 7_200_000.0];
        let words: Vec<String> = times.into_iter().map(millis).collect();
        let expected = ["0.0 ms", "1.2 ms", "10 ms", "38 ms", "1.0 s", "61.2 s", "3 min", "2 h"];
        assert_eq!(words, expected);
        assert_eq!([micros(7), micros(999), micros(1000)], ["7 µs", "999 µs", "1.0 ms"]);
        assert_eq!([rate(0.04), rate(9.94), rate(1234.5)], ["0.0", "9.9", "1234"]);
        assert_eq!([percent(1.0), percent(0.99999), percent(0.5)], ["100 %", "99.99 %", "50.00 %"]);
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(date_time(1_795_220_669_500), "2026-11-21 00:24:29.500");
        assert_eq!(time_of_day(1_795_220_669_500), "00:24:29.500");
    }
}
