//! Requests for the pod's application.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Collector, Labels, Names, Rows, Summed, with};
use crate::metrics::{
    TLS,
    inbound::{Caller, Port, Verdict},
    text::Exposition,
};

fn labels(port: &Port) -> Labels {
    vec![("port", port.label())]
}

impl Collector {
    pub(super) fn inbound(&self, out: &mut Exposition<'_>) {
        let ports = self.metrics.inbound.all();
        let requests = counted(&ports, "tls", &TLS[..2], |port| &port.requests);
        let help = "Requests that arrived for the pod's application";
        out.counters("remora_inbound_http_requests", help, requests);
        let bodies = |pick: fn(&Port) -> &AtomicU64| {
            ports.iter().map(move |port| (labels(port), pick(port).load(Relaxed)))
        };
        out.counters(
            "remora_inbound_http_request_body_bytes",
            "Bytes of the bodies of requests",
            bodies(|port| &port.bodies.requests),
        );
        out.counters(
            "remora_inbound_http_response_body_bytes",
            "Bytes of the bodies of responses",
            bodies(|port| &port.bodies.responses),
        );
        let verdicts = counted(&ports, "verdict", &Verdict::WORDS, |port| &port.verdicts);
        let help = "Requests and opaque connections by what policy said of them";
        out.counters("remora_inbound_policy_decisions", help, verdicts);
        let rows = ports.iter().map(|port| (labels(port), Summed::of([&port.flow])));
        let names = Names {
            responses: "remora_inbound_http_responses",
            grpc: "remora_inbound_grpc_responses",
            failures: "remora_inbound_http_failures",
            cancelled: "remora_inbound_http_cancelled",
            latency: "remora_inbound_http_latency_seconds",
            what: "requests for the pod's application",
        };
        Rows(rows.collect()).show(&names, out);
        let help = "Requests for the pod's application by who sent them";
        let requests = called(&ports, |caller| &caller.requests);
        out.counters("remora_inbound_caller_requests", help, requests);
        let help = "Failed of the requests of a caller";
        let failures = called(&ports, |caller| &caller.failures);
        out.counters("remora_inbound_caller_failures", help, failures);
    }
}

fn counted<'a>(
    ports: &'a [Arc<Port>],
    label: &'static str,
    words: &'a [&'static str],
    pick: fn(&Port) -> &[AtomicU64],
) -> impl Iterator<Item = (Labels, u64)> + 'a {
    ports.iter().flat_map(move |port| {
        let counts = words.iter().zip(pick(port));
        counts.map(move |(word, count)| (with(&labels(port), label, word), count.load(Relaxed)))
    })
}

fn called(
    ports: &[Arc<Port>],
    pick: fn(&Caller) -> &AtomicU64,
) -> impl Iterator<Item = (Labels, u64)> {
    ports.iter().flat_map(move |port| {
        let callers = port.callers().into_iter();
        callers.map(move |(id, caller)| {
            (with(&labels(port), "client_id", &id), pick(&caller).load(Relaxed))
        })
    })
}
