//! The text form of metrics, as far as the checks read it.

/// One scrape.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Exposition(Vec<Sample>);

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: String,
    value: f64,
}

impl Exposition {
    /// Reads it; lines that are no samples are skipped, and histograms' buckets.
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let name = line.split(['{', ' ']).next()?;
            let rest = &line[name.len()..];
            let (labels, rest) = match rest.rfind('}') {
                Some(end) => (rest.get(1..end)?, &rest[end + 1..]),
                None => ("", rest),
            };
            let value = rest.split_whitespace().next()?.parse().ok()?;
            Some(Sample { name: name.to_owned(), labels: labels.to_owned(), value })
        });
        Self(samples.filter(|sample| !sample.name.ends_with("_bucket")).collect())
    }

    /// The sum of a metric's series whose labels have all of these values; 0 where there is none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.0
            .iter()
            .filter(|sample| sample.name == name)
            .filter(|sample| {
                labels.iter().all(|(label, value)| sample.label(label).as_deref() == Some(*value))
            })
            .map(|sample| sample.value)
            .sum()
    }

    /// The value of a metric without regard to labels; the first where there are several.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|sample| sample.name == name).map(|sample| sample.value)
    }

    /// The version in the metric that ends in `build_info`.
    pub(crate) fn version(&self) -> Option<String> {
        self.0.iter().find(|sample| sample.name.ends_with("build_info"))?.label("version")
    }
}

impl Sample {
    fn label(&self, name: &str) -> Option<String> {
        let mut rest = self.labels.as_str();
        while let Some((key, after)) = rest.split_once("=\"") {
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next()?.1 {
                        'n' => value.push('\n'),
                        other => value.push(other),
                    },
                    (_, other) => value.push(other),
                }
            };
            if key.trim_start_matches(',').trim() == name {
                return Some(value);
            }
            rest = &after[end + 1..];
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCRAPE: &str = "# TYPE remora_inbound_http_requests counter\n\
        remora_inbound_http_requests_total{tls=\"mtls\"} 1204\n\
        remora_tcp_connections_total{direction=\"inbound\",tls=\"mtls\"} 3\n\
        remora_tcp_connections_total{direction=\"outbound\",tls=\"mtls\"} 5\n\
        remora_odd_total{a=\"x\\\"} 7\",b=\"y\"} 2 1700000000\n\
        remora_discovery_connected 1\n\
        remora_x_seconds_bucket{le=\"1\"} 9\n\
        remora_control_plane_build_info{version=\"0.1.0\"} 1\n\
        garbage\n# EOF\n";

    #[test]
    fn sums_go_by_labels() {
        let scrape = Exposition::parse(SCRAPE);
        assert_eq!(scrape.sum("remora_inbound_http_requests_total", &[("tls", "mtls")]), 1204.0);
        assert_eq!(scrape.sum("remora_inbound_http_requests_total", &[("tls", "none")]), 0.0);
        let connections = "remora_tcp_connections_total";
        assert_eq!(scrape.sum(connections, &[]), 8.0);
        let inbound = [("direction", "inbound"), ("tls", "mtls")];
        assert_eq!(scrape.sum(connections, &inbound), 3.0);
        assert_eq!(scrape.sum("remora_odd_total", &[("b", "y")]), 2.0);
        assert_eq!(scrape.value("remora_discovery_connected"), Some(1.0));
        assert_eq!(scrape.value("garbage"), None);
        assert_eq!(scrape.version().as_deref(), Some("0.1.0"));
    }

    proptest! {
        #[test]
        fn any_text_can_be_read(text in "[a-z_{}\"=,\\\\ 0-9\n#ä]{0,80}") {
            let scrape = Exposition::parse(&text);
            scrape.sum("a", &[("b", "c")]);
            scrape.version();
        }
    }
}
