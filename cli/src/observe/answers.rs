//! What proxies and the control plane answer, as far as it is shown. Proxies of other versions may
//! lack fields or have more: what is absent or null has its default.

use serde::{Deserialize, Deserializer, Serialize};

/// Null is as good as absent.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// `/endpoints` of a proxy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoints {
    pub(crate) services: Vec<Service>,
}

/// A port of a Service, as one proxy knows it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: u16,
    #[serde(deserialize_with = "or_default")]
    pub(crate) protocol: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) windows: Windows,
    #[serde(deserialize_with = "or_default")]
    pub(crate) routes: Vec<Route>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// A route of a Service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Route {
    /// `namespace/name/rule`.
    pub(crate) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) windows: Windows,
}

/// What happened in the last while.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Windows {
    #[serde(rename = "10s")]
    pub(crate) ten_seconds: Option<Window>,
    #[serde(rename = "1m")]
    pub(crate) minute: Option<Window>,
    pub(crate) start: Option<Window>,
}

/// One while.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Window {
    /// Time that it really covers.
    pub(crate) seconds: f64,
    /// Requests that ended in it.
    pub(crate) requests: u64,
    /// Those of them that failed.
    pub(crate) failures: u64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
}

/// An endpoint, as one proxy sees it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoint {
    pub(crate) address: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) pod: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) zone: String,
    /// `ready`, `open`, `half-open`.
    #[serde(deserialize_with = "or_default")]
    pub(crate) state: String,
    pub(crate) ewma_ms: f64,
    pub(crate) in_flight: u64,
    #[serde(deserialize_with = "or_default")]
    pub(crate) breaker: Breaker,
    #[serde(deserialize_with = "or_default")]
    pub(crate) windows: Windows,
    #[serde(deserialize_with = "or_default")]
    pub(crate) history: History,
}

/// What a breaker says.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Breaker {
    #[serde(deserialize_with = "or_default")]
    pub(crate) reason: String,
    pub(crate) next_probe_ms: Option<f64>,
}

/// When things first or last happened, in Unix milliseconds.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    pub(crate) applied_ms: Option<i64>,
    pub(crate) first_dial_ms: Option<i64>,
    pub(crate) last_success_ms: Option<i64>,
    pub(crate) last_failure_ms: Option<i64>,
}

/// `/services` of a proxy: names of routes also of a version that does not count them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Destinations {
    pub(crate) services: Vec<Destination>,
}

/// One of them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Destination {
    /// `namespace/name:port`, where it is a Service.
    #[serde(deserialize_with = "or_default")]
    pub(crate) service: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) routes: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) stream_routes: Vec<String>,
}

/// `/events` of a proxy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Events {
    pub(crate) events: Vec<Event>,
}

/// A breaker that opened or closed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Event {
    pub(crate) at_ms: i64,
    #[serde(deserialize_with = "or_default")]
    pub(crate) service: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) endpoint: String,
    /// `ejected`, `recovered`.
    #[serde(deserialize_with = "or_default")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) reason: String,
    pub(crate) penalty_ms: Option<f64>,
}

/// `/why-endpoint` of the control plane.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WhyEndpoint {
    pub(crate) services: Vec<Placed>,
}

/// An address in a Service, as the control plane has it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Placed {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: u16,
    #[serde(deserialize_with = "or_default")]
    pub(crate) state: String,
    /// Unix milliseconds of the change that made it what it is.
    pub(crate) event_ms: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) pushes: Vec<Push>,
    /// Proxies beside those.
    pub(crate) pushes_left_out: u64,
}

/// An update to a proxy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Push {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) sent_ms: Option<i64>,
    pub(crate) acked_ms: Option<i64>,
}

/// `/decisions` of a proxy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Decisions {
    pub(crate) decisions: Vec<Decision>,
}

/// A line of `/tap` that is no record.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Missed {
    /// Records that came faster than they were read.
    pub(crate) missed: u64,
}

