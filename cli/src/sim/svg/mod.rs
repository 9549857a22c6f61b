//! The report as one self-contained SVG: light and dark by the reader's preference, a title and a
//! description for those who do not see it, and nothing from elsewhere.

mod panel;

use std::fmt::Write;

use super::{
    chart::{self, Of},
    measure::Second,
    report::{PolicyReport, Report},
    text::{self, FIGURES},
};
use panel::{Panel, Scale};

/// Width of the picture; its height follows from what is in it.
const WIDTH: f64 = 960.0;
/// Where panels begin and end.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 936.0;
/// Points of a line; more would not be seen.
const POINTS: usize = 430;
/// Colours; what is beyond begins again.
const COLOURS: usize = 8;
/// Characters of a line of text.
const CHARACTERS: usize = 125;
/// Columns of the table.
const MAX_COLUMNS: usize = 8;

/// Colours by number, for light and for dark: told apart by lightness too, and lines by their dashes.
const PALETTE: [(&str, &str); COLOURS] = [
    ("#1f66d1", "#6aa5ff"),
    ("#d2640a", "#ff9d4d"),
    ("#1c7f53", "#4fc58f"),
    ("#a33a94", "#e084d3"),
    ("#6a4fc4", "#a994ff"),
    ("#0a7c8f", "#46c1d6"),
    ("#b3261e", "#ff8a80"),
    ("#7a6a12", "#cdb94a"),
];
const DASHES: [&str; 4] = ["none", "6 3", "2 3", "9 3 2 3"];

const STYLE: &str = "svg{background:#fff}text{font:13px system-ui,sans-serif;fill:#1c2430}\
.h{font-size:17px;font-weight:600}.b{font-weight:600}.s{font-size:11px;fill:#566172}\
.e{text-anchor:end}.m{text-anchor:middle}.g{stroke:#e3e7ed}.a{stroke:#9aa4b2}\
.d{fill:#f2b84b;opacity:.22}.l{fill:none;stroke-width:1.8;stroke-linejoin:round}\
.v{stroke:#fff;stroke-width:.6}.ok{fill:#1c7f53}.bad{fill:#b3261e}";
const DARK: &str = "svg{background:#12161c}text{fill:#e4e9f0}.s{fill:#9aa6b6}.g{stroke:#29313c}\
.a{stroke:#5b6675}.v{stroke:#12161c}.d{opacity:.16}.ok{fill:#4fc58f}.bad{fill:#ff8a80}";

/// The picture of a report.
#[must_use]
pub fn picture(report: &Report) -> String {
    let mut canvas = Canvas { body: String::new(), y: 34.0 };
    canvas.heading(report);
    canvas.by_policy(report, "p99 of each second, logarithmic", 190.0, Curve::P99);
    canvas.by_policy(report, "success of each second", 110.0, Curve::Success);
    for policy in &report.policies {
        canvas.shares(report, policy);
    }
    canvas.table(report);
    canvas.expectations(report);
    canvas.finish(report)
}

/// What is drawn with one line for each policy.
#[derive(Clone, Copy, PartialEq)]
enum Curve {
    P99,
    Success,
}

struct Canvas {
    body: String,
    /// How far down it is drawn.
    y: f64,
}

