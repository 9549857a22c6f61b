//! What a proxy's admin endpoints say, as far as the dashboard reads it. What an older proxy does not
//! say is empty here; what nobody understands is a failure of that proxy alone.

use serde::{Deserialize, de::DeserializeOwned};

/// Paths that are asked for, in the order of [`Answers::parse`].
pub(super) const PATHS: [&str; 4] = ["/endpoints", "/inbound", "/events", "/certs"];

/// All of one proxy.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Answers {
    pub(super) services: Vec<Service>,
    pub(super) ports: Vec<InboundPort>,
    pub(super) events: Vec<Event>,
    pub(super) certificate: Certificate,
}

/// `GET /endpoints`: a destination that is a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) windows: Windows,
    pub(super) routes: Vec<Route>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// A route of a Service that requests took.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Route {
    pub(super) name: String,
    pub(super) windows: Windows,
}

/// An endpoint as its caller sees it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Endpoint {
    pub(super) address: String,
    pub(super) state: String,
    pub(super) ewma_ms: Option<f64>,
    pub(super) in_flight: u64,
    pub(super) breaker: Breaker,
    pub(super) windows: Windows,
}

/// Why an endpoint is ejected, and until when.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Breaker {
    pub(super) reason: Option<String>,
    pub(super) trips: u64,
    pub(super) next_probe_ms: Option<u64>,
}

/// Of the windows the one that is shown: the last ten seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Windows {
    #[serde(rename = "10s")]
    pub(super) last: Option<Window>,
}

/// What finished within a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Window {
    /// What it really covers.
    pub(super) seconds: f64,
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
}

/// `GET /inbound`: a port of the proxy's own pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct InboundPort {
    pub(super) port: u16,
    pub(super) callers: Vec<Caller>,
}

/// Who called it, since the proxy's start.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Caller {
    pub(super) id: String,
    pub(super) requests: u64,
    pub(super) failures: u64,
}

/// `GET /events`: an endpoint was ejected or taken back.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    pub(super) at_ms: u64,
    /// `namespace/name:port`.
    pub(super) service: String,
    pub(super) endpoint: String,
    pub(super) pod: Option<String>,
    pub(super) kind: String,
    pub(super) reason: Option<String>,
    pub(super) penalty_ms: Option<u64>,
}

/// `GET /certs`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Certificate {
    /// End of validity in Unix seconds; `None` without a certificate.
    pub(super) not_after: Option<u64>,
}

impl Answers {
    /// Reads what came; `None` where the proxy did not answer that path.
    ///
    /// # Errors
    /// What of the first answer that is not understood is wrong, and where.
    pub(super) fn parse(bodies: &[Option<impl AsRef<[u8]>>; 4]) -> Result<Self, String> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Endpoints {
            services: Vec<Service>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Inbound {
            ports: Vec<InboundPort>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Events {
            events: Vec<Event>,
        }
        let [endpoints, inbound, events, certs] = bodies;
        Ok(Self {
            services: read::<Endpoints>(PATHS[0], endpoints.as_ref())?.services,
            ports: read::<Inbound>(PATHS[1], inbound.as_ref())?.ports,
            events: read::<Events>(PATHS[2], events.as_ref())?.events,
            certificate: read(PATHS[3], certs.as_ref())?,
        })
    }
}

fn read<T: DeserializeOwned + Default>(
    path: &str,
    body: Option<&impl AsRef<[u8]>>,
) -> Result<T, String> {
    let Some(body) = body else { return Ok(T::default()) };
    serde_json::from_slice(body.as_ref()).map_err(|error| format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_proxy_says_less_and_is_understood() {
        let endpoints = r#"{"services":[{"namespace":"shop","name":"web","port":80,"target":"10.96.0.1:80",
            "protocol":"detect","endpoints":[{"address":"10.0.0.1:80","namespace":"shop","pod":"web-0",
            "identity":null,"state":"ready","ewma_ms":2.5,"in_flight":1,"requests":7,"failures":0,
            "latency":{"count":7,"p50_us":1},
            "breaker":{"reason":null,"trips":0,"since_ms":null,"next_probe_ms":null}}]}]}"#;
        let answers = Answers::parse(&[Some(endpoints), None, None, None]).unwrap();
        let endpoint = &answers.services[0].endpoints[0];
        assert_eq!((endpoint.in_flight, endpoint.windows.last), (1, None));
        assert_eq!(answers.certificate.not_after, None);
    }

    #[test]
    fn what_is_not_understood_names_its_path() {
        let error = Answers::parse(&[Some("{}"), Some("[1"), None, None]).unwrap_err();
        assert!(error.starts_with("/inbound: "), "{error}");
        let error = Answers::parse(&[Some(r#"{"services":3}"#), None, None, None]).unwrap_err();
        assert!(error.starts_with("/endpoints: "), "{error}");
    }
}