/// What became of one request, and why.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Decision {
    #[serde(deserialize_with = "or_default")]
    pub(crate) id: String,
    pub(crate) at_ms: Option<i64>,
    pub(crate) ago_ms: Option<f64>,
    /// `outbound`, `inbound`.
    #[serde(deserialize_with = "or_default")]
    pub(crate) direction: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) target: String,
    pub(crate) service: Option<String>,
    pub(crate) route: Option<String>,
    pub(crate) route_why: Option<String>,
    /// `http/1.1`, `http/2`, `grpc`; `tcp`: a connection, without method, path and status.
    #[serde(deserialize_with = "or_default")]
    pub(crate) protocol: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) method: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) path: String,
    pub(crate) host: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) grpc_status: Option<i32>,
    pub(crate) reason: Option<String>,
    pub(crate) error: Option<String>,
    /// `None`: the proxy does not say.
    pub(crate) failed: Option<bool>,
    /// Its client went away before it had a whole response.
    #[serde(deserialize_with = "or_default")]
    pub(crate) client_left: bool,
    pub(crate) client: Option<String>,
    pub(crate) peer: Option<String>,
    pub(crate) policy: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) attempts: Vec<Attempt>,
    /// Attempts beyond those.
    pub(crate) attempts_untold: u32,
    #[serde(deserialize_with = "or_default")]
    pub(crate) tried: Vec<String>,
    /// Of a connection that was carried: bytes from the one who opened it.
    pub(crate) sent_bytes: Option<u64>,
    /// And back.
    pub(crate) received_bytes: Option<u64>,
    pub(crate) timeouts: Option<Timeouts>,
    pub(crate) retry_budget_left: Option<f64>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) phases: Phases,
    pub(crate) trace_id: Option<String>,
    pub(crate) elapsed_ms: Option<f64>,
}

/// One endpoint that was tried.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Attempt {
    pub(crate) endpoint: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) pod: String,
    pub(crate) identity: Option<String>,
    /// `mtls`, `none`.
    #[serde(deserialize_with = "or_default")]
    pub(crate) tls: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) candidates: Vec<Candidate>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) chosen: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) breaker: String,
    pub(crate) start_us: Option<u64>,
    pub(crate) connect_us: Option<u64>,
    pub(crate) head_us: Option<u64>,
    pub(crate) status: Option<u16>,
    pub(crate) grpc_status: Option<i32>,
    pub(crate) reason: Option<String>,
    pub(crate) error: Option<String>,
    /// `no`, `maybe`, `yes`.
    #[serde(deserialize_with = "or_default")]
    pub(crate) may_have_run: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) verdict: String,
    pub(crate) backoff_us: Option<u64>,
}

/// An endpoint that could have been taken.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Candidate {
    pub(crate) endpoint: String,
    pub(crate) cost_ms: Option<f64>,
    pub(crate) in_flight: Option<f64>,
}

/// Time-outs in force; `None`: there is none.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Timeouts {
    pub(crate) request_ms: Option<f64>,
    pub(crate) response_ms: Option<f64>,
    pub(crate) per_try_ms: Option<f64>,
    pub(crate) idle_ms: Option<f64>,
    pub(crate) connect_ms: Option<f64>,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Phases {
    pub(crate) wait_us: Option<u64>,
    pub(crate) resolve_us: Option<u64>,
    pub(crate) head_us: Option<u64>,
    pub(crate) total_us: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_proxys_answer_lacks_fields_and_is_read() {
        let text = r#"{"services":[{"namespace":"hello","name":"web","port":80,"target":"x","protocol":"detect",
            "endpoints":[{"address":"10.0.0.3:80","namespace":"hello","pod":"web-0","identity":null,"state":"ready",
            "ewma_ms":2.2,"in_flight":0,"requests":1,"failures":0,"latency":{"count":1},
            "breaker":{"reason":null,"trips":0,"since_ms":null,"next_probe_ms":null}}]}]}"#;
        let answer: Endpoints = serde_json::from_str(text).unwrap();
        let endpoint = &answer.services[0].endpoints[0];
        assert_eq!((endpoint.state.as_str(), endpoint.breaker.reason.as_str()), ("ready", ""));
        assert_eq!(endpoint.windows, Windows::default());
        let old = r#"{"decisions":[{"ago_ms":5,"direction":"outbound","target":"shop/a:80","route":null,"method":"GET",
            "path":"/","reason":"no-endpoints","status":503,"error":"x","tried":[],"elapsed_ms":1}]}"#;
        let answer: Decisions = serde_json::from_str(old).unwrap();
        assert_eq!(answer.decisions[0].reason.as_deref(), Some("no-endpoints"));
        assert_eq!(answer.decisions[0].id, "");
    }

    #[test]
    fn null_is_as_good_as_absent() {
        let text = r#"{"address":"a","pod":null,"zone":null,"windows":null,"history":null,"breaker":null}"#;
        let endpoint: Endpoint = serde_json::from_str(text).unwrap();
        assert_eq!((endpoint.pod.as_str(), endpoint.zone.as_str()), ("", ""));
        let text = r#"{"id":"a","attempts":null,"timeouts":null,"phases":null,"protocol":null}"#;
        let decision: Decision = serde_json::from_str(text).unwrap();
        assert!(decision.attempts.is_empty());
    }
}
