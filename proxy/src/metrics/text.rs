//! OpenMetrics 1.0 text.
//!
//! Written here, since prometheus-client gives exemplars to histograms of its own alone, and ours are
//! merged from parts when they are scraped.

use std::fmt::{Display, Write};

use super::{trace::Exemplar, wall::Wall};

/// Text that grows by families of series.
#[derive(Debug)]
pub struct Exposition<'a> {
    text: &'a mut String,
    wall: Wall,
}

/// A value of a series.
pub trait Value: Copy {
    /// Whether it is nothing.
    fn is_zero(self) -> bool;
    /// As text.
    fn shown(self) -> impl Display;
}

impl Value for u64 {
    fn is_zero(self) -> bool {
        self == 0
    }

    fn shown(self) -> impl Display {
        self
    }
}

impl Value for i64 {
    fn is_zero(self) -> bool {
        self == 0
    }

    fn shown(self) -> impl Display {
        self
    }
}

impl Value for f64 {
    fn is_zero(self) -> bool {
        self == 0.0
    }

    fn shown(self) -> impl Display {
        Float(self)
    }
}

/// With a point, so that nobody takes it for an integer.
struct Float(f64);

impl Display for Float {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// One histogram.
#[derive(Debug)]
pub struct Distribution<'a> {
    /// Upper bounds in microseconds; there is one more bucket, without a bound.
    pub bounds: &'a [u64],
    /// Each bucket's own count.
    pub counts: &'a [u64],
    /// In seconds.
    pub sum: f64,
    /// Of some buckets.
    pub exemplars: &'a [Option<Exemplar>],
}

impl<'a> Exposition<'a> {
    /// Appends to a text.
    #[must_use]
    pub fn new(text: &'a mut String, wall: Wall) -> Self {
        Self { text, wall }
    }

    /// This moment.
    #[must_use]
    pub fn wall(&self) -> Wall {
        self.wall
    }

    /// A family of counters, whose name gets `_total`. Those that never counted are left out.
    pub fn counters<L: AsRef<[(&'static str, S)]>, S: AsRef<str>, V: Value>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, V)>,
    ) {
        self.head(name, help, "counter");
        for (labels, value) in series.into_iter().filter(|(_, value)| !value.is_zero()) {
            self.sample((name, "_total"), labels.as_ref(), value);
        }
    }

    /// A family of gauges.
    pub fn gauges<L: AsRef<[(&'static str, S)]>, S: AsRef<str>, V: Value>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, V)>,
    ) {
        self.head(name, help, "gauge");
        for (labels, value) in series {
            self.sample((name, ""), labels.as_ref(), value);
        }
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Value) {
        self.gauges(name, help, [([] as [(&'static str, &str); 0], value)]);
    }

    /// Begins a family of histograms, for [`Self::histogram`].
    pub fn histograms(&mut self, name: &str, help: &str) {
        self.head(name, help, "histogram");
    }

    /// One histogram of the family that was begun last.
    pub fn histogram<S: AsRef<str>>(
        &mut self,
        name: &str,
        labels: &[(&'static str, S)],
        of: &Distribution<'_>,
    ) {
        let count: u64 = of.counts.iter().sum();
        self.sample((name, "_sum"), labels, of.sum);
        self.sample((name, "_count"), labels, count);
        let mut below = 0;
        for (at, own) in of.counts.iter().enumerate() {
            below += own;
            let bound = match of.bounds.get(at) {
                Some(micros) => format!("{:?}", *micros as f64 / 1e6),
                None => "+Inf".to_owned(),
            };
            self.text.push_str(name);
            self.text.push_str("_bucket");
            let le = [("le", bound.as_str())];
            let labels = labels.iter().map(|(name, value)| (*name, value.as_ref()));
            self.labels(le.into_iter().chain(labels));
            self.push(format_args!(" {below}"));
            if let Some(exemplar) = of.exemplars.get(at).copied().flatten() {
                self.exemplar(&exemplar);
            }
            self.text.push('\n');
        }
    }

    /// The end of the text.
    pub fn end(self) {
        self.text.push_str("# EOF\n");
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.push(format_args!("# HELP {name} {help}.\n# TYPE {name} {kind}\n"));
    }

    fn sample<S: AsRef<str>>(
        &mut self,
        (name, suffix): (&str, &str),
        labels: &[(&'static str, S)],
        value: impl Value,
    ) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        self.labels(labels.iter().map(|(name, value)| (*name, value.as_ref())));
        self.push(format_args!(" {}\n", value.shown()));
    }

    fn labels<'b>(&mut self, labels: impl Iterator<Item = (&'static str, &'b str)>) {
        let mut open = '{';
        for (name, value) in labels {
            self.text.push(open);
            open = ',';
            self.text.push_str(name);
            self.text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if open == ',' {
            self.text.push('}');
        }
    }

    fn exemplar(&mut self, exemplar: &Exemplar) {
        let (took, at) = (exemplar.took.as_secs_f64(), self.wall.unix(exemplar.at).as_secs_f64());
        let trace = exemplar.trace;
        self.push(format_args!(" # {{trace_id=\"{trace}\"}} {took:?} {at:.3}"));
    }

    fn push(&mut self, words: std::fmt::Arguments<'_>) {
        // Text in memory takes everything.
        let _ = self.text.write_fmt(words);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::trace::TraceId;

    #[test]
    fn values_of_labels_are_escaped_and_what_never_counted_is_left_out() {
        let mut text = String::new();
        let mut out = Exposition::new(&mut text, Wall::clock());
        out.counters("a", "Some", [([("x", "q\"b\\n\n")], 1u64), ([("x", "none")], 0)]);
        out.gauge("b", "Other", 0.5);
        out.end();
        assert_eq!(
            text,
            "# HELP a Some.\n# TYPE a counter\na_total{x=\"q\\\"b\\\\n\\n\"} 1\n\
             # HELP b Other.\n# TYPE b gauge\nb 0.5\n# EOF\n"
        );
    }

    #[test]
    fn a_bucket_shows_the_trace_of_its_last_request() {
        let now = tokio::time::Instant::now().into_std();
        let wall = Wall::at(now + Duration::from_secs(2), Duration::from_millis(1_700_000_000_250));
        let trace = TraceId(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        let exemplar = Exemplar { trace, took: Duration::from_millis(3), at: now };
        let of = Distribution {
            bounds: &[1000, 5000],
            counts: &[2, 1, 0],
            sum: 0.004,
            exemplars: &[None, Some(exemplar), None],
        };
        let mut text = String::new();
        let mut out = Exposition::new(&mut text, wall);
        out.histograms("h", "Times");
        out.histogram("h", &[("p", "80")], &of);
        assert_eq!(
            text,
            "# HELP h Times.\n# TYPE h histogram\nh_sum{p=\"80\"} 0.004\nh_count{p=\"80\"} 3\n\
             h_bucket{le=\"0.001\",p=\"80\"} 2\n\
             h_bucket{le=\"0.005\",p=\"80\"} 3 # {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"} \
             0.003 1699999998.250\n\
             h_bucket{le=\"+Inf\",p=\"80\"} 3\n"
        );
    }
}
