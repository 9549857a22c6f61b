//! What to do about each reason that a proxy gives, in a sentence; the whole of it is in
//! `docs/reasons.md`.

/// Reason and next step.
const ADVICE: [(&str, &str); 18] = [
    (
        "no-route",
        "Look at the Service's ports and at its routes: none of them takes this request, or the one \
         that does has no backend that exists (the route's status says which).",
    ),
    (
        "no-endpoints",
        "See that the Service's selector matches pods that are ready and have its target port: \
         kubectl get endpointslices, and the pods' readiness.",
    ),
    (
        "all-ejected",
        "Every endpoint that is left fails. `remora endpoints` says why each was ejected and when \
         it is tried again; the cause is in the pods' own logs.",
    ),
    (
        "connect-failed",
        "Nothing listens at that address: see that the application listens on that port, and that \
         its pod is running. `remora why-endpoint` has the address's story.",
    ),
    (
        "connect-timeout",
        "Packets get lost on the way: look at the pod's node and at NetworkPolicies.",
    ),
    (
        "tls-failed",
        "See that the other pod has a running proxy, and compare `/certs` of both: one certificate \
         has expired, or they trust different roots. `remora check` looks at both.",
    ),
    (
        "identity-mismatch",
        "The address belongs to another pod by now; that passes with the next update. Where it \
         stays, somebody answers in the pod's stead.",
    ),
    (
        "request-timeout",
        "The application, or the client's own upload, was slower than the bound: mend it, or raise \
         timeout.remora.io/request (for gRPC the client's own deadline counts too).",
    ),
    (
        "response-timeout",
        "The application did not begin to answer in time: mend it, or raise \
         timeout.remora.io/response or retry.remora.io/timeout.",
    ),
    ("retry-limit", "Failures outlast the allowed retries: see why the endpoints above failed."),
    (
        "retry-budget",
        "Too many requests fail at once for more retries to help: see why the endpoints above \
         failed.",
    ),
    (
        "overloaded",
        "A limit was reached; the sentence of the error names which one. Raise it, or add replicas.",
    ),
    (
        "denied",
        "The pod's inbound policy refuses this caller: give the caller a sidecar, or change \
         config.remora.io/default-inbound-policy.",
    ),
    (
        "bad-request",
        "The client sends something that two parsers could read in two ways; the sentence of the \
         error names the field.",
    ),
    (
        "header-too-large",
        "The request's head is over config.remora.io/max-header-size: shorten it (cookies that \
         grow?), or raise the annotation.",
    ),
    (
        "discovery-timeout",
        "The proxy has no word from its control plane about this destination: `/config` of the \
         proxy names the error, `remora check` looks at the control plane.",
    ),
    (
        "upstream-reset",
        "The application, or its proxy, broke the connection: see the pod's log and restarts. Where \
         a repetition does no harm, retry.remora.io/http: 502 repeats it.",
    ),
    ("loop", "Somebody dials the proxy's own port; dial the application's."),
];

/// The next step for a reason; `None` for a word of a later version.
pub(super) fn of(reason: &str) -> Option<&'static str> {
    ADVICE.iter().find(|(word, _)| *word == reason).map(|(_, advice)| *advice)
}

/// Where all of it is said.
pub(super) fn page(reason: &str) -> String {
    format!("docs/reasons.md#{reason}")
}

#[cfg(test)]
mod tests {
    use remora_proxy::error::Reason;

    use super::*;

    #[test]
    fn every_reason_of_the_proxy_has_advice() {
        for reason in Reason::ALL {
            assert!(of(reason.as_str()).is_some(), "{}", reason.as_str());
        }
        assert_eq!(ADVICE.len(), Reason::ALL.len());
        assert_eq!(of("of-a-later-version"), None);
    }
}