impl Canvas {
    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(text);
        self.body.push('\n');
    }

    fn text(&mut self, x: f64, class: &str, text: &str) {
        let (y, text) = (self.y, escape(text));
        self.put(format_args!(r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#));
    }

    fn heading(&mut self, report: &Report) {
        self.text(24.0, "h", &report.scenario);
        self.y += 2.0;
        for line in text::wrap(&report.about, CHARACTERS) {
            self.y += 18.0;
            self.text(24.0, "", &line);
        }
        self.y += 18.0;
        self.text(24.0, "s", &text::subtitle(report));
        self.y += 24.0;
        for (index, policy) in report.policies.iter().enumerate() {
            let x = 24.0 + (index % 4) as f64 * 228.0;
            if index > 0 && index % 4 == 0 {
                self.y += 18.0;
            }
            let (y, class) = (self.y - 4.0, line_class(index));
            self.put(format_args!(r#"<path class="l {class}" d="M{x:.1} {y:.1}h28"/>"#));
            self.text(x + 34.0, "", &policy.name);
        }
        self.y += 14.0;
    }

    fn by_policy(&mut self, report: &Report, title: &str, height: f64, curve: Curve) {
        let value = |second: &Second| match curve {
            Curve::P99 => second.p99_ms,
            Curve::Success => second.success,
        };
        let of = if curve == Curve::P99 { Of::Greatest } else { Of::Least };
        let lines: Vec<_> =
            report.policies.iter().map(|policy| series(policy, value, of)).collect();
        let all = || lines.iter().flatten().copied().flatten();
        let least = all().min_by(f64::total_cmp).unwrap_or(1.0);
        let greatest = all().max_by(f64::total_cmp).unwrap_or(1.0);
        let scale = match curve {
            Curve::P99 => Scale::logarithmic(least, greatest),
            Curve::Success => Scale::shares((least - 0.02).clamp(0.0, 0.95), 1.0),
        };
        let panel = self.panel(report, title, height, &scale);
        for (index, line) in lines.iter().enumerate() {
            let (path, class) = (panel.line(line, &scale), line_class(index));
            self.put(format_args!(r#"<path class="l {class}" d="{path}"/>"#));
        }
    }

    /// Servers one upon the other; where there are more than colours, those of a group have one.
    fn shares(&mut self, report: &Report, policy: &PolicyReport) {
        let scale = Scale::shares(0.0, 1.0);
        let title = format!("share of each server: {}", policy.name);
        let panel = self.panel(report, &title, 130.0, &scale);
        let by_group = policy.servers.len() > COLOURS;
        let mut groups: Vec<&str> = Vec::new();
        let mut below = vec![0.0; POINTS];
        for (index, server) in policy.servers.iter().enumerate() {
            let own = series(policy, |second| second.shares[index], Of::Mean);
            let sum = |(below, own): (&f64, &Option<f64>)| below + own.unwrap_or(0.0);
            let above: Vec<f64> = below.iter().zip(&own).map(sum).collect();
            let group = if by_group { group(&server.name) } else { &server.name };
            let colour = groups.iter().position(|known| *known == group).unwrap_or_else(|| {
                groups.push(group);
                groups.len() - 1
            }) % COLOURS;
            let path = panel.area(&below, &above, &scale);
            let name = escape(&server.name);
            self.put(format_args!(
                r#"<path class="v f{colour}" d="{path}"><title>{name}</title></path>"#
            ));
            below = above;
        }
        self.y += 20.0;
        let mut x = LEFT;
        for (index, group) in groups.iter().enumerate() {
            let (y, colour) = (self.y - 10.0, index % COLOURS);
            let wide = 30.0 + group.len() as f64 * 7.5;
            if x + wide > RIGHT {
                break; // Names beyond one line are in the titles of the areas.
            }
            self.put(format_args!(
                r#"<rect class="f{colour}" x="{x:.1}" y="{y:.1}" width="11" height="11"/>"#
            ));
            self.text(x + 16.0, "s", group);
            x += wide;
        }
    }

    /// Title, grid, axes and what was disturbed.
    fn panel(&mut self, report: &Report, title: &str, height: f64, scale: &Scale) -> Panel {
        self.y += 30.0;
        self.text(24.0, "b", title);
        self.y += 10.0;
        let time = (report.warmup_s.ceil(), report.duration_s.floor());
        let panel = Panel { left: LEFT, right: RIGHT, top: self.y, height, time };
        for &(from, to) in &report.disturbances {
            let (from, to) = (panel.x(from), panel.x(to).max(panel.x(from) + 2.0));
            let (y, width) = (panel.top, to - from);
            self.put(format_args!(
                r#"<rect class="d" x="{from:.1}" y="{y:.1}" width="{width:.1}" height="{height}"/>"#
            ));
        }
        for (value, label) in scale.ticks() {
            let y = panel.y(value, scale);
            self.put(format_args!(r#"<path class="g" d="M{LEFT} {y:.1}H{RIGHT}"/>"#));
            let (x, y) = (LEFT - 8.0, y + 4.0);
            self.put(format_args!(r#"<text class="s e" x="{x}" y="{y:.1}">{label}</text>"#));
        }
        let bottom = panel.top + height;
        self.put(format_args!(r#"<path class="a" d="M{LEFT} {bottom:.1}H{RIGHT}"/>"#));
        for seconds in panel.time_ticks() {
            let (x, y) = (panel.x(seconds), bottom + 15.0);
            self.put(format_args!(r#"<text class="s m" x="{x:.1}" y="{y:.1}">{seconds} s</text>"#));
        }
        self.y = bottom + 18.0;
        panel
    }

    fn table(&mut self, report: &Report) {
        self.y += 34.0;
        let policies = || report.policies.iter().take(MAX_COLUMNS);
        let column = |index: usize| {
            let wide = ((RIGHT - 210.0) / policies().count().max(1) as f64).min(180.0);
            210.0 + (index + 1) as f64 * wide
        };
        for (index, policy) in policies().enumerate() {
            self.text(column(index), "b e", &policy.name);
        }
        for (name, cell) in FIGURES {
            self.y += 19.0;
            self.text(24.0, "", name);
            for (index, policy) in policies().enumerate() {
                self.text(column(index), "e", &cell(&policy.figures));
            }
        }
        self.y += 12.0;
    }

    fn expectations(&mut self, report: &Report) {
        for expected in &report.expect {
            self.y += 19.0;
            let (class, word) = if expected.held { ("ok b", "held") } else { ("bad b", "FAILED") };
            self.text(24.0, class, word);
            self.text(90.0, "", &format!("{}   ({})", expected.text, text::compared(expected)));
        }
    }

    fn finish(self, report: &Report) -> String {
        let height = self.y + 24.0;
        let mut style = STYLE.to_owned();
        let mut dark = DARK.to_owned();
        for (index, (light, on_dark)) in PALETTE.iter().enumerate() {
            let _ = write!(style, ".c{index}{{stroke:{light}}}.f{index}{{fill:{light}}}");
            let _ = write!(dark, ".c{index}{{stroke:{on_dark}}}.f{index}{{fill:{on_dark}}}");
        }
        for (index, dash) in DASHES.iter().enumerate() {
            let _ = write!(style, ".p{index}{{stroke-dasharray:{dash}}}");
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
             width=\"{WIDTH}\" height=\"{height:.0}\" role=\"img\" aria-labelledby=\"t d\">\n\
             <title id=\"t\">{}</title>\n<desc id=\"d\">{}</desc>\n\
             <style>{style}@media(prefers-color-scheme:dark){{{dark}}}</style>\n{}</svg>\n",
            escape(&format!("Simulation {}", report.scenario)),
            escape(&describe(report)),
            self.body
        )
    }
}

/// What the picture shows, in words.
fn describe(report: &Report) -> String {
    let mut text = format!("{} {}.", report.about, text::subtitle(report));
    for policy in &report.policies {
        let figures =
            FIGURES.iter().map(|(name, cell)| format!("{name} {}", cell(&policy.figures)));
        let _ = write!(text, " {}: {}.", policy.name, figures.collect::<Vec<_>>().join("; "));
    }
    for expected in &report.expect {
        let word = if expected.held { "Held" } else { "Failed" };
        let _ = write!(text, " {word}: {}.", expected.text);
    }
    text
}

fn series(
    policy: &PolicyReport,
    value: impl Fn(&Second) -> Option<f64>,
    of: Of,
) -> Vec<Option<f64>> {
    let values: Vec<_> = policy.seconds.iter().map(value).collect();
    chart::fit(&values, POINTS, of)
}

fn line_class(index: usize) -> String {
    format!("c{} p{}", index % COLOURS, index % DASHES.len())
}

/// `fast` of `fast-2`.
fn group(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((group, number)) if number.bytes().all(|b| b.is_ascii_digit()) => group,
        _ => name,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Scenario, report};

    fn picture_of(about: &str) -> String {
        let text = format!(
            "about: \"{about}\"\nduration: 20s\nservers: {{a: {{count: 2, latency: 5ms}}, b: {{latency: 9ms}}}}\n\
             clients: {{c: {{rate: 20}}}}\npolicies: {{p: {{}}, q: {{algorithm: random}}}}\n\
             events: [{{at: 10s, for: 2s, server: a, latency: 90ms}}]\nexpect: [p99 <= 1s, success > 1]\n"
        );
        picture(&report::run(&Scenario::parse("case", &text).unwrap(), 1).unwrap())
    }

    #[test]
    fn what_people_write_is_text_and_never_markup() {
        let svg = picture_of("<script>a & b</script>");
        assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;a &amp; b&lt;/script&gt;"));
    }

    #[test]
    fn each_policy_has_a_line_each_server_an_area_and_each_disturbance_a_band() {
        let svg = picture_of("x");
        // In the legend, of p99 and of success.
        assert_eq!(
            (svg.matches("class=\"l c0").count(), svg.matches("class=\"l c1").count()),
            (3, 3)
        );
        assert_eq!(svg.matches("<path class=\"v ").count(), 2 * 3);
        assert_eq!(svg.matches("<rect class=\"d\"").count(), 2 + 2);
        assert_eq!((svg.matches(">held<").count(), svg.matches(">FAILED<").count()), (1, 1));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "every place is a number");
    }

    #[test]
    fn replicas_of_one_server_have_one_name() {
        assert_eq!(
            (group("fast-2"), group("fast-one"), group("a-1-2")),
            ("fast", "fast-one", "a-1")
        );
    }
}
