//! What the sidecars' admin endpoints answer, as far as the story reads it.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `GET /endpoints`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Services {
    pub(crate) services: Vec<Service>,
}

/// One Service port that the sidecar balances.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// One endpoint of it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) pod: String,
    pub(crate) state: String,
}

/// `GET /certs`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Certificate {
    pub(crate) refreshes: u64,
}

impl Services {
    /// The endpoints of a Service, all ports.
    pub(crate) fn of<'a>(&'a self, service: &'a str) -> impl Iterator<Item = &'a Endpoint> {
        self.services.iter().filter(move |s| s.name == service).flat_map(|s| &s.endpoints)
    }
}

impl Endpoint {
    /// Whether the breaker keeps requests away from it.
    pub(crate) fn is_ejected(&self) -> bool {
        self.state != "ready"
    }
}

/// `GET /metrics`: sums over all labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the text format; lines that are no samples are skipped.
    pub(crate) fn parse(text: &str) -> Self {
        let mut sums = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            // After the labels, whose values may contain spaces, comes the number.
            let rest = line.rfind('}').map_or(&line[name.len()..], |end| &line[end + 1..]);
            let Some(Ok(value)) = rest.split_whitespace().next().map(str::parse::<f64>) else {
                continue;
            };
            *sums.entry(name.to_owned()).or_insert(0.0) += value;
        }
        Self(sums)
    }

    /// The sum of a metric over its labels; 0 where it is absent.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_sum_over_labels() {
        let metrics = Metrics::parse(
            "# TYPE remora_outbound_retries counter\n\
             remora_outbound_retries_total{service=\"orders\",result=\"success\"} 3\n\
             remora_outbound_retries_total{service=\"a } b\",result=\"failure\"} 4 1700000000\n\
             remora_discovery_connected 1\n\
             garbage\n\
             # EOF\n",
        );
        assert_eq!(metrics.sum("remora_outbound_retries_total"), 7.0);
        assert_eq!(metrics.sum("remora_discovery_connected"), 1.0);
        assert_eq!(metrics.sum("garbage"), 0.0);
    }

    #[test]
    fn endpoints_tell_who_is_ejected() {
        let services: Services = serde_json::from_str(
            r#"{"services":[{"namespace":"shop","name":"orders","port":80,"target":"x",
                "protocol":"http1","endpoints":[
                {"address":"10.244.0.5:8080","namespace":"shop","pod":"orders-0","identity":null,
                 "state":"ready","ewma_ms":1.5,"in_flight":0,"requests":9,"failures":0,
                 "breaker":{"reason":null,"trips":1,"since_ms":null,"next_probe_ms":null}},
                {"address":"10.244.0.6:8080","namespace":"shop","pod":"orders-1","identity":null,
                 "state":"open","ewma_ms":1.5,"in_flight":0,"requests":9,"failures":5,
                 "breaker":{"reason":"consecutive-failures","trips":2,"since_ms":3,
                            "next_probe_ms":4}}]}]}"#,
        )
        .unwrap();
        let ejected: Vec<_> =
            services.of("orders").filter(|e| e.is_ejected()).map(|e| &e.pod).collect();
        assert_eq!(ejected, ["orders-1"]);
        assert_eq!(services.of("web").count(), 0);
    }
}
